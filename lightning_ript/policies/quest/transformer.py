"""Pre-norm transformer layers over the parameter names of `torch.nn.Transformer*Layer`.

Own layers rather than torch's: the prior decodes with a key/value cache, and torch's fused
inference path would make a rollout's log-probabilities differ from the learner's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValueCache:
    """Keys and values (B, heads, length, head_dim) that one attention layer has seen so far."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the newest positions and returns everything seen."""
        if self.keys is not None and self.values is not None:
            if keys.shape[2] != 1:
                raise ValueError("A key/value cache that is not empty grows by one token at a time")
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class Attention(nn.Module):
    """Multi-head attention with `nn.MultiheadAttention`'s parameters.

    Args:
        dim: Width D.
        heads: Number of heads; divides D.
        dropout: Dropout of the attention weights.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        memory: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attends from query (B, T, D) to memory (B, S, D), or to itself where memory is None."""
        if memory is None:
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            dim = query.shape[-1]
            weight, bias = self.in_proj_weight, self.in_proj_bias
            keys_values = F.linear(memory, weight[dim:], bias[dim:]).chunk(2, dim=-1)
            projected = (F.linear(query, weight[:dim], bias[:dim]), *keys_values)
        queries, keys, values = (self._split(tensor) for tensor in projected)
        if cache is not None:
            keys, values = cache.append(keys, values)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,
            # A single query is the newest token, which sees everything before it.
            is_causal=causal and queries.shape[2] > 1,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention and a GELU feed-forward of four times the width, each normalized before.

    Args:
        dim: Width D.
        heads: Attention heads.
        dropout: Dropout of attention weights, hidden units and both branches.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.linear2 = nn.Linear(4 * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Maps x (B, T, D) to the same shape, causally."""
        x = x + self.dropout(self.self_attn(self.norm1(x), causal=True, cache=cache))
        return x + self.dropout(self._feed_forward(self.norm2(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.gelu(self.linear1(x))))


class DecoderLayer(EncoderLayer):
    """An encoder layer that also attends to a memory between its two branches."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__(dim, heads, dropout)
        self.multihead_attn = Attention(dim, heads, dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(  # type: ignore[override]
        self, x: Tensor, memory: Tensor
    ) -> Tensor:
        """Maps x (B, T, D) to the same shape: causal in x, all of memory (B, S, D) visible."""
        x = x + self.dropout(self.self_attn(self.norm1(x), causal=True))
        x = x + self.dropout(self.multihead_attn(self.norm2(x), memory))
        return x + self.dropout(self._feed_forward(self.norm3(x)))


class Stack(nn.Module):
    """Layers one after another, under the name `layers` that checkpoints use."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Maps x (B, T, D) to the same shape; decoder layers also read memory (B, S, D)."""
        for layer in self.layers:
            x = layer(x) if memory is None else layer(x, memory)
        return x


class SinusoidalEncoding(nn.Module):
    """Sines and cosines of the position, interleaved (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim))

    def forward(self, length: int, start: int = 0) -> Tensor:
        """Returns the encodings (length, D) of positions start, start + 1, ..."""
        positions = torch.arange(start, start + length, device=self.inv_freq.device)
        angles = positions[:, None].to(self.inv_freq) * self.inv_freq
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class AddPositions(nn.Module):
    """Adds the sinusoidal encoding of each position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.penc = SinusoidalEncoding(dim)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Maps x (B, T, D), whose first position is start, to the same shape."""
        return x + self.penc(x.shape[1], start).to(x)
