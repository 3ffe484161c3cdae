"""Runs a Llama's layers under a mask of our own, with or without the prompt's keys and values.

transformers' own loop would do for the plain pass, but it drops the cache as soon as gradients are
checkpointed, and its names for the cache have changed between versions; the layers have not.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CACHE_NAMES = ("cache", "past_key_values", "past_key_value")


class Prefix:
    """Keys and values of the prompt, per layer; what transformers' attention takes for a cache.

    It records them in its first pass. From then on it is only read: a layer that is run again for
    its gradient finds what it found before.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.recording = True

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Takes a layer's keys and values (B, heads, T, head_dim), returns those to attend to."""
        if self.recording:
            self.layers[layer] = keys, values
            return keys, values
        old_keys, old_values = self.layers[layer]
        return torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)


def run_layers(
    llama: Any,
    embeddings: Tensor,
    attend: Tensor,
    positions: Tensor,
    prefix: Prefix | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Hidden states after the final norm.

    Args:
        llama: transformers' LlamaModel.
        embeddings: (B, T, D).
        attend: What each token attends to, (B, T, S) bool; S = T, and the prompt's length more
            where it is read from `prefix`.
        positions: (B, T) long.
        prefix: Where the prompt's keys and values are put or read from.
        checkpointing: Keeps no activations inside a layer, and computes them again for gradients.

    Returns:
        (B, T, D).
    """
    # Additive, which every attention implementation takes. A row that attends to nothing is
    # padding: with the smallest finite number it comes out finite, and nobody reads it.
    lowest = torch.finfo(embeddings.dtype).min
    mask = torch.zeros(attend.shape, dtype=embeddings.dtype, device=embeddings.device)
    mask = mask.masked_fill_(~attend, lowest)[:, None]
    hidden = embeddings
    rotary = llama.rotary_emb(hidden, positions)
    for layer in llama.layers:
        run = partial(
            layer,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=rotary,
            **({} if prefix is None else {_cache_name(layer): prefix}),
        )
        if checkpointing and torch.is_grad_enabled():
            hidden = checkpoint(run, hidden, use_reentrant=False)
        else:
            hidden = run(hidden)
        if isinstance(hidden, tuple):  # transformers before 4.54
            hidden = hidden[0]
    return llama.norm(hidden)


def _cache_name(layer: Any) -> str:
    known = inspect.signature(layer.forward).parameters
    return next(name for name in CACHE_NAMES if name in known)
