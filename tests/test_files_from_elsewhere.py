"""Demonstrations that others have written: what is read, and what is refused with what to do."""

import fcntl
import json
import re

import h5py
import numpy as np
import pytest
from test_supervised import data

from lightning_ript.cli import main
from lightning_ript.commands.check_data import inspect
from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.demos.file_conventions import plain
from lightning_ript.demos.find_files import find_files
from lightning_ript.demos.hdf5 import read_demonstrations, read_init_states
from lightning_ript.envs.libero.suites import suite_tasks

KITCHEN = suite_tasks("libero_90")[30]
STEPS = 12


def demonstration(group, after=False, sizes=(2, 2), rgb=("agentview_rgb", "eye_in_hand_rgb")):
    """Fills a group with a moving arm, seen before or after each action."""
    rng = np.random.default_rng(STEPS)
    qpos = np.cumsum(rng.uniform(0.01, 0.02, (STEPS + 1, 9)), axis=0)
    seen = qpos[1:] if after else qpos[:-1]
    group["actions"] = rng.uniform(-1, 1, (STEPS, 7))
    group["states"] = np.hstack([np.arange(STEPS)[:, None] / 20, qpos[:-1], qpos[:-1]])
    group["robot_states"] = rng.normal(size=(STEPS, 9))
    group["rewards"] = group["dones"] = np.arange(STEPS) == STEPS - 1
    arrays = {"joint_states": seen[:, :7], "gripper_states": seen[:, 7:]}
    arrays["ee_states"] = rng.normal(size=(STEPS, 6))
    arrays["ee_pos"], arrays["ee_ori"] = np.split(arrays["ee_states"], 2, axis=1)
    arrays |= {name: rng.integers(0, 256, (STEPS, *sizes, 3), np.uint8) for name in rgb}
    for name, array in arrays.items():
        group[f"obs/{name}"] = array


def openvla(folder, task=KITCHEN, numbers=(0, 2, 10), ending="_demo.hdf5"):
    """As OpenVLA's regenerate_libero_dataset.py writes it: no attribute, failures left out."""
    path = folder / f"{task.name}{ending}"
    with h5py.File(path, "w") as file:
        for number in numbers:
            demonstration(file.create_group(f"data/demo_{number}"))
    return path


def robomimic(folder):
    """As robomimic has it, with images of its own names and what is not asked for."""
    path = folder / "can.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "PickPlaceCan", "type": 1})
        data.attrs["language_instruction"] = "put the can into the bin"
        for name in ("demo_b", "demo_7", "demo_a"):
            group = data.create_group(name)
            demonstration(group, rgb=("agentview_image",))
            group.move("obs/joint_states", "obs/robot0_joint_pos")
            group["obs/object"] = np.zeros((STEPS, 14))
            group["obs/agentview_depth"] = np.zeros((STEPS, 2, 2, 1), np.float32)
            group["next_obs/object"] = np.zeros((STEPS, 14))
        file["mask/train"] = np.array([b"demo_b", b"demo_7"])
        file["data/notes"] = np.zeros(3)
    return path


def test_openvlas_replayed_files(tmp_path):
    path = openvla(tmp_path)
    assert KITCHEN.name.startswith("KITCHEN_SCENE")
    assert [each.name for each in read_demonstrations(path)] == ["demo_0", "demo_2", "demo_10"]
    assert inspect(path).problems == ()
    found = data(path, before_action=True)
    item = found.training[0]
    assert item["language"] == KITCHEN.language
    with h5py.File(path) as file:
        group = file["data/demo_0"]
        # The first action stays: there is an observation before it.
        np.testing.assert_allclose(item["actions"][:STEPS], group["actions"], rtol=1e-6)
        np.testing.assert_allclose(item["lowdim"]["ee_pos"], group["obs/ee_pos"][0], rtol=1e-6)
        assert np.array_equal(item["images"]["agentview_rgb"], group["obs/agentview_rgb"][0][::-1])
        assert np.array_equal(read_init_states(path)[0], group["states"][0])


def test_robomimics_files(tmp_path):
    path = robomimic(tmp_path)
    assert [each.name for each in read_demonstrations(path)] == ["demo_7", "demo_a", "demo_b"]
    found = data(path, before_action=True)
    item = found.training[0]
    assert item["language"] == "put the can into the bin"
    assert item["images"].keys() == {"agentview_image"}
    assert {"object", "robot0_joint_pos"} <= item["lowdim"].keys()
    assert len(found.training) == 2 * STEPS
    with h5py.File(path) as file:  # upright there
        seen = file["data/demo_7/obs/agentview_image"][0]
    assert np.array_equal(item["images"]["agentview_image"], seen)
    observations, _ = DemonstrationDataModule.spaces_of({"files": str(path)})
    assert observations["agentview_image"].shape == (2, 2, 3)


def still(group):
    group["obs/joint_states"][:] = 0


def no_states(group):
    del group["states"]


@pytest.mark.parametrize(
    ("after", "attribute", "change", "told"),
    [
        (True, "problem_info", None, True),
        (False, "problem_info", None, False),  # replayed by others, with LIBERO's attributes
        (True, "env_args", None, True),
        (True, "problem_info", still, True),  # nothing tells: as LIBERO publishes
        (True, "env_args", still, False),
        (False, "problem_info", no_states, True),
        (True, "env_args", no_states, False),
    ],
)
def test_which_observation_is_paired_with_an_action(tmp_path, after, attribute, change, told):
    path = tmp_path / "mine_demo.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_0")
        demonstration(group, after=after)
        if change is not None:
            change(group)
        file["data"].attrs[attribute] = json.dumps({"language_instruction": "go"})
    (found,) = read_demonstrations(path)
    assert found.observed_after is told


def test_two_files_of_a_task(tmp_path):
    for ending in ("_demo.hdf5", "_demo.h5"):
        (tmp_path / f"lift{ending}").touch()
    with pytest.raises(
        ValueError, match=r"lift_demo\.h5 and .*lift_demo\.hdf5 are of the same task"
    ):
        find_files([tmp_path])


@pytest.mark.parametrize("ending", ["_demo.h5", "_demo.HDF5", ".hdf5", ".H5"])
def test_endings(tmp_path, ending):
    openvla(tmp_path, ending=ending)
    (tmp_path / "._hidden.h5").touch()
    found = data(str(tmp_path), suite="libero_90", task_subset=[KITCHEN.name])
    assert found.instructions == [KITCHEN.language]


@pytest.mark.parametrize(
    "stored",
    [
        "pick up the milk",
        '"pick up the milk"',
        "\"'pick up the milk'\"",
        ' "pick up the milk',
        b"pick up the milk",
        np.bytes_(b'"pick up the milk"'),
        ["pick up the milk"],
        list("pick up the milk"),
        ["pick", "up", "the", "milk"],
        ["pick up the milk", "take the milk"],
        np.array(["pick up the milk"], object),
        np.array([b"pick", b"up", b"the", b"milk"]),
        np.array(b"pick up the milk"),
        '["pick up the milk"]',
        "['pick', 'up', 'the', 'milk']",
    ],
)
def test_instructions_are_unwrapped(stored):
    assert plain(stored) == "pick up the milk"


@pytest.mark.parametrize(
    "attributes",
    [
        {"language_instruction": np.bytes_(b"go")},
        {"language_instruction": np.array([b"go"])},
        {"problem_info": np.bytes_(b'{"language_instruction": ["go"]}')},
        {"problem_info": '{"language_instruction": "\\"go\\""}'},
    ],
)
def test_where_instructions_stand(tmp_path, attributes):
    path = openvla(tmp_path).rename(tmp_path / "mine.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs.update(attributes)
    assert data(path).instructions == ["go"]


def nameless(folder):
    return openvla(folder).rename(folder / "mine.hdf5")


def raw(folder):
    path = openvla(folder)
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs"]
    return path


def pointer(folder):
    path = folder / "mine_demo.hdf5"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return path


def unclosed(folder):
    """What a killed writer leaves: the file says that it is open."""
    path = folder / "left_demo.hdf5"
    with h5py.File(folder / "open", "w", libver="latest") as file:
        file.create_group("data")
        file.flush()
        path.write_bytes((folder / "open").read_bytes())
    return path


def records(folder):
    (folder / "1.0.0").mkdir()
    (folder / "1.0.0/libero_goal-train.tfrecord-00000-of-00016").touch()
    return folder


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (nameless, r"mine\.hdf5 does not say what the robot is told: name it after its task"),
        (raw, r"no observations in data/demo_2: .*dataset_states_to_obs\.py"),
        (pointer, r"is Git LFS's pointer to a file, not the file: run `git lfs pull`"),
        (
            unclosed,
            r"was not closed by the program that wrote it: .*`h5clear -s .*left_demo\.hdf5`",
        ),
        (records, r"no \.hdf5 file of demonstrations, but RLDS's TFRecords, .*hf://lerobot/libero"),
    ],
)
def test_refusals_say_what_to_do(tmp_path, write, said):
    place = write(tmp_path)
    with pytest.raises((OSError, ValueError), match=said):
        data(place)
    if place.is_file():
        assert re.search(said, f"{place} {inspect(place).problems[0]}")


def test_without_states_no_episode_can_start(tmp_path):
    path = openvla(tmp_path)
    with h5py.File(path, "a") as file:
        no_states(file["data/demo_0"])
    assert len(data(path).training) == 2 * STEPS
    with pytest.raises(ValueError, match=r"has no states in data/demo_0, so no episode can start"):
        read_init_states(path)


def test_a_file_that_is_being_written_is_not_called_damaged(tmp_path, capsys):
    path = openvla(tmp_path)
    with path.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"open for writing in another.*FILE_LOCKING"):
            data(path)
        with pytest.raises(SystemExit):
            main(["data", "check", str(tmp_path)])
    assert "is open for writing in another program" in capsys.readouterr().out
    with path.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert len(data(path).training) == 2 * STEPS


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    original = h5py.File

    def without(path, *arguments, **settings):
        if settings.get("locking") is not False:
            raise OSError(
                524, "Unable to synchronously open file (unable to lock file, errno = 524"
            )
        return original(path, *arguments, **settings)

    path = openvla(tmp_path)
    monkeypatch.setattr(h5py, "File", without)
    assert data(path).training[0]["images"].keys() == {"agentview_rgb", "eye_in_hand_rgb"}


def test_what_the_system_refuses_is_not_called_damaged(tmp_path, monkeypatch):
    path = openvla(tmp_path)

    def refused(*_, **__):
        raise PermissionError(13, "Unable to synchronously open file (unable to open file: ...")

    monkeypatch.setattr(h5py, "File", refused)
    with pytest.raises(PermissionError, match="Permission denied") as caught:
        data(path)
    assert caught.value.filename == str(path)
