"""Which episode a free slot runs next: of a scene that its simulator has ready, where possible.

Preparing a scene costs as much as many control steps, so a slot should stay with its scenes. What
is collected does not depend on the order in which episodes run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lightning_ript.filtering import ContextQueue
from lightning_ript.types import Context, Task

Key = TypeVar("Key")


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


class Simulators(Protocol):
    """What a schedule asks about the slots; see `EnvironmentPool`."""

    @property
    def slots(self) -> Sequence[int]:
        """The slots an episode can run in."""

    def is_ready(self, slot: int, task: Task) -> bool:
        """Whether a slot can begin an episode of this task without preparing anything."""


class Schedule(ABC):
    """Hands out episodes one by one."""

    @abstractmethod
    def take(self, slot: int, simulators: Simulators) -> EpisodeRequest | None:
        """The episode that a free slot runs next; None when there is none, now and later.

        Args:
            slot: Number of the slot.
            simulators: All slots.
        """


class InOrder(Schedule):
    """Hands out episodes in the order in which they are given, whoever asks."""

    def __init__(self, episodes: Iterable[EpisodeRequest]) -> None:
        self._episodes = iter(episodes)

    def take(self, slot: int, simulators: Simulators) -> EpisodeRequest | None:
        """The next one."""
        return next(self._episodes, None)


class TaskByTask(Schedule):
    """Spreads known episodes so that slots keep to their scenes, and all finish together.

    A slot runs the task with most episodes left: of those that it has ready, or else of those that
    no other slot has ready, or else of all.

    Args:
        episodes: Those of one task are handed out in this order.
    """

    def __init__(self, episodes: Iterable[EpisodeRequest]) -> None:
        self._left: dict[Task, deque[EpisodeRequest]] = {}
        for episode in episodes:
            self._left.setdefault(episode.context.task, deque()).append(episode)

    def take(self, slot: int, simulators: Simulators) -> EpisodeRequest | None:
        """The next one of the task that suits the slot best."""
        if not self._left:
            return None
        task = max(
            self._left, key=lambda task: (_suits(slot, task, simulators), len(self._left[task]))
        )
        return _next(self._left, task)


class GroupByGroup(Schedule):
    """Hands out the K episodes of each context that a queue hands out.

    Contexts that are needed in any case are claimed together, and a free slot runs the first of
    those that it has ready, or else of those that no other slot has ready, or else of all. Only
    when there is nothing else to do does it begin a context that may turn out not to be needed. So
    keeping to scenes runs no context in vain.

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

    def take(self, slot: int, simulators: Simulators) -> EpisodeRequest | None:
        """The next episode for the slot; None when no context is left or needed."""
        while self._queue.needs_another() or not self._waiting:
            number = self._queue.claim()
            if number is None:
                break
            start = self._context(number)
            self._waiting[number] = deque(
                EpisodeRequest(start, k, seed=(*self._seed, number, k))
                for k in range(self._rollouts_per_context)
            )
        if not self._waiting:
            return None

        def suits(number: int) -> int:
            return _suits(slot, self._waiting[number][0].context.task, simulators)

        return _next(self._waiting, max(self._waiting, key=suits))


def _suits(slot: int, task: Task, simulators: Simulators) -> int:
    """How well a task suits a slot: 2 if it is ready there, 1 if it is nowhere else, else 0."""
    if simulators.is_ready(slot, task):
        return 2
    return int(not any(simulators.is_ready(other, task) for other in simulators.slots))


def _next(queues: dict[Key, deque[EpisodeRequest]], key: Key) -> EpisodeRequest:
    """Takes the next episode out of one of the queues; one that is empty goes."""
    episode = queues[key].popleft()
    if not queues[key]:
        del queues[key]
    return episode
