"""What a user may write in place of a path: `~` and `$VARIABLES`, in any setting."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any


def expanded(path: str) -> str:
    """A path with `~` and variables replaced.

    Raises:
        ValueError: A variable is not set.
    """
    found = os.path.expandvars(os.path.expanduser(path))
    if unset := re.search(r"\$([A-Za-z_]\w*|{\w+})", found):
        raise ValueError(f"{path} names {unset[0]}, a variable that is not set: set it first.")
    return found


def with_expanded_paths(settings: Any) -> Any:
    """Settings with `expanded` applied to each text and path in them.

    What is a path is not told by its type, as an `hf://` address may stand there, too; other texts
    neither begin with `~` nor name a variable.

    Args:
        settings: As a parser returns them; namespaces and mappings are changed in place.
    """
    if isinstance(settings, Namespace | dict):
        entries = vars(settings) if isinstance(settings, Namespace) else settings
        for name, value in list(entries.items()):
            entries[name] = with_expanded_paths(value)
    elif isinstance(settings, list | tuple):
        return type(settings)(with_expanded_paths(each) for each in settings)
    elif isinstance(settings, str | Path):
        new = expanded(str(settings))
        return settings if new == str(settings) else type(settings)(new)
    return settings
