"""Settings that have another name now."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def renamed(old: str, new: str) -> None:
    """Warns that a setting is called otherwise; the old name goes with the next version."""
    rank_zero_warn(
        f"{old} is called {new} now: rename it, as the next version no longer knows the old name.",
        category=FutureWarning,
        stacklevel=3,
    )
