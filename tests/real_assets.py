"""LIBERO's own assets, for the tests that need them: the variable's, or the installed packages'."""

import os
from pathlib import Path

from lightning_ript.envs.libero.assets import ASSETS_VARIABLE, packaged_assets

PACKAGED = packaged_assets()
REAL_ASSETS = Path(os.environ.get(ASSETS_VARIABLE) or PACKAGED or "the extra `assets`")
