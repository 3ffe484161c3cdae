"""Progress bars that suit a terminal and a log file alike."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_TERMINAL_SECONDS, _FILE_SECONDS = 0.1, 30.0


def progress_bar(*arguments: Any, **settings: Any) -> tqdm:
    """Tqdm's bar; in a file, where every refresh stays, it is refreshed far less often.

    Args:
        arguments: Of `tqdm.tqdm`.
        settings: Of `tqdm.tqdm`.
    """
    seconds = _TERMINAL_SECONDS if sys.stderr.isatty() else _FILE_SECONDS
    return tqdm(*arguments, dynamic_ncols=True, mininterval=seconds, **settings)
