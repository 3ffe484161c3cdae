"""LIBERO's own assets, and running a probe of the simulator, for the tests that need them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lightning_ript.envs.libero.assets import ASSETS_VARIABLE, packaged_assets

PACKAGED = packaged_assets()
REAL_ASSETS = Path(os.environ.get(ASSETS_VARIABLE) or PACKAGED or "the extra `assets`")


def run_probe(name, *arguments, output, **variables):
    """Runs tests/<name>, a program of its own since GL must stay out of a process with torch.

    Returns:
        What it has saved in `output`, its last argument.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / name), *map(str, arguments), str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(output)
