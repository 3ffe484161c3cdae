"""Whether `act` and `log_prob` of a policy agree on what has just been decided.

Before the first optimizer step the probability of a recorded token is the one it was drawn with, so
every ratio is 1. If it is not, the policy learns from noise, which no later metric shows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEAST = 0.01
_ROUNDINGS = 64


def allowed_log_ratio(policy: nn.Module, autocast: torch.dtype | None = None) -> float:
    """How far rounding alone may move a token's log-probability between two forward passes.

    64 spacings of numbers near 1 in the least precise type that the policy computes in, and no
    less than 0.01: 0.01 in float32, 0.06 in float16, 0.5 in bfloat16.

    Args:
        policy: The policy; its floating weights tell the types.
        autocast: The type of automatic mixed precision, if it is on.
    """
    kinds = {p.dtype for p in policy.parameters() if p.is_floating_point()}
    kinds |= {autocast} if autocast is not None else set()
    return max([_LEAST, *(_ROUNDINGS * torch.finfo(kind).eps for kind in kinds)])


def check_agreement(
    log_probs: Tensor, old_log_probs: Tensor, weights: Tensor, allowed: float
) -> None:
    """Refuses a policy whose scores are not those that it acted with.

    Args:
        log_probs: Scores now, (N, T), before anything was learned.
        old_log_probs: Scores at rollout time, (N, T).
        weights: Each token's share, (N, T); tokens of weight 0 do not count.
        allowed: Bound of their distance.

    Raises:
        ValueError: They differ by more.
    """
    distance = (log_probs.detach() - old_log_probs).abs()[weights > 0]
    if not len(distance) or bool((distance <= allowed).all()):
        return
    raise ValueError(
        "Before anything was learned, log_prob gives recorded decisions other probabilities than "
        f"act did: their logarithms differ by up to {distance.max().item():.3g} (mean "
        f"{distance.mean().item():.3g}), where {allowed:.3g} is allowed. Usual causes: dropout or "
        "batch norm in training mode, a record that lacks something the policy saw, layers whose "
        "output depends on the rest of the batch, another precision when acting. If it is meant to "
        "be so, set model.max_first_log_ratio."
    )
