"""Sizes of an OpenVLA-OFT, as a published directory's config.json states them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaConfig

PROPRIO_DIM = 8
CHUNK = 8
ACTION_DIM = 7
BINS = 256


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the Llama.

    Published files state only what departs from Llama-2-7b, so the defaults are its sizes; written
    out here, in case a later transformers has others. Llama-2-7b itself was trained with an epsilon
    of 1e-5 (`rms_norm_eps`): the published models' own code runs it with 1e-6, and so do we.
    """

    vocab_size: int = 32064
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    pad_token_id: int = 32000

    def llama(self) -> LlamaConfig:
        """The same for transformers."""
        from transformers import LlamaConfig

        return LlamaConfig(**vars(self), use_cache=False)


@dataclass(frozen=True)
class OpenVLAConfig:
    """What the model is built from.

    Attributes:
        text: Sizes of the language model.
        timm_model_ids: The two image encoders: DINOv2, then SigLIP.
        image_size: Height and width of the images.
        n_action_bins: Bins of discrete actions, which are the vocabulary's last tokens.
        pad_to_multiple_of: What the vocabulary's size was rounded up to, by as many tokens.
        norm_stats: Data set -> "action", "proprio" -> statistic -> numbers.
    """

    text: TextConfig = TextConfig()
    timm_model_ids: tuple[str, str] = (
        "vit_large_patch14_reg4_dinov2.lvd142m",
        "vit_so400m_patch14_siglip_224",
    )
    image_size: int = 224
    n_action_bins: int = BINS
    pad_to_multiple_of: int = 64
    norm_stats: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, path: str | Path) -> OpenVLAConfig:
        """Reads a published config.json.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not an OpenVLA's, or of a kind that is not supported.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no {path}: name a published OpenVLA-OFT directory")
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the config.json of an OpenVLA-OFT: {error}") from error

    @classmethod
    def from_dict(cls, contents: Mapping[str, Any]) -> OpenVLAConfig:
        """Reads the contents of a published config.json.

        Raises:
            ValueError: The kind of model is not supported; the message says why.
        """
        text = {**contents.get("text_config", {})}
        known = {f.name for f in fields(TextConfig)}
        refused = {
            "text_config.model_type must be 'llama'": text.get("model_type", "llama") != "llama",
            "use_fused_vision_backbone must not be false": (
                contents.get("use_fused_vision_backbone", True) is False
            ),
            "timm_override_act_layers must be null": any(
                contents.get("timm_override_act_layers") or ()
            ),
            "timm_model_ids must name two encoders": (
                len(contents.get("timm_model_ids", cls.timm_model_ids)) != 2
            ),
            "image_sizes must be one size": len(set(contents.get("image_sizes", (0,)))) != 1,
            "text_config.rope_scaling must be null": bool(text.get("rope_scaling")),
            "text_config.attention_bias must be false": bool(text.get("attention_bias")),
        }
        for message, wrong in refused.items():
            if wrong:
                raise ValueError(message)
        first, second = contents.get("timm_model_ids", cls.timm_model_ids)
        return cls(
            text=TextConfig(**{name: value for name, value in text.items() if name in known}),
            timm_model_ids=(first, second),
            image_size=contents.get("image_sizes", [cls.image_size])[0],
            n_action_bins=contents.get("n_action_bins", cls.n_action_bins),
            pad_to_multiple_of=contents.get("pad_to_multiple_of", cls.pad_to_multiple_of),
            norm_stats=contents.get("norm_stats") or {},
        )
