"""The scripted expert: what it measures of an object, and its success in the real simulator."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
from real_assets import REAL_ASSETS
from slow_cases import first_and_slow

from lightning_ript.envs.libero.expert import PickPlaceExpert, Shape, Stage

ROOT = Path(__file__).parent.parent

SCENE = """
<mujoco>
  <worldbody>
    <body name="base" pos="0 0 0.3">
      <site name="gripper0_grip_site" xyaxes="0 1 0 1 0 0"/>
      <body pos="0 0.04 0"><joint name="gripper0_finger_joint1" type="slide" axis="0 1 0"/>
        <geom size="0.001" contype="0" conaffinity="0"/></body>
      <body pos="0 -0.04 0"><joint name="gripper0_finger_joint2" type="slide" axis="0 1 0"/>
        <geom size="0.001" contype="0" conaffinity="0"/></body>
    </body>
    <body name="box_1_main" pos="0.1 0 0.05" euler="0 0 30">
      <freejoint/>
      <geom type="box" size="0.04 0.02 0.05"/>
      <geom type="sphere" size="0.3" contype="0" conaffinity="0"/>
    </body>
    <body name="can_1_main" pos="0 0.2 0.06"><freejoint/>
      <body><geom type="cylinder" size="0.03 0.06"/></body></body>
    <body name="basket_1_main" pos="0 0.5 0"><freejoint/>
      <geom type="box" size="0.1 0.1 0.01" pos="0 0 0.15"/>
      <site name="basket_1_contain_region" pos="0 0 0.07"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def scene() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    data.qpos[:2] = 0.04, -0.04
    mujoco.mj_forward(model, data)
    return model, data


def expert(scene: tuple[mujoco.MjModel, mujoco.MjData], target: str = "box_1") -> PickPlaceExpert:
    return PickPlaceExpert(
        *scene, target=target, region="basket_1_contain_region", container="basket_1"
    )


def test_shape_measures_what_is_solid(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    box, can = Shape(*scene, "box_1_main"), Shape(*scene, "can_1_main")
    narrow = np.array([-np.sin(np.pi / 6), np.cos(np.pi / 6), 0.0])
    np.testing.assert_allclose(np.diff(box.intervals(narrow)), [[0.04]])
    assert (box.bottom, box.top) == pytest.approx((0.0, 0.1))
    diagonal = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)
    np.testing.assert_allclose(np.diff(can.intervals(diagonal)), [[0.06]])  # round, not its box
    assert can.top == pytest.approx(0.12)


def test_the_narrow_side_is_grasped(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    grasp = expert(scene)._grasp
    angle = np.degrees(np.arctan2(grasp.closing[1], grasp.closing[0]))
    assert angle == pytest.approx(120, abs=1.5)  # 0.08 x 0.04 m, turned by 30 degrees
    np.testing.assert_allclose(grasp.position[:2], [0.1, 0.0], atol=1e-6)
    assert 0.06 < grasp.position[2] < 0.08
    assert grasp.clearance > 0.1


def test_a_round_object_needs_no_turning(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    grasp = expert(scene, "can_1")._grasp
    np.testing.assert_allclose(grasp.closing, [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(expert(scene, "can_1")._rotation_error(), 0, atol=1e-6)


def test_it_approaches_from_above(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    _, data = scene
    reaching = expert(scene)
    action = reaching.act()
    assert action.shape == (7,)
    assert action.dtype == np.float32
    assert np.abs(action).max() <= 1
    assert action[0] > 0 > action[2]  # towards the object, which lies at +x, and down
    assert action[6] == -1
    assert reaching._approach()[2] > reaching._grasp.clearance
    assert reaching.stage is Stage.REACH
    assert data.time == 0


def test_noise_is_seeded_and_spares_the_gripper(
    scene: tuple[mujoco.MjModel, mujoco.MjData],
) -> None:
    def noisy(noise: float, seed: int) -> np.ndarray:
        return PickPlaceExpert(
            *scene,
            target="box_1",
            region="basket_1_contain_region",
            container="basket_1",
            noise=noise,
            seed=seed,
        ).act()

    np.testing.assert_array_equal(noisy(0.1, 1), noisy(0.1, 1))
    assert (noisy(0.1, 1)[3:5] != noisy(0.1, 2)[3:5]).all()  # others are saturated
    assert noisy(0.1, 1)[6] == noisy(0.0, 1)[6] == -1
    with pytest.raises(ValueError, match="noise must not be negative"):
        noisy(-0.1, 0)


def test_unknown_names_and_goals_are_refused(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    with pytest.raises(ValueError, match="no body named 'milk_1_main'"):
        expert(scene, "milk_1")
    problem = SimpleNamespace(
        parsed_problem={"goal_state": [["open", "cabinet_1"]]},
        objects_dict={},
        bddl_file_name="open_the_cabinet.bddl",
    )
    with pytest.raises(ValueError, match=r"open_the_cabinet\.bddl .*choose tasks of libero_object"):
        PickPlaceExpert.for_environment(problem)


@pytest.mark.libero
@pytest.mark.parametrize("source", first_and_slow(["real", "standins"]))
def test_it_succeeds(source: str) -> None:
    """A carton with a roof and a flat box, three resets each; all in `benchmarks/expert.py`."""
    if source == "real" and not REAL_ASSETS.is_dir():
        pytest.skip("LIBERO_ASSETS_PATH names no assets")
    assets = "--standins=true" if source == "standins" else f"--assets={REAL_ASSETS}"
    command = [sys.executable, "benchmarks/expert.py", "--tasks=[1,7]", "--resets=3", assets]
    result = subprocess.run(
        command, cwd=ROOT, check=True, timeout=800, stdout=subprocess.PIPE, text=True
    )
    rows = re.findall(r"\| (\d)/3 \| (\d+) \|", result.stdout)
    assert [won for won, _ in rows] == ["3", "3"], result.stdout
    assert all(int(steps) < 120 for _, steps in rows), result.stdout
