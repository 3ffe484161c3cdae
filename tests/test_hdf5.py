"""The HDF5 files: LIBERO's layout, additions that survive a kill, refusals that name the file."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import mujoco
import numpy as np
import pytest

from lightning_ript.demos.hdf5 import (
    DemonstrationWriter,
    RecordedEpisode,
    axis_angle,
    read_demonstrations,
    read_init_states,
)
from lightning_ript.envs.libero.suites import libero_root, suite_tasks

TASK = suite_tasks("libero_object")[0]
SETTINGS = {"seed": 0, "noise": 0.0}
FILE = f"{TASK.name}_demo.hdf5"


def episode(attempt: int, steps: int = 5) -> RecordedEpisode:
    random = np.random.default_rng(attempt)
    image = (steps, 8, 8, 3)
    quaternions = random.normal(size=(steps, 4))
    return RecordedEpisode(
        actions=random.uniform(-1, 1, (steps, 7)).astype(np.float32),
        states=random.normal(size=(steps, 11)),
        observations={
            "agentview_rgb": random.integers(0, 256, image, dtype=np.uint8),
            "eye_in_hand_rgb": random.integers(0, 256, image, dtype=np.uint8),
            "joint_states": random.normal(size=(steps, 7)).astype(np.float32),
            "ee_pos": random.normal(size=(steps, 3)).astype(np.float32),
            "ee_quat": quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True),
            "gripper_states": random.normal(size=(steps, 2)).astype(np.float32),
        },
        init_state=random.normal(size=11),
        model_file="<mujoco/>" + " " * 100_000,  # larger than an HDF5 attribute's 64 KiB header
        attempt=attempt,
    )


def write(path: Path, *attempts: int) -> DemonstrationWriter:
    writer = DemonstrationWriter(path, TASK, 8, SETTINGS)
    for attempt in attempts:
        writer.append(episode(attempt))
    return writer


def test_layout_is_liberos(tmp_path: Path) -> None:
    write(tmp_path / FILE, 0, 2)
    steps = {
        "actions": (7,),
        "states": (11,),
        "robot_states": (9,),
        "rewards": (),
        "dones": (),
        "obs/agentview_rgb": (8, 8, 3),
        "obs/eye_in_hand_rgb": (8, 8, 3),
        "obs/joint_states": (7,),
        "obs/ee_states": (6,),
        "obs/ee_pos": (3,),
        "obs/ee_ori": (3,),
        "obs/gripper_states": (2,),
    }
    with h5py.File(tmp_path / FILE) as file:
        data = file["data"]
        assert (data.attrs["num_demos"], data.attrs["total"]) == (2, 10)
        assert data.attrs["macros_image_convention"] == "opengl"
        assert "(:goal" in data.attrs["bddl_file_content"]
        assert data.attrs["bddl_file_name"].endswith(f"libero_object/{TASK.name}.bddl")
        assert list(data) == ["demo_0", "demo_1"]
        source, group = episode(2), data["demo_1"]
        found: dict[str, tuple[int, ...]] = {}
        group.visititems(
            lambda name, item: found.update({name: item.shape}) if hasattr(item, "shape") else None
        )
        assert found == {name: (5, *shape) for name, shape in steps.items()}
        assert group.attrs["num_samples"] == 5
        assert len(group.attrs["model_file"]) > 100_000
        np.testing.assert_array_equal(group.attrs["init_state"], source.init_state)
        np.testing.assert_array_equal(group["rewards"], [0, 0, 0, 0, 1])
        seen = source.observations
        robot = np.hstack([seen["gripper_states"], seen["ee_pos"], seen["ee_quat"]])
        np.testing.assert_array_equal(group["robot_states"], robot)


def test_liberos_own_reader_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / FILE, 0, 1)
    reader = libero_root() / "utils" / "dataset_utils.py"  # by file: its package asks on stdin
    spec = importlib.util.spec_from_file_location("dataset_utils", reader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.get_dataset_info(tmp_path / FILE)
    printed = capsys.readouterr().out
    assert "total transitions: 10" in printed
    assert f"language instruction: {TASK.language}" in printed


def test_reader_is_lazy_and_exact(tmp_path: Path) -> None:
    write(tmp_path / FILE, 0, 3)
    first, second = read_demonstrations(tmp_path / FILE)
    assert (first.name, first.num_samples, first.language) == ("demo_0", 5, TASK.language)
    source = episode(3)
    images = source.observations["agentview_rgb"]
    np.testing.assert_array_equal(second.read("obs/agentview_rgb", 1, 3), images[1:3, ::-1])
    assert second.upside_down
    np.testing.assert_array_equal(second.read("actions"), source.actions)
    states = read_init_states(tmp_path / FILE)
    np.testing.assert_array_equal(states[1], source.init_state)
    with pytest.raises(ValueError, match=r"_demo\.hdf5 has no obs/depth in data/demo_1"):
        second.read("obs/depth")


def test_demonstrations_are_ordered_by_number(tmp_path: Path) -> None:
    write(tmp_path / FILE, *range(11))  # HDF5 lists demo_10 before demo_2
    names = [demonstration.name for demonstration in read_demonstrations(tmp_path / FILE)]
    assert names == [f"demo_{i}" for i in range(11)]


def test_a_new_writer_goes_on(tmp_path: Path) -> None:
    write(tmp_path / FILE, 0, 3)
    (tmp_path / f".{TASK.name}_demo.77.hdf5").write_bytes(b"half a copy")
    writer = DemonstrationWriter(tmp_path / FILE, TASK, 8, SETTINGS)
    assert (writer.count, writer.next_attempt) == (2, 4)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    writer.append(episode(5))
    assert len(read_demonstrations(tmp_path / FILE)) == 3


def test_a_failed_addition_leaves_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = write(tmp_path / FILE, 0)
    before = (tmp_path / FILE).read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("lightning_ript.demos.hdf5._write", full)
    with pytest.raises(OSError, match="no space"):
        writer.append(episode(1))
    assert (tmp_path / FILE).read_bytes() == before
    assert (writer.count, writer.next_attempt) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_killed_writer_leaves_whole_demonstrations(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_hdf5 import write\n"
        "write(Path(sys.argv[2]), *range(100_000))"
    )
    path = tmp_path / FILE
    process = subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parent), path])
    while not path.exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    demonstrations = read_demonstrations(path)
    assert demonstrations
    source = episode(len(demonstrations) - 1)
    np.testing.assert_array_equal(demonstrations[-1].read("actions"), source.actions)
    assert DemonstrationWriter(path, TASK, 8, SETTINGS).count == len(demonstrations)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path / FILE, 0)
    with pytest.raises(ValueError, match=r"_demo\.hdf5 was made with noise=0\.0, not 0\.1"):
        DemonstrationWriter(tmp_path / FILE, TASK, 8, {**SETTINGS, "noise": 0.1})
    with pytest.raises(ValueError, match="was made with image_size=8, not 16"):
        DemonstrationWriter(tmp_path / FILE, TASK, 16, SETTINGS)


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with pytest.raises(FileNotFoundError, match=r"no demonstration file .*_demo\.hdf5"):
        read_demonstrations(path)
    write(path, 0)
    whole = path.read_bytes()
    for content in (b"", b"PK not HDF5", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"_demo\.hdf5 is damaged or no HDF5 file"):
            read_demonstrations(path)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(ValueError, match=r"_demo\.hdf5 has no group `data`"):
        read_demonstrations(path)
    with h5py.File(path, "w") as file:
        file.create_group("data/demo_0")
    with pytest.raises(ValueError, match=r"_demo\.hdf5 is not laid out"):
        read_demonstrations(path)


def test_published_files_are_not_added_to(tmp_path: Path) -> None:
    write(tmp_path / FILE, 0)
    with h5py.File(tmp_path / FILE, "a") as file:
        del file["data"].attrs["collection_settings"]
    assert len(read_demonstrations(tmp_path / FILE)) == 1
    with pytest.raises(ValueError, match="will not add to it"):
        DemonstrationWriter(tmp_path / FILE, TASK, 8, SETTINGS)


def test_uneven_episodes_are_refused(tmp_path: Path) -> None:
    uneven = episode(0)
    uneven = RecordedEpisode(**{**vars(uneven), "states": uneven.states[:-1]})
    with pytest.raises(ValueError, match="different or no lengths"):
        DemonstrationWriter(tmp_path / FILE, TASK, 8, SETTINGS).append(uneven)


def test_axis_angle_is_mujocos() -> None:
    quaternions = np.random.default_rng(0).normal(size=(20, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    for quaternion, vector in zip(quaternions, axis_angle(quaternions), strict=True):
        back, angle = np.empty(4), np.linalg.norm(vector)
        mujoco.mju_axisAngle2Quat(back, vector / angle, angle)
        np.testing.assert_allclose(back[[1, 2, 3, 0]], quaternion, atol=1e-12)
    np.testing.assert_array_equal(axis_angle(np.array([[0.0, 0.0, 0.0, 1.0]])), np.zeros((1, 3)))
