"""3: dynamic sampling (paper section 3.2): which groups are kept, and when they are enough.

A group whose rewards are all equal teaches nothing and is dropped; contexts are handed out until
enough groups are kept, over all ranks together.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from lightning_ript.distributed.exchange import several_ranks, shared_store

_POLL_SECONDS = 0.05


def is_informative(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ, i.e. its leave-one-out advantages are not all zero.

    >>> is_informative([1.0, 0.0, 1.0]), is_informative([1.0, 1.0, 1.0])
    (True, False)
    """
    return min(rewards) != max(rewards)


@dataclass(frozen=True)
class Quota:
    """How many groups of each task count.

    Attributes:
        groups: So many at most.
        task_of: Number of a context -> name of its task.
    """

    groups: int
    task_of: Callable[[int], str]


class ContextQueue(ABC):
    """Hands out context numbers `first`, `first + 1`, ... and counts the groups that were kept.

    Enough groups are kept when the *leading* contexts, all of them finished, hold `wanted` kept
    groups. Counting only an unbroken lead makes the outcome independent of which group happens to
    finish first.

    Args:
        first: The first context number of this iteration.
        wanted: Groups to keep.
        limit: Contexts to try at most.
        quota: Groups to keep of each task at most; further contexts of the task are passed over.
        ranks: How many share the contexts.

    Attributes:
        kept: Groups kept among the leading contexts.
        dropped: Groups dropped among them.
        passed_over: Numbers of leading contexts whose task had its quota.
    """

    def __init__(
        self, first: int, wanted: int, limit: int, quota: Quota | None = None, ranks: int = 1
    ) -> None:
        self.first, self.wanted, self.limit = first, wanted, limit
        self._ranks = ranks
        self._unfinished: set[int] = set()  # of this rank
        self.kept = 0
        self.dropped = 0
        self.passed_over: set[int] = set()
        self._lead = first
        self._quota = quota
        self._kept_of: Counter[str] = Counter()

    def claim(self) -> int | None:
        """The next context number to run, or None when no more are needed."""
        while not self.enough():
            number = self._take()
            if number >= self.first + self.limit:
                return None
            # A journal may have told of it.
            if self._result(number) is None and not self._is_full(number):
                self._unfinished.add(number)
                return number
        return None

    def needs_another(self) -> bool:
        """Whether the next context counts, however unfinished ones end, and is this rank's to run.

        Every rank runs its share of those.
        """
        self.enough()
        missing, number = self.wanted - self.kept, self._upcoming()
        end = min(self._lead + missing, self.first + self.limit)
        if number >= end or len(self._unfinished) >= math.ceil(missing / self._ranks):
            return False
        return self._quota is None or self._may_keep(number, self._quota)

    def _may_keep(self, number: int, quota: Quota) -> bool:
        """Whether a context's task has room for it, however the contexts before it end."""
        task = quota.task_of(number)
        before = (n for n in range(self._lead, number) if quota.task_of(n) == task)
        return (
            self._kept_of[task] + sum(self._result(n) is not False for n in before) < quota.groups
        )

    def report(self, number: int, kept: bool) -> None:
        """Says how a context's group ended."""
        self._unfinished.discard(number)
        self._publish(number, kept)

    def enough(self) -> bool:
        """Whether the leading finished contexts hold enough kept groups, or all were tried."""
        while self.kept < self.wanted and self._lead < self.first + self.limit:
            if self._is_full(self._lead):
                self.passed_over.add(self._lead)
                self._lead += 1
                continue
            result = self._result(self._lead)
            if result is None:
                return False
            self.kept += result
            self.dropped += not result
            if result and self._quota is not None:
                self._kept_of[self._quota.task_of(self._lead)] += 1
            self._lead += 1
        return True

    def _is_full(self, number: int) -> bool:
        """Whether the leading contexts hold all groups of this one's task that are wanted."""
        quota = self._quota
        return quota is not None and self._kept_of[quota.task_of(number)] >= quota.groups

    def wait(self, interrupt: Callable[[], None]) -> None:
        """Blocks until `enough`: other ranks may still run contexts that count.

        Args:
            interrupt: Called now and then; raises to stop waiting.
        """
        while not self.enough():
            interrupt()
            time.sleep(_POLL_SECONDS)

    def end(self) -> int:
        """One past the last context that counts; call it once `enough`."""
        return self._lead

    @abstractmethod
    def _publish(self, number: int, kept: bool) -> None:
        """Tells every rank how a context's group ended."""

    @abstractmethod
    def _take(self) -> int:
        """Returns a number nobody has taken yet."""

    @abstractmethod
    def _upcoming(self) -> int:
        """The number that will be taken next."""

    @abstractmethod
    def _result(self, number: int) -> bool | None:
        """Whether that context's group was kept, None while unknown."""


class LocalQueue(ContextQueue):
    """The queue of a single process."""

    def __init__(self, first: int, wanted: int, limit: int, quota: Quota | None = None) -> None:
        super().__init__(first, wanted, limit, quota)
        self._next = first
        self._results: dict[int, bool] = {}

    def _publish(self, number: int, kept: bool) -> None:
        self._results[number] = kept

    def _take(self) -> int:
        self._next += 1
        return self._next - 1

    def _upcoming(self) -> int:
        return self._next

    def _result(self, number: int) -> bool | None:
        return self._results.get(number)


class SharedQueue(ContextQueue):
    """One queue for all ranks, kept in torch.distributed's store.

    Args:
        store: The store; keys are prefixed by the caller so that iterations do not meet.
        first: As above.
        wanted: As above, over all ranks.
        limit: As above, over all ranks.
        quota: As above, over all ranks.
        ranks: As above.
    """

    def __init__(
        self,
        store: dist.Store,
        first: int,
        wanted: int,
        limit: int,
        quota: Quota | None = None,
        ranks: int = 1,
    ) -> None:
        super().__init__(first, wanted, limit, quota, ranks)
        self._store = store

    def _publish(self, number: int, kept: bool) -> None:
        self._store.set(f"result/{number}", "kept" if kept else "dropped")

    def _take(self) -> int:
        return self.first + self._store.add("taken", 1) - 1

    def _upcoming(self) -> int:
        return self.first + self._store.add("taken", 0)

    def _result(self, number: int) -> bool | None:
        key = f"result/{number}"
        return self._store.get(key) == b"kept" if self._store.check([key]) else None


def make_queue(
    name: str, first: int, wanted: int, limit: int, quota: Quota | None = None
) -> ContextQueue:
    """A shared queue under torch.distributed, else a local one.

    Args:
        name: Unique to this iteration; the same on all ranks.
        first: The first context number.
        wanted: Groups to keep, over all ranks.
        limit: Contexts to try at most, over all ranks.
        quota: Groups to keep of each task at most, over all ranks.
    """
    if not several_ranks():
        return LocalQueue(first, wanted, limit, quota)
    ranks = dist.get_world_size()
    return SharedQueue(shared_store(name), first, wanted, limit, quota=quota, ranks=ranks)
