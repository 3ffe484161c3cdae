"""What is set for other programs does no harm."""

import os
import subprocess
import sys

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from toy_runs import arguments, history

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.running.surroundings import settle
from lightning_ript.storage.files import cache_folder

LEFT_OVER = {
    "ranks of another program": {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"},
    "a SLURM allocation": {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "mine"},
    "a notebook's pictures, no locale, a seed of hashes": {
        **{"MPLBACKEND": "module://of_a_notebook", "LC_ALL": "C", "PYTHONUTF8": "0"},
        "PYTHONHASHSEED": "1",
    },
}


@pytest.mark.parametrize("what", LEFT_OVER)
def test_a_run_is_the_same(what, tmp_path):
    environment = {**os.environ, **LEFT_OVER[what]}
    command = [sys.executable, "-m", "lightning_ript", *arguments(tmp_path, 1)]
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=800, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert len(history(tmp_path)) == 1
    assert (tmp_path / "learning_curve.png").is_file()
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    said = "LOCAL_RANK, WORLD_SIZE without MASTER_ADDR: left over from another program"
    assert (said in process.stderr) == (what == "ranks of another program")


def test_ranks_of_our_own_stay(monkeypatch):
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}
    task = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    for name, value in (ranks | task).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    settle()
    assert rank_zero_only.rank == 1
    assert {name: os.environ[name] for name in ranks | task} == ranks | task


@pytest.mark.libero
def test_workers_get_what_they_need(monkeypatch):
    monkeypatch.setenv("PYOPENGL_PLATFORM", "wayland")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MPLBACKEND", "module://of_a_notebook")
    spec = LiberoSpec(suite="libero_object", task_subset=[0], image_size=16, render="light")
    (context, *_) = spec.test_contexts(spec.tasks()[0])
    pool = EnvironmentPool(spec, 1)
    try:
        pool.reset(0, context)
        ((_, observation),) = pool.wait()
        assert observation["agentview_rgb"].any()
        worker = f"/proc/{pool.processes[0].pid}/environ"
        with open(worker) as file:
            assert "OMP_NUM_THREADS=1" in file.read().split("\0")
    finally:
        pool.close()


def test_robosuite_neither_logs_to_a_fixed_place_nor_advises():
    code = (
        "import logging; from lightning_ript.envs.libero.robosuite_import import import_robosuite;"
        "import_robosuite(); import robosuite;"
        "print([type(h).__name__ for h in logging.getLogger('robosuite_logs').handlers])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['_NoFile', 'StreamHandler']\n"
    assert "macro" not in done.stderr


def test_a_cache_that_cannot_be_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot be written \(.*\): set XDG_CACHE_HOME"):
        cache_folder()


NOWHERE = {
    "no home": {"HOME": None},
    "a home that cannot be": {"HOME": "/proc/nothing", "XDG_CACHE_HOME": None},
    "no place for temporary files": {"TMPDIR": "/proc/nothing"},
}


@pytest.mark.libero
@pytest.mark.parametrize("what", NOWHERE)
def test_without_places_of_ones_own(what, tmp_path):
    """A simulator on LIBERO, in a process whose variables lead nowhere."""
    environment = {**os.environ, **NOWHERE[what]}
    environment = {name: value for name, value in environment.items() if value is not None}
    code = (
        "from lightning_ript.envs.libero import LiberoSpec\n"
        "from lightning_ript.envs.pool import EnvironmentPool\n"
        "spec = LiberoSpec(suite='libero_object', task_subset=[0], image_size=16, render='light')\n"
        "spec.check()\n"
        "pool = EnvironmentPool(spec, 1)\n"
        "pool.reset(0, spec.test_contexts(spec.tasks()[0])[0])\n"
        "print(pool.wait()[0][1]['agentview_rgb'].any())\n"
        "pool.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    if what == "a home that cannot be":
        assert "/proc/nothing/.cache/lightning-ript cannot be written" in done.stderr
        assert "set XDG_CACHE_HOME" in done.stderr
        assert "WorkerError" not in done.stderr  # it is said before a simulator starts
    else:
        assert done.stdout.strip().endswith("True"), done.stdout + done.stderr
    command = [sys.executable, "-m", "lightning_ript", *arguments(tmp_path, 1)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
