"""LIBERO's robot as published vision-language-action policies know it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_ript.types import Observation

# Keys of observations, in the order in which checkpoints were trained on them.
CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
PROPRIO = ("ee_pos", "ee_quat", "gripper_states")


def proprio(observations: Sequence[Observation]) -> Tensor:
    """The robot's state as the model knows it, before normalization, (B, 8) float64.

    Raises:
        ValueError: An observation lacks a part of it.
    """
    missing = set(PROPRIO) - observations[0].keys()
    if missing:
        raise ValueError(
            f"the policy needs {sorted(missing)}, which the environment's observations lack"
        )
    position, quaternion, fingers = (
        torch.from_numpy(np.stack([o[name] for o in observations])).double() for name in PROPRIO
    )
    return torch.cat([position, axis_angle(quaternion), fingers], -1)


def axis_angle(quaternions: Tensor) -> Tensor:
    """Rotation vectors (..., 3) in radians of unit quaternions (..., 4) in the order x, y, z, w.

    As robosuite has it: the angle lies in [0, 2 pi], so a quaternion and its negative, which are
    the same rotation, give different vectors. A `w` beyond [-1, 1] by rounding is clipped.
    """
    axis, w = quaternions[..., :3], quaternions[..., 3:].clamp(-1, 1)
    sine = (1 - w * w).sqrt()
    turned = sine > 0
    scale = 2 * w.acos() / torch.where(turned, sine, 1)
    return torch.where(turned, axis * scale, 0)
