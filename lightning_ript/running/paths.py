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


def with_expanded_paths(settings: Any, only_folders: bool = False) -> Any:
    """Settings with `expanded` applied to what may be a path in them.

    What is a path is not told by its type, as an `hf://` address may stand there, too: it begins
    with `~` or `$`, or has a slash. Of a logger only folders are changed: what is secret in its
    other settings is not to land in files.

    Args:
        settings: As a parser returns them; namespaces and mappings are changed in place.
        only_folders: Whether only settings called `save_dir` and the like count.
    """
    if isinstance(settings, Namespace | dict):
        entries = vars(settings) if isinstance(settings, Namespace) else settings
        for name, value in list(entries.items()):
            secret = (only_folders or name == "logger") and not name.endswith("dir")
            entries[name] = with_expanded_paths(value, secret)
    elif isinstance(settings, list | tuple):
        found = [with_expanded_paths(each, only_folders) for each in settings]
        return settings._make(found) if hasattr(settings, "_make") else type(settings)(found)
    elif isinstance(settings, str | Path) and not only_folders:
        text = str(settings)
        if re.match(r"[~$]|.*/", text) and expanded(text) != text:
            return type(settings)(expanded(text))
    return settings
