"""Which episode a free slot runs next: of a task that its simulator has ready, where possible.

Preparing a task costs as much as many control steps, so a slot should stay with its tasks. What is
collected does not depend on the order in which episodes run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lightning_ript.filtering import ContextQueue
from lightning_ript.types import Context

IsReady = Callable[[str], bool]
"""Whether a slot's simulator can begin an episode of the task of this name at once."""


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode to run.

    Attributes:
        context: Where it starts.
        k: Its number in the group.
        seed: Entropy of its sampling noise; None acts on the most likely action instead.
        film: Whether to keep a frame of every control step.
        keep_seen: Of how many decisions to keep what the policy saw.
    """

    context: Context
    k: int
    seed: tuple[int, ...] | None
    film: bool = False
    keep_seen: int = 0

    @property
    def task(self) -> str:
        """Name of its task."""
        return self.context.task.name


class Schedule(ABC):
    """Hands out episodes one by one."""

    @abstractmethod
    def take(self, slot: int, is_ready: IsReady) -> EpisodeRequest | None:
        """The episode that a free slot runs next; None when there is none, now and later.

        Args:
            slot: Number of the slot.
            is_ready: Whether its simulator can begin an episode of a task at once.
        """


class InOrder(Schedule):
    """Hands out episodes in the order in which they are given, whoever asks."""

    def __init__(self, episodes: Iterable[EpisodeRequest]) -> None:
        self._episodes = iter(episodes)

    def take(self, slot: int, is_ready: IsReady) -> EpisodeRequest | None:
        """The next one."""
        return next(self._episodes, None)


class TaskByTask(Schedule):
    """Spreads known episodes so that slots keep to their tasks, and all finish together.

    A slot goes on with its task. When that has no episode left, it begins the task with most
    episodes left among those that no other slot runs, or else helps where most are left.

    Args:
        episodes: Those of one task are handed out in this order.
    """

    def __init__(self, episodes: Iterable[EpisodeRequest]) -> None:
        self._left: dict[str, deque[EpisodeRequest]] = {}
        for episode in episodes:
            self._left.setdefault(episode.task, deque()).append(episode)
        self._running: dict[int, str] = {}

    def take(self, slot: int, is_ready: IsReady) -> EpisodeRequest | None:
        """One of the slot's task if it can be; None when all have been handed out."""
        if not self._left:
            return None
        others = {task for other, task in self._running.items() if other != slot}

        def worth(task: str) -> tuple[bool, bool, bool, int]:
            mine = self._running.get(slot) == task
            return mine, is_ready(task), task not in others, len(self._left[task])

        task = max(self._left, key=worth)
        self._running[slot] = task
        episode = self._left[task].popleft()
        if not self._left[task]:
            del self._left[task]
        return episode


class GroupByGroup(Schedule):
    """Hands out the K episodes of each context that a queue hands out.

    A free slot runs a waiting episode of a task it has ready. Otherwise it begins a context that is
    needed in any case, rather than helping with another slot's; only when there is none does it
    help, and only when there is nothing to help with does it begin a context that may turn out not
    to be needed. So keeping to tasks runs no context in vain.

    Args:
        queue: Hands out context numbers.
        context: Number -> context.
        rollouts_per_context: K.
        seed: Entropy that every episode's noise starts from.
    """

    def __init__(
        self,
        queue: ContextQueue,
        context: Callable[[int], Context],
        rollouts_per_context: int,
        seed: tuple[int, ...],
    ) -> None:
        self._queue, self._context = queue, context
        self._rollouts_per_context, self._seed = rollouts_per_context, seed
        self._waiting: dict[int, deque[EpisodeRequest]] = {}  # by context, in the stream's order

    def take(self, slot: int, is_ready: IsReady) -> EpisodeRequest | None:
        """The next episode for the slot; None when no context is left or needed."""
        for number, episodes in self._waiting.items():
            if is_ready(episodes[0].task):
                return self._next(number)
        if not self._waiting or self._queue.needs_another():
            claimed = self._queue.claim()
            if claimed is not None:
                start = self._context(claimed)
                self._waiting[claimed] = deque(
                    EpisodeRequest(start, k, seed=(*self._seed, claimed, k))
                    for k in range(self._rollouts_per_context)
                )
                return self._next(claimed)
        return self._next(next(iter(self._waiting))) if self._waiting else None

    def _next(self, number: int) -> EpisodeRequest:
        episodes = self._waiting[number]
        episode = episodes.popleft()
        if not episodes:
            del self._waiting[number]
        return episode
