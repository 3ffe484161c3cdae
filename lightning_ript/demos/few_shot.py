"""Which demonstrations of a file are used when only a few are wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def few_shot(file: Path, count: int, wanted: int | None) -> list[int]:
    """Chooses demonstrations evenly spaced over a file, the first and the last among them.

    As in the reference. Of 50 in a file, 5 are those numbered 0, 12, 24, 36 and 49, and 1 is the
    first.

    Args:
        file: The file, for the error message.
        count: How many demonstrations it holds.
        wanted: How many to use; None for all.

    Raises:
        ValueError: The file holds fewer.
    """
    if wanted is None:
        return list(range(count))
    if wanted > count:
        raise ValueError(
            f"{file} has {count} demonstrations, but {wanted} of each file are to be used: collect "
            "more or use fewer"
        )
    return [int(i) for i in np.linspace(0, count - 1, wanted).astype(int)]
