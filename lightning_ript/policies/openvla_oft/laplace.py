"""The density that a scale head gives to continuous actions. Pure tensor functions.

A Laplace distribution per action dimension, with the action head's output as its mean and b as its
scale: p(a) = exp(-|a - mean| / b) / 2b.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

DimensionAggregation = Literal["sum", "mean", "per_dimension"]
LOG_SCALE_MIN = -2.0
LOG_SCALE_MAX = 0.5


def clip_log_scale(
    log_scale: Tensor, low: float = LOG_SCALE_MIN, high: float = LOG_SCALE_MAX
) -> Tensor:
    """Clips log b as RIPT-VLA does for the score. It draws from the scale that is not clipped."""
    return log_scale.clamp(low, high)


def sample(mean: Tensor, log_scale: Tensor, uniform: Tensor, scale_factor: float = 1.0) -> Tensor:
    """Draws by the inverse of the cumulative distribution.

    Args:
        mean: (...), float.
        log_scale: log b, (...), as the scale head predicts it.
        uniform: Noise in [0, 1), (...).
        scale_factor: Samples from a scale that many times b. RIPT-VLA explores with 5 (Spatial: 2)
            and yet scores with b itself.

    Returns:
        (...), finite for every noise.
    """
    # At 0 the inverse is minus infinity. Half of float32's spacing below 1 is the least distance
    # from an end that uniform float32 noise can tell apart.
    edge = torch.finfo(torch.float32).eps / 4
    centred = uniform.clamp(edge, 1 - 2 * edge) - 0.5
    b = log_scale.exp() * scale_factor
    return mean - b * centred.sign() * torch.log1p(-2 * centred.abs())


def log_prob(actions: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-density of each dimension of actions (...), all of one shape."""
    return -math.log(2) - log_scale - (actions - mean).abs() * torch.exp(-log_scale)


def entropy(log_scale: Tensor) -> Tensor:
    """Differential entropy of each dimension, in nats."""
    return 1 + math.log(2) + log_scale


def aggregate(values: Tensor, how: DimensionAggregation = "sum") -> Tensor:
    """Makes action tokens of log-probabilities, or entropies, per dimension.

    A token has one ratio of probabilities, which is clipped as a whole.

    Args:
        values: (B, steps, A).
        how: "sum" and "mean": one token per step, of its A dimensions' sum or mean.
            "per_dimension": each dimension is a token, with a ratio of its own.

    Returns:
        (B, steps), or (B, steps * A) per dimension.
    """
    if how == "per_dimension":
        return values.flatten(-2)
    if how not in get_args(DimensionAggregation):
        raise ValueError(
            f"dimension_aggregation must be one of {get_args(DimensionAggregation)}, not {how!r}"
        )
    return values.sum(-1) if how == "sum" else values.mean(-1)
