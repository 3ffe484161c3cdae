"""Camera images as flow-matching policies of LeRobot were trained to see them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_ript.types import Observation


def observed_images(observations: Sequence[Observation], cameras: Sequence[str]) -> Tensor:
    """The images of B observations as LeRobot's LIBERO data has them: left and right exchanged.

    LIBERO's own images are upside down; the data sets turn them by 180 degrees.

    Args:
        observations: B observations, images (H, W, 3) uint8, upright.
        cameras: Their keys, in the order of the policy's.

    Returns:
        (B, cameras, 3, H, W) uint8.

    Raises:
        ValueError: An image is missing.
    """
    missing = set(cameras) - observations[0].keys()
    if missing:
        raise ValueError(f"the policy needs {sorted(missing)}, which the observations lack")
    frames = np.stack([[o[camera][:, ::-1] for camera in cameras] for o in observations])
    return torch.from_numpy(frames).movedim(-1, 2)


def resized(images: Tensor, size: tuple[int, int], centred: bool) -> Tensor:
    """Resizes with the aspect kept, pads with black, and maps to [-1, 1].

    Bilinear, without antialiasing, as LeRobot does it.

    Args:
        images: (N, 3, H, W) uint8.
        size: Height and width to make.
        centred: Pad on both sides, an odd pixel right and below (pi0); else left and above
            (SmolVLA).

    Returns:
        (N, 3, *size) float32; padding is -1.
    """
    values = images.float() / 255
    height, width = values.shape[-2:]
    ratio = max(width / size[1], height / size[0])
    inner = (math.floor(height / ratio), math.floor(width / ratio))
    if inner != (height, width):
        values = F.interpolate(values, inner, mode="bilinear", align_corners=False)
    rows, columns = size[0] - inner[0], size[1] - inner[1]
    top, left = (rows // 2, columns // 2) if centred else (rows, columns)
    values = F.pad(values, (left, columns - left, top, rows - top))
    return values * 2 - 1
