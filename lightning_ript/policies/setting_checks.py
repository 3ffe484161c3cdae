"""Checks of settings that several policies have."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Compares a setting with what it may be.

    Raises:
        ValueError: It is none of that.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")


def check_executed_actions(executed_actions: int, chunk: int) -> None:
    """Compares the number of actions to execute with that of a chunk.

    Raises:
        ValueError: A chunk has fewer, or it is none.
    """
    if not 1 <= executed_actions <= chunk:
        raise ValueError(
            f"executed_actions is {executed_actions}, but a chunk has {chunk} actions: choose "
            "between 1 and that."
        )
