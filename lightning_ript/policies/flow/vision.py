"""SigLIP's image encoder, by the names of checkpoints; PaliGemma and SmolVLM both have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of the encoder.

    Attributes:
        width: Of the hidden states.
        layers: Their number.
        heads: Attention heads.
        mlp: Width within an MLP.
        patch: Side of a patch in pixels.
        image: Side of an image in pixels.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    patch: int
    image: int

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.image // self.patch) ** 2


class _Embeddings(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)
        self.position_embedding = nn.Embedding(sizes.patches, sizes.width)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images.to(self.patch_embedding.weight.dtype))
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj = nn.Linear(sizes.width, sizes.width)
        self.k_proj = nn.Linear(sizes.width, sizes.width)
        self.v_proj = nn.Linear(sizes.width, sizes.width)
        self.out_proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.mlp)
        self.fc2 = nn.Linear(sizes.mlp, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """One layer of the encoder."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.self_attn = _Attention(sizes)
        self.layer_norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = _MLP(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, patches, width)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Encoder(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(sizes) for _ in range(sizes.layers))


class VisionEncoder(nn.Module):
    """Patches of images.

    Args:
        sizes: Its sizes.
    """

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.embeddings = _Embeddings(sizes)
        self.encoder = _Encoder(sizes)
        self.post_layernorm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, images: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Encodes images (B, 3, side, side) in [-1, 1]; returns (B, patches, width).

        Args:
            images: The images.
            run: Runs a layer, see `FlowNetwork.run`.
        """
        x = self.embeddings(images)
        for layer in self.encoder.layers:
            x = run(layer, x)
        return self.post_layernorm(x)


def shuffle_pixels(patches: Tensor, factor: int) -> Tensor:
    """Makes one token of factor x factor neighbouring patches (SmolVLM's connector).

    Args:
        patches: (B, side * side, width).
        factor: How many to a side.

    Returns:
        (B, patches / factor^2, width * factor^2).
    """
    side = round(patches.shape[1] ** 0.5)
    cells = patches.unflatten(1, (side // factor, factor, side // factor, factor))
    # A token's numbers: rows of its cell, in each the columns, in each the width.
    return cells.transpose(2, 3).flatten(3, 5).flatten(1, 2).contiguous()


def concatenated(images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encodes the images (B, cameras, 3, side, side) of all cameras in one batch.

    Returns:
        (B, cameras, tokens, width).
    """
    return torch.unflatten(encode(images.flatten(0, 1)), 0, images.shape[:2])
