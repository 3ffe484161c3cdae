"""What OpenVLA sees: patches of two image encoders, side by side, projected into the Llama."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_ript.policies.openvla_oft.config import OpenVLAConfig


def create_encoder(name: str, image_size: int) -> Any:
    """Builds a timm vision transformer without pretrained weights.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm knows no such model.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "OpenVLA-OFT's image encoders are timm's: pip install -e '.[openvla]' in the clone"
        ) from error
    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} knows no image encoder {name!r}")
    return timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size)


class VisionBackbone(nn.Module):
    """DINOv2 and SigLIP on the same images.

    P is the number of patches per image, E the sum of the two encoders' widths.

    Args:
        config: Sizes.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        dino, siglip = config.timm_model_ids
        self.featurizer = create_encoder(dino, config.image_size)
        self.fused_featurizer = create_encoder(siglip, config.image_size)

    @property
    def width(self) -> int:
        """E."""
        return int(self.featurizer.embed_dim + self.fused_featurizer.embed_dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encodes each image on its own and puts their patches one after the other.

        Args:
            pixel_values: (B, 6 * images, H, W): of each image three channels normalized for
                DINOv2, then three for SigLIP.

        Returns:
            (B, images * P, E).
        """
        batch, channels = pixel_values.shape[:2]
        if channels % 6:
            raise ValueError(
                f"An image has 6 channels, 3 for DINOv2 and 3 for SigLIP, but pixel_values have "
                f"shape {tuple(pixel_values.shape)}"
            )
        images = pixel_values.reshape(-1, 6, *pixel_values.shape[2:])
        first, second = images.split(3, dim=1)
        patches = torch.cat(
            [_patches(self.featurizer, first), _patches(self.fused_featurizer, second)], dim=-1
        )
        return patches.reshape(batch, -1, patches.shape[-1])


def _patches(encoder: Any, images: Tensor) -> Tensor:
    """Patch tokens of the second-to-last block, before any norm, (N, P, width)."""
    (patches,) = encoder.forward_intermediates(
        images.to(encoder.pos_embed.dtype),
        indices=[len(encoder.blocks) - 2],
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return patches


class Projector(nn.Module):
    """Maps patches to token embeddings.

    Args:
        vision_dim: Width E of the patches.
        text_dim: Width D of the language model.
    """

    def __init__(self, vision_dim: int, text_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, text_dim)
        self.fc3 = nn.Linear(text_dim, text_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Maps (B, N, E) to (B, N, D)."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(patches)))))
