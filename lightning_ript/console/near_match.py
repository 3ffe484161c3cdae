"""The name that somebody probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a sentence that says that a name is unknown.

    Args:
        name: What was given.
        known: What could have been given.
        otherwise: The end where nothing is like it.
    """
    near = get_close_matches(name, sorted(set(known)), n=1)
    return f": did you mean {near[0]}?" if near else otherwise
