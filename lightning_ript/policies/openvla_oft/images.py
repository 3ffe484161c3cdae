"""Camera images as the published checkpoints were trained to see them, without TensorFlow.

Two halves. `crops` is what a rollout does once and records: mirroring, JPEG, Lanczos and centre
crop, uint8 in and out. `pixel_values` is what every forward pass starts with: the normalizations of
the two vision backbones. Everything is batched and runs on the device of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lightning_ript.policies.libero_robot import CAMERAS
from lightning_ript.policies.openvla_oft.jpeg import round_trip
from lightning_ript.types import Observation

SIZE = 224
CROP_AREA = 0.9  # Of the image: training crops as much at random, acting takes the middle.

# DINOv2's and SigLIP's. The former are ImageNet's 0.485, ... as bfloat16 rounds them, as the
# checkpoints' own preprocessing has it.
_MEANS = (0.484375, 0.455078125, 0.40625, 0.5, 0.5, 0.5)
_DEVIATIONS = (0.228515625, 0.2236328125, 0.224609375, 0.5, 0.5, 0.5)


def observation_crops(
    observations: Sequence[Observation],
    device: torch.device | str = "cpu",
    cameras: Sequence[str] = CAMERAS,
) -> Tensor:
    """Prepares the camera images of B observations.

    Args:
        observations: B observations with square images, upright.
        device: Where to do it.
        cameras: The images to take, in the order in which the policy was trained on them.

    Returns:
        (B, cameras, 3, 224, 224) uint8 on `device`.

    Raises:
        ValueError: An image is missing, or has a size that cannot be used.
    """
    missing = set(cameras) - observations[0].keys()
    if missing:
        raise ValueError(
            f"OpenVLA-OFT needs {sorted(missing)}, which the environment's observations lack"
        )
    frames = np.stack([o[name] for o in observations for name in cameras])
    prepared = crops(torch.from_numpy(frames).to(device))
    return prepared.unflatten(0, (len(observations), len(cameras)))


def crops(frames: Tensor) -> Tensor:
    """Everything but the normalization.

    Args:
        frames: (N, S, S, 3) uint8, upright; S is a multiple of 16. The checkpoints were trained
            on 256.

    Returns:
        (N, 3, 224, 224) uint8.

    Raises:
        ValueError: If S is not a multiple of 16, or the frames are not square.
    """
    _, height, width, _ = frames.shape
    if height != width:
        raise ValueError(
            f"OpenVLA-OFT looks at square images, but the environment's are {height}x{width}: set "
            "an image_size"
        )
    return crop_centre(resize(round_trip(mirror(frames))))


def pixel_values(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalizes crops for both vision backbones.

    Args:
        images: (B, I, 3, 224, 224) uint8.
        dtype: Type of the result; the arithmetic is float32.

    Returns:
        (B, 6 I, 224, 224): per image three channels for DINOv2, then three for SigLIP.
    """
    shape = (2, 3, 1, 1)
    means = torch.tensor(_MEANS, device=images.device).view(shape)
    deviations = torch.tensor(_DEVIATIONS, device=images.device).view(shape)
    scaled = images.float().div_(255).unsqueeze(2)
    return ((scaled - means) / deviations).to(dtype).flatten(1, 3)


# -- the stages of `crops` -------------------------------------------------------------------------


def mirror(frames: Tensor) -> Tensor:
    """Exchanges left and right of frames (N, S, S, 3), to (N, 3, S, S).

    The training data had images that were upside down turned by 180 degrees, not flipped: what the
    policy sees is upright, and left and right are exchanged.
    """
    return frames.flip(2).permute(0, 3, 1, 2)


def resize(images: Tensor) -> Tensor:
    """Resizes (N, 3, S, S) to (N, 3, 224, 224), both uint8, by Lanczos' kernel of three lobes."""
    matrix = _lanczos(images.shape[-1]).to(images.device)
    return _apply(matrix, images).round_().clamp_(0, 255).to(torch.uint8)


def crop_centre(images: Tensor) -> Tensor:
    """Cuts out the middle 90 % of the area and stretches it to 224 pixels again, bilinearly.

    Args:
        images: (N, 3, 224, 224) uint8.
    """
    matrix = _stretch().to(images.device)
    scaled = _apply(matrix, images).div_(255).clamp_(0, 1)
    # TensorFlow's conversion to uint8 spreads [0, 1] over 256 levels of equal width, nearly.
    return scaled.mul_(255.5).to(torch.uint8)


def _apply(matrix: Tensor, images: Tensor) -> Tensor:
    """Resamples rows and columns by one matrix, (N, 3, S, S) to (N, 3, out, out).

    In double precision: TF32, which users switch on for speed, would cost several grey levels.
    """
    return matrix @ (images.to(matrix.dtype) @ matrix.T)


@cache
def _lanczos(size: int) -> Tensor:
    """Weights of `size` pixels for each of 224, (224, size): rows add up to one.

    Pixels are intervals, their values belong to their middles; a smaller image is made with a wider
    kernel, so that no pixel is left out.
    """
    scale = size / SIZE
    width = max(scale, 1.0)
    centres = (torch.arange(SIZE, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(size, dtype=torch.float64) + 0.5
    distances = (places - centres[:, None]) / width
    weights = torch.sinc(distances) * torch.sinc(distances / 3) * (distances.abs() < 3)
    return weights / weights.sum(1, keepdim=True)


@cache
def _stretch() -> Tensor:
    """Weights of 224 pixels for each of the 224 of the crop, (224, 224).

    Here values belong to pixels' corners, as crop_and_resize has it: the first and last pixel of
    the crop lie on its edges.
    """
    side = CROP_AREA**0.5
    last = SIZE - 1
    places = last * torch.linspace((1 - side) / 2, (1 + side) / 2, SIZE, dtype=torch.float64)
    distances = places[:, None] - torch.arange(SIZE, dtype=torch.float64)
    return (1 - distances.abs()).clamp(min=0)
