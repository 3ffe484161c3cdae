"""Task embeddings: what the policy knows of an instruction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

Language = Literal["hashed"]
"""How instructions become vectors. `hashed`: a random vector per text, which tells tasks apart but
knows nothing of their meaning."""


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


EMBEDDINGS: dict[str, Callable[[str], Tensor]] = {"hashed": hashed_embedding}


def embed(instructions: list[str], language: Language) -> Tensor:
    """Returns the embeddings (B, 512) float32 of B instructions.

    Raises:
        ValueError: The kind of embedding is unknown.
    """
    if language not in EMBEDDINGS:
        raise ValueError(f"language is {language!r}; it must be one of {get_args(Language)}")
    return torch.stack([EMBEDDINGS[language](instruction) for instruction in instructions])
