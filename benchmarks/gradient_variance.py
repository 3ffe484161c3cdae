"""How noisy a policy gradient is, by how decisions are judged: leave-one-out or fitted values.

python benchmarks/gradient_variance.py [--groups 16] "[--config=FILE, ..., --NAME=VALUE, ...]"

What is in brackets is what `lightning-ript fit` would take, for a policy with features. The policy
collects one iteration and learns nothing. For each way of judging decisions every kept group gives
a gradient of its own; the table says how much these differ from one another, and how much
success a step along their mean gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import auto_cli
from measuring.report import table
from torch import Tensor

from lightning_ript.advantages import group_advantages
from lightning_ript.cli import main as lightning_ript
from lightning_ript.extensions.fitted_values import FittedValueModule, advantages_of
from lightning_ript.minibatches import flatten
from lightning_ript.types import Experience, RolloutGroup

LAMBDAS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.0)  # the first brings in no bias


class Measuring(FittedValueModule):
    """Measures in place of learning."""

    def plan(self, experience: Experience) -> Any:
        """Prints the table and ends the run."""
        self.trainer.should_stop = True
        groups = experience.groups
        decisions = flatten(groups)
        rollouts, values = self.fitted(groups, decisions)
        judged = {"leave_one_out": group_advantages("leave_one_out", groups)} | {
            f"fitted values, λ = {lam}": advantages_of(rollouts, values, lam) for lam in LAMBDAS
        }
        learning = sum(p.numel() for p in self.policy.parameters() if p.requires_grad)
        gradients = self.gradients(groups, torch.stack(list(judged.values())))
        variances = gradients.var(dim=1).sum(-1)
        relative = (f"{ratio:.2f}" for ratio in (variances / variances[0]).tolist())
        _, unbiased, *_ = gradients
        gains = [gain(each, unbiased) for each in gradients]
        print(f"{len(groups)} groups, {len(decisions)} decisions, {learning} parameters")
        print(
            table(
                ["decisions judged by", "variance of the gradient", "gain of a unit step"],
                zip(judged, relative, gains, strict=True),
            )
        )
        return []

    def gradients(self, groups: Sequence[RolloutGroup], advantages: Tensor) -> Tensor:
        """Of W ways' advantages (W, N) for the decisions of G groups, (W, G, parameters)."""
        learning = [p for p in self.policy.parameters() if p.requires_grad]
        found, start = [], 0
        for group in groups:
            record = flatten([group]).record
            with torch.enable_grad():
                log_probs, _ = self.policy.log_prob(record)
                own = advantages[:, start : start + len(log_probs)]
                losses = own @ log_probs.sum(-1)
            each = [torch.autograd.grad(loss, learning, retain_graph=True) for loss in losses]
            found.append(torch.stack([torch.cat([g.flatten() for g in way]) for way in each]))
            start += len(log_probs)
        return torch.stack(found, dim=1)


def gain(gradients: Tensor, unbiased: Tensor) -> str:
    """How many successes a group gains, to first order, by a unit step along the mean gradient.

    That is the inner product with the true gradient, which other groups' unbiased gradients stand
    for. The number after ± is its standard deviation where there is nothing to gain, that is where
    a group's gradients have a random sign.

    Args:
        gradients: Of G groups, (G, parameters).
        unbiased: Of the same groups, judged so that no bias comes in, (G, parameters).
    """
    products = (gradients @ unbiased.T).fill_diagonal_(0)
    pairs = products / (len(products) * (len(products) - 1))
    deviation = ((pairs + pairs.T).square().sum() / 2).sqrt()
    length = gradients.mean(0).norm()
    return f"{pairs.sum() / length:.1f} ± {deviation / length:.1f}"


def main(fit: list[str], groups: int = 16) -> None:
    """Collects and measures.

    Args:
        fit: Arguments of `lightning-ript fit`.
        groups: Groups to keep.
    """
    with TemporaryDirectory() as folder:
        lightning_ript(
            [
                "fit",
                *fit,
                f"--model={Measuring.__module__}.{Measuring.__qualname__}",
                f"--data.groups_per_iteration={groups}",
                f"--data.max_contexts={10 * groups}",
                "--trainer.limit_val_batches=0",
                "--trainer.max_epochs=1",
                f"--run_dir={folder}",
            ]
        )


if __name__ == "__main__":
    auto_cli(main)
