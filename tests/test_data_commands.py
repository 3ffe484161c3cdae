"""`lightning-ript data`: what check finds, and download with the hub's client replaced."""

import re
import shutil
from pathlib import Path

import h5py
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from test_supervised import write_demonstrations

from lightning_ript.cli import main
from lightning_ript.commands.check_data import inspect
from lightning_ript.commands.download_data import HUB_DATASET
from lightning_ript.envs.libero.suites import suite_tasks

SUITE = "libero_goal"
FILES = [f"{task.name}_demo.hdf5" for task in suite_tasks(SUITE)]


@pytest.fixture
def whole(tmp_path):
    """A file in order."""
    return write_demonstrations(tmp_path / "whole.hdf5", lengths=(10, 12))


@pytest.fixture
def folder(tmp_path, whole):
    """All of the suite."""
    made = tmp_path / SUITE
    made.mkdir()
    for name in FILES:
        shutil.copy(whole, made / name)
    return made


def say(capsys, *arguments):
    """Runs `lightning-ript data`: what it printed, and the message it ended with, if any."""
    capsys.readouterr()
    try:
        main(["data", *map(str, arguments)])
        ended = None
    except SystemExit as end:
        ended = end.code
    return capsys.readouterr(), ended


def test_a_folder_in_order(folder, capsys):
    for suite in ([], ["--suite", SUITE]):
        (out, _), ended = say(capsys, "check", folder, *suite)
        assert ended is None
        lines = out.splitlines()
        assert len(lines) == 10 + 4
        assert re.match(rf"{FILES[0]} +2 +22 +16x16  none", next(x for x in lines if FILES[0] in x))
        assert re.match(r"10 files +20 +220 +none", lines[-1])


def test_missing_and_broken_files(folder, capsys):
    (folder / FILES[3]).unlink()
    (folder / FILES[4]).write_bytes(b"<html>not found</html>")
    (folder / "mine_demo.hdf5").touch()
    (out, _), ended = say(capsys, "check", folder, "--suite", SUITE)
    assert ended.startswith(f"2 of 10 files in {folder} are missing or have problems: delete")
    assert re.search(rf"{FILES[3]} +0 +0 +missing\n", out)
    assert re.search(rf"{FILES[4]} +0 +0 +is damaged or no HDF5 file", out)
    assert "mine" not in out
    assert re.match(r"10 files +16 +176 +2 files", out.splitlines()[-1])
    (out, _), ended = say(capsys, "check", folder)
    assert ended.startswith("2 of 10 files")
    assert "mine_demo.hdf5" in out


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def edit(change):
    def apply(path):
        with h5py.File(path, "a") as file:
            change(file)

    return apply


def replace(file, name, array):
    del file[name]
    file[name] = array


def not_finite(file):
    file["data/demo_1/actions"][3, 2] = np.nan


def smaller(file):
    replace(file, "data/demo_1/obs/agentview_rgb", np.zeros((12, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, ["is damaged or no HDF5 file"]),
        (edit(lambda f: f.move("data", "elsewhere")), ["has no group `data`"]),
        (
            edit(lambda f: f["data"].attrs.__delitem__("problem_info")),
            ["does not say what the robot is told"],
        ),
        (edit(lambda f: f["data"].__delitem__("demo_1/actions")), ["is not laid out as LIBERO"]),
        (edit(lambda f: [f.__delitem__(f"data/demo_{i}") for i in (0, 1)]), ["no demonstration"]),
        (
            edit(lambda f: f.__delitem__("data/demo_0/obs/eye_in_hand_rgb")),
            ["demo_0: no obs/eye_in_hand_rgb"],
        ),
        (
            edit(lambda f: replace(f, "data/demo_0/obs/ee_pos", np.zeros((9, 3)))),
            ["demo_0: 9 steps of obs/ee_pos, but 10 actions"],
        ),
        (
            edit(lambda f: replace(f, "data/demo_0/obs/ee_pos", np.zeros((10, 4)))),
            [r"demo_0: obs/ee_pos of shape \(4,\), not \(3,\)"],
        ),
        (edit(not_finite), ["demo_1: actions that are not finite"]),
        (edit(smaller), ["images of different sizes"]),
    ],
)
def test_what_is_wrong_with_a_file(whole, damage, said):
    assert inspect(Path(whole)).problems == ()
    damage(Path(whole))
    report = inspect(Path(whole))
    assert len(report.problems) == len(said)
    for problem, words in zip(report.problems, said, strict=True):
        assert re.search(words, problem)


def test_many_problems_are_counted(whole, capsys):
    with h5py.File(whole, "a") as file:
        del file["data/demo_0/obs"]
        file.create_group("data/demo_0/obs")
    (out, _), ended = say(capsys, "check", Path(whole).parent)
    assert ended.startswith("1 of 1 files")
    assert "demo_0: no obs/agentview_rgb; demo_0: no obs/eye_in_hand_rgb; and 3 more" in out


def test_wrong_places(tmp_path, capsys):
    for arguments, said in (
        (["check", tmp_path / "gone"], "there is no folder"),
        (["check", tmp_path], "holds no .hdf5 file"),
        (["check", tmp_path, "--suite", "libero_moon"], "unknown LIBERO suite 'libero_moon'"),
        (["download", "libero_moon"], "unknown LIBERO suite 'libero_moon'"),
    ):
        (_, err), ended = say(capsys, *arguments)
        assert ended == 2
        assert said in err


def test_download_fetches_the_suites_files_and_checks_them(tmp_path, whole, monkeypatch, capsys):
    asked = []

    def snapshot(repo, **settings):
        asked.append((repo, settings))
        (settings["local_dir"] / SUITE).mkdir(parents=True, exist_ok=True)
        for name in FILES[: 9 + (len(asked) > 1)]:
            shutil.copy(whole, settings["local_dir"] / SUITE / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    out = tmp_path / "demonstrations"
    (_, _), ended = say(capsys, "download", SUITE, "--out", out)
    assert ended.startswith("1 of 10 files in")
    (printed, _), ended = say(capsys, "download", SUITE, "--out", out)
    assert ended is None
    assert re.match(r"10 files +20 ", printed.splitlines()[-1])
    settings = {"repo_type": "dataset", "allow_patterns": ["libero_goal/*.hdf5"], "local_dir": out}
    assert asked == [(HUB_DATASET, settings)] * 2
    assert HUB_DATASET == "yifengzhu-hf/LIBERO-datasets"


def test_download_without_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (_, err), ended = say(capsys, "download", SUITE, "--out", tmp_path / "out")
    assert ended == 2
    said = f"the dataset {HUB_DATASET} has not been downloaded before and HF_HUB_OFFLINE is set"
    assert said in err.splitlines()[-1]
