"""Micro-batches: what they hold, and that how they are cut changes no gradient."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_ript.advantages import group_advantages
from lightning_ript.minibatches import (
    LearningSchedule,
    MinibatchSchedule,
    filler_of,
    flatten,
    kept_episodes,
)
from lightning_ript.policies.quest import QueSTConfig, QueSTPolicy
from lightning_ript.ppo import clipped_surrogate
from lightning_ript.types import Context, DecisionBatch, Rollout, RolloutGroup, Task

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens")) / "quest"
TOKENS = 2
FILLER = DecisionBatch({"id": torch.full((1,), -1)}, torch.zeros(1, TOKENS), (), torch.zeros(1))


@pytest.fixture
def groups(make_group):
    return [
        make_group(3, [1, 0, 0], [4, 7, 2]),
        make_group(5, [1, 0, 1], [1, 9, 3]),
        make_group(8, [0, 1, 1], [5, 5, 6]),
    ]


def schedules(holdings, estimator="leave_one_out", **changes):
    """One schedule per rank; `holdings` says which groups each rank holds."""
    settings = {
        "passes": 2,
        "episodes_per_minibatch": 4,
        "decisions_per_microbatch": 6,
        "loss_aggregation": "token",
    } | changes
    episodes = [e for rank, held in enumerate(holdings) for e in kept_episodes(held, rank)]
    judged = [
        replace(flatten(held), advantages=group_advantages(estimator, held)) for held in holdings
    ]
    return [
        MinibatchSchedule(
            mine,
            episodes,
            FILLER,
            LearningSchedule(**settings),
            rank=rank,
            world_size=len(holdings),
            seed=(0, 7),
        )
        for rank, mine in enumerate(judged)
    ]


def steps(schedule):
    """The micro-batches between optimizer steps."""
    result, current = [], []
    for batch in schedule:
        current.append(batch)
        if batch.is_last:
            result.append(current)
            current = []
    assert not current, "the optimizer never steps after the last micro-batches"
    return result


def gradients(holdings, estimator="leave_one_out", **changes):
    """Gradient of every optimizer step with respect to a made-up policy, summed over ranks."""
    result = []
    for step in zip(*[steps(s) for s in schedules(holdings, estimator, **changes)], strict=True):
        parameters = torch.tensor([0.3, -0.2], dtype=torch.double, requires_grad=True)
        for batch in [batch for rank in step for batch in rank]:
            ids = batch.record["id"].double().unsqueeze(-1)
            features = torch.stack([(ids * 0.01).sin(), (ids * 0.01).cos()], -1)
            log_probs = features @ parameters - 1
            clipped_surrogate(
                log_probs.expand(-1, TOKENS),
                batch.old_log_probs,
                batch.advantages,
                batch.weights.double(),
                batch.normalizer,
                0.1,
                0.3,
            ).loss.backward()
        result.append(parameters.grad)
    return torch.stack(result)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_micro_batches_do_not_change_the_gradient(groups, aggregation, size):
    whole = gradients([groups], loss_aggregation=aggregation, decisions_per_microbatch=10_000)
    cut = gradients([groups], loss_aggregation=aggregation, decisions_per_microbatch=size)
    assert whole.abs().min() > 1e-4
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_how_ranks_share_the_groups_does_not_change_the_gradient(groups, aggregation):
    alone = gradients([groups], loss_aggregation=aggregation)
    a, b, c = groups
    for holdings in ([[a, b], [c]], [[c], [a, b]], [[a, b, c], []], [[b], [a], [c]]):
        shared = gradients(holdings, loss_aggregation=aggregation)
        torch.testing.assert_close(shared, alone, rtol=1e-6, atol=1e-9)


def test_ranks_take_the_same_number_of_steps(groups):
    a, b, c = groups
    ranks = schedules([[a, b, c], []])
    counts = [[len(step) for step in steps(rank)] for rank in ranks]
    assert counts[0] == counts[1]
    assert [len(rank) for rank in ranks] == [sum(counts[0])] * 2
    for batch in ranks[1]:  # it holds nothing, so it adds nothing
        assert batch.record is FILLER.record
        assert not batch.weights.any()
        assert not batch.advantages.any()
    assert max(len(b.advantages) for b in ranks[0]) <= 6


def test_every_pass_shows_every_decision_once_in_another_order(groups):
    (schedule,) = schedules([groups], passes=3)
    everything = sorted(int(i) for g in groups for r in g.rollouts for i in r.record["id"])
    shown = [int(i) for batch in schedule for i in batch.record["id"]]
    size = len(everything)
    passes = [shown[i * size : (i + 1) * size] for i in range(3)]
    assert [sorted(p) for p in passes] == [everything] * 3
    assert passes[0] != passes[1] != passes[2]
    assert shown == [int(i) for batch in schedule for i in batch.record["id"]]  # again the same


def test_minibatches_are_of_even_size(groups):
    (schedule,) = schedules([groups], passes=1, episodes_per_minibatch=4)
    # 9 episodes: 3 minibatches of 3 rather than 4, 4 and 1.
    episodes = [{int(i) // 100 for b in step for i in b.record["id"]} for step in steps(schedule)]
    assert [len(e) for e in episodes] == [3, 3, 3]


def test_rows_keep_their_own_advantage_and_log_probs(groups):
    (schedule,) = schedules([groups], passes=1)
    # Rewards 1, 0, 0 -> 1, -1/2, -1/2; 1, 0, 1 -> 1/2, -1, 1/2; 0, 1, 1 -> -1, 1/2, 1/2.
    expected = {3: [1, -0.5, -0.5], 5: [0.5, -1, 0.5], 8: [-1, 0.5, 0.5]}
    by_number = {g.context.index: g for g in groups}
    for batch in schedule:
        for row, i in enumerate(batch.record["id"].tolist()):
            number, k, decision = i // 1000, i // 100 % 10, i % 100
            assert batch.advantages[row].item() == pytest.approx(expected[number][k])
            old = by_number[number].rollouts[k].log_probs[decision]
            assert torch.equal(batch.old_log_probs[row], old)


def test_token_and_sequence_means_by_hand(make_group):
    # Two episodes of 1 and 3 decisions with 2 tokens each; advantages 1 and -1, ratio 1.
    group = make_group(0, [1, 0], [1, 3])

    def loss(aggregation):
        total = 0.0
        (schedule,) = schedules([[group]], passes=1, loss_aggregation=aggregation)
        for b in schedule:
            result = clipped_surrogate(
                b.old_log_probs, b.old_log_probs, b.advantages, b.weights, b.normalizer
            )
            total += result.loss.item()
        return total

    assert loss("token") == pytest.approx(-(2 * 1 - 6 * 1) / 8)
    assert loss("sequence") == pytest.approx(-(1 - 1) / 2, abs=1e-6)


@pytest.mark.parity(
    area="Loss",
    point="QueST on 3 GPUs: Goal, Long, Object, Spatial",
    reference="average over GPUs of the mean over tokens of 2 episodes each",
    ours="the same, for any number of GPUs: `minibatch_parts: 3`, of any rank's episodes",
)
def test_parts_of_a_minibatch_by_hand(make_group):
    """Token means of parts are averaged, whoever holds the episodes."""
    group = make_group(0, [1, 0, 1, 0], [1, 3, 2, 4])
    advantages = group_advantages("leave_one_out", [group])
    lengths = [1, 3, 2, 4]
    starts = [0, 1, 4, 6]
    (schedule,) = schedules([[group]], passes=1, minibatch_parts=2)
    order = [episode.k for episode in schedule.minibatches[0][0]]
    expected = 0.0
    for part in (order[:2], order[2:]):  # mean over tokens of two episodes; the ratio is 1
        gained = sum(lengths[k] * advantages[starts[k]].item() for k in part)
        expected -= gained / sum(lengths[k] for k in part) / 2
    total = sum(
        clipped_surrogate(
            b.old_log_probs, b.old_log_probs, b.advantages, b.weights, b.normalizer
        ).loss.item()
        for b in schedule
    )
    assert total == pytest.approx(expected, abs=1e-6)
    assert abs(expected) > 0.01


def test_ranks_do_not_change_the_gradient_of_parts(groups):
    alone = gradients([groups], minibatch_parts=3)
    assert not torch.allclose(alone, gradients([groups]), rtol=1e-3)
    a, b, c = groups
    for holdings in ([[a, b], [c]], [[a, b, c], []]):
        shared = gradients(holdings, minibatch_parts=3)
        torch.testing.assert_close(shared, alone, rtol=1e-6, atol=1e-9)
    each = gradients([groups], minibatch_parts=4)
    torch.testing.assert_close(each, gradients([groups], loss_aggregation="sequence"))


def test_flattening_keeps_the_order_of_rollouts(groups):
    decisions = flatten(groups)
    assert decisions.lengths == (4, 7, 2, 1, 9, 3, 5, 5, 6)
    assert len(decisions) == 42
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert torch.equal(decisions.record["id"], torch.cat([r.record["id"] for r in rollouts]))
    assert decisions[4:11].record["id"].tolist() == rollouts[1].record["id"].tolist()
    assert not decisions.advantages.any()
    assert len(flatten([])) == 0


def test_what_the_loss_compares_with_travels_with_its_decision(groups):
    decisions = flatten(groups)
    decisions = replace(decisions, targets={"twice": 2 * decisions.record["id"]})
    schedule = MinibatchSchedule(
        decisions,
        kept_episodes(groups, 0),
        filler_of(decisions),
        LearningSchedule(1, 4, 6, "token"),
    )
    for batch in schedule:
        assert torch.equal(batch.targets["twice"], 2 * batch.record["id"])


def test_a_filler_is_a_decision_that_counts_nothing(groups):
    filler = filler_of(replace(flatten(groups), advantages=torch.ones(42)))
    assert filler.record["id"].tolist() == [3000]
    assert filler.old_log_probs.tolist() == [[0, 0]]
    assert filler.advantages.tolist() == [0]
    assert filler_of(flatten([])) is None


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="no golden tensors here")
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_loss_and_gradient_of_quest_equal_the_reference(aggregation):
    """From rewards to gradients: advantages, micro-batches of 3 decisions, scoring, loss."""
    golden = pytest.importorskip("safetensors.torch").load_file(GOLDENS / "tensors.safetensors")
    sizes = QueSTConfig(
        image_embed_dim=32,
        lowdim_embed_dim=16,
        embed_dim=96,
        prior_layers=2,
        prior_heads=4,
        autoencoder_dim=64,
    )
    policy = QueSTPolicy(sizes, checkpoint=str(GOLDENS / "checkpoint.pth"), language="clip")
    context = Context(Task("toy", 0, "turn_0", "go"), 0)
    rollouts = []
    for k, steps_ in enumerate(golden["ppo.num_valid_steps"].tolist()):
        record = {
            "context": golden["ppo.context_tokens"][k, :steps_],
            "indices": golden["ppo.action_indices"][k, :steps_],
        }
        success = bool(golden["ppo.rewards"][k])
        old = golden["ppo.old_log_probs"][k, :steps_]
        rollouts.append(Rollout(context, k, success, steps_, record, old))
    group = RolloutGroup(context, tuple(rollouts))
    decisions = replace(flatten([group]), advantages=group_advantages("leave_one_out", [group]))
    schedule = MinibatchSchedule(
        decisions,
        kept_episodes([group], 0),
        filler_of(decisions),
        LearningSchedule(1, 8, 3, aggregation),
    )
    assert len(schedule) > 2
    total = 0.0
    for batch in schedule:
        log_probs, _ = policy.log_prob(batch.record)
        loss = clipped_surrogate(
            log_probs, batch.old_log_probs, batch.advantages, batch.weights, batch.normalizer
        ).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(golden[f"ppo.loss_{aggregation}_mean"].item(), abs=1e-6)
    if aggregation == "token":
        gradient = policy.model.policy_prior.head.weight.grad
        torch.testing.assert_close(gradient, golden["ppo.grad.head.weight"], rtol=1e-5, atol=1e-7)
