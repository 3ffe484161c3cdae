"""The sizes of a published pi0 or pi0.5, from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_ript.policies.flow.decoder import DecoderSizes
from lightning_ript.policies.flow.load import count
from lightning_ript.policies.flow.vision import VisionSizes
from lightning_ript.policies.pi0.network import Pi0Sizes

Shapes = Mapping[str, tuple[int, ...]]
_PALIGEMMA = "paligemma_with_expert.paligemma.model"
_LANGUAGE = f"{_PALIGEMMA}.language_model"
_VISION = f"{_PALIGEMMA}.vision_tower.vision_model"
_EXPERT = "paligemma_with_expert.gemma_expert.model"
KV_HEADS = 1  # of both of Gemma's variants
VISION_HEADS = 16  # of SigLIP So400m


def read_sizes(
    config: Mapping[str, Any], shapes: Shapes, vision_heads: int = VISION_HEADS
) -> Pi0Sizes:
    """The weights show all but the numbers of heads.

    Args:
        config: The policy's settings.
        shapes: Of the network's tensors.
        vision_heads: Attention heads of the image encoder.
    """
    patch = shapes[f"{_VISION}.embeddings.patch_embedding.weight"][-1]
    return Pi0Sizes(
        vision=VisionSizes(
            width=shapes[f"{_VISION}.post_layernorm.weight"][0],
            layers=count(shapes, f"{_VISION}.encoder.layers"),
            heads=vision_heads,
            mlp=shapes[f"{_VISION}.encoder.layers.0.mlp.fc1.weight"][0],
            patch=patch,
            image=patch
            * round(shapes[f"{_VISION}.embeddings.position_embedding.weight"][0] ** 0.5),
        ),
        language=_decoder(shapes, _LANGUAGE),
        expert=_decoder(shapes, _EXPERT),
        vocabulary=shapes[f"{_LANGUAGE}.embed_tokens.weight"][0],
        chunk=int(config["chunk_size"]),
        state_dim=int(config["max_state_dim"]),
        action_dim=int(config["max_action_dim"]),
        adaptive=config["type"] == "pi05",
    )


def _decoder(shapes: Shapes, prefix: str) -> DecoderSizes:
    first = f"{prefix}.layers.0"
    head_dim = shapes[f"{first}.self_attn.k_proj.weight"][0] // KV_HEADS
    queries, width = shapes[f"{first}.self_attn.q_proj.weight"]
    return DecoderSizes(
        width=width,
        layers=count(shapes, f"{prefix}.layers"),
        mlp=shapes[f"{first}.mlp.up_proj.weight"][0],
        heads=queries // head_dim,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
    )
