"""What ranks tell each other beside gradients."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather_objects(mine: T) -> list[T]:
    """One object of each rank, in their order; every rank has to call it.

    Args:
        mine: This rank's; it is pickled.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [mine]
    everyone: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
