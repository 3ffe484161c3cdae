"""The sizes of a published SmolVLA, from its weights and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_ript.policies.flow.decoder import DecoderSizes
from lightning_ript.policies.flow.load import count
from lightning_ript.policies.flow.vision import VisionSizes
from lightning_ript.policies.smolvla.network import SmolVLASizes
from lightning_ript.storage.files import read_json

Shapes = Mapping[str, tuple[int, ...]]
_VISION = "vlm_with_expert.vlm.model.vision_model"
_TEXT = "vlm_with_expert.vlm.model.text_model"
_EXPERT = "vlm_with_expert.lm_expert"


def read_sizes(config: Mapping[str, Any], vlm: Path, shapes: Shapes) -> SmolVLASizes:
    """Sizes that the weights do not show are those of the SmolVLM's settings.

    Args:
        config: The policy's settings.
        vlm: Folder of the SmolVLM's `config.json`.
        shapes: Of the network's tensors.

    Raises:
        OSError: The SmolVLM's settings are missing.
        ValueError: The settings ask for something that is not supported.
    """
    if config.get("attention_mode", "cross_attn") != "cross_attn":
        raise ValueError(
            f"attention_mode is {config['attention_mode']!r}; only 'cross_attn' is supported."
        )
    if config.get("add_image_special_tokens", False):
        raise ValueError("add_image_special_tokens is true, which is not supported.")
    settings = read_json(vlm / "config.json")
    text, vision = settings["text_config"], settings["vision_config"]
    width = shapes[f"{_TEXT}.embed_tokens.weight"][1]
    heads = int(text["num_attention_heads"])
    head_dim = int(text.get("head_dim") or width // heads)
    layers = count(shapes, f"{_TEXT}.layers")
    keys = shapes[f"{_TEXT}.layers.0.self_attn.k_proj.weight"][0]
    language = DecoderSizes(
        width=width,
        layers=layers,
        mlp=shapes[f"{_TEXT}.layers.0.mlp.up_proj.weight"][0],
        heads=heads,
        kv_heads=keys // head_dim,
        head_dim=head_dim,
    )
    expert_layers = count(shapes, f"{_EXPERT}.layers")
    if expert_layers != layers:
        raise ValueError(
            f"the expert has {expert_layers} layers, the SmolVLM {layers}: only as many are "
            "supported."
        )
    expert = DecoderSizes(
        width=shapes[f"{_EXPERT}.norm.weight"][0],
        layers=layers,
        mlp=shapes[f"{_EXPERT}.layers.0.mlp.up_proj.weight"][0],
        heads=heads,
        kv_heads=keys // head_dim,
        head_dim=head_dim,
    )
    patch = shapes[f"{_VISION}.embeddings.patch_embedding.weight"][-1]
    vision_width = shapes[f"{_VISION}.post_layernorm.weight"][0]
    seen = VisionSizes(
        width=vision_width,
        layers=count(shapes, f"{_VISION}.encoder.layers"),
        heads=int(vision.get("num_attention_heads", 12)),
        mlp=shapes[f"{_VISION}.encoder.layers.0.mlp.fc1.weight"][0],
        patch=patch,
        image=patch * round(shapes[f"{_VISION}.embeddings.position_embedding.weight"][0] ** 0.5),
    )
    joined = shapes["vlm_with_expert.vlm.model.connector.modality_projection.proj.weight"][1]
    return SmolVLASizes(
        vision=seen,
        language=language,
        expert=expert,
        shuffle=round((joined // vision_width) ** 0.5),
        self_attention_every=int(config["self_attn_every_n_layers"]),
        vocabulary=shapes[f"{_TEXT}.embed_tokens.weight"][0],
        chunk=int(config["chunk_size"]),
        state_dim=int(config["max_state_dim"]),
        action_dim=int(config["max_action_dim"]),
    )
