"""Checks that a policy keeps what `PolicyAdapter` promises the loop; for the tests of policies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ript.policies.base import Decisions, PolicyAdapter
from lightning_ript.types import Observation, Task


class ContractError(AssertionError):
    """A policy breaks the contract; the message says how."""


def check_contract(
    policy: PolicyAdapter,
    observations: Sequence[Observation],
    tasks: Sequence[Task],
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Decides and scores a batch in every way the loop does, and compares.

    A policy that breaks the contract trains without an error and learns nothing, or the wrong
    thing. What is checked: shapes; that `log_prob` gives what `act` gave; that a decision depends
    on its own observation, task and noise alone; that gradients reach what is to be trained; that
    nothing is left of `act` but its result.

    Args:
        policy: The policy, in evaluation mode or not.
        observations: B observations, B at least 2, the more various the better.
        tasks: Their B tasks.
        seed: Of the noise.
        tolerance: Greatest difference of log-probabilities and actions that is taken for rounding.

    Raises:
        ContractError: If the policy breaks it.
    """
    size = len(observations)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(size, *policy.noise_shape, generator=generator).to(policy.device)
    training = policy.training
    policy.eval()
    try:
        policy.prepare(tasks)
        decisions = policy.act(observations, tasks, noise)
        _check_shapes(decisions, size)
        _check_scores(policy, decisions, tolerance)
        _check_gradients(policy, decisions)
        _check_independence(
            policy, observations, tasks=tasks, noise=noise, decisions=decisions, tolerance=tolerance
        )
        _check_greedy(policy, observations, tasks, tolerance)
    finally:
        policy.train(training)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def _check_shapes(decisions: Decisions, size: int) -> None:
    actions, log_probs = decisions.actions, decisions.log_probs
    _expect(
        actions.ndim == 3 and len(actions) == size and actions.is_floating_point(),
        f"actions are {tuple(actions.shape)} {actions.dtype}, not floats of shape ({size}, chunk, "
        "action_dim)",
    )
    _expect(
        log_probs.ndim == 2 and len(log_probs) == size,
        f"log_probs are {tuple(log_probs.shape)}, not ({size}, tokens)",
    )
    for name, value in decisions.record.items():
        _expect(
            isinstance(value, Tensor) and value.ndim > 0 and len(value) == size,
            f"record[{name!r}] is not a tensor with a row for each of the {size} decisions",
        )
    tensors = {"actions": actions, "log_probs": log_probs, **decisions.record}
    for name, value in tensors.items():
        _expect(not value.requires_grad, f"{name} carries gradients: put act under torch.no_grad()")
    for name in ("actions", "log_probs"):
        _expect(bool(tensors[name].isfinite().all()), f"{name} are not all finite")


def _check_scores(policy: PolicyAdapter, decisions: Decisions, tolerance: float) -> None:
    expected = decisions.log_probs.float()
    # As the loop does: rows are stored apart and come back in another order and company.
    order = torch.arange(len(expected) - 1, -1, -1)
    with torch.no_grad():
        log_probs, entropy = policy.log_prob(decisions.record)
        turned, _ = policy.log_prob({n: v[order.to(v.device)] for n, v in decisions.record.items()})
    _expect(
        log_probs.shape == entropy.shape == expected.shape,
        f"log_prob returns {tuple(log_probs.shape)} and {tuple(entropy.shape)}, but act's "
        f"log_probs are {tuple(expected.shape)}",
    )
    for scored, again in ((log_probs, expected), (turned, expected[order.to(expected.device)])):
        error = (scored.float() - again).abs().max().item()
        _expect(
            error <= tolerance,
            f"log_prob differs by {error:.2g} from what act returned for the same decisions",
        )


def _check_gradients(policy: PolicyAdapter, decisions: Decisions) -> None:
    groups = policy.parameter_groups()
    trained = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    _expect(bool(trained), "parameter_groups has no parameter to train")
    _expect(
        all(p.requires_grad for p in trained),
        "parameter_groups holds parameters that are frozen (requires_grad is false)",
    )
    with torch.enable_grad():
        log_probs, _ = policy.log_prob(decisions.record)
        _expect(log_probs.requires_grad, "log_prob has no gradient")
        gradients = torch.autograd.grad(log_probs.sum(), trained, allow_unused=True)
    _expect(
        any(bool(g.abs().max() > 0) for g in gradients if g is not None),
        "no gradient of log_prob reaches a parameter that is to be trained",
    )


def _check_independence(
    policy: PolicyAdapter,
    observations: Sequence[Observation],
    tasks: Sequence[Task],
    noise: Tensor,
    decisions: Decisions,
    tolerance: float,
) -> None:
    for row in range(len(observations)):
        one = slice(row, row + 1)
        alone = policy.act(observations[one], tasks[one], noise[one])
        for name, value in decisions.record.items():
            there = alone.record.get(name)
            _expect(
                there is not None and there.shape[1:] == value.shape[1:],
                f"record[{name!r}] has another shape when act decides for one environment alone",
            )
        for name in ("actions", "log_probs"):
            error = (getattr(alone, name) - getattr(decisions, name)[one]).abs().max().item()
            _expect(
                error <= tolerance,
                f"{name} of decision {row} differ by {error:.2g} when act decides for it alone: "
                "they may depend on nothing but its own observation, task and noise",
            )


def _check_greedy(
    policy: PolicyAdapter,
    observations: Sequence[Observation],
    tasks: Sequence[Task],
    tolerance: float,
) -> None:
    first, second = (policy.act(observations, tasks, None).actions for _ in range(2))
    _expect(
        bool((first - second).abs().max() <= tolerance),
        "without noise, act decides differently each time",
    )
