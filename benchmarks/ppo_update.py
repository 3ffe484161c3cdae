"""Decision steps per second of PPO over kept rollouts: the reference's schedule against ours.

python benchmarks/ppo_update.py [--sizes small] [--device cuda] [--json FILE]
python benchmarks/ppo_update.py --padding collection

No simulator: the rollouts are made up, with context tokens, skill tokens and probabilities as the
real loop keeps them. Failed episodes take 75 decisions, which is 600 control steps; successful ones
a sixth to half of that, at random. How much padding there is depends on their share (`--success`).
Both ways cache the contexts, take the same optimizer steps on the same episodes and, asserted, the
same gradients.

reference  Every forward pass takes a minibatch of whole episodes, 2 by default, padded to its
           longest one and masked. An optimizer step over more episodes, which the reference gets
           from several GPUs, adds up the gradients of several such passes.
ours       `MinibatchSchedule`: the decision steps of all those episodes, without padding, in as
           few passes as `decisions_per_microbatch` allows.

Assumptions about the reference, where its kindest reading was taken: it does not encode images
again in later passes, it computes no entropy, and it pads to the longest of the minibatch
(`--padding collection`: of all episodes). The loss is the module's, the optimizer AdamW; Lightning
and its metrics are left out on both sides. Rounds alternate; medians and ranges are over them.
"""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from measuring.policy import quickstart_settings
from measuring.processes import memory_mib, restart_peak
from measuring.report import spread, table, with_range

from lightning_ript.advantages import estimate, group_advantages
from lightning_ript.minibatches import (
    LearningSchedule,
    MinibatchSchedule,
    filler_of,
    flatten,
    kept_episodes,
)
from lightning_ript.policies.quest import QueSTPolicy
from lightning_ript.policies.quest.model import QueSTConfig
from lightning_ript.ppo import clipped_surrogate
from lightning_ript.types import Context, Minibatch, Rollout, RolloutGroup, Task

TOLERANCE = 1e-5
Padding = Literal["minibatch", "collection"]


def make_groups(
    policy: QueSTPolicy,
    groups: int,
    rollouts: int,
    max_decisions: int,
    success: float,
    seed: int,
) -> list[RolloutGroup]:
    """Makes up kept groups, with a share of successes in each."""
    config = policy.model.config
    generator = torch.Generator().manual_seed(seed)
    early = max_decisions // 6 + 1, max_decisions // 2 + 1
    lengths = np.random.default_rng(seed).integers(*early, (groups, rollouts), endpoint=True)
    wins = min(max(round(success * rollouts), 1), rollouts - 1)  # equal rewards are not kept
    task = Task("made_up", 0, "made_up", "made up")
    result = []
    for number in range(groups):
        context = Context(task, number)
        episodes = []
        for k in range(rollouts):
            decisions = int(lengths[number, k]) if k < wins else max_decisions
            record = {
                "context": torch.randn(decisions, 2, config.embed_dim, generator=generator),
                "indices": torch.randint(
                    config.vocab_size, (decisions, config.tokens), generator=generator
                ),
            }
            log_probs = _log_probs(policy, record)
            log_probs += 0.2 * torch.randn(log_probs.shape, generator=generator)  # older weights'
            episodes.append(Rollout(context, k, k < wins, 8 * decisions, record, log_probs))
        result.append(RolloutGroup(context, tuple(episodes)))
    return result


@torch.no_grad()
def _log_probs(policy: QueSTPolicy, record: dict[str, torch.Tensor]) -> torch.Tensor:
    moved = {name: value.to(policy.device) for name, value in record.items()}
    return policy.log_prob(moved)[0].cpu()


class PaddedSchedule:
    """The reference's minibatches: whole episodes, padded and masked.

    Args:
        groups: The kept groups.
        schedule: Ours, for which episodes make an optimizer step.
        per_forward: Episodes per forward pass.
        padding: What the episodes are padded to the longest of.
    """

    def __init__(
        self,
        groups: list[RolloutGroup],
        schedule: MinibatchSchedule,
        per_forward: int,
        padding: Padding,
    ) -> None:
        self._rollouts = {(g.context.index, r.k): r for g in groups for r in g.rollouts}
        self._advantages = {
            (group.context.index, k): float(advantage)
            for group in groups
            for k, advantage in enumerate(
                estimate("leave_one_out", torch.tensor(group.rewards)).tolist()
            )
        }
        self._schedule, self._per_forward = schedule, per_forward
        longest = max(rollout.decisions for rollout in self._rollouts.values())
        self._length = longest if padding == "collection" else 0

    def __iter__(self) -> Iterator[Minibatch]:
        for episodes in self._schedule.minibatches[0]:
            keys = [(episode.number, episode.k) for episode in episodes]
            tokens = sum(self._rollouts[key].log_probs.numel() for key in keys)
            for first in range(0, len(keys), self._per_forward):
                part = keys[first : first + self._per_forward]
                yield self._pad(part, tokens, is_last=first + self._per_forward >= len(keys))

    def _pad(self, keys: list[tuple[int, int]], tokens: int, is_last: bool) -> Minibatch:
        rollouts = [self._rollouts[key] for key in keys]
        length = max(self._length, *(rollout.decisions for rollout in rollouts))

        def pad(tensors: list[torch.Tensor]) -> torch.Tensor:
            padded = torch.zeros(
                len(tensors), length, *tensors[0].shape[1:], dtype=tensors[0].dtype
            )
            for row, tensor in zip(padded, tensors, strict=True):
                row[: len(tensor)] = tensor
            return padded.flatten(0, 1)

        record = {name: pad([r.record[name] for r in rollouts]) for name in rollouts[0].record}
        advantages = torch.tensor([self._advantages[key] for key in keys])
        return Minibatch(
            record=record,
            old_log_probs=pad([rollout.log_probs for rollout in rollouts]),
            advantages=advantages.repeat_interleave(length),
            targets={},
            weights=pad([torch.ones_like(rollout.log_probs) for rollout in rollouts]),
            normalizer=float(tokens),
            is_last=is_last,
        )


def reference_log_probs(policy: QueSTPolicy, batch: Minibatch) -> torch.Tensor:
    """Log-probabilities (N, T) of the recorded tokens and nothing else."""
    logits = policy.model.prior_logits(batch.record["context"], batch.record["indices"])
    return logits.log_softmax(-1).gather(-1, batch.record["indices"][..., None])[..., 0]


def our_log_probs(policy: QueSTPolicy, batch: Minibatch) -> torch.Tensor:
    """Log-probabilities (N, T) as the module gets them, entropy beside them."""
    return policy.log_prob(batch.record)[0]


Score = Callable[[QueSTPolicy, Minibatch], torch.Tensor]


def backward(policy: QueSTPolicy, batch: Minibatch, score: Score) -> None:
    """Adds a micro-batch's share to the gradients."""
    batch = batch.to(policy.device)
    clipped_surrogate(
        score(policy, batch),
        batch.old_log_probs,
        batch.advantages,
        batch.weights,
        batch.normalizer,
    ).loss.backward()


def gradients(
    policy: QueSTPolicy, schedule: MinibatchSchedule | PaddedSchedule, score: Score, count: int
) -> Iterator[list[torch.Tensor]]:
    """The gradients of the first optimizer steps, all at the present weights."""
    for batch in schedule:
        backward(policy, batch, score)
        if batch.is_last:
            found = [p.grad for p in policy.parameters() if p.grad is not None]
            policy.zero_grad()  # the other schedule's turn comes before this one's next
            yield found
            count -= 1
            if not count:
                return


def run_pass(
    policy: QueSTPolicy, schedule: MinibatchSchedule | PaddedSchedule, score: Score
) -> tuple[float, float]:
    """One pass with optimizer steps; returns its seconds and its peak memory in MiB."""
    optimizer = torch.optim.AdamW(policy.parameter_groups(), lr=1e-6)
    on_gpu = policy.device.type == "cuda"
    torch.cuda.reset_peak_memory_stats() if on_gpu else restart_peak()
    started = time.perf_counter()
    for batch in schedule:
        backward(policy, batch, score)
        if batch.is_last:
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            optimizer.zero_grad()
    if on_gpu:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory_mib("self", "VmHWM")
    return elapsed, peak


def main(
    sizes: Literal["small", "full"] = "full",
    groups: int = 4,
    rollouts_per_context: int = 8,
    max_decisions: int = 75,
    success: float = 0.5,
    episodes_per_minibatch: int = 8,
    episodes_per_forward: int = 2,
    decisions_per_microbatch: int = 512,
    padding: Padding = "minibatch",
    rounds: int = 3,
    device: str = "cpu",
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Measures and prints a table.

    Args:
        sizes: `full` for the published QueST, `small` for the quickstart's.
        groups: Kept groups, B.
        rollouts_per_context: Episodes per group, K.
        max_decisions: Decision steps of failed episodes.
        success: Share of the episodes that succeed, in every group.
        episodes_per_minibatch: Episodes per optimizer step, of both.
        episodes_per_forward: Episodes per forward pass of the reference.
        decisions_per_microbatch: Decision steps per forward pass of ours at most.
        padding: What the reference pads to the longest of.
        rounds: Passes over all episodes that are measured.
        device: Where to learn.
        seed: Decides weights and rollouts.
        json: File to write all numbers to.

    Raises:
        AssertionError: If the gradients differ by more than 1e-5.
    """
    torch.manual_seed(seed)
    config = QueSTConfig() if sizes == "full" else quickstart_settings()["sizes"]
    policy = QueSTPolicy(config).to(device)
    made = make_groups(policy, groups, rollouts_per_context, max_decisions, success, seed)
    decisions = replace(flatten(made), advantages=group_advantages("leave_one_out", made))
    filler = filler_of(decisions)
    assert filler is not None
    ours = MinibatchSchedule(
        decisions,
        kept_episodes(made, 0),
        filler,
        LearningSchedule(
            passes=1,
            episodes_per_minibatch=episodes_per_minibatch,
            decisions_per_microbatch=decisions_per_microbatch,
            loss_aggregation="token",
        ),
        seed=(seed,),
    )
    ways: dict[str, tuple[MinibatchSchedule | PaddedSchedule, Score]] = {
        "reference": (
            PaddedSchedule(made, ours, episodes_per_forward, padding),
            reference_log_probs,
        ),
        "ours": (ours, our_log_probs),
    }
    steps = min(4, -(-groups * rollouts_per_context // episodes_per_minibatch))
    both = [gradients(policy, *way, steps) for way in ways.values()]  # also warms up
    difference = largest = 0.0
    for theirs, mine in zip(*both, strict=True):
        for a, b in zip(theirs, mine, strict=True):
            difference = max(difference, float((a - b).abs().max()))
            largest = max(largest, float(b.abs().max()))
    if difference > TOLERANCE:
        raise AssertionError(f"the gradients differ by {difference:.1e}.")
    print(f"gradients differ by {difference:.1e} at most; the largest is {largest:.1e}\n")

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            elapsed, peak = run_pass(policy, *way)
            seconds[name].append(elapsed)
            peaks[name] = max(peaks[name], peak)
    total = len(decisions)
    ratio = spread(a / b for a, b in zip(seconds["reference"], seconds["ours"], strict=True))
    results = {
        name: {
            "decisions_per_second": spread(total / each for each in seconds[name]),
            "computed_decisions": sum(len(batch.weights) for batch in ways[name][0]),
            "peak_memory_mib": peaks[name],
        }
        for name in ways
    }
    rows = [
        [
            name,
            with_range(each["decisions_per_second"]),  # type: ignore[arg-type]
            each["computed_decisions"],
            f"{each['peak_memory_mib']:.0f}",
        ]
        for name, each in results.items()
    ]
    header = ["schedule", "decision steps/s", "decision steps computed", "peak memory MiB"]
    print(table(header, rows))
    print(f"\nratio {with_range(ratio, 2)} over {total} decision steps")
    if json is not None:
        summary = {"gradient_difference": difference, "largest_gradient": largest, "ratio": ratio}
        settings = {
            "sizes": sizes,
            "device": device,
            "padding": padding,
            "success": success,
            "decisions": total,
        }
        json.write_text(
            json_format.dumps({"settings": settings, **summary, "schedules": results}, indent=2)
        )


if __name__ == "__main__":
    auto_cli(main)
