"""Which demonstrations are read, how they are shared out, and how files are kept open."""

import os
from collections import Counter
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from test_supervised import LENGTHS, TASK, TINY, data, write_demonstrations

from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.demos.find_files import find_files
from lightning_ript.demos.open_files import OpenFiles
from lightning_ript.demos.trajectory import busy_steps, few_shot
from lightning_ript.envs.libero.suites import suite_tasks
from lightning_ript.policies.quest import QueSTPolicy
from lightning_ript.policies.quest.stages import SupervisedFineTuning

TASKS = suite_tasks("libero_object")


@pytest.fixture
def folder(tmp_path):
    """Demonstrations of the first four tasks of LIBERO-Object, and of something else."""
    for task in TASKS[:4]:
        write_demonstrations(tmp_path / f"{task.name}_demo.hdf5", lengths=(10, 12))
    write_demonstrations(tmp_path / "mine_demo.hdf5", lengths=(10, 12))
    return tmp_path


@pytest.fixture
def openings(monkeypatch):
    """Counts how often each file is opened."""
    counted = Counter()
    original = h5py.File

    def opened(path, *arguments, **settings):
        counted[os.path.basename(path)] += 1
        return original(path, *arguments, **settings)

    monkeypatch.setattr(h5py, "File", opened)
    return counted


@pytest.mark.parity(
    area="Demonstrations",
    point="Which ones are the few",
    reference="evenly spaced, both ends included",
)
def test_few_shot_selection():
    assert few_shot("f", 50, 5) == [0, 12, 24, 36, 49]
    assert few_shot("f", 50, 1) == [0]
    assert few_shot("f", 50, 2) == [0, 49]
    assert few_shot("f", 3, 3) == few_shot("f", 3, None) == [0, 1, 2]
    assert few_shot("f", 10, 4) == [0, 3, 6, 9]
    with pytest.raises(ValueError, match="f has 3 demonstrations, but 4 of each file are to be"):
        few_shot("f", 3, 4)


def test_few_demonstrations_are_spread_over_the_file(tmp_path):
    file = write_demonstrations(tmp_path / "mine_demo.hdf5", lengths=range(10, 21))
    module = data(file, demonstrations_per_file=4, validation_fraction=0.25)
    used = [
        [each.demonstration.num_samples for each in part.trajectories]
        for part in (module.training, module.validation)
    ]
    assert used == [[10, 13, 16], [20]]
    with pytest.raises(ValueError, match=r"mine_demo\.hdf5 has 11 demonstrations, but 12 of each"):
        data(file, demonstrations_per_file=12)


def test_files_of_chosen_tasks(folder):
    module = data(folder, suite="libero_object", task_subset=[2, TASKS[0].name])
    assert module.instructions == sorted([TASKS[0].language, TASKS[2].language])
    assert len(data(folder).instructions) == 5
    with pytest.raises(FileNotFoundError, match=rf"holds no {TASKS[7].name}_demo\.hdf5: add"):
        data(folder, suite="libero_object", task_subset=[0, 7])
    with pytest.raises(FileNotFoundError, match=r"_demo\.hdf5 and 5 more: add what is missing"):
        data(folder, suite="libero_object")
    with pytest.raises(ValueError, match=r"mine_demo.hdf5 holds demonstrations of 'mine', which"):
        data(folder / "mine_demo.hdf5", suite="libero_object")
    with pytest.raises(ValueError, match="set suite, too"):
        data(folder, task_subset=[0])
    with pytest.raises(ValueError, match="has no task 10"):
        data(folder, suite="libero_object", task_subset=[10])


def test_named_files_need_not_be_of_all_tasks(folder):
    file = folder / f"{TASKS[1].name}_demo.hdf5"
    assert find_files([file], TASKS) == [file]


def test_the_ranks_share_a_batch(tmp_path):
    file = write_demonstrations(tmp_path / "mine_demo.hdf5")
    module = DemonstrationDataModule([file], batch_size=12)
    module.trainer = SimpleNamespace(world_size=4, global_rank=0)
    module.setup("fit")
    assert module.train_dataloader().batch_size == 3
    assert module.val_dataloader().batch_size == 3
    module.trainer.world_size = 5
    with pytest.raises(ValueError, match="batch_size is 12, which 5 processes cannot share"):
        module.setup("fit")


@pytest.mark.parametrize("in_memory", [False, True])
def test_setting_up_opens_each_file_once(folder, openings, in_memory):
    data(folder, in_memory=in_memory, demonstrations_per_file=2)
    assert set(openings.values()) == {1}
    assert len(openings) == 5


def test_only_so_many_files_stay_open(folder, openings):
    module = data(folder)
    openings.clear()
    steps = 10  # the second demonstration of each file is held out
    dataset = module.training
    dataset._files = OpenFiles(limit=2)
    order = [0, 1, 0, 1, 2, 1, 0]  # the last but one is still open; 0 has made way
    for number in order:
        dataset[number * steps]
        assert len(dataset._files) <= 2
    files = sorted(path.name for path in folder.iterdir())
    assert [openings[file] for file in files] == [2, 1, 1, 0, 0]


@pytest.mark.parametrize("storage", [{"compression": "gzip"}, {"chunks": (3, 8, 8, 1)}])
def test_chunked_and_compressed_pictures(tmp_path, storage):
    plain = write_demonstrations(tmp_path / "plain_demo.hdf5")
    other = write_demonstrations(tmp_path / "other_demo.hdf5")
    with h5py.File(other, "a") as file:
        for number in range(len(LENGTHS)):
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                name = f"data/demo_{number}/obs/{camera}"
                pictures = file[name][()]
                del file[name]
                file.create_dataset(name, data=pictures, **storage)
                assert file[name].chunks
    one, two = data(plain).training, data(other).training
    for index in (0, 19, 20, 33):
        for camera, pixels in one[index]["images"].items():
            assert np.array_equal(pixels, two[index]["images"][camera])


def test_arrays_of_another_length_are_refused(tmp_path):
    file = write_demonstrations(tmp_path / f"{TASK}_demo.hdf5")
    with h5py.File(file, "a") as opened:
        del opened["data/demo_1/obs/ee_pos"]
        opened["data/demo_1/obs/ee_pos"] = np.zeros((24, 3))
    with pytest.raises(ValueError, match=r"has 24 steps of obs/ee_pos in data/demo_1, but 25 act"):
        data(file)
    assert len(data(file, only_actions=True).training) == 45


def test_idle_steps_are_left_out(tmp_path):
    file = write_demonstrations(tmp_path / "mine_demo.hdf5", lengths=(6, 6))
    with h5py.File(file, "a") as opened:
        actions = opened["data/demo_0/actions"]
        actions[:, :6] = [[0], [0.5], [0], [0], [4e-5], [0.1]]
        # Nothing yet, moves, rests, closes the gripper, rests (by rounding), moves.
        actions[:, 6] = [-1, -1, -1, 1, 1, 1]
    assert busy_steps(np.zeros((3, 7))).tolist() == []
    everything = data(file).training
    for in_memory in (False, True):
        found = data(file, skip_idle=True, in_memory=in_memory, block_size=2).training
        assert found.trajectories[0].steps.tolist() == [1, 3, 5]
        assert len(found) == 3
        assert found[1]["actions"][:, 0] == pytest.approx([0, 0.1])
        assert found[2]["actions"][:, 0] == pytest.approx([0.1, 0.1])
        for index, step in enumerate((1, 3, 5)):
            for kind in ("images", "lowdim"):
                for name, value in found[index][kind].items():
                    assert np.array_equal(value, everything[step][kind][name])


@pytest.mark.parity(
    area="Demonstrations",
    point="Which observation OpenVLA-OFT's scale head sees with an action",
    reference="the one before it (data replayed in the simulator)",
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_actions_meet_the_observation_before_them(in_memory, tmp_path):
    """Observation t - 1 with action t of published files; of our own, what the file pairs."""
    file = write_demonstrations(tmp_path / "published_demo.hdf5", lengths=(6, 6))
    with h5py.File(file, "a") as opened:
        opened["data/demo_0/actions"][:, 0] = [0, 0.1, 0.2, 0, 0.4, 0.5]
        opened["data/demo_0/actions"][:, 1:] = 0
    stored = data(file).training
    settings = {"before_action": True, "in_memory": in_memory}
    moved = data(file, **settings).training
    assert len(moved) == 5
    busy = data(file, skip_idle=True, **settings).training
    assert [busy[i]["actions"][0, 0] for i in range(4)] == pytest.approx([0.1, 0.2, 0.4, 0.5])
    for ours, seen in ((moved, (0, 1, 2, 3, 4)), (busy, (0, 1, 3, 4))):
        for index, step in enumerate(seen):
            assert ours[index]["actions"][0, 0] == stored[step + 1]["actions"][0, 0]
            for kind in ("images", "lowdim"):
                for name, value in ours[index][kind].items():
                    assert np.array_equal(value, stored[step][kind][name])
    ours = write_demonstrations(tmp_path / "ours_demo.hdf5", lengths=(6, 6))
    with h5py.File(ours, "a") as opened:
        opened["data"].attrs["observations"] = "before"
    assert len(data(ours, **settings).training) == 6


def test_what_is_kept_in_memory(tmp_path):
    file = write_demonstrations(tmp_path / "mine_demo.hdf5")
    (first, *_) = data(file).training.trajectories
    assert {name: array.dtype for name, array in first.arrays.items()} == dict.fromkeys(
        ("actions", "joint_states", "ee_pos", "gripper_states"), np.dtype(np.float32)
    )
    (first, *_) = data(file, in_memory=True).training.trajectories
    assert first.arrays["agentview_rgb"].dtype == np.uint8
    (first, *_) = data(file, only_actions=True, in_memory=True).training.trajectories
    assert first.arrays.keys() == {"actions"}


def test_fine_tuning_encodes_all_instructions_first(folder, monkeypatch):
    policy = QueSTPolicy(TINY)
    policy.checkpoint = "a trained autoencoder"
    asked = []
    monkeypatch.setattr(policy, "embed", asked.extend)
    module = SupervisedFineTuning(policy)
    module._trainer = SimpleNamespace(datamodule=data(folder))
    module.setup("fit")
    languages = [task.language for task in TASKS[:4]]
    assert sorted(asked) == sorted([*languages, "Pick the milk"])
