"""Checkpoints are whole whenever a process dies, and one run directory has one command."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from toy_runs import arguments, assert_same_state, checkpoint, fit, history, start

from lightning_ript.cli import main
from lightning_ript.storage import checkpoint_files, run_lock
from lightning_ript.storage.checkpoint_files import WholeCheckpointIO, checkpoint_to_resume
from lightning_ript.storage.files import making
from lightning_ript.storage.run_lock import RunLock

SAVE = """
import sys, torch
from lightning_ript.storage.checkpoint_files import WholeCheckpointIO
for number in range({first}, 1000):
    content = {{"number": number, "weights": torch.zeros({size})}}
    print("saving", number, flush=True)
    WholeCheckpointIO().save_checkpoint(content, sys.argv[1])
"""


def saving(path, size, first=0, limit=None):
    """A process that writes one checkpoint after the other."""

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, "-c", SAVE.format(size=size, first=first), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=small_files_only if limit else None,
    )


def number(path):
    return torch.load(path, weights_only=True)["number"]


def drafts(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_kill_while_saving_leaves_whole_files(tmp_path):
    last = tmp_path / "last.ckpt"
    process = saving(last, 30_000_000)  # 120 MB
    for line in process.stdout:
        if line == "saving 2\n":
            break
    while not drafts(tmp_path):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert (number(last), number(tmp_path / "previous.ckpt")) == (1, 0)
    assert len(drafts(tmp_path)) == 1
    WholeCheckpointIO().save_checkpoint({"number": 7}, last)
    assert (number(last), number(tmp_path / "previous.ckpt")) == (7, 1)
    assert not drafts(tmp_path)


def test_a_full_disk_is_said_in_a_sentence(tmp_path):
    last = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"number": 1}, last)
    said = saving(last, 1_000_000, limit=100_000).communicate()[1].splitlines()[-1]
    assert said == (
        f"OSError: {last} could not be written: the disk is full or a quota is used up, and the "
        "earlier one is kept. Make room, and start the same command again."
    )
    assert number(last) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    other = tmp_path / "best.ckpt"
    said = saving(other, 1_000_000, limit=100_000).communicate()[1]
    assert "there is no earlier one" in said


def test_waiting_for_room(tmp_path, monkeypatch, caplog):
    tries = []

    def full_at_first(checkpoint, path):
        tries.append(path)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "_replace", full_at_first)
    monkeypatch.setattr(checkpoint_files, "_PAUSE", 0.01)
    WholeCheckpointIO(wait_minutes=1).save_checkpoint({}, tmp_path / "last.ckpt")
    assert len(tries) == 3
    assert caplog.text.count("Trying again") == 2
    with pytest.raises(ValueError, match="wait_minutes is -1"):
        WholeCheckpointIO(-1)


def test_without_links_the_one_before_is_kept_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for content in range(3):
        WholeCheckpointIO().save_checkpoint({"number": content}, tmp_path / "last.ckpt")
    assert number(tmp_path / "last.ckpt") == 2
    assert number(tmp_path / "previous.ckpt") == 1


def test_what_is_resumed(tmp_path, caplog):
    last, before = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    assert checkpoint_to_resume(tmp_path / "nowhere") is None
    assert checkpoint_to_resume(tmp_path) is None
    for content in range(2):
        WholeCheckpointIO().save_checkpoint({"number": content}, last)
    assert checkpoint_to_resume(tmp_path) == last
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    assert checkpoint_to_resume(tmp_path) == before
    assert "is not a whole checkpoint and is now unreadable.ckpt" in caplog.text
    assert f"Going on from {before}, the one before last.ckpt" in caplog.text
    assert checkpoint_to_resume(tmp_path) == before
    assert (tmp_path / "unreadable.ckpt").stat().st_size == len(whole) // 2
    before.unlink()
    last.write_bytes(b"")
    for _ in range(2):  # the next start does not begin anew either
        with pytest.raises(
            ValueError, match=r"last\.ckpt is not a whole checkpoint, and there is no"
        ):
            checkpoint_to_resume(tmp_path)
    assert last.exists()


def test_a_checkpoint_that_may_not_be_read_is_not_set_aside(tmp_path, monkeypatch):
    last = tmp_path / "last.ckpt"
    for content in range(2):
        WholeCheckpointIO().save_checkpoint({"number": content}, last)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(PermissionError):
            checkpoint_to_resume(tmp_path)
    assert checkpoint_to_resume(tmp_path) == last


def test_only_one_process_sets_aside(tmp_path):
    last = tmp_path / "last.ckpt"
    for content in range(2):
        WholeCheckpointIO().save_checkpoint({"number": content}, last)
    last.write_bytes(b"")
    assert checkpoint_to_resume(tmp_path, set_aside=False) == tmp_path / "previous.ckpt"
    assert last.exists()


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    def half():
        with making(tmp_path / "out") as draft:
            (draft / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert not list(tmp_path.iterdir())
    with making(tmp_path / "out") as draft:
        (draft / "file").write_text("whole")
    assert (tmp_path / "out" / "file").read_text() == "whole"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run of three iterations."""
    folder = tmp_path_factory.mktemp("three")
    return fit(folder, 3), folder


def test_a_run_goes_on_from_the_checkpoint_before(three, tmp_path):
    fit(tmp_path, 2)
    folder = tmp_path / "checkpoints"
    (folder / "last.ckpt").write_bytes(b"")
    assert_same_state(fit(tmp_path, 3), three[0])
    assert [entry["iteration"] for entry in history(tmp_path)] == [1, 2, 3]


OWN = ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"]


def test_a_model_checkpoint_of_ones_own_takes_nothing_away(three, tmp_path):
    own = [*OWN, f"--trainer.callbacks.dirpath={tmp_path}/own", "--trainer.callbacks.save_top_k=-1"]
    fit(tmp_path, 2, *own)
    assert len(list((tmp_path / "own").iterdir())) == 2
    assert_same_state(fit(tmp_path, 3, *own), three[0])


def test_a_run_without_checkpoint_is_not_begun_anew(tmp_path, capsys):
    fit(tmp_path, 2)
    shutil.rmtree(tmp_path / "checkpoints")
    before = history(tmp_path)
    with pytest.raises(SystemExit):
        fit(tmp_path, 3)
    assert "holds 2 finished iterations, but no checkpoint" in capsys.readouterr().err
    assert history(tmp_path) == before


def test_a_run_that_died_before_its_first_checkpoint(three, tmp_path, caplog):
    fit(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints")
    assert_same_state(fit(tmp_path, 3), three[0])
    assert "has one iteration and no checkpoint: it is begun again" in caplog.text
    assert [entry["iteration"] for entry in history(tmp_path)] == [1, 2, 3]


def test_time_ends_ript_after_an_iteration(three, tmp_path):
    """A first run that is out of time at once has finished one; the second goes on as ever."""
    fit(tmp_path, 3, "--trainer.max_time={milliseconds: 1}")
    assert [entry["iteration"] for entry in history(tmp_path)] == [1]
    assert_same_state(fit(tmp_path, 3), three[0])
    assert [entry["iteration"] for entry in history(tmp_path)] == [1, 2, 3]


def test_home_and_variables_in_a_yaml_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOME_RUN", "first")
    config = tmp_path / "where.yaml"
    config.write_text(yaml.safe_dump({"run_dir": "~/runs/$SOME_RUN"}))
    typed = [a for a in arguments("unused", 1) if not a.startswith("--run_dir")]
    main([*typed, f"--config={config}"])
    assert checkpoint(tmp_path / "runs" / "first")["epoch"] == 0
    assert (tmp_path / "runs/first/history.json").is_file()
    main([*typed, f"--config={config}", "--trainer.max_epochs=2"])
    assert len(history(tmp_path / "runs" / "first")) == 2


def test_two_commands_on_one_run_directory(tmp_path, capsys):
    endless = "--data.init_args.dynamic_sampling=false"  # there is always something to learn from
    process = start(tmp_path, 1000, endless)
    try:
        while not (tmp_path / ".lock").exists():
            time.sleep(0.05)
        with pytest.raises(SystemExit):
            fit(tmp_path, 1)
        said = capsys.readouterr().err
        assert "`lightning-ript fit` has been running there since 20" in said
        assert f"as process {process.pid} on {os.uname().nodename}" in said
        # A closed terminal stops it as SIGTERM does; nothing has to be cleared away.
        while not (tmp_path / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=800)
    finally:
        process.kill()
    assert process.returncode == 1, out + err
    assert "Stopped by SIGTERM" in err
    assert not (tmp_path / ".lock").exists()
    done = len(history(tmp_path))
    fit(tmp_path, done + 1, endless)
    assert len(history(tmp_path)) == done + 1


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"machine": "elsewhere", "job": "77", "restarts": "0"}, False),  # another task of the job
        ({"process_started": "1"}, True),  # another process has the number by now
        ({"machine": "elsewhere"}, False),
        ({"machine": "elsewhere", "job": "77", "restarts": "1"}, True),
    ],
)
def test_locks_that_a_dead_process_left(change, stale, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    RunLock(tmp_path, "first")
    RunLock.held[0]._over.set()
    RunLock.held.clear()
    path = tmp_path / ".lock"
    holder = {**json.loads(path.read_text()), "job": None, **change}
    path.write_text(json.dumps(holder))
    if stale:
        RunLock(tmp_path, "second")
    else:
        with pytest.raises(BlockingIOError, match="`first` has been running there since"):
            RunLock(tmp_path, "second")
        if change:  # silent for long
            then = time.time() - run_lock.SILENCE - 1
            os.utime(path, (then, then))
            RunLock(tmp_path, "second")
    RunLock.release_all()
    assert not [p for p in tmp_path.iterdir() if stale or change]


def test_who_was_taken_over_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    stopped = []
    monkeypatch.setattr(run_lock.os, "kill", lambda *arguments: stopped.append(arguments))
    RunLock(tmp_path, "fit")
    (tmp_path / ".lock").write_text("{}")
    until = time.monotonic() + 10
    while not stopped and time.monotonic() < until:
        time.sleep(0.01)
    assert stopped == [(os.getpid(), signal.SIGTERM)]
    RunLock.release_all()
    assert (tmp_path / ".lock").read_text() == "{}"


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    RunLock(tmp_path, "fit")
    path = tmp_path / ".lock"
    os.utime(path, (1, 1))
    until = time.monotonic() + 10
    while path.stat().st_mtime < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert path.stat().st_mtime > 2
    RunLock.release_all()
    assert not path.exists()
