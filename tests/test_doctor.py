"""What the doctor says, each line after something has been broken."""

import importlib.metadata
import os
import shutil
import subprocess
import urllib.request
from collections import namedtuple

import pytest

from lightning_ript.cli import main
from lightning_ript.commands import doctor
from lightning_ript.envs.libero import assets

Usage = namedtuple("Usage", "total used free")


def lines(check):
    return {line.what: line for line in check()}


@pytest.fixture(scope="module")
def healthy():
    return {line.what: line for check in doctor.CHECKS for line in check()}


@pytest.mark.libero
def test_here_everything_is_fine(capsys):
    main(["doctor"])
    out = capsys.readouterr().out
    assert "This machine has what a LIBERO run needs." in out
    assert "NO" not in {line[:2] for line in out.splitlines()}
    for what in ("Python", "MuJoCo", "drawing by osmesa", "LIBERO's assets", "/dev/shm", "SLURM"):
        assert what in out


def test_something_broken_decides_the_status(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (doctor.mujoco,))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.5.0")
    with pytest.raises(SystemExit, match="Fix before running LIBERO: MuJoCo"):
        main(["doctor"])
    assert "NO  MuJoCo             3.5.0, with which LIBERO behaves" in capsys.readouterr().out


def test_no_mujoco(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert lines(doctor.mujoco)["MuJoCo"].fine is False


def test_no_renderer(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    broken = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no OSMesa")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    found = lines(doctor.drawing)
    assert found["drawing by osmesa"].fine is False
    assert "ImportError: no OSMesa; needs libosmesa6" in found["drawing by osmesa"].said
    assert found["drawing by egl"].fine is None


def test_a_renderer_that_hangs(monkeypatch):
    def run(*_, **__):
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(subprocess, "run", run)
    assert "it does not answer" in lines(doctor.drawing)["drawing by egl"].said


def test_a_back_end_for_windows_on_screens(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert lines(doctor.drawing)["MUJOCO_GL"].fine is False


def test_no_assets(monkeypatch, tmp_path):
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(tmp_path / "nowhere"))
    assert lines(doctor.libero)["LIBERO's assets"].fine is False


def test_no_libero(monkeypatch):
    def root():
        raise ImportError("there is no libero")

    monkeypatch.setattr(doctor, "libero_root", root)
    assert lines(doctor.libero)["LIBERO"].fine is False


def test_full_disks(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**40, 2**40, 2**20))
    found = lines(doctor.disk)
    assert found["disk here"].fine is False
    assert found["cache"].fine is None
    shared = lines(doctor.workers)["/dev/shm"]
    assert not shared.fine
    assert "--shm-size=1g" in shared.said


def test_a_cache_that_cannot_be(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = lines(doctor.disk)["cache"]
    assert found.fine is False
    assert "XDG_CACHE_HOME" in found.said


def test_cores_and_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(doctor, "_memory", lambda: 0.7 * doctor.GIB)
    found = lines(doctor.workers)
    assert found["cores"].said.startswith("6: data.num_workers 6 to 8")
    assert found["memory"].said == "0.7 GiB available, enough for 1 simulators"
    assert not found["memory"].fine


@pytest.mark.parametrize("where", ["in a job", "with sbatch", "nowhere"])
def test_slurm(monkeypatch, where):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/x" if where == "with sbatch" else None)
    if where == "in a job":
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    said = lines(doctor.cluster)["SLURM"].said
    expected = {"in a job": "inside job 7", "with sbatch": "submit", "nowhere": "none"}
    assert expected[where] in said


def test_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not asked" in lines(doctor.hub)["Hugging Face hub"].said
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def urlopen(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    found = lines(doctor.hub)["Hugging Face hub"]
    assert found.fine is None
    assert "cannot be reached (no route)" in found.said


def test_extras(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = lines(doctor.extras)["timm"].said
    assert said == "not installed, for OpenVLA-OFT: the extra `openvla`"
