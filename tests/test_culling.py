"""Leaving out what a camera cannot see changes no pixel."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROBE = Path(__file__).parent / "culling_probe.py"
GEOMS = 42


@pytest.mark.libero
def test_pictures_of_random_scenes_are_the_same():
    done = subprocess.run(
        [sys.executable, PROBE], check=True, timeout=800, capture_output=True, text=True
    )
    wrong, views, mirror, drawn = np.loadtxt(done.stdout.splitlines(), dtype=int).T
    assert len(wrong) == 500
    assert not wrong.any()
    # The scenes are such that all of it is put to the test.
    assert mirror.sum() > 50
    assert (views > 1).sum() > 10
    assert drawn.mean() < GEOMS / 2
