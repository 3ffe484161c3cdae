"""QueST (Mete et al. 2024, arXiv 2407.15840): skill tokens, and a prior that chooses them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ript.envs.base import cameras, proprioception
from lightning_ript.policies.quest.autoencoder import NORM_GROUPS, SkillVAE
from lightning_ript.policies.quest.encoders import ImageEncoder, LowDimEncoder
from lightning_ript.policies.quest.prior import SkillGPT

# Inputs of the published checkpoints, whose parameters bear their names.
CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
LOWDIM = {"joint_states": 7, "ee_pos": 3, "gripper_states": 2}
ACTION_DIM = 7


@dataclass(frozen=True)
class QueSTConfig:
    """Sizes of a QueST model; the defaults are the published one's.

    Attributes:
        image_size: Height and width of the camera images.
        image_width: Channels of the image encoders' first stage; ResNet-18 has 64.
        image_embed_dim: Width of a camera's embedding.
        lowdim_embed_dim: Width of a proprioceptive input's embedding.
        language_dim: Width of a task embedding, as the policy's `language` makes them.
        embed_dim: Width of the prior and of its context tokens.
        prior_layers: Transformer layers of the prior.
        prior_heads: Attention heads of the prior.
        autoencoder_dim: Width of the autoencoder.
        encoder_layers: Transformer layers of the autoencoder's encoder.
        decoder_layers: Transformer layers of the autoencoder's decoder.
        autoencoder_heads: Attention heads of the autoencoder.
        block_size: Actions in a block.
        downsample_factor: Actions per skill token.
        fsq_levels: Levels of the quantizer; their product is the number of skill tokens.
        dropout: Dropout of all transformers while they are trained on demonstrations.
        cameras: Keys of the images that it sees, in the order of its weights; None for the
            published ones.
        lowdim: Keys and widths of the proprioception that it knows of; None for the published ones.
        action_dim: Width A of an action; None for the published 7.
    """

    image_size: int = 128
    image_width: int = 64
    image_embed_dim: int = 256
    lowdim_embed_dim: int = 128
    language_dim: int = 512
    embed_dim: int = 384
    prior_layers: int = 6
    prior_heads: int = 6
    autoencoder_dim: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 4
    autoencoder_heads: int = 4
    block_size: int = 32
    downsample_factor: int = 4
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    dropout: float = 0.1
    cameras: tuple[str, ...] | None = None
    lowdim: dict[str, int] | None = None
    action_dim: int | None = None

    @classmethod
    def for_spaces(
        cls, observation_space: spaces.Dict, action_space: spaces.Box, **sizes: Any
    ) -> QueSTConfig:
        """Sizes for an environment, or for demonstrations of one.

        Args:
            observation_space: What it shows.
            action_space: The action of one control step.
            **sizes: All others.
        """
        return cls(**{**inputs_for(observation_space, action_space), **sizes})

    @property
    def images(self) -> tuple[str, ...]:
        """Keys of the images."""
        return CAMERAS if self.cameras is None else tuple(self.cameras)

    @property
    def proprioception(self) -> dict[str, int]:
        """Keys and widths of the proprioception."""
        return LOWDIM if self.lowdim is None else self.lowdim

    @property
    def actions(self) -> int:
        """Width A of an action."""
        return ACTION_DIM if self.action_dim is None else self.action_dim

    def __post_init__(self) -> None:
        factor = self.downsample_factor
        checks = {
            "embed_dim must be divisible by prior_heads and even": self.embed_dim % self.prior_heads
            or self.embed_dim % 2,
            f"autoencoder_dim must be divisible by autoencoder_heads and by {NORM_GROUPS}": (
                self.autoencoder_dim % self.autoencoder_heads or self.autoencoder_dim % NORM_GROUPS
            ),
            "downsample_factor must be a power of two, at least 2": factor < 2
            or factor & (factor - 1),
            "block_size must be divisible by downsample_factor": self.block_size % factor,
            "fsq_levels must hold numbers of at least 2": not self.fsq_levels
            or min(self.fsq_levels) < 2,
            "dropout must be in [0, 1)": not 0 <= self.dropout < 1,
            "image_embed_dim must be at least 2": self.image_embed_dim < 2,
            "language_dim must be at least 1": self.language_dim < 1,
            "cameras and lowdim must not both be empty": not self.images
            and not self.proprioception,
            "action_dim must be at least 1": self.actions < 1,
        }
        for message, wrong in checks.items():
            if wrong:
                raise ValueError(f"QueST's sizes: {message}; got {self}")

    @property
    def tokens(self) -> int:
        """Skill tokens per action block."""
        return self.block_size // self.downsample_factor

    @property
    def vocab_size(self) -> int:
        """Number of different skill tokens."""
        return math.prod(self.fsq_levels)


def inputs_for(observation_space: spaces.Dict, action_space: spaces.Box) -> dict[str, Any]:
    """What `cameras`, `lowdim` and `action_dim` have to be for an environment.

    The published inputs where it offers them all, so that published checkpoints fit; else all that
    it offers.
    """
    seen, known = cameras(observation_space), proprioception(observation_space)
    (action_dim,) = action_space.shape
    if set(CAMERAS) <= seen.keys() and LOWDIM.items() <= known.items():
        seen, known = dict.fromkeys(CAMERAS, 0), LOWDIM
    return {"cameras": tuple(seen), "lowdim": dict(known), "action_dim": action_dim}


class QueST(nn.Module):
    """The whole policy, with the parameter names of the official checkpoints.

    D is `embed_dim`, T the tokens per block, A the width of an action.

    Args:
        config: Sizes.
    """

    def __init__(self, config: QueSTConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoders = nn.ModuleDict(
            {
                name: ImageEncoder(config.image_size, config.image_width, config.image_embed_dim)
                for name in config.images
            }
        )
        self.lowdim_encoders = nn.ModuleDict(
            {
                name: LowDimEncoder(dim, config.lowdim_embed_dim)
                for name, dim in config.proprioception.items()
            }
        )
        encoded = len(config.images) * config.image_embed_dim
        encoded += len(config.proprioception) * config.lowdim_embed_dim
        self.obs_proj = nn.Linear(encoded, config.embed_dim)
        self.task_encoder = nn.Linear(config.language_dim, config.embed_dim)
        self.autoencoder = SkillVAE(
            action_dim=config.actions,
            dim=config.autoencoder_dim,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            heads=config.autoencoder_heads,
            block_size=config.block_size,
            downsample_factor=config.downsample_factor,
            levels=config.fsq_levels,
            dropout=config.dropout,
        )
        self.policy_prior = SkillGPT(
            vocab_size=config.vocab_size,
            tokens=config.tokens,
            dim=config.embed_dim,
            layers=config.prior_layers,
            heads=config.prior_heads,
            dropout=config.dropout,
        )

    def encode_context(
        self, images: Mapping[str, Tensor], lowdim: Mapping[str, Tensor], task_emb: Tensor
    ) -> Tensor:
        """Encodes what the prior is conditioned on.

        Args:
            images: Camera name -> (B, 3, H, W) float in [0, 1], as the simulator renders them.
            lowdim: Name -> (B, width of the input).
            task_emb: (B, language_dim).

        Returns:
            The task token, then the observation token, (B, 2, D).
        """
        size = self.config.image_size
        for name in self.config.images:
            if tuple(images[name].shape[1:]) != (3, size, size):
                raise ValueError(
                    f"The policy takes {name} images of shape {(3, size, size)}, but got "
                    f"{tuple(images[name].shape[1:])}; make its image_size and that of the "
                    "environment or the demonstrations agree"
                )
        encoded = [self.image_encoders[name](images[name]) for name in self.config.images]
        known = self.config.proprioception
        encoded += [self.lowdim_encoders[name](lowdim[name]) for name in known]
        observation = self.obs_proj(torch.cat(encoded, dim=-1))
        return torch.stack([self.task_encoder(task_emb), observation], dim=1)

    def autoencoder_loss(self, actions: Tensor) -> Tensor:
        """Mean absolute reconstruction error of actions (B, block_size, A)."""
        return F.l1_loss(self.autoencoder(actions), actions)

    @torch.no_grad()
    def action_indices(self, actions: Tensor) -> Tensor:
        """Maps actions (B, block_size, A) to skill tokens (B, T) long."""
        return self.autoencoder.indices(actions)

    def prior_logits(self, context: Tensor, indices: Tensor) -> Tensor:
        """Logits (B, T, vocab) of each of the tokens (B, T) given context (B, 2, D)."""
        return self.policy_prior(context, indices)

    def prior_loss(self, context: Tensor, indices: Tensor) -> Tensor:
        """Mean cross-entropy of tokens (B, T) given context (B, 2, D)."""
        return F.cross_entropy(self.prior_logits(context, indices).flatten(0, 1), indices.flatten())

    def sample(
        self,
        context: Tensor,
        uniforms: Tensor | None = None,
        top_k: int = 5,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws skill tokens (B, T) given context (B, 2, D); see `SkillGPT.sample`."""
        return self.policy_prior.sample(context, uniforms, top_k, temperature)[0]

    def decode(self, indices: Tensor) -> Tensor:
        """Maps skill tokens (B, T) to actions (B, block_size, A)."""
        return self.autoencoder.decode_indices(indices)
