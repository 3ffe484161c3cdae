"""Which code a result was made with."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def revision(root: Path = ROOT) -> str | None:
    """Git's name for the commit of a clone, with `-dirty` after it where files have changed since.

    Args:
        root: The clone; that of this package by default.

    Returns:
        None where the package is installed without a clone, or there is no git.
    """
    if not (root / ".git").exists():  # else git would look in the folders above
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
