"""Sampling from logits with given uniform noise, so that decisions are independent of the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_tokens(
    logits: Tensor, noise: Tensor, top_k: int | None = None, temperature: float = 1.0
) -> Tensor:
    """Draws one token per row by inverting the cumulative distribution.

    Args:
        logits: (..., V).
        noise: (...,) uniform in [0, 1).
        top_k: Draw from the k most likely tokens only.
        temperature: Divides the logits.

    Returns:
        Token indices (...,) int64.
    """
    values, tokens = logits.topk(top_k or logits.shape[-1], dim=-1)
    cumulative = (values.double() / temperature).softmax(-1).cumsum(-1)
    # Rounding may leave the last sum just below 1, and the noise above it.
    places = torch.searchsorted(cumulative, noise.double().unsqueeze(-1), right=True)
    return tokens.gather(-1, places.clamp_max(tokens.shape[-1] - 1)).squeeze(-1)
