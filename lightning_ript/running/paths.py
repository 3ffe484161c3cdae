"""What a user may write in place of a path: `~` and `$VARIABLES`, in any setting."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any


def expanded(path: str) -> str:
    """A path with `~` and the variables that are set replaced."""
    return os.path.expandvars(os.path.expanduser(path))


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
