"""What the networks of flow-matching policies share: a prefix that is encoded once, a velocity."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_ript.policies.flow.decoder import KeysValues

SHORTEST_PERIOD, LONGEST_PERIOD = 0.004, 4.0  # of the time's embedding


@dataclass(frozen=True)
class Seen:
    """What B decisions are made from, as a network takes it.

    Attributes:
        images: (B, cameras, 3, side, side) float32 in [-1, 1].
        image_mask: Which images are there, (B, cameras) bool.
        tokens: The prompt, (B, L) int64.
        token_mask: Which of its tokens are there, (B, L) bool.
        state: Normalized and padded with zeros, (B, state_dim) float32.
    """

    images: Tensor
    image_mask: Tensor
    tokens: Tensor
    token_mask: Tensor
    state: Tensor


@dataclass(frozen=True)
class Prefix:
    """What the action expert sees of B decisions: P tokens of images and prompt, encoded.

    Attributes:
        layers: Keys and values by layer.
        mask: Which tokens are there, (B, P) bool.
        state: As in `Seen`.
    """

    layers: Sequence[KeysValues]
    mask: Tensor
    state: Tensor


class Named(nn.Module):
    """Holds modules under the names that checkpoints have for them."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def __getattr__(self, name: str) -> Any:
        """Any, for type checkers: what is in it is known where it is made."""
        return super().__getattr__(name)


class FlowNetwork(nn.Module, ABC):
    """Predicts velocities of action chunks.

    Attributes:
        chunk: Actions H of a chunk.
        state_dim: Numbers of a padded state.
        action_dim: Numbers D of a padded action.
        feature_dim: Width of the features behind a velocity.
        transformers: The part that holds all transformers, whose weights may be of half precision;
            the projections of states and actions around it are float32.
        gradient_checkpointing: Whether activations within layers are computed again for gradients.
    """

    chunk: int
    state_dim: int
    action_dim: int
    feature_dim: int
    transformers: ClassVar[str]
    gradient_checkpointing: bool = False

    @abstractmethod
    def embed(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Embeddings of the prefix's tokens (B, P, width), and which are there (B, P) bool."""

    @property
    @abstractmethod
    def stack(self) -> Any:
        """The language model: `layers`, and the `norm` after them."""

    def idle_modules(self) -> Sequence[nn.Module]:
        """What no velocity comes from: of the prefix's last layer only keys and values count."""
        last = self.stack.layers[-1]
        attention = last.self_attn
        after = (attention.q_proj, attention.o_proj, last.post_attention_layernorm, last.mlp)
        return [*after, self.stack.norm]

    def attended(self, mask: Tensor) -> Tensor:
        """What each token of a prefix (B, P) attends to, (B, P, P) bool: all that is there."""
        return mask[:, None].expand(-1, mask.shape[1], -1)

    def prefix(self, seen: Seen) -> Prefix:
        """Encodes what is seen; of the last layer only keys and values are needed."""
        hidden, mask = self.embed(seen)
        layers, _ = self._encode(hidden, mask, whole=False)
        return Prefix(layers, mask, seen.state)

    def prefix_hidden(self, seen: Seen) -> Tensor:
        """What the language model makes of the prefix, after its last norm, (B, P, width)."""
        hidden, mask = self.embed(seen)
        _, hidden = self._encode(hidden, mask, whole=True)
        return self.stack.norm(hidden)[0]

    def _encode(self, hidden: Tensor, mask: Tensor, whole: bool) -> tuple[list[KeysValues], Tensor]:
        positions, attended = positions_of(mask), self.attended(mask)
        stack = self.stack.layers
        layers: list[KeysValues] = []
        for number, layer in enumerate(stack, start=1):
            if number == len(stack) and not whole:
                layers.append(layer(hidden, positions)[1])
                break
            hidden, own = self.run(layer, hidden, positions, attended)
            layers.append(own)
        return layers, hidden

    @abstractmethod
    def velocity(self, prefix: Prefix, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity of partly denoised actions.

        Args:
            prefix: Of B decisions.
            x: (B, H, D) float32.
            time: 1 for noise, 0 for actions, (B,) float32.

        Returns:
            Velocity (B, H, D) and the features that it is read from, (B, H, feature_dim), float32
            both.
        """

    @property
    @abstractmethod
    def expert(self) -> Any:
        """The action expert: `layers`, and the `norm` after them."""

    def to_expert(self, values: Tensor) -> Tensor:
        """Of the precision in which the expert computes."""
        return values.to(self.expert.layers[0].self_attn.q_proj.weight.dtype)

    @abstractmethod
    def expert_modules(self) -> Sequence[nn.Module]:
        """What only `velocity` runs: the action expert and its projections."""

    def run(self, layer: nn.Module, *arguments: Any) -> Any:
        """Runs a layer, which may keep no activations for gradients."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


def time_embedding(time: Tensor, width: int) -> Tensor:
    """Sines, then cosines of times at periods from 0.004 to 4, (B,) -> (B, width) float32."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
    periods = SHORTEST_PERIOD * (LONGEST_PERIOD / SHORTEST_PERIOD) ** fraction
    angles = 2 * math.pi * time.double()[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def positions_of(mask: Tensor) -> Tensor:
    """Places of tokens, where those that are not there take none; (B, P) bool -> int64."""
    return mask.cumsum(dim=1) - 1


def positions_after(mask: Tensor, count: int) -> Tensor:
    """Places of `count` tokens that come after a prefix (B, P) bool; (B, count) int64."""
    places = torch.arange(count, device=mask.device)
    return mask.sum(dim=1, keepdim=True) + places


def seen_by_suffix(mask: Tensor, own: Tensor) -> Tensor:
    """What the tokens after a prefix attend to: it as far as it is there, and one another.

    Args:
        mask: The prefix's, (B, P) bool.
        own: What S tokens attend to among themselves, (S, S) bool.

    Returns:
        (B, S, P + S) bool.
    """
    before = mask[:, None].expand(-1, len(own), -1)
    return torch.cat([before, own.expand(len(mask), -1, -1)], dim=2)
