"""Image augmentation for learning from few demonstrations, a few tensor operations per batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Luma and two chroma axes (NTSC): hue is an angle and saturation a length in the chroma plane.
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
KEPT = 0.1


def check_augmentation(color_jitter: float, translation: int) -> None:
    """Refuses settings that are out of range.

    Raises:
        ValueError: One is.
    """
    if not 0 <= color_jitter <= 0.5:
        raise ValueError(f"color_jitter is {color_jitter}; it must be from 0 to 0.5")
    if translation < 0 or translation % 2:
        raise ValueError(f"translation is {translation}; it must be even and not negative")


def jitter_colors(images: Tensor, strength: float) -> Tensor:
    """Changes brightness, contrast, saturation and hue, for each image differently.

    The reference runs torchvision's four operations one after another, in random order, with the
    same numbers for the whole batch. Here they are one affine map of the colours, and only its
    result is clipped. As there, a tenth of the images stays as it is.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        strength: Brightness, contrast and saturation are scaled by up to 1 +- strength, and the
            hue turns by up to +- strength of a full turn.
    """
    if strength == 0:
        return images
    batch = len(images)
    to_yiq = torch.tensor(RGB_TO_YIQ, device=images.device)
    spread = 2 * torch.rand(4, batch, device=images.device) - 1
    spread = spread * (torch.rand(batch, device=images.device) >= KEPT)
    brightness, contrast, saturation = 1 + strength * spread[:3]
    angle = 2 * math.pi * strength * spread[3]
    cosine, sine = saturation * angle.cos(), saturation * angle.sin()
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    turned = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=-1)
    colors = torch.linalg.inv(to_yiq) @ turned.unflatten(-1, (3, 3)) @ to_yiq
    colors = colors * (brightness * contrast)[:, None, None]
    mean_luma = (images.mean((2, 3)) * to_yiq[0]).sum(-1)
    offset = ((1 - contrast) * brightness * mean_luma)[:, None, None, None]
    return (torch.einsum("bij,bjhw->bihw", colors, images) + offset).clamp(0, 1)


def translate(images: Tensor, pixels: int) -> Tensor:
    """Shifts each image by its own random number of pixels; the edge is repeated.

    Args:
        images: (B, 3, H, W).
        pixels: Width of the range of shifts in both directions: 4 is -2 to 2, as the reference.
    """
    if pixels == 0:
        return images
    batch, _, height, width = images.shape
    margin = pixels // 2
    padded = F.pad(images, (margin,) * 4, mode="replicate")
    top, left = torch.randint(0, 2 * margin + 1, (2, batch, 1), device=images.device)
    rows = (top + torch.arange(height, device=images.device))[:, :, None]
    columns = (left + torch.arange(width, device=images.device))[:, None, :]
    image = torch.arange(batch, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
