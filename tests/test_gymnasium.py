import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from test_readme import blocks

from lightning_ript.envs.libero import gymnasium_env
from lightning_ript.envs.libero.assets import ASSETS_VARIABLE, cache_folder
from lightning_ript.envs.libero.gymnasium_env import ENV_ID

ROOT = Path(__file__).parents[1]
SECONDS = 300


@pytest.fixture(scope="module")
def assets():
    from lightning_ript.envs.libero.standins import build_standins

    return str(build_standins(cache_folder()))


@pytest.fixture
def make(assets, monkeypatch):
    """Describes an environment; no simulator is started."""
    monkeypatch.setattr("lightning_ript.envs.libero.graphics.check_backend", lambda: None)

    def make(**settings):
        return gymnasium.make(ENV_ID, **{"suite": "libero_object", "assets": assets, **settings})

    return make


def test_spaces(make):
    env = make(image_size=64, cameras=("eye_in_hand_rgb",), task=3)
    assert {name: (space.shape, space.dtype) for name, space in env.observation_space.items()} == {
        "eye_in_hand_rgb": ((64, 64, 3), np.uint8),
        "joint_states": ((7,), np.float32),
        "ee_pos": ((3,), np.float32),
        "ee_quat": ((4,), np.float32),
        "gripper_states": ((2,), np.float32),
    }
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (7,), np.float32)
    assert make(chunk=8).action_space == gymnasium.spaces.Box(-1, 1, (8, 7), np.float32)
    name = env.unwrapped.task.name
    assert make(task=name).unwrapped.task == env.unwrapped.task


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"suite": "libero_objects"}, ValueError, "unknown LIBERO suite"),
        ({"task": 10}, ValueError, "has no task 10"),
        ({"task": "pick_up_the_moon"}, ValueError, "has no task 'pick_up_the_moon'"),
        ({"image_size": 0}, ValueError, "image_size is 0"),
        ({"chunk": 0}, ValueError, "chunk is 0"),
        ({"imagesize": 64}, TypeError, "unexpected keyword argument 'imagesize'"),
    ],
)
def test_a_bad_setting_is_refused(make, settings, error, message):
    with pytest.raises(error, match=message):
        make(**settings)


def test_a_render_mode_that_is_none_is_refused(make):
    with (
        pytest.warns(UserWarning, match="render_mode"),
        pytest.raises(ValueError, match="render_mode is 'ansi', but must be None or 'rgb_array'"),
    ):
        make(render_mode="ansi")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_states": 3}, "unknown reset option 'init_states'"),
        ({"init_state_id": 50}, "init_state_id is 50, but the task's test states are numbered 0"),
        ({"init_state_id": -1}, "init_state_id is -1"),
        ({"init_state_id": 1, "init_state": [0.0]}, "both init_state and init_state_id"),
    ],
)
def test_a_bad_reset_option_is_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make().reset(options=options)


def test_nothing_runs_before_a_reset(make):
    env = make(render_mode="rgb_array").unwrapped
    for call in (lambda: env.step(np.zeros(7)), env.render, env.sim_state):
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            call()
    with pytest.raises(RuntimeError, match='made with render_mode="rgb_array"'):
        make().unwrapped.render()


def test_torch_in_the_process_is_warned_of(monkeypatch, caplog):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(gymnasium_env.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch", sys)
    gymnasium_env._warn_of_torch()
    assert "this process holds torch" in caplog.text
    caplog.clear()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    gymnasium_env._warn_of_torch()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delitem(sys.modules, "torch")
    gymnasium_env._warn_of_torch()
    assert not caplog.text


def run(assets, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "LP_NUM_THREADS": "1", ASSETS_VARIABLE: assets},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def seen(assets, tmp_path_factory):
    """What tests/gymnasium_probe.py saw."""
    output = tmp_path_factory.mktemp("probe") / "seen.npz"
    run(assets, ROOT / "tests/gymnasium_probe.py", assets, output)
    return np.load(output)


@pytest.mark.libero
class TestSimulator:
    def test_gymnasiums_checker_has_nothing_against_it(self, seen):
        """But that positions have no bounds, which is so for all of Gymnasium's own robots."""
        assert len(seen["warnings"]) == 8, seen["warnings"]
        assert all("infinity" in text for text in seen["warnings"]), seen["warnings"]

    def test_seeds_reproduce_bits(self, seen):
        np.testing.assert_array_equal(seen["first_again"], seen["first"])
        np.testing.assert_array_equal(seen["second_again"], seen["second"])
        assert (seen["first"] != seen["second"]).any()

    @pytest.mark.parametrize(
        ("steps", "chunk"),
        [
            ("single", "chunk"),
            ("exact_single", "exact_chunk"),
            ("exact_chunk_step", "exact_chunk"),
        ],
    )
    def test_a_chunk_is_its_single_steps_bit_for_bit(self, seen, steps, chunk):
        """With pictures drawn between the single steps of exact mode."""
        np.testing.assert_array_equal(seen[steps], seen[chunk])

    def test_a_chunk_step_executes_all_of_it(self, seen):
        assert seen["chunk_steps"] == 8

    def test_test_states_by_number(self, seen):
        np.testing.assert_array_equal(seen["by_id"], seen["by_state"])
        assert (seen["by_id"] != seen["first"]).any()

    def test_max_steps_truncates(self, seen):
        assert seen["ends"].tolist() == [[8, 0, 0, 0], [8, 0, 0, 0], [4, 0, 0, 1]]

    def test_success_is_rewarded_and_terminates(self, seen):
        assert seen["win"].tolist() == [1, 1, 0, 1]
        assert 1 <= seen["win_steps"] < 8

    def test_only_pictures_are_upright(self, seen):
        np.testing.assert_array_equal(seen["upright"], seen["upside_down"][::-1])
        image = seen["upside_down"].astype(float)
        assert image.std() > 10

    def test_a_camera_that_is_not_observed_can_still_be_drawn(self, seen):
        assert "agentview_rgb" not in seen["blind_keys"]
        np.testing.assert_allclose(seen["drawn"], seen["upright"], atol=40)  # 2 ms apart
        assert np.abs(seen["drawn"].astype(float) - seen["upright"]).mean() < 1

    def test_the_instruction_is_told(self, seen):
        assert seen["language"] == "pick up the alphabet soup and place it in the basket"

    @pytest.mark.parametrize(
        ("case", "message"),
        [
            ("over", "RuntimeError: no episode is running: call reset() first."),
            ("won", "RuntimeError: no episode is running"),
            ("shape", "ValueError: an action of shape (6,) was given"),
            ("one", "ValueError: an action of shape (7,) was given, but this environment takes"),
            ("nan", "ValueError: an action is not finite"),
            ("state", "ValueError: an initial state of shape (5,)"),
            ("after_refusal", "RuntimeError: no episode is running"),
        ],
    )
    def test_bad_input_is_refused(self, seen, case, message):
        assert str(seen[f"refusal_{case}"]).startswith(message)

    def test_describing_loads_no_simulator_and_running_no_torch(self, seen):
        assert list(seen["early_modules"]) == []
        assert list(seen["late_modules"]) == []

    def test_the_page_runs(self, assets, tmp_path):
        programs = [text for page, text in blocks("python") if page == "gymnasium.md"]
        said = []
        for number, text in enumerate(programs):
            file = tmp_path / f"program{number}.py"
            file.write_text(text)
            said.append(run(assets, file))
        alone, side_by_side = said
        assert "8 actions executed; success: False" in alone
        assert "(2, 128, 128, 3)" in side_by_side
