"""How flow-matching policies get probabilities: noise in their denoising. Pure tensor functions.

Time t runs from 1, noise, to 0, actions, in K steps; x is what is denoised and v the velocity that
the network predicts, so that a plain step is x - (t - t') v. Two ways of adding noise, both from
piRL (Chen et al. 2025, arXiv:2510.25889), give a transition a normal distribution per number:

- Flow-SDE: the stochastic differential equation with the same marginals. Its mean has a term that
  makes up for the noise (`sde_moments`).
- Flow-Noise: the mean of the plain step, and a deviation that a small network learns.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Ratio = Literal["chunk", "action", "dimension"]
"""What has a ratio of probabilities of its own: the executed actions together, each of them, or
each of their numbers."""


def times(steps: int) -> Tensor:
    """t_k = 1 - k / K for k from 0 to K, (K + 1,) float32.

    A network's shortest period in t is 0.004, so a time that is off by one in the last place would
    already show in its velocity.
    """
    return torch.tensor([1 - k / steps for k in range(steps + 1)], dtype=torch.float64).float()


def sde_moments(
    x: Tensor, velocity: Tensor, step: Tensor, steps: int, noise_level: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a step of Flow-SDE.

    With d = 1 / K and sigma = a sqrt(t / (1 - t)), where the first step takes 1 - t of the second,
    the mean is x - d v - (sigma^2 d / 2 t) (x + (1 - t) v) and the deviation sigma sqrt(d).

    Args:
        x: Before the step, (N, H, D).
        velocity: There, (N, H, D).
        step: Number k of the step, from 0 to K - 1, (N,) int64.
        steps: K.
        noise_level: a.

    Returns:
        Mean (N, H, D) and deviation (N, 1, 1), float64: the log-probability of a small deviation
        would show the rounding of float32.
    """
    delta = 1 / steps
    k = step.double()[:, None, None]
    t = 1 - k * delta
    # At t = 1 the denominator is that of the next time.
    variance = noise_level**2 * t / torch.where(k > 0, 1 - t, delta)
    x, velocity = x.double(), velocity.double()
    mean = x - delta * velocity - variance * delta / (2 * t) * (x + (1 - t) * velocity)
    return mean, (variance * delta).sqrt()


def plain_step(x: Tensor, velocity: Tensor, steps: int) -> Tensor:
    """A step of the ordinary differential equation, (..., H, D) float32."""
    return x - velocity.float() / steps


def log_density(value: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Log-density of each number under a normal distribution, float64."""
    z = (value.double() - mean.double()) / deviation.double()
    return -0.5 * (z * z + math.log(2 * math.pi)) - deviation.double().log()


def entropy(deviation: Tensor) -> Tensor:
    """Differential entropy of each number, in nats, float64."""
    return 0.5 * math.log(2 * math.pi * math.e) + deviation.double().log()


def tokens(values: Tensor, ratio: Ratio) -> Tensor:
    """Makes action tokens of what each number of the executed actions has.

    Args:
        values: Log-densities or entropies, (N, executed, A).
        ratio: What becomes a token.

    Returns:
        (N, 1), (N, executed) or (N, executed * A), float32.
    """
    if ratio == "dimension":
        return values.flatten(1).float()
    summed = values.sum(-1)
    return (summed if ratio == "action" else summed.sum(-1, keepdim=True)).float()


def normal_noise(uniform: Tensor) -> Tensor:
    """Standard normal numbers from uniform float32 ones in [0, 1), finite for each of them."""
    # Float32 noise has 24 bits: in the middle of each of its intervals, none is at an end.
    return torch.special.ndtri(uniform.double() + 2.0**-25).float()
