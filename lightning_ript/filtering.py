"""3: dynamic sampling (paper section 3.2): a group whose rewards are all equal teaches nothing."""

from __future__ import annotations

from collections.abc import Sequence


def is_informative(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ, i.e. its leave-one-out advantages are not all zero.

    >>> is_informative([1.0, 0.0, 1.0]), is_informative([1.0, 1.0, 1.0])
    (True, False)
    """
    return min(rewards) != max(rewards)
