"""Which episode a free slot runs next."""

from collections import Counter, deque

import pytest

from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.envs.toy import ToySpec
from lightning_ript.filtering import LocalQueue, SharedQueue
from lightning_ript.scheduling import EpisodeRequest, GroupByGroup, InOrder, TaskByTask
from lightning_ript.types import Context, Task

TASKS = [Task("suite", i, f"task{i}", f"do {i}") for i in range(10)]


SPEC_CONTEXTS = [Context(task, i, seed=i) for i, task in enumerate(ToySpec(num_tasks=4).tasks())]


def context(n):
    return Context(TASKS[n % len(TASKS)], n)


class Slots:
    """Imitates slots that keep the last task each; counts what they have to prepare."""

    def __init__(self, slots):
        self.held = dict.fromkeys(range(slots))
        self.prepared = Counter()

    def take(self, schedule, slot):
        episode = schedule.take(slot, lambda task: self.held[slot] == task)
        if episode is not None and self.held[slot] != episode.task:
            self.held[slot] = episode.task
            self.prepared[episode.task] += 1
        return episode


def in_turn(schedule, slots):
    """Slots take turns until there is nothing left; returns who ran what."""
    ran = []
    free = deque(slots.held)
    while free:
        slot = free.popleft()
        episode = slots.take(schedule, slot)
        if episode is not None:
            ran.append((slot, episode))
            free.append(slot)
    return ran


def test_in_order_hands_out_what_it_is_given():
    episodes = [EpisodeRequest(context(n), 0, None) for n in (3, 1, 2)]
    assert [episode for _, episode in in_turn(InOrder(episodes), Slots(2))] == episodes


def test_known_episodes_are_spread_task_by_task():
    episodes = [EpisodeRequest(Context(t, i), 0, None) for t in TASKS for i in range(50)]
    slots = Slots(4)
    ran = in_turn(TaskByTask(episodes), slots)
    assert sorted((e.task, e.context.index) for _, e in ran) == sorted(
        (e.task, e.context.index) for e in episodes
    )
    # Ten tasks, and at the end two slots help the two that still have one to do.
    assert sum(slots.prepared.values()) == 12
    shares = Counter(slot for slot, _ in ran)
    assert max(shares.values()) - min(shares.values()) <= 1


def test_the_longest_task_begins_first_and_others_help_where_most_is_left():
    lengths = {0: 2, 1: 9, 2: 5}
    episodes = [
        EpisodeRequest(Context(TASKS[t], i), 0, None) for t in lengths for i in range(lengths[t])
    ]
    slots = Slots(2)
    schedule = TaskByTask(episodes)
    first = [slots.take(schedule, slot).task for slot in (0, 1)]
    assert first == ["task1", "task2"]
    rest = in_turn(schedule, slots)
    assert rest[-1][1].task in ("task1", "task0")
    assert len(rest) == sum(lengths.values()) - 2


def test_each_slot_runs_a_needed_context_of_its_own():
    queue = LocalQueue(0, wanted=4, limit=100)
    slots = Slots(2)
    schedule = GroupByGroup(queue, context, 3, seed=(7, 1))
    ran = [(slot, slots.take(schedule, slot)) for _ in range(3) for slot in (0, 1)]
    assert [(slot, e.context.index, e.k) for slot, e in ran] == [
        (0, 0, 0),
        (1, 1, 0),
        (0, 0, 1),
        (1, 1, 1),
        (0, 0, 2),
        (1, 1, 2),
    ]
    assert [e.seed for _, e in ran[:2]] == [(7, 1, 0, 0), (7, 1, 1, 0)]
    assert sum(slots.prepared.values()) == 2


def test_a_slot_helps_rather_than_begin_what_may_not_be_needed():
    queue = LocalQueue(0, wanted=1, limit=100)
    slots = Slots(3)
    schedule = GroupByGroup(queue, context, 2, seed=())
    taken = [slots.take(schedule, slot).context.index for slot in (0, 1, 2)]
    assert taken == [0, 0, 1]  # the third has nothing to help with


def test_a_slot_that_holds_a_task_goes_on_with_it():
    queue = LocalQueue(0, wanted=20, limit=100)
    schedule = GroupByGroup(queue, context, 2, seed=())
    assert schedule.take(0, lambda task: False).context.index == 0
    assert schedule.take(1, lambda task: False).context.index == 1
    assert schedule.take(1, lambda task: task == "task0").context.index == 0


def test_what_is_needed_grows_with_dropped_groups_and_ends_at_the_limit():
    queue = LocalQueue(10, wanted=2, limit=4)
    for number in (10, 11):
        assert queue.needs_another()
        assert queue.claim() == number
    assert not queue.needs_another()
    assert queue.claim() == 12  # handed out all the same, for whoever has nothing else to do
    assert not queue.needs_another()
    queue.report(10, kept=False)
    assert not queue.needs_another()  # 11 and 12 may be kept
    queue.report(11, kept=False)
    assert queue.needs_another()
    assert queue.claim() == 13
    queue.report(12, kept=False)
    assert not queue.needs_another()  # the limit
    assert not queue.enough()


def test_ranks_share_what_is_needed():
    import torch.distributed as dist

    store = dist.HashStore()
    ranks = [SharedQueue(store, 0, wanted=4, limit=100, ranks=2) for _ in range(2)]
    for queue in ranks:
        taken = []
        while queue.needs_another():
            taken.append(queue.claim())
        assert len(taken) == 2
    assert not ranks[0].needs_another()


@pytest.mark.parametrize("kept", [1, 2])
def test_the_pool_knows_what_its_workers_have_ready(kept):
    class Keeping(ToySpec):
        tasks_kept = kept

    with EnvironmentPool(Keeping(), 0) as pool:
        for n in range(3):
            pool.reset(0, SPEC_CONTEXTS[n])
            pool.drain()
        names = [c.task.name for c in SPEC_CONTEXTS[:3]]
        assert [pool.is_ready(0, name) for name in names] == [n >= 3 - kept for n in range(3)]
        assert not pool.is_ready(1, names[-1])
    with EnvironmentPool(ToySpec(), 0) as pool:
        assert pool.is_ready(0, "any task")
