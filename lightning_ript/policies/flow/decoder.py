"""Transformer layers whose keys and values can be taken out and put in, by checkpoints' names.

Gemma's and Llama's differ in norm and activation; everything else here serves both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""A layer's keys and values, (B, kv_heads, T, head_dim) each; keys are rotated."""


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a stack of layers.

    Attributes:
        width: Of the hidden states.
        layers: Their number.
        mlp: Width within an MLP.
        heads: Query heads.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
    """

    width: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int


class RMSNorm(nn.Module):
    """Divides by the root mean square, in float32.

    Args:
        width: Of the input.
        offset: 1 for Gemma, whose weight is what exceeds 1; 0 for Llama.
        epsilon: Added to the mean square.
    """

    def __init__(self, width: int, offset: float, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.offset, self.epsilon = offset, epsilon

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The normalized input (..., width), and no gate."""
        scaled = _normalized(x, self.epsilon) * (self.offset + self.weight.float())
        return scaled.to(x.dtype), None


class AdaptiveRMSNorm(nn.Module):
    """Scale, shift and the gate of what follows come from a condition (pi0.5's time).

    Args:
        width: Of input and condition.
        epsilon: Added to the mean square.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.dense.weight)
        self.epsilon = epsilon

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The normalized input (B, T, width), and the gate (B, 1, width)."""
        assert condition is not None
        scale, shift, gate = self.dense(condition)[:, None].chunk(3, dim=-1)
        x_scaled = _normalized(x, self.epsilon) * (1 + scale.float()) + shift.float()
        return x_scaled.to(x.dtype), gate


class Attention(nn.Module):
    """The projections of an attention; `key_input` is the width that keys and values come from."""

    def __init__(self, sizes: DecoderSizes, key_input: int | None = None) -> None:
        super().__init__()
        self.sizes = sizes
        queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.width, queries, bias=False)
        self.k_proj = nn.Linear(key_input or sizes.width, keys, bias=False)
        self.v_proj = nn.Linear(key_input or sizes.width, keys, bias=False)
        self.o_proj = nn.Linear(queries, sizes.width, bias=False)


class MLP(nn.Module):
    """Gated: Gemma's gate is GELU (tanh), Llama's SiLU."""

    def __init__(self, sizes: DecoderSizes, gelu: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.mlp, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.mlp, bias=False)
        self.down_proj = nn.Linear(sizes.mlp, sizes.width, bias=False)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """(..., width)."""
        gate = self.gate_proj(x)
        gate = F.gelu(gate, approximate="tanh") if self.gelu else F.silu(gate)
        return self.down_proj(gate * self.up_proj(x))


class DecoderLayer(nn.Module):
    """One layer.

    Args:
        sizes: Of the stack.
        gemma: Gemma's norm and activation, or Llama's.
        adaptive: Whether norms take a condition.
        key_input: Width that keys and values come from; by default the layer's.
    """

    def __init__(
        self,
        sizes: DecoderSizes,
        gemma: bool,
        adaptive: bool = False,
        key_input: int | None = None,
    ) -> None:
        super().__init__()
        self.input_layernorm = make_norm(sizes.width, gemma, adaptive)
        self.self_attn = Attention(sizes, key_input)
        self.post_attention_layernorm = make_norm(sizes.width, gemma, adaptive)
        self.mlp = MLP(sizes, gelu=gemma)

    def forward(
        self,
        hidden: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        prefix: KeysValues | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Attends to a prefix and to itself.

        Args:
            hidden: (B, T, width).
            positions: (B, T) int64.
            mask: What each token attends to, (B, T, P + T) bool, where P is the prefix's length;
                None where nothing but keys and values is wanted.
            prefix: Keys and values that come before the layer's own.
            condition: Of adaptive norms, (B, width).

        Returns:
            (B, T, width), and the layer's own keys and values.
        """
        x, gate = self.input_layernorm(hidden, condition)
        own = (
            rotate(self._heads(self.self_attn.k_proj(x)), positions),
            self._heads(self.self_attn.v_proj(x)),
        )
        if mask is None:
            return hidden, own
        queries = rotate(self._heads(self.self_attn.q_proj(x)), positions)
        keys, values = own
        if prefix is not None:
            before_keys, before_values = (each.to(keys.dtype) for each in prefix)
            keys = torch.cat([before_keys, keys], dim=2)
            values = torch.cat([before_values, values], dim=2)
        return self._rest(hidden, gate, attend(queries, keys, values, mask), condition), own

    def _rest(
        self, hidden: Tensor, gate: Tensor | None, attended: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Everything after the attention."""
        hidden = _residual(hidden, self.self_attn.o_proj(attended), gate)
        x, gate = self.post_attention_layernorm(hidden, condition)
        return _residual(hidden, self.mlp(x), gate)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * head_dim) -> (B, heads, T, head_dim)."""
        return x.unflatten(-1, (-1, self.self_attn.sizes.head_dim)).transpose(1, 2)


class CrossLayer(DecoderLayer):
    """A layer that attends to a prefix alone, whose keys and values it projects once more."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, positions: Tensor, mask: Tensor, prefix: KeysValues
    ) -> Tensor:
        """Attends to a prefix.

        Args:
            hidden: (B, T, width).
            positions: Of the queries, (B, T) int64.
            mask: (B, T, P) bool.
            prefix: Keys and values of another stack's layer.

        Returns:
            (B, T, width).
        """
        x, gate = self.input_layernorm(hidden)
        queries = rotate(self._heads(self.self_attn.q_proj(x)), positions)
        keys, values = (each.transpose(1, 2).flatten(2).to(x.dtype) for each in prefix)
        keys = self._heads(self.self_attn.k_proj(keys))
        values = self._heads(self.self_attn.v_proj(values))
        return self._rest(hidden, gate, attend(queries, keys, values, mask))


def make_norm(width: int, gemma: bool, adaptive: bool = False) -> RMSNorm | AdaptiveRMSNorm:
    """Gemma's norm, plain or adaptive, or Llama's."""
    if adaptive:
        return AdaptiveRMSNorm(width, 1e-6)
    return RMSNorm(width, offset=1.0, epsilon=1e-6) if gemma else RMSNorm(width, 0.0, 1e-5)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding of base 10,000, on halves (Su et al. 2021).

    Args:
        x: Queries or keys (B, heads, T, head_dim).
        positions: (B, T) int64.
    """
    half = x.shape[-1] // 2
    exponents = torch.arange(half, dtype=torch.float32, device=x.device) / half
    angles = positions[:, None, :, None].float() / 10_000.0**exponents
    cosine, sine = angles.cos(), angles.sin()
    first, second = x[..., :half].float(), x[..., half:].float()
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention with fewer heads of keys and values than of queries.

    Args:
        queries: (B, heads, T, head_dim).
        keys: (B, kv_heads, S, head_dim).
        values: As `keys`.
        mask: (B, T, S) bool; each row has a key to attend to.

    Returns:
        (B, T, heads * head_dim).
    """
    # Copies of keys and values for the queries that share them would be kept for the backward pass.
    groups, count = queries.shape[1] // keys.shape[1], queries.shape[2]
    if keys.shape[1] == 1:
        keys, values = (each.expand(-1, groups, -1, -1) for each in (keys, values))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None])
        return attended.transpose(1, 2).flatten(2)
    # Queries of different heads stand behind one another instead.
    stacked = queries.unflatten(1, (-1, groups)).flatten(2, 3)
    allowed = mask.repeat(1, groups, 1)[:, None]
    attended = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=allowed)
    return attended.unflatten(2, (groups, count)).flatten(1, 2).transpose(1, 2).flatten(2)


def _normalized(x: Tensor, epsilon: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def _residual(hidden: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return hidden + branch if gate is None else hidden + gate * branch
