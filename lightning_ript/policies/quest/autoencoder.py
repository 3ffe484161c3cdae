"""SkillVAE: action blocks to discrete skill tokens and back (Mete et al. 2024, arXiv 2407.15840).

The reference calls it a VAE, but it is a deterministic autoencoder with a quantized bottleneck.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_ript.policies.quest.fsq import FiniteScalarQuantizer
from lightning_ript.policies.quest.transformer import (
    AddPositions,
    DecoderLayer,
    EncoderLayer,
    SinusoidalEncoding,
    Stack,
)

NORM_GROUPS = 8


class CausalConv1d(nn.Module):
    """A 1-D convolution (B, C, T) whose outputs see no later input."""

    def __init__(self, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.padding = kernel_size - 1
        self.conv = nn.Conv1d(dim, dim, kernel_size, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, T) to (B, C, T / stride)."""
        return self.conv(F.pad(x, (self.padding, 0)))


class ConvBlock(nn.Module):
    """Causal convolution, group norm, Mish. The norm spans time, so the block is not causal."""

    def __init__(self, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        # The names are positions in the reference's nn.Sequential.
        self.block = nn.Sequential(
            OrderedDict(
                [
                    ("0", CausalConv1d(dim, kernel_size, stride)),
                    ("2", nn.GroupNorm(NORM_GROUPS, dim)),
                    ("4", nn.Mish()),
                ]
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, T) to (B, C, T / stride)."""
        return self.block(x)


class TemporalDownsampling(nn.Module):
    """Convolutions that shorten a sequence (B, T, D) by `factor`, a power of two."""

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        halvings = int(math.log2(factor))
        kernel_sizes = [5] + [3] * halvings
        strides = [2] * halvings + [1]
        self.blocks = nn.Sequential(
            *(ConvBlock(dim, k, s) for k, s in zip(kernel_sizes, strides, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T / factor, D)."""
        return self.blocks(x.transpose(1, 2)).transpose(1, 2)


class SkillVAE(nn.Module):
    """Encodes an action block into T discrete tokens and decodes them.

    Args:
        action_dim: Width A of an action.
        dim: Width D of encoder, codes and decoder.
        encoder_layers: Transformer layers of the encoder.
        decoder_layers: Transformer layers of the decoder.
        heads: Attention heads of both.
        block_size: Actions in a block.
        downsample_factor: Actions per token; T = block_size / downsample_factor.
        levels: Levels of the quantizer; their product is the number of codes.
        dropout: Dropout of the transformer layers.
    """

    def __init__(
        self,
        action_dim: int,
        dim: int,
        encoder_layers: int,
        decoder_layers: int,
        heads: int,
        block_size: int,
        downsample_factor: int,
        levels: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.vq = FiniteScalarQuantizer(dim, levels)
        self.action_proj = nn.Linear(action_dim, dim)
        self.action_head = nn.Linear(dim, action_dim)
        self.conv_block = TemporalDownsampling(dim, downsample_factor)
        self.encoder = Stack(*(EncoderLayer(dim, heads, dropout) for _ in range(encoder_layers)))
        self.decoder = Stack(*(DecoderLayer(dim, heads, dropout) for _ in range(decoder_layers)))
        self.add_positional_emb = AddPositions(dim)
        self.fixed_positional_emb = SinusoidalEncoding(dim)

    def encode(self, actions: Tensor) -> Tensor:
        """Maps actions (B, block_size, A) to latents (B, T, D) before quantization."""
        if actions.shape[1] != self.block_size:
            raise ValueError(
                f"The autoencoder encodes blocks of {self.block_size} actions, but got blocks of "
                f"{actions.shape[1]}; make the data's block_size and the policy's agree"
            )
        return self.encoder(self.add_positional_emb(self.conv_block(self.action_proj(actions))))

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps latents (B, T, D) to codes (B, T, D) and token indices (B, T) long."""
        return self.vq(z)

    def decode(self, codes: Tensor) -> Tensor:
        """Maps codes (B, T, D) to actions (B, block_size, A)."""
        positions = self.fixed_positional_emb(self.block_size).to(codes)
        queries = positions.expand(len(codes), -1, -1)
        return self.action_head(self.decoder(queries, codes))

    def forward(self, actions: Tensor) -> Tensor:
        """Reconstructs actions (B, block_size, A)."""
        codes, _ = self.quantize(self.encode(actions))
        return self.decode(codes)

    def indices(self, actions: Tensor) -> Tensor:
        """Maps actions (B, block_size, A) to token indices (B, T) long."""
        return self.quantize(self.encode(actions))[1]

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Maps token indices (B, T) to actions (B, block_size, A)."""
        return self.decode(self.vq.codes(indices))
