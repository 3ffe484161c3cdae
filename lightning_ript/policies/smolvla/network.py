"""The network of SmolVLA: the first layers of a SmolVLM, and an expert that denoises actions.

Shukor et al. 2025, arXiv:2506.01844. Names of modules are those of LeRobot's checkpoints. In every
n-th layer the expert attends to the SmolVLM's keys and values and to itself; in the others to the
SmolVLM's alone, which it projects once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_ript.policies.flow.decoder import (
    CrossLayer,
    DecoderLayer,
    DecoderSizes,
    make_norm,
)
from lightning_ript.policies.flow.network import (
    FlowNetwork,
    Named,
    Prefix,
    Seen,
    positions_after,
    seen_by_suffix,
    time_embedding,
)
from lightning_ript.policies.flow.vision import (
    VisionEncoder,
    VisionSizes,
    concatenated,
    shuffle_pixels,
)


@dataclass(frozen=True)
class SmolVLASizes:
    """Sizes of the whole.

    Attributes:
        vision: Of the image encoder.
        language: Of the SmolVLM's layers that are used.
        expert: Of the action expert's, as many.
        shuffle: So many patches to a side become one token.
        self_attention_every: Every so many layers the expert attends to itself, too.
        vocabulary: Tokens.
        chunk: Actions of a chunk.
        state_dim: Numbers of a padded state.
        action_dim: Numbers of a padded action.
    """

    vision: VisionSizes
    language: DecoderSizes
    expert: DecoderSizes
    shuffle: int
    self_attention_every: int
    vocabulary: int
    chunk: int
    state_dim: int
    action_dim: int

    def attends_to_itself(self, layer: int) -> bool:
        """Whether the expert does in this layer."""
        return self.self_attention_every > 0 and layer % self.self_attention_every == 0


class _Text(nn.Module):
    def __init__(self, sizes: DecoderSizes, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, sizes.width)
        self.layers = nn.ModuleList(DecoderLayer(sizes, gemma=False) for _ in range(sizes.layers))
        self.norm = make_norm(sizes.width, gemma=False)


class _Expert(nn.Module):
    def __init__(self, sizes: SmolVLASizes) -> None:
        super().__init__()
        keys = sizes.language.kv_heads * sizes.language.head_dim
        self.layers = nn.ModuleList(
            DecoderLayer(sizes.expert, gemma=False)
            if sizes.attends_to_itself(number)
            else CrossLayer(sizes.expert, gemma=False, key_input=keys)
            for number in range(sizes.expert.layers)
        )
        self.norm = make_norm(sizes.expert.width, gemma=False)


class _Connector(nn.Module):
    def __init__(self, sizes: SmolVLASizes) -> None:
        super().__init__()
        self.shuffle = sizes.shuffle
        joined = sizes.vision.width * sizes.shuffle**2
        self.modality_projection = Named(proj=nn.Linear(joined, sizes.language.width, bias=False))

    def forward(self, patches: Tensor) -> Tensor:
        return self.modality_projection.proj(shuffle_pixels(patches, self.shuffle))


class _VLM(nn.Module):
    def __init__(self, sizes: SmolVLASizes) -> None:
        super().__init__()
        self.vision_model = VisionEncoder(sizes.vision)
        self.connector = _Connector(sizes)
        self.text_model = _Text(sizes.language, sizes.vocabulary)


class SmolVLANetwork(FlowNetwork):
    """SmolVLA.

    Args:
        sizes: Its sizes.
    """

    transformers = "vlm_with_expert"

    def __init__(self, sizes: SmolVLASizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.chunk = sizes.chunk
        self.state_dim, self.action_dim = sizes.state_dim, sizes.action_dim
        width = self.feature_dim = sizes.expert.width
        self.vlm_with_expert = Named(vlm=Named(model=_VLM(sizes)), lm_expert=_Expert(sizes))
        self.state_proj = nn.Linear(sizes.state_dim, sizes.language.width)
        self.action_in_proj = nn.Linear(sizes.action_dim, width)
        self.action_out_proj = nn.Linear(width, sizes.action_dim)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)

    @property
    def vlm(self) -> _VLM:
        """The SmolVLM."""
        return self.vlm_with_expert.vlm.model

    @property
    def expert(self) -> _Expert:
        """The action expert."""
        return self.vlm_with_expert.lm_expert

    def expert_modules(self) -> Sequence[nn.Module]:
        """Everything but the SmolVLM and the projection of the state, which is in the prefix."""
        return [
            self.expert,
            self.action_in_proj,
            self.action_out_proj,
            self.action_time_mlp_in,
            self.action_time_mlp_out,
        ]

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, cameras, 3, side, side) -> (B, cameras, tokens, width)."""
        patches = concatenated(images, lambda each: self.vlm.vision_model(each, self.run))
        return torch.unflatten(self.vlm.connector(patches.flatten(0, 1)), 0, patches.shape[:2])

    def embed(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Embeddings of images, prompt and state, (B, P, width), and which are there (B, P)."""
        images = self.embed_images(seen.images)
        mask = seen.image_mask[:, :, None].expand(images.shape[:3]).flatten(1)
        words = self.vlm.text_model.embed_tokens(seen.tokens)
        root = self.sizes.language.width**0.5
        parts = [images.flatten(1, 2) * root, words * root, self.state_proj(seen.state)[:, None]]
        embeddings = torch.cat([part.to(images.dtype) for part in parts], dim=1)
        return embeddings, F.pad(torch.cat([mask, seen.token_mask], dim=1), (0, 1), value=True)

    @property
    def stack(self) -> Any:
        """The language model's layers, and the norm after them."""
        return self.vlm.text_model

    def attended(self, mask: Tensor) -> Tensor:
        """As in any prefix, but only the state sees the state, which comes last."""
        attended = mask[:, None].repeat(1, mask.shape[1], 1)
        attended[:, :-1, -1] = False
        return attended

    def velocity(self, prefix: Prefix, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the action expert."""
        actions = self.action_in_proj(x)
        embedded = time_embedding(time, self.feature_dim)
        both = torch.cat([actions, embedded[:, None].expand_as(actions)], dim=-1)
        hidden = self.to_expert(self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both))))
        count = hidden.shape[1]
        causal = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        attended = seen_by_suffix(prefix.mask, causal)
        positions = positions_after(prefix.mask, count)
        crossed = prefix.mask[:, None].expand(-1, count, -1)
        first = torch.arange(count, device=x.device).expand(len(x), -1)
        for number, (layer, before) in enumerate(
            zip(self.expert.layers, prefix.layers, strict=True)
        ):
            if self.sizes.attends_to_itself(number):
                hidden, _ = self.run(layer, hidden, positions, attended, before)
            else:
                hidden = self.run(layer, hidden, first, crossed, before)
        features = self.expert.norm(hidden)[0].float()
        return self.action_out_proj(features).float(), features
