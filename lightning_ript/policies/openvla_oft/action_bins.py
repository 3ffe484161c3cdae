"""OpenVLA's discrete actions: 256 bins of each dimension's normalized range. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ript.policies.openvla_oft.config import BINS


def bins_of(actions: Tensor) -> Tensor:
    """Bins (...) int64 of normalized actions (...), as the data they were trained on has them.

    There are 256 edges from -1 to 1, both ends included. A bin is the number of the last edge that
    is not above the action: the last bin holds nothing but 1 itself.
    """
    edges = torch.linspace(-1, 1, BINS, dtype=torch.float64, device=actions.device)
    return torch.bucketize(actions.double().clamp(-1, 1), edges, right=True) - 1


def actions_of(bins: Tensor) -> Tensor:
    """Normalized actions (...) float32 of bins (...): what lies halfway between two edges.

    256 edges leave 255 such centres; the last bin shares the one before it. A gripper's 0 (closed)
    and 1 (open) come back as 0 and 0.996.
    """
    edges = torch.linspace(-1, 1, BINS, dtype=torch.float64, device=bins.device)
    centres = (edges[:-1] + edges[1:]) / 2
    return centres[bins.clamp_max(BINS - 2)].float()
