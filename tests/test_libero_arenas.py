"""Both modes are LIBERO bit for bit in every suite and kind of arena, over whole episodes."""

from pathlib import Path

import numpy as np
import pytest
from real_assets import REAL_ASSETS, run_probe
from slow_cases import first_and_slow

from lightning_ript.envs.libero.assets import ASSETS_VARIABLE

ROOT = Path(__file__).parents[1]
TASKS = {  # arena and what moves in it: suite, task
    "table-stove": ("libero_goal", 7),
    "table-drawers": ("libero_spatial", 4),
    "kitchen-microwave": ("libero_10", 9),
    "kitchen-stove": ("libero_90", 20),
    "living-room": ("libero_90", 60),
    "study": ("libero_10", 5),
}
SHARED = ("table-stove", "kitchen-stove", "living-room")  # scenes of several tasks


@pytest.fixture(scope="module", params=first_and_slow(TASKS))
def seen(request, tmp_path_factory):
    """What tests/arena_probe.py saw of one task."""
    if not (REAL_ASSETS / "scenes").is_dir():
        pytest.skip(f"no LIBERO assets in {REAL_ASSETS}: set {ASSETS_VARIABLE}")
    suite, index = TASKS[request.param]
    output = tmp_path_factory.mktemp("arena") / "seen.npz"
    seen = run_probe("arena_probe.py", REAL_ASSETS.resolve(), suite, index, output=output)
    return {"arena": request.param, **seen}


@pytest.mark.libero
def test_fast_mode_is_libero_bit_for_bit(seen):
    for what in ("states", "proprioception", "images"):
        np.testing.assert_array_equal(seen[f"fast_{what}"], seen[f"reference_{what}"])
    assert seen["scenes_prepared"] == 1
    assert seen["tasks_run"] == 1 + (seen["arena"] in SHARED)


@pytest.mark.libero
def test_exact_mode_is_libero_bit_for_bit(seen):
    for what in ("states", "proprioception", "images"):
        np.testing.assert_array_equal(seen[f"ours_{what}"], seen[f"reference_{what}"])
    assert not seen["reference_successes"].any()  # so that both ran to the end
    assert not seen["ours_successes"].any()
    if any(thing in seen["arena"] for thing in ("drawers", "stove", "microwave")):
        # The episode before had moved what can be moved, and left no trace.
        assert (seen["moved"] > 0.01).any()
