"""What ranks tell each other beside gradients."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")
_POLL_SECONDS = 0.05
_WAITS = (
    itertools.count()
)  # of this process, the same on all ranks: each wait has a name of its own


def several_ranks() -> bool:
    """Whether there are other processes to exchange anything with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_objects(mine: T) -> list[T]:
    """One object of each rank, in their order; every rank has to call it.

    Args:
        mine: This rank's; it is pickled.
    """
    if not several_ranks():
        return [mine]
    everyone: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def shared_store(name: str) -> dist.Store:
    """Keys and values that all ranks see.

    Args:
        name: What the keys are kept apart by.
    """
    return dist.PrefixStore(name, dist.distributed_c10d._get_default_store())


def wait_for_all(interrupt: Callable[[], None]) -> None:
    """Waits until every rank has come here, however long it takes; every rank has to call it.

    A collective would also wait, but its timeout is meant for short exchanges: one rank with longer
    episodes would end the run.

    Args:
        interrupt: Called now and then; raises to stop waiting.
    """
    if not several_ranks():
        return
    store = shared_store(f"wait{next(_WAITS)}")
    store.add("ranks", 1)
    while store.add("ranks", 0) < dist.get_world_size():
        interrupt()
        time.sleep(_POLL_SECONDS)
