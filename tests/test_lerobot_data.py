"""Datasets in LeRobot's format v3, on two small ones that LeRobot 0.4.4 wrote itself.

`fixtures/lerobot`: four episodes of two tasks at 10 pictures a second, in one table and one video
per camera. What they say is what `state` and `action` compute; the tables show what `picture` does,
and the videos what compression has left of it.
"""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lightning_ript.cli import main
from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.demos.lerobot import LeRobotDataset
from lightning_ript.demos.pictures import VideoFile
from lightning_ript.envs.libero.suites import suite_tasks
from lightning_ript.policies.smolvla import SmolVLAPolicy
from lightning_ript.policies.smolvla.create import SmallSizes, new_smolvla

FOLDERS = Path(__file__).parent / "fixtures" / "lerobot"
SOUP = "pick up the alphabet soup and place it in the basket"
CHEESE = "pick up the cream cheese and place it in the basket"
EPISODES = {SOUP: [(0, 10), (2, 9)], CHEESE: [(1, 12), (3, 7)]}  # number and length
VIDEO = "videos/observation.images.image/chunk-000/file-000.mp4"
TABLE = "data/chunk-000/file-000.parquet"
STATE = {"ee_pos": slice(0, 3), "ee_ori": slice(3, 6), "gripper_states": slice(6, 8)}


def picture(episode, step, camera):
    """As the files have it, which is mirrored against what ours hold."""
    y, x = np.mgrid[:64, :64]
    blue = np.full_like(x, 60 + 120 * camera)
    red = x // 2 + 25 * step % 200
    return np.stack([red, 2 * y + 30 * episode, blue], -1).astype(np.uint8)


@functools.cache
def compressed(camera):
    """All pictures of a video one after the other, as FFmpeg decodes them without any seeking."""
    name = ("observation.images.image", "observation.images.image2")[camera]
    path = FOLDERS / "video" / "videos" / name / "chunk-000" / "file-000.mp4"
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def shown(kind, episode, step, camera):
    """What a dataset of a kind must show."""
    if kind == "image":
        return picture(episode, step, camera)
    return compressed(camera)[sum((10, 12, 9, 7)[:episode]) + step]


def state(episode, step):
    return np.arange(8) + 10 * step + 100 * episode


def action(episode, step):
    return np.arange(7) / 10 + step / 100 + episode / 10 - 0.5


def data(place, **settings):
    chosen = {"block_size": 4, "batch_size": 8, "validation_fraction": 0, **settings}
    module = DemonstrationDataModule([str(place)], **chosen)
    module.setup("fit")
    return module


@pytest.fixture(params=["video", "image"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(FOLDERS / request.param, tmp_path / request.param))


@pytest.fixture
def videos(tmp_path):
    return Path(shutil.copytree(FOLDERS / "video", tmp_path / "video"))


def edit(path, change):
    """Changes a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def steps():
    """Episode, step and length of every step, task by task as they are read."""
    for episodes in EPISODES.values():
        for episode, length in episodes:
            for step in range(length):
                yield episode, step, length


def check(item, kind, episode, step, length):
    for number, camera in enumerate(("agentview_rgb", "eye_in_hand_rgb")):
        seen = item["images"][camera]
        assert seen.shape == (64, 64, 3)
        assert seen.dtype == np.uint8
        assert np.array_equal(seen, shown(kind, episode, step, number)[:, ::-1])
    for name, part in STATE.items():
        np.testing.assert_array_equal(item["lowdim"][name], state(episode, step)[part])
    block = [action(episode, min(step + i, length - 1)) for i in range(4)]
    np.testing.assert_allclose(item["actions"], block, atol=1e-6)


@pytest.mark.parametrize("in_memory", [False, True])
def test_every_step_is_what_was_recorded(folder, in_memory):
    dataset = data(folder, in_memory=in_memory).training
    wanted = list(steps())
    assert len(dataset) == len(wanted) == 38
    order = np.random.default_rng(0).permutation(len(wanted))
    for index in [*range(38), *order]:  # on from the last one, and anywhere
        item = dataset[index]
        check(item, folder.name, *wanted[index])
        assert item["language"] == (SOUP if index < 19 else CHEESE)
        assert set(item["lowdim"]) == set(STATE)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(folder, workers):
    module = data(folder, num_workers=workers)
    batches = list(module.train_dataloader())
    assert batches[0]["images"]["agentview_rgb"].shape == (8, 64, 64, 3)
    assert batches[0]["actions"].shape == (8, 4, 7)
    assert module.instructions == [SOUP, CHEESE]


def test_a_suites_tasks(folder):
    wanted = data(folder, suite="libero_object", task_subset=[1])
    assert suite_tasks("libero_object")[1].language == CHEESE
    assert wanted.instructions == [CHEESE]
    assert len(wanted.training) == 19
    with pytest.raises(FileNotFoundError, match="holds no episode of 'pick up the salad dressing"):
        data(folder, suite="libero_object", task_subset=[0, 2])
    with pytest.raises(FileNotFoundError, match="' and 7 more: choose fewer tasks"):
        data(folder, suite="libero_object")


def test_some_of_each_task_and_some_held_out(folder):
    module = data(folder, demonstrations_per_file=1)
    assert [t.demonstration.num_samples for t in module.training.trajectories] == [10, 12]
    module = data(folder, validation_fraction=0.5)
    assert [t.demonstration.num_samples for t in module.training.trajectories] == [10, 12]
    assert [t.demonstration.num_samples for t in module.validation.trajectories] == [9, 7]
    with pytest.raises(ValueError, match=r"soup.*has 2 demonstrations, but 3 of each"):
        data(folder, demonstrations_per_file=3)
    with pytest.raises(ValueError, match=r"has 1 demonstrations to use, of which 1 would be held"):
        data(folder, demonstrations_per_file=1, validation_fraction=0.1)


def test_actions_alone_need_no_pictures(videos):
    shutil.rmtree(videos / "videos")
    assert len(data(videos, only_actions=True).training) == 38
    with pytest.raises(FileNotFoundError, match=r"file-000\.mp4 is missing: download"):
        data(videos)


def test_pictures_that_are_not_turned(folder):
    first = data(folder, lerobot_turned=False).training[5]["images"]["agentview_rgb"]
    assert np.array_equal(first, shown(folder.name, 0, 5, 0))


def test_compression_leaves_what_there_is_to_see():
    for episode, step in ((0, 0), (0, 4), (1, 8), (3, 6)):
        assert (
            abs(shown("video", episode, step, 1) - picture(episode, step, 1).astype(int)).max() < 20
        )


def test_other_names(videos):
    def rename(info):
        features = info["features"]
        features["camera"] = features.pop("observation.images.image2")

    edit(videos / "meta" / "info.json", rename)
    with pytest.raises(ValueError, match=r"has no eye_in_hand_rgb among its features .*, camera"):
        data(videos, cameras=["eye_in_hand_rgb"])
    assert set(data(videos).training[0]["images"]) == {"agentview_rgb"}
    named = {"eye_in_hand_rgb": "observation.images.image"}
    seen = data(videos, lerobot_features=named).training[3]["images"]["eye_in_hand_rgb"]
    assert np.array_equal(seen, shown("video", 0, 3, 0)[:, ::-1])
    for wrong in ({"eye_in_hand_rgb": "nothing"}, {"wrist": "camera"}):
        with pytest.raises(ValueError, match="lerobot_features maps"):
            data(videos, lerobot_features=wrong)


def test_the_spaces_follow(folder):
    observation, actions = DemonstrationDataModule.spaces_of({"files": [str(folder)]})
    assert observation["agentview_rgb"].shape == (64, 64, 3)
    assert observation["ee_ori"].shape == (3,)
    assert actions.shape == (7,)
    turned = {"names": ["channel", "height", "width"], "shape": [3, 64, 48]}
    edit(
        folder / "meta" / "info.json",
        lambda info: info["features"]["observation.images.image"].update(turned),
    )
    observation, _ = DemonstrationDataModule.spaces_of({"files": [str(folder)]})
    assert observation["agentview_rgb"].shape == (64, 48, 3)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _shorten(folder):
    table = parquet.read_table(folder / TABLE)
    parquet.write_table(table.slice(0, 30), folder / TABLE)


def _without_pictures(folder):
    table = parquet.read_table(folder / TABLE)
    names = ["observation.images.image", "observation.images.image2"]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for name in names:
        at = table.column_names.index(name)
        empty = pyarrow.array([{"bytes": None, "path": "elsewhere.png"}] * len(table), kind)
        table = table.set_column(at, name, empty)
    parquet.write_table(table, folder / TABLE)


@pytest.mark.parametrize(
    ("kind", "damage", "said"),
    [
        ("video", lambda f: _cut(f / "meta" / "info.json"), r"info\.json is damaged"),
        ("video", lambda f: _cut(f / TABLE), r"file-000\.parquet is damaged or not as LeRobot"),
        ("video", lambda f: _cut(f / "meta" / "tasks.parquet"), r"tasks\.parquet is damaged"),
        ("video", lambda f: (f / VIDEO).write_bytes(b"no video"), r"mp4 is damaged or no video"),
        ("video", lambda f: _cut(f / VIDEO), r"mp4 is (damaged|cut off)"),
        ("video", _shorten, r"has 8 steps of episode 2, but meta/episodes 9"),
        ("image", _without_pictures, r"not as LeRobot writes it: its pictures are not in it"),
        (
            "video",
            lambda f: edit(f / "meta/info.json", lambda i: i.update(codebase_version="v2.1")),
            r"format v2\.1, not v3: convert it",
        ),
        (
            "video",
            lambda f: edit(
                f / "meta/info.json",
                lambda i: i["features"]["observation.state"].update(shape=[6]),
            ),
            r"observation\.state of .* has the shape \[6\]; of LIBERO's robot it has 8",
        ),
        (
            "video",
            lambda f: edit(f / "meta/info.json", lambda i: i["features"].pop("action")),
            r"has no feature `action`, but",
        ),
    ],
)
def test_bad_datasets_are_refused(kind, damage, said, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(FOLDERS / kind, tmp_path / kind))
    damage(folder)
    with pytest.raises(ValueError, match=said):
        data(folder, in_memory=True)
    assert not list(tmp_path.glob("cache/lightning-ript/pictures/*.arrow"))


def test_a_video_that_ends_early(videos):
    video = VideoFile(videos / VIDEO)
    last = video.picture(3.7)  # of 38 pictures at 10 a second
    assert np.array_equal(last, shown("video", 3, 6, 0))
    with pytest.raises(ValueError, match=r"has no picture at 3\.90 s: it is cut off"):
        video.picture(3.9)
    assert np.array_equal(video.picture(3.7), last)


def test_a_lost_episode_file(videos):
    shutil.rmtree(videos / "meta" / "episodes")
    with pytest.raises(FileNotFoundError, match="has no files in meta/episodes"):
        data(videos)


def test_on_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(repo, **settings):
        asked.append((repo, settings["revision"], settings["repo_type"]))
        return str(FOLDERS / "video")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for place in ("hf://lerobot/libero", "hf://datasets/lerobot/libero@v3.0"):
        assert len(data(place).training) == 38
    assert asked == [("lerobot/libero", None, "dataset"), ("lerobot/libero", "v3.0", "dataset")]
    with pytest.raises(ValueError, match="is no address of a dataset on the hub"):
        data("hf://lerobot/libero/data")


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr("lightning_ript.demos.lerobot.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need av and pyarrow: pip install"):
        LeRobotDataset(FOLDERS / "video")


def test_without_them_nothing_else_is_missing():
    """The libraries are loaded for such datasets alone."""
    code = "import sys; from lightning_ript.demos import datamodule; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "lightning_ript.demos.lerobot" in loaded.stdout.split()
    assert not {"av", "pyarrow"} & set(loaded.stdout.split())


def test_a_smolvla_learns_from_one(videos, tmp_path):
    tiny = SmallSizes(
        image=16, patch=4, vision_width=24, vision_layers=1, width=32, layers=2, expert_width=24
    )
    new_smolvla(tmp_path / "start", [str(videos)], tiny, steps=4)
    policy = SmolVLAPolicy(str(tmp_path / "start"))
    every = [action(e, t) for e, t, _ in steps()]
    np.testing.assert_allclose(policy.published.action.first, np.mean(every, 0), atol=1e-6)
    run = tmp_path / "run"
    assert not main(
        [
            "fit",
            "--config=configs/smolvla/small/sft.yaml",
            "--config=configs/smolvla/small/policy.yaml",
            f"--data.files=[{videos}]",
            "--data.batch_size=16",
            "--data.validation_fraction=0",
            f"--model.policy.checkpoint={tmp_path / 'start'}",
            "--trainer.max_epochs=2",
            f"--run_dir={run}",
        ]
    )
    assert (run / "checkpoints" / "last.ckpt").is_file()
