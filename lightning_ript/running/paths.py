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
    """Settings with `expanded` applied to what may be a path in them.

    What is a path is not told by its type, as an `hf://` address may stand there, too: it begins
    with `~` or `$`, or has a slash. Of a logger only folders are changed: what is secret in its
    other settings is not to land in files.

    Args:
        settings: As a parser returns them; namespaces and mappings are changed in place.
    """
    if isinstance(settings, Namespace | dict):
        entries = vars(settings) if isinstance(settings, Namespace) else settings
        for name, value in list(entries.items()):
            if name == "logger":
                _expand_folders(value)
            else:
                entries[name] = with_expanded_paths(value)
    elif isinstance(settings, tuple) and hasattr(settings, "_make"):
        return settings._make(map(with_expanded_paths, settings))
    elif isinstance(settings, list | tuple):
        return type(settings)(with_expanded_paths(each) for each in settings)
    elif isinstance(settings, str | Path) and re.match(r"[~$]|.*/", str(settings)):
        new = expanded(str(settings))
        return settings if new == str(settings) else type(settings)(new)
    return settings


def _expand_folders(logger: Any) -> None:
    """Changes settings called `save_dir` and the like, of one logger or several."""
    if isinstance(logger, list):
        for each in logger:
            _expand_folders(each)
    elif isinstance(logger, Namespace | dict):
        entries = vars(logger) if isinstance(logger, Namespace) else logger
        for name, value in list(entries.items()):
            if name.endswith("dir"):
                entries[name] = with_expanded_paths(value)
            else:
                _expand_folders(value)
