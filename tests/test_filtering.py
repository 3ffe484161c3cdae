"""Which groups are kept, and the queue that decides which of them count, alone and over ranks."""

import random
from threading import Thread

import pytest
import torch
from torch.distributed import HashStore, PrefixStore

from lightning_ript.advantages import leave_one_out
from lightning_ript.filtering import LocalQueue, Quota, SharedQueue, is_informative

OUTCOMES = [False, True, True, False, False, True, False, True, True, True]


@pytest.mark.parametrize(
    ("rewards", "kept"), [([1, 1, 1], False), ([0, 0], False), ([0, 1, 0], True), ([1, 0], True)]
)
@pytest.mark.parity(
    area="Rollouts",
    point="Dynamic sampling",
    reference="groups of equal rewards are dropped",
)
def test_groups_of_equal_rewards_are_dropped(rewards, kept):
    assert is_informative(rewards) == kept
    # That is to say: those that leave-one-out learns nothing from.
    assert bool(leave_one_out(torch.tensor(rewards, dtype=torch.float)).any()) == kept


def shared(first, wanted, limit, quota=None):
    return SharedQueue(HashStore(), first, wanted, limit, quota=quota)


@pytest.fixture(params=[LocalQueue, shared], ids=["local", "shared"])
def make(request):
    return request.param


def finish(queue, numbers, first=0):
    for n in numbers:
        queue.report(n, OUTCOMES[n - first])


@pytest.mark.parametrize("order", range(5))
def test_groups_count_in_the_order_of_contexts(make, order):
    queue = make(100, 3, 10)
    numbers = [queue.claim() for _ in range(8)]
    assert numbers == list(range(100, 108))
    random.Random(order).shuffle(numbers)
    finish(queue, numbers, 100)
    # Kept are 101, 102 and 105, whoever finished first; 107 does not count.
    assert queue.enough()
    assert (queue.kept, queue.dropped, queue.end()) == (3, 3, 106)
    assert queue.claim() is None


def test_it_waits_for_the_leading_contexts(make):
    queue = make(0, 2, 10)
    for _ in range(6):
        queue.claim()
    finish(queue, [5, 2, 1])
    assert not queue.enough()  # 0 might have been kept, and then 2 would not count
    finish(queue, [0])
    assert queue.enough()
    assert queue.end() == 3


def test_a_limit_ends_it_with_what_there_is(make):
    queue = make(0, 9, 4)
    assert [queue.claim() for _ in range(6)] == [0, 1, 2, 3, None, None]
    finish(queue, [3, 0, 2])
    assert not queue.enough()
    finish(queue, [1])
    assert queue.enough()
    assert (queue.kept, queue.dropped, queue.end()) == (2, 2, 4)


def test_ranks_share_numbers_and_counts():
    store = HashStore()
    ranks = [SharedQueue(PrefixStore("iteration0", store), 0, 3, 10) for _ in range(2)]
    taken = [ranks[i % 2].claim() for i in range(6)]
    assert taken == list(range(6))
    finish(ranks[0], [0, 2, 4])
    assert not ranks[1].enough()
    finish(ranks[1], [1, 3, 5])
    assert [(r.enough(), r.end(), r.kept) for r in ranks] == [(True, 6, 3)] * 2
    later = SharedQueue(PrefixStore("iteration1", store), 6, 3, 10)
    assert (later.claim(), later.enough()) == (6, False)


@pytest.mark.parity(
    area="Rollouts",
    point="Groups per task (OpenVLA-OFT: Object, Long)",
    reference="each GPU has its own tasks and keeps B / GPUs groups",
    ours="the same for any number of GPUs: `max_groups_per_task: 6`",
)
@pytest.mark.parametrize("order", range(5))
def test_no_task_has_more_than_its_quota(make, order):
    """Tasks take turns; of 0, 2, 4, ... the second and third are kept, of the others all."""
    outcomes = [False, True, True, True, True, True, True, True]
    quota = Quota(2, lambda n: "even" if n % 2 == 0 else "odd")
    queue = make(0, 4, 20, quota=quota)
    numbers = [queue.claim() for _ in range(8)]
    assert numbers == list(range(8))  # nothing is known yet
    random.Random(order).shuffle(numbers)
    for n in numbers:
        queue.report(n, outcomes[n])
    # 1 and 3 fill the odd ones' quota, 2 and 4 the even ones'; 5 never comes into it.
    assert queue.enough()
    assert (queue.kept, queue.dropped, queue.end()) == (4, 1, 5)
    assert not queue.passed_over


def test_a_task_with_its_quota_is_passed_over(make):
    queue = make(0, 3, 20, quota=Quota(1, lambda n: "abc"[n % 3] if n < 6 else "a"))
    assert [queue.claim() for _ in range(3)] == [0, 1, 2]
    queue.report(0, True)
    queue.report(1, False)
    queue.report(2, True)
    assert not queue.enough()
    assert queue.claim() == 4  # 3 is another of task a
    queue.report(4, True)
    assert queue.enough()
    assert (queue.kept, queue.dropped, queue.end(), queue.passed_over) == (3, 1, 5, {3})


def test_waiting_ends_when_the_others_have_finished():
    store = HashStore()
    ours, theirs = (SharedQueue(store, 0, 1, 10) for _ in range(2))
    theirs.claim()
    thread = Thread(target=ours.wait, args=(lambda: None,))
    thread.start()
    theirs.report(0, True)
    thread.join(5)
    assert not thread.is_alive()


def test_waiting_can_be_stopped():
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        LocalQueue(0, 1, 10).wait(stop)
