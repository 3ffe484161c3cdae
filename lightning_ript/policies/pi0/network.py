"""The networks of pi0 and pi0.5: a PaliGemma, and a smaller Gemma that denoises actions.

Black et al. 2024, arXiv:2410.24164; Physical Intelligence 2025, arXiv:2504.16054. Names of modules
are those of LeRobot's checkpoints. pi0's expert sees the robot's state as a token of its own and
the time within the actions' tokens; pi0.5 has the state in its prompt and the time in its norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_ript.policies.flow.decoder import DecoderLayer, DecoderSizes, make_norm
from lightning_ript.policies.flow.network import (
    FlowNetwork,
    Named,
    Prefix,
    Seen,
    positions_after,
    seen_by_suffix,
    time_embedding,
)
from lightning_ript.policies.flow.vision import VisionEncoder, VisionSizes, concatenated


@dataclass(frozen=True)
class Pi0Sizes:
    """Sizes of the whole.

    Attributes:
        vision: Of the image encoder.
        language: Of the PaliGemma's layers.
        expert: Of the action expert's, as many as the PaliGemma's.
        vocabulary: Tokens.
        chunk: Actions of a chunk.
        state_dim: Numbers of a padded state.
        action_dim: Numbers of a padded action.
        adaptive: pi0.5.
    """

    vision: VisionSizes
    language: DecoderSizes
    expert: DecoderSizes
    vocabulary: int
    chunk: int
    state_dim: int
    action_dim: int
    adaptive: bool


class _Gemma(nn.Module):
    def __init__(self, sizes: DecoderSizes, adaptive: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(sizes, gemma=True, adaptive=adaptive) for _ in range(sizes.layers)
        )
        self.norm = make_norm(sizes.width, gemma=True, adaptive=adaptive)


class _Language(_Gemma):
    def __init__(self, sizes: DecoderSizes, vocabulary: int) -> None:
        super().__init__(sizes, adaptive=False)
        self.embed_tokens = nn.Embedding(vocabulary, sizes.width)


class Pi0Network(FlowNetwork):
    """pi0 or pi0.5.

    Args:
        sizes: Its sizes.
    """

    transformers = "paligemma_with_expert"

    def __init__(self, sizes: Pi0Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.chunk = sizes.chunk
        self.state_dim, self.action_dim = sizes.state_dim, sizes.action_dim
        width = self.feature_dim = sizes.expert.width
        projector = Named(linear=nn.Linear(sizes.vision.width, sizes.language.width))
        paligemma = Named(
            vision_tower=Named(vision_model=VisionEncoder(sizes.vision)),
            multi_modal_projector=projector,
            language_model=_Language(sizes.language, sizes.vocabulary),
        )
        self.paligemma_with_expert = Named(
            paligemma=Named(model=paligemma),
            gemma_expert=Named(model=_Gemma(sizes.expert, sizes.adaptive)),
        )
        self.action_in_proj = nn.Linear(sizes.action_dim, width)
        self.action_out_proj = nn.Linear(width, sizes.action_dim)
        if sizes.adaptive:
            self.time_mlp_in = nn.Linear(width, width)
            self.time_mlp_out = nn.Linear(width, width)
        else:
            self.state_proj = nn.Linear(sizes.state_dim, width)
            self.action_time_mlp_in = nn.Linear(2 * width, width)
            self.action_time_mlp_out = nn.Linear(width, width)

    @property
    def language(self) -> _Language:
        """The PaliGemma's layers."""
        return self.paligemma_with_expert.paligemma.model.language_model

    @property
    def vision(self) -> VisionEncoder:
        """The image encoder."""
        return self.paligemma_with_expert.paligemma.model.vision_tower.vision_model

    @property
    def expert(self) -> _Gemma:
        """The action expert."""
        return self.paligemma_with_expert.gemma_expert.model

    def expert_modules(self) -> Sequence[nn.Module]:
        """Everything but the PaliGemma."""
        projections = [m for m in self.children() if m is not self.paligemma_with_expert]
        return [self.expert, *projections]

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, cameras, 3, side, side) -> (B, cameras, tokens, width)."""
        project = self.paligemma_with_expert.paligemma.model.multi_modal_projector.linear
        return project(concatenated(images, lambda each: self.vision(each, self.run)))

    def embed(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Embeddings of images, then prompt, (B, P, width), and which of them are there (B, P)."""
        images = self.embed_images(seen.images)
        mask = seen.image_mask[:, :, None].expand(images.shape[:3])
        words = self.language.embed_tokens(seen.tokens) * self.sizes.language.width**0.5
        embeddings = torch.cat([images.flatten(1, 2), words.to(images.dtype)], dim=1)
        return embeddings, torch.cat([mask.flatten(1), seen.token_mask], dim=1)

    @property
    def stack(self) -> Any:
        """The language model's layers, and the norm after them."""
        return self.language

    def velocity(self, prefix: Prefix, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the action expert."""
        actions = self.action_in_proj(x)
        embedded = time_embedding(time, self.feature_dim)
        condition = None
        if self.sizes.adaptive:
            tokens = actions
            mixed = self.time_mlp_out(F.silu(self.time_mlp_in(embedded)))
            condition = self.to_expert(F.silu(mixed))
        else:
            both = torch.cat([actions, embedded[:, None].expand_as(actions)], dim=-1)
            actions = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
            tokens = torch.cat([self.state_proj(prefix.state)[:, None], actions], dim=1)
        count = tokens.shape[1]
        own = torch.ones(count, count, dtype=torch.bool, device=x.device)
        if not self.sizes.adaptive:
            own[0, 1:] = False  # the state does not see the actions
        attended = seen_by_suffix(prefix.mask, own)
        positions = positions_after(prefix.mask, count)
        hidden = self.to_expert(tokens)
        for layer, before in zip(self.expert.layers, prefix.layers, strict=True):
            hidden, _ = self.run(layer, hidden, positions, attended, before, condition)
        features = self.expert.norm(hidden[:, -self.chunk :], condition)[0].float()
        return self.action_out_proj(features).float(), features
