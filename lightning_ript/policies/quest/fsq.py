"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FiniteScalarQuantizer(nn.Module):
    """Squashes a vector to a few numbers and rounds each to one of its levels.

    The codebook is the grid of all combinations: nothing is learned but the two projections.

    Args:
        dim: Width D of the vectors to quantize.
        levels: Number of values of each of the L quantized numbers.
    """

    def __init__(self, dim: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.project_in = nn.Linear(dim, len(levels))
        self.project_out = nn.Linear(len(levels), dim)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.levels: Tensor
        self.basis: Tensor
        # Official checkpoints do not hold these.
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantizes with a straight-through gradient.

        Args:
            z: (..., D).

        Returns:
            Codes (..., D), projected back to the width of `z`, and indices (...) long.
        """
        # Rounding needs float32 whatever the autocast precision.
        with torch.autocast(z.device.type, enabled=False):
            bounded = self._bound(self.project_in(z.float()))
            rounded = bounded + (bounded.round() - bounded).detach()
            half_width = self.levels // 2
            indices = ((rounded.detach().round() + half_width) * self.basis).sum(-1).long()
            return self.project_out(rounded / half_width), indices

    def codes(self, indices: Tensor) -> Tensor:
        """Returns the codes (..., D) of indices (...)."""
        half_width = self.levels // 2
        positions = indices[..., None] // self.basis % self.levels
        return self.project_out(((positions - half_width) / half_width).to(self.project_out.weight))

    def _bound(self, z: Tensor) -> Tensor:
        # An even number of levels cannot be symmetric about 0: shift by half a step so that
        # rounding still gives exactly that many values. The margin keeps tanh off its limits.
        half_range = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = (offset / half_range).atanh()
        return (z + shift).tanh() * half_range - offset
