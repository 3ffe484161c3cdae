"""Which episode a free slot runs next."""

from collections import Counter, deque

import pytest
import torch.distributed as dist

from lightning_ript.envs.libero.suites import bddl_path, scene, suite_tasks
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.envs.toy import ToySpec
from lightning_ript.filtering import LocalQueue, Quota, SharedQueue
from lightning_ript.scheduling import EpisodeRequest, GroupByGroup, InOrder, TaskByTask
from lightning_ript.types import Context, Task

TASKS = [Task("suite", i, f"task{i}", f"do {i}") for i in range(10)]


def context(n):
    return Context(TASKS[n % len(TASKS)], n)


class Slots:
    """Imitates slots that keep the last scene each; counts what they have to prepare."""

    def __init__(self, slots, scene=lambda task: task.name):
        self.slots = range(slots)
        self.scene = scene
        self.held = dict.fromkeys(self.slots)
        self.prepared = []

    def is_ready(self, slot, task):
        return self.held[slot] == self.scene(task)

    def take(self, schedule, slot):
        episode = schedule.take(slot, self)
        if episode is not None and not self.is_ready(slot, episode.context.task):
            self.held[slot] = self.scene(episode.context.task)
            self.prepared.append(self.held[slot])
        return episode


def in_turn(schedule, slots):
    """Slots take turns until there is nothing left; returns who ran what."""
    ran = []
    free = deque(slots.slots)
    while free:
        slot = free.popleft()
        episode = slots.take(schedule, slot)
        if episode is not None:
            ran.append((slot, episode))
            free.append(slot)
    return ran


def numbers(ran):
    return [(slot, e.context.index, e.k) for slot, e in ran]


def test_in_order_hands_out_what_it_is_given():
    episodes = [EpisodeRequest(context(n), 0, None) for n in (3, 1, 2)]
    assert [episode for _, episode in in_turn(InOrder(episodes), Slots(2))] == episodes


def test_known_episodes_are_spread_task_by_task():
    episodes = [EpisodeRequest(Context(t, i), 0, None) for t in TASKS for i in range(50)]
    slots = Slots(4)
    ran = in_turn(TaskByTask(episodes), slots)
    everything = Counter((e.context.task, e.context.index) for _, e in ran)
    assert everything == Counter((e.context.task, e.context.index) for e in episodes)
    # Ten tasks, and at the end two slots help the two that still have one to do.
    assert len(slots.prepared) == 12
    shares = Counter(slot for slot, _ in ran)
    assert max(shares.values()) - min(shares.values()) <= 1


def test_the_longest_task_begins_first_and_others_help_where_most_is_left():
    lengths = {0: 2, 1: 9, 2: 5}
    schedule = TaskByTask(
        EpisodeRequest(Context(TASKS[t], i), 0, None) for t in lengths for i in range(lengths[t])
    )
    ran = in_turn(schedule, Slots(2))
    # The second slot runs tasks 2 and 0 to their ends and then helps with task 1.
    assert [e.context.task.index for slot, e in ran if slot == 0] == [1] * 8
    assert [e.context.task.index for slot, e in ran if slot == 1] == [2] * 5 + [0] * 2 + [1]


def test_libero_90_is_prepared_by_scene():
    tasks = suite_tasks("libero_90")
    assert len({scene(bddl_path(task)) for task in tasks}) == 20
    assert len({scene(bddl_path(task)) for task in suite_tasks("libero_goal")}) == 1
    episodes = [EpisodeRequest(Context(t, i), 0, None) for t in tasks for i in range(50)]
    slots = Slots(2, lambda task: scene(bddl_path(task)))
    assert len(in_turn(TaskByTask(episodes), slots)) == 4500
    assert len(slots.prepared) <= 21


def test_each_slot_runs_a_needed_context_of_its_own():
    slots = Slots(2)
    schedule = GroupByGroup(LocalQueue(0, wanted=4, limit=100), context, 3, seed=(7, 1))
    ran = [(slot, slots.take(schedule, slot)) for _ in range(3) for slot in (0, 1)]
    assert numbers(ran) == [(s, s, k) for k in range(3) for s in (0, 1)]
    assert [e.seed for _, e in ran[:2]] == [(7, 1, 0, 0), (7, 1, 1, 0)]
    assert slots.prepared == ["task0", "task1"]


def test_a_slot_runs_needed_contexts_of_its_scene_first():
    slots = Slots(1)
    schedule = GroupByGroup(LocalQueue(0, wanted=13, limit=13), context, 2, seed=())
    ran = in_turn(schedule, slots)
    assert [e.context.index for _, e in ran[:6]] == [0, 0, 10, 10, 1, 1]
    assert len(ran) == 26
    assert len(slots.prepared) == 10


def test_a_slot_helps_rather_than_begin_what_may_not_be_needed():
    slots = Slots(3)
    schedule = GroupByGroup(LocalQueue(0, wanted=1, limit=100), context, 2, seed=())
    ran = [(slot, slots.take(schedule, slot)) for slot in slots.slots]
    assert numbers(ran) == [(0, 0, 0), (1, 0, 1), (2, 1, 0)]  # the third has nothing to help with


def test_what_is_needed_grows_with_dropped_groups_and_ends_at_the_limit():
    queue = LocalQueue(10, wanted=2, limit=4)
    for number in (10, 11):
        assert queue.needs_another()
        assert queue.claim() == number
    assert not queue.needs_another()
    assert queue.claim() == 12  # handed out all the same, for whoever has nothing else to do
    queue.report(10, kept=False)
    assert not queue.needs_another()  # 11 and 12 may be kept
    queue.report(11, kept=False)
    assert queue.needs_another()
    assert queue.claim() == 13
    queue.report(12, kept=False)
    assert not queue.needs_another()  # the limit
    assert not queue.enough()


def test_a_task_that_may_fill_its_quota_needs_no_other():
    quota = Quota(1, lambda n: "same" if n in (0, 2) else str(n))
    queue = LocalQueue(0, wanted=4, limit=100, quota=quota)
    for number in (0, 1):
        assert queue.needs_another()
        assert queue.claim() == number
    assert not queue.needs_another()
    queue.report(0, kept=False)
    assert queue.needs_another()  # number 2: its task has kept nothing


def test_ranks_share_what_is_needed():
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
        scenes_kept = kept

        def scene(self, task):
            return f"scene {task.index // 2}"

    tasks = Keeping(num_tasks=5).tasks()
    with EnvironmentPool(Keeping(num_tasks=5), 0) as pool:
        for task in (tasks[0], tasks[2], tasks[4], tasks[3]):
            pool.reset(0, Context(task, 0))
            pool.drain()
        # Last used: the scene of tasks 2 and 3, and before that the one of task 4.
        assert [pool.is_ready(0, task) for task in tasks] == [
            *(False, False, True, True),
            kept == 2,
        ]
        assert not pool.is_ready(1, tasks[3])
    with EnvironmentPool(ToySpec(), 0) as pool:
        assert pool.is_ready(0, TASKS[0])
