"""Task embeddings: what the policy knows of an instruction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from lightning_ript.policies.quest.text_features import TextFeatures

CLIP = "openai/clip-vit-base-patch32"

Embedding = Callable[[Sequence[str]], Tensor]
"""Maps B instructions to task embeddings (B, `language_dim`) float32."""


def task_embedding(language: str, dim: int) -> Embedding:
    """Chooses how instructions become vectors.

    Args:
        language: `hashed`: a random vector per text, which tells tasks apart but knows nothing of
            their meaning; `clip`: the text features that published checkpoints have learned; or
            another CLIP, by its id on the hub or as a folder.
        dim: Width of the vectors that the model takes.

    Raises:
        ValueError: There is no such kind.
    """
    if language == "hashed":
        return partial(hashed_embeddings, dim=dim)
    return TextFeatures(CLIP if language == "clip" else language, dim)


def hashed_embeddings(instructions: Sequence[str], dim: int) -> Tensor:
    """Returns `hashed_embedding` of B instructions, (B, dim) float32."""
    return torch.stack([hashed_embedding(instruction, dim) for instruction in instructions])


@lru_cache(maxsize=1024)
def hashed_embedding(instruction: str, dim: int = 512) -> Tensor:
    """Returns a standard normal vector (dim,) float32 that depends on the text alone.

    The text is compared without case and outer white space. The same on every machine: the numbers
    come from SHA-256 in counter mode, not from a library's generator.
    """
    text = instruction.strip().lower().encode()
    blocks = (
        hashlib.sha256(text + b"\0" + counter.to_bytes(4, "little")).digest()
        for counter in range(-(-dim // 4))
    )
    words = torch.frombuffer(bytearray(b"".join(blocks)), dtype=torch.int64)[:dim]
    # The upper 53 bits of each word: a uniform number strictly between 0 and 1.
    uniform = ((words >> 11 & (2**53 - 1)).double() + 0.5) / 2**53
    return torch.special.ndtri(uniform).float()
