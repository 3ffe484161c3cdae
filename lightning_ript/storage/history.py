"""The history of a run's iterations, as `RunReport` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_ript.storage.run_directory import history_path

_KEYS = {"iteration", "seconds", "metrics", "evaluation"}


def read_history(run_dir: str | Path) -> list[dict[str, Any]]:
    """The entries, oldest first.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    path = history_path(run_dir)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: name the directory of a run of RIPT with RunReport among its "
            "callbacks."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        complete = all(entry.keys() >= _KEYS for entry in found)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a history ({error!r}): see RunReport.") from error
    if not complete:
        raise ValueError(f"{path} is not a history: an entry lacks one of {sorted(_KEYS)}.")
    return list(found)
