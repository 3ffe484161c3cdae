"""Names for charts and tables, short but distinct."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def short_names(paths: Sequence[str], least: int = 1) -> list[str]:
    """The shortest ends of paths that tell them apart, e.g. `a/last` and `b/last`.

    A folder `checkpoints` and the suffix of a checkpoint tell nothing and are left out.

    Args:
        paths: Different checkpoints or folders of runs.
        least: Parts that a name has at least, if its path has that many.
    """
    parts = [telling_parts(path) for path in paths]
    longest = max(map(len, parts), default=1)
    for length in range(least, longest):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(part) for part in parts]


def telling_parts(path: str) -> tuple[str, ...]:
    """The parts of a path without its anchor, `checkpoints` folders and a checkpoint's suffix."""
    given = Path(path)
    if given.suffix in (".ckpt", ".pth", ".pt"):
        given = given.with_suffix("")
    return tuple(part for part in given.parts if part not in (given.anchor, "checkpoints", ".."))
