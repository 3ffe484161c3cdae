"""Collecting: which groups, and that timing and workers change nothing."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from core_probe import FaultySpec

from lightning_ript.contexts import SampledContexts
from lightning_ript.envs.base import WorkerError
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.envs.toy import ToyEnvironment, ToySpec
from lightning_ript.evaluation import EvaluationEpisodes
from lightning_ript.filtering import LocalQueue, is_informative
from lightning_ript.policies.toy import ToyPolicy
from lightning_ript.rollouts import collect_groups, run_episodes
from lightning_ript.scheduling import EpisodeRequest, InOrder

SPEC = ToySpec()
SOURCE = SampledContexts()


class ShufflingPool:
    """Toy environments in this process that answer in any order, some much later than others.

    Which of them have a task ready is random, too.
    """

    def __init__(self, seed, slots):
        self._random = random.Random(seed)
        self.slots = range(slots)
        self._environments = [ToyEnvironment() for _ in self.slots]
        self._pending = {}

    def reset(self, slot, context, film=False):
        self._pending[slot] = self._environments[slot].reset(context, film)

    def step_chunk(self, slot, actions):
        self._pending[slot] = self._environments[slot].step_chunk(actions)

    def is_ready(self, slot, task):
        return self._random.random() < 0.5

    def wait(self):
        slow = min(self._pending)  # the first slot answers only when nobody else is left
        ready = [slot for slot in self._pending if slot != slow] or [slow]
        chosen = self._random.sample(ready, self._random.randint(1, len(ready)))
        return [(slot, self._pending.pop(slot)) for slot in chosen]

    def drain(self):
        self._pending.clear()


def collect(pool, wanted=5, limit=100, seed=(0, 0), policy=None, **settings):
    return collect_groups(
        policy or ToyPolicy(),
        pool,
        LocalQueue(10, wanted, limit),
        lambda n: SOURCE.context(n, SPEC, 0),
        rollouts_per_context=4,
        seed=seed,
        max_steps=SPEC.max_steps,
        **settings,
    )


@pytest.fixture(scope="module")
def expected():
    with EnvironmentPool(SPEC, 0) as pool:
        return collect(pool)


def assert_same(collection, expected):
    assert collection.next_context == expected.next_context
    assert collection.dropped == expected.dropped
    counts = ("successes", "episodes", "steps")
    assert [getattr(collection, c) for c in counts] == [getattr(expected, c) for c in counts]
    assert len(collection.groups) == len(expected.groups)
    for group, other in zip(collection.groups, expected.groups, strict=True):
        assert group.context.index == other.context.index
        assert group.rewards == other.rewards
        for a, b in zip(group.rollouts, other.rollouts, strict=True):
            assert (a.k, a.success, a.steps, a.decisions) == (b.k, b.success, b.steps, b.decisions)
            assert a.record.keys() == b.record.keys()
            for name in a.record:
                assert torch.equal(a.record[name], b.record[name])
            # Sums of a larger batch may be rounded otherwise.
            torch.testing.assert_close(a.log_probs, b.log_probs, rtol=1e-5, atol=1e-6)


def test_kept_groups_are_the_first_informative_ones(expected):
    assert len(expected.groups) == 5
    assert expected.dropped, "a collection without dropped groups shows nothing"
    kept = [group.context.index for group in expected.groups]
    assert sorted([*kept, *expected.dropped]) == list(range(10, expected.next_context))
    assert kept[-1] == expected.next_context - 1
    assert all(is_informative(group.rewards) for group in expected.groups)
    for group in expected.groups:
        assert [rollout.k for rollout in group.rollouts] == [0, 1, 2, 3]
    assert expected.episodes == 4 * (len(kept) + len(expected.dropped))


@pytest.mark.parametrize("seed", range(6))
def test_timing_changes_nothing(expected, seed):
    assert_same(collect(ShufflingPool(seed, slots=3 * seed + 1)), expected)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_number_of_workers_changes_nothing(expected, num_workers):
    with EnvironmentPool(SPEC, num_workers) as pool:
        assert_same(collect(pool), expected)


def test_another_seed_gives_other_episodes(expected):
    other = collect(ShufflingPool(0, 8), seed=(0, 1))
    assert [g.rewards for g in other.groups] != [g.rewards for g in expected.groups]


def test_without_dynamic_sampling_every_group_is_kept():
    collection = collect(ShufflingPool(0, 8), dynamic_sampling=False)
    assert [group.context.index for group in collection.groups] == [10, 11, 12, 13, 14]
    assert collection.dropped == ()
    assert not all(is_informative(group.rewards) for group in collection.groups)


def test_the_search_is_bounded():
    collection = collect(ShufflingPool(0, 8), wanted=50, limit=6)
    assert collection.next_context == 16
    assert 0 < len(collection.groups) < 6
    assert len(collection.groups) + len(collection.dropped) == 6


def test_a_rollout_is_what_happened(expected):
    """Replays an episode by hand: noise from its own seed, actions, steps, log-probabilities."""
    policy = ToyPolicy()
    group = expected.groups[1]
    rollout = group.rollouts[2]
    rng = np.random.default_rng((0, 0, group.context.index, 2))
    environment = ToyEnvironment()
    observation = environment.reset(group.context)
    steps, success = 0, False
    for decision in range(rollout.decisions):
        noise = torch.from_numpy(rng.random((1, 4), np.float32))
        decisions = policy.act([observation], [group.context.task], noise)
        assert torch.equal(decisions.record["indices"][0], rollout.record["indices"][decision])
        torch.testing.assert_close(decisions.log_probs[0], rollout.log_probs[decision])
        assert not success
        result = environment.step_chunk(decisions.actions[0].numpy())
        observation, success, steps = result.observation, result.success, steps + result.steps
    assert (success, steps) == (rollout.success, rollout.steps)


def test_an_episode_ends_at_max_steps():
    class Away(ToyPolicy):
        def act(self, observations, tasks, noise):
            decisions = super().act(observations, tasks, noise)
            decisions.actions.zero_()
            return decisions

    contexts = [SOURCE.context(n, SPEC, 0) for n in range(3)]
    episodes = InOrder(EpisodeRequest(context, 0, (1,)) for context in contexts)
    rollouts = list(run_episodes(Away(), ShufflingPool(0, 2), episodes, max_steps=10))
    assert [(r.steps, r.decisions, r.success) for r in rollouts] == [(10, 3, False)] * 3


def test_greedy_and_sampled_episodes_share_a_pool():
    context = SOURCE.context(0, SPEC, 0)
    episodes = [EpisodeRequest(context, k, (k,) if k % 2 else None) for k in range(8)]
    pool = ShufflingPool(0, 4)
    rollouts = sorted(run_episodes(ToyPolicy(), pool, InOrder(episodes), 32), key=lambda r: r.k)
    actions = [rollout.record["indices"] for rollout in rollouts]
    assert all(torch.equal(a, actions[0]) for a in actions[::2])
    assert not any(torch.equal(a[:1], b[:1]) for a, b in pairwise(actions[1::2]))


def test_abandoned_episodes_do_not_block_the_pool():
    contexts = [SOURCE.context(n, SPEC, 0) for n in range(9)]
    with EnvironmentPool(SPEC, 2) as pool:
        for _ in range(2):
            stream = run_episodes(
                ToyPolicy(), pool, InOrder(EpisodeRequest(c, 0, (0,)) for c in contexts), 32
            )
            next(stream)
            stream.close()


def test_a_diverged_policy_is_named():
    policy = ToyPolicy()
    policy.directions.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="non-finite action for task 'turn_"):
        collect(ShufflingPool(0, 4), policy=policy)


@pytest.mark.parametrize(("fault", "said"), [("step", "arm fell off"), ("make", "no simulator")])
def test_a_simulator_that_always_fails_ends_the_collection(fault, said):
    with (
        EnvironmentPool(FaultySpec(fault=fault), 2) as pool,
        pytest.raises(WorkerError, match=said),
    ):
        collect(pool)


@pytest.mark.parametrize("fault", ["step", "die", "hang"])
def test_episodes_of_failed_simulators_run_again_and_come_out_the_same(fault, tmp_path, caplog):
    spec = FaultySpec(fault=fault, flags=str(tmp_path))
    with EnvironmentPool(SPEC, 0) as pool:
        expected = collect(pool, wanted=2)
    with EnvironmentPool(spec, 3, hang_seconds=15 if fault == "hang" else 60) as pool:
        assert_same(collect(pool, wanted=2), expected)
    assert len(list(tmp_path.iterdir())) >= 2
    assert "is run again in a new one" in caplog.text


def test_collecting_can_be_stopped():
    def stop():
        raise InterruptedError

    pool = ShufflingPool(0, 8)
    with pytest.raises(InterruptedError):
        collect(pool, interrupt=stop)
    assert not pool._pending


def test_an_evaluation_that_is_left_early_ends_when_it_is_closed():
    left = []

    def run(starts):
        try:
            yield from starts
        finally:
            left.append(True)

    episodes = EvaluationEpisodes([1, 2, 3], run)
    assert len(episodes) == 3
    stream = iter(episodes)
    assert [next(stream), next(stream), next(stream)] == [1, 2, 3]  # all, but not to the end
    assert not left
    episodes.close()
    assert left == [True]
    assert list(episodes) == [1, 2, 3]
