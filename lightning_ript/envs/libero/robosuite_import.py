"""Importing robosuite without what it does on the side."""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch


class _NoFile(logging.NullHandler):
    """Takes the place of a file."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def import_robosuite() -> None:
    """Imports robosuite, so that later imports find it.

    It would open a log in /tmp, which on a shared machine belongs to whoever was first and fails
    everybody else; and it would advise three times to make a file of settings.
    """
    if "robosuite" in sys.modules:
        return
    name = "robosuite.macros_private"
    spec = importlib.util.find_spec("robosuite")
    places = spec.submodule_search_locations if spec is not None else None
    if not any(Path(place, "macros_private.py").is_file() for place in places or ()):
        sys.modules[name] = types.ModuleType(name)  # what it looks for, and nothing in it
    with patch("logging.FileHandler", _NoFile):
        importlib.import_module("robosuite")
        importlib.import_module("robosuite.utils.log_utils")  # opens the log
