import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from real_assets import REAL_ASSETS, run_probe
from slow_cases import first_and_slow

from lightning_ript.envs.libero import LiberoSpec, graphics
from lightning_ript.envs.libero.assets import ASSETS_VARIABLE, FOLDERS, cache_folder
from lightning_ript.types import Perturbation

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _assets(tmp_path, monkeypatch):
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "libero_objects"}, "unknown LIBERO suite 'libero_objects'"),
        ({"task_subset": [10]}, "has no task 10: they are numbered 0 to 9"),
        ({"task_subset": ["pick_up_the_moon"]}, "has no task 'pick_up_the_moon'"),
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 5000}, "image_size is 5000"),
        ({"cameras": ("frontview_rgb",)}, "no camera 'frontview_rgb'"),
        ({"mode": "quick"}, "mode is 'quick', but must be exact or fast"),
        ({"render": "none"}, "render is 'none', but must be full or light"),
        ({"textures": "dark"}, "textures is 'dark', but must be linear or srgb"),
        ({"protocol": "blind"}, "protocol is 'blind', but must be settled or reference"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"settle_steps": -1}, "settle_steps is -1"),
        ({"init_joint_noise": float("nan")}, "init_joint_noise is nan"),
    ],
)
def test_check_refuses_a_bad_setting(change, message, monkeypatch):
    monkeypatch.setattr(graphics, "check_backend", lambda: None)
    with pytest.raises(ValueError, match=message):
        LiberoSpec(**{"suite": "libero_object", **change}).check()


def test_check_accepts_the_defaults(monkeypatch):
    monkeypatch.setattr(graphics, "check_backend", lambda: None)
    LiberoSpec("libero_object").check()


def test_check_names_the_debian_package_of_a_missing_library(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(graphics.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(OSError, match="apt-get install libosmesa6"):
        LiberoSpec("libero_object").check()


def test_check_refuses_an_on_screen_backend(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ValueError, match="MUJOCO_GL is 'glfw'"):
        LiberoSpec("libero_object").check()


def test_check_names_the_missing_assets(monkeypatch, tmp_path):
    monkeypatch.setattr(graphics, "check_backend", lambda: None)
    with pytest.raises(FileNotFoundError, match=r"the setting `assets` names .*nowhere"):
        LiberoSpec("libero_object", assets=str(tmp_path / "nowhere")).check()


def test_backend_follows_the_hardware(monkeypatch, tmp_path):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(graphics, "Path", lambda _: tmp_path)
    assert graphics.choose_backend() == "osmesa"
    (tmp_path / "nvidia0").touch()
    assert graphics.choose_backend() == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert graphics.choose_backend() == "osmesa"


def test_ranks_draw_on_their_own_gpu(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(graphics, "Path", lambda _: tmp_path)
    spec = LiberoSpec("libero_object")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert spec.worker_variables(1) == {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}
    monkeypatch.setenv("MUJOCO_GL", "egl")
    chosen = spec.worker_variables(1)["MUJOCO_EGL_DEVICE_ID"]
    assert chosen == "0"  # in software: there is no other
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    chosen = [spec.worker_variables(rank)["MUJOCO_EGL_DEVICE_ID"] for rank in range(3)]
    assert chosen == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    # robosuite insists on finding the one among the other.
    found = spec.worker_variables(1)
    assert found["MUJOCO_EGL_DEVICE_ID"] == found["CUDA_VISIBLE_DEVICES"] == "5"
    assert found["MUJOCO_GL"] == found["PYOPENGL_PLATFORM"] == "egl"
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "4")
    assert spec.worker_variables(1)["MUJOCO_EGL_DEVICE_ID"] == "4"


@pytest.mark.parametrize("visible", ["-1", ""])
def test_hidden_gpus_do_not_draw(monkeypatch, tmp_path, visible):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(graphics, "Path", lambda _: tmp_path)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert graphics.choose_backend() == "osmesa"


def test_a_gpu_without_a_number_is_refused(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5f3c")
    with pytest.raises(ValueError, match=r"names a GPU 'MIG-5f3c'.*set MUJOCO_EGL_DEVICE_ID"):
        LiberoSpec("libero_object").check()
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "2")
    chosen = LiberoSpec("libero_object").worker_variables(0)
    assert chosen["MUJOCO_EGL_DEVICE_ID"] == chosen["CUDA_VISIBLE_DEVICES"] == "2"


def test_spec_is_picklable_and_counts_the_benchmark_states():
    spec = LiberoSpec("libero_goal", [3])
    assert pickle.loads(pickle.dumps(spec)) == spec
    (task,) = spec.tasks()
    contexts = spec.test_contexts(task)
    assert [context.index for context in contexts] == list(range(50))
    assert len({context.init_state.tobytes() for context in contexts}) == 50


def test_describing_an_environment_loads_neither_gl_nor_torch():
    code = (
        "import sys; from lightning_ript.envs.libero import LiberoSpec;"
        "spec = LiberoSpec('libero_10'); spec.test_contexts(spec.tasks()[0]); spec.check();"
        "sys.exit(bool({'mujoco', 'OpenGL', 'torch', 'robosuite'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_results_say_how_they_came_about(monkeypatch):
    described = LiberoSpec("libero_object", protocol="reference").describe()
    assert described["protocol"] == "reference"
    assert described["textures"] == "linear"
    (caveat,) = described["caveats"]
    assert "Protocol `reference`" in caveat
    assert LiberoSpec("libero_object").caveats() == ()
    vendor, *rest = described["renderer"].split(", ")  # of this machine, by OpenGL itself
    assert vendor
    assert rest


def _pack(name):
    if name == "real":
        if not (REAL_ASSETS / "scenes").is_dir():
            pytest.skip(f"no LIBERO assets in {REAL_ASSETS}: set {ASSETS_VARIABLE}")
        return REAL_ASSETS.resolve()
    from lightning_ript.envs.libero.standins import build_standins

    return build_standins(cache_folder())


@pytest.fixture(scope="module", params=first_and_slow(["real", "stand-ins"]))
def seen(request, tmp_path_factory):
    """What tests/libero_probe.py saw."""
    output = tmp_path_factory.mktemp("probe") / "seen.npz"
    return run_probe("libero_probe.py", _pack(request.param), output=output)


@pytest.mark.libero
class TestSimulator:
    @pytest.mark.parametrize("what", ["states", "images", "proprioception"])
    def test_exact_mode_is_libero_bit_for_bit(self, seen, what):
        reference = seen[f"reference_{what}"]
        np.testing.assert_array_equal(seen[f"exact_{what}"][: len(reference)], reference)

    @pytest.mark.parametrize("what", ["states", "proprioception"])
    def test_fast_mode_is_exact_mode_bit_for_bit(self, seen, what):
        np.testing.assert_array_equal(seen[f"fast_{what}"], seen[f"exact_{what}"])

    def test_light_images_look_like_full_ones(self, seen):
        difference = seen["fast_images"].astype(float) - seen["exact_images"]
        assert 0 < np.abs(difference).mean() < 3  # of 255

    @pytest.mark.parity(
        area="Evaluation",
        point="QueST's own start: a reset, ten zero actions, observe, set the test state",
        reference="its evaluation and its training",
        ours="the same bits with `protocol: reference`; the default, `settled`, lets objects rest "
        "and then looks",
    )
    @pytest.mark.parametrize("mode", ["exact", "fast"])
    def test_the_references_protocol_is_liberos_bit_for_bit(self, seen, mode):
        for what in ("state", "images"):
            ours, theirs = seen[f"blind_{mode}_{what}"], seen[f"blind_reference_{what}"]
            np.testing.assert_array_equal(ours, theirs)
        first, later, _ = seen[f"blind_{mode}_images"][:, 0].astype(int)
        assert np.abs(first - later).max() > 50  # another scene

    @pytest.mark.parametrize("what", ["states", "images", "proprioception"])
    def test_an_episode_does_not_depend_on_what_ran_before(self, seen, what):
        np.testing.assert_array_equal(seen[f"again_{what}"], seen[f"fast_{what}"])

    def test_a_task_that_makes_room_leaves_the_others_alone(self, seen):
        assert seen["evicted"]
        np.testing.assert_array_equal(seen["third_again"], seen["third_first"])

    def test_sampled_resets_depend_on_the_seed_alone(self, seen):
        np.testing.assert_array_equal(seen["sampled_again"], seen["sampled_first"])
        np.testing.assert_array_equal(seen["sampled_many"][7], seen["sampled_state"])
        assert (seen["sampled_other"] != seen["sampled_state"]).sum() > 7

    def test_sampled_arms_have_the_benchmarks_noise(self, seen):
        spec = LiberoSpec("libero_object")
        states = np.array([c.init_state for c in spec.test_contexts(spec.tasks()[0])])
        arm = slice(1, 8)
        np.testing.assert_allclose(
            seen["sampled_many"][:, arm].mean(0), states[:, arm].mean(0), atol=0.015
        )
        np.testing.assert_allclose(seen["sampled_many"][:, arm].std(0), 0.02, rtol=0.4)

    @pytest.mark.parametrize("state", ["tested", "drawn"])
    def test_a_perturbation_moves_every_object_in_the_plane(self, seen, state):
        before, after = seen[f"{state}_plain_objects"], seen[f"{state}_moved_objects"]
        offsets = Perturbation(0.01, (0, 1)).offsets(len(before))
        assert len(before) > 3
        # They have settled since, each in a slightly different way.
        np.testing.assert_allclose((after - before)[:, :2], offsets, atol=2e-3)
        np.testing.assert_allclose(after[:, 2], before[:, 2], atol=2e-3)

    @pytest.mark.parametrize("state", ["tested", "drawn"])
    def test_a_perturbed_context_always_starts_alike(self, seen, state):
        first = seen[f"{state}_moved_first"]
        np.testing.assert_array_equal(seen[f"{state}_again_first"], first)
        assert (seen[f"{state}_plain_first"] != first).sum() > 100  # it shows in the pictures

    def test_success_ends_the_chunk(self, seen):
        assert seen["success"]
        assert 1 <= seen["success_steps"] < 8
        assert len(seen["success_frames"]) == seen["success_steps"]
        assert seen["success_image"].shape == (64, 64, 3)

    def test_liberos_horizon_does_not_interfere(self, seen):
        assert seen["horizon_steps"] == 8

    @pytest.mark.parametrize(
        ("case", "message"),
        [
            ("too_early", "RuntimeError: no episode has begun"),
            ("shape", "ValueError: actions of shape (8, 6)"),
            ("nan", "ValueError: an action is not finite"),
            ("state", "ValueError: an initial state of shape (5,)"),
        ],
    )
    def test_bad_input_is_refused(self, seen, case, message):
        assert str(seen[f"refusal_{case}"]).startswith(message)

    def test_workers_hold_no_torch(self, seen):
        assert list(seen["modules"]) == []


def test_changing_a_spec_keeps_it_frozen():
    spec = LiberoSpec("libero_object")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.image_size = 64
