"""OpenVLA with discrete actions: tokens of the language model, all of a chunk at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ript.policies.libero_robot import CAMERAS
from lightning_ript.policies.openvla_oft.action_bins import actions_of
from lightning_ript.policies.openvla_oft.adapter import DEFAULT_LORA, OpenVLAPolicy
from lightning_ript.policies.openvla_oft.checkpoint import load_openvla_tokens
from lightning_ript.policies.openvla_oft.config import ACTION_DIM, CHUNK
from lightning_ript.policies.openvla_oft.lora import LoraSizes
from lightning_ript.policies.openvla_oft.model import Forward, OpenVLATokens
from lightning_ript.policies.sampling import sample_tokens


class OpenVLATokenPolicy(OpenVLAPolicy):
    """OpenVLA-OFT that predicts each of a chunk's 8 x 7 numbers as a token of 256; a LoRA learns.

    The softmax over a token's bins is its distribution, so log-probabilities are exact. Defaults
    are of the published checkpoints of this kind (SimpleVLA-RL, arXiv 2509.09674): they see one
    camera and no robot's state.

    Args:
        checkpoint: A published directory, here or on the hub (`hf://owner/repo`).
        statistics: The data set of the checkpoint whose statistics map states and actions: a
            suite's name will do.
        adapter: A LoRA adapter to start from, a folder here or on the hub.
        lora: The adapter to create if none is loaded; None to evaluate without one.
        forward: `single_pass` runs everything at once, as the checkpoints were trained;
            `prefix_cache` runs the prompt on its own and without gradient.
        cameras: The images the checkpoint was trained on, in that order.
        proprio: Whether the checkpoint was trained with the robot's state.
        temperature: Divides the logits, of what is sampled and of what is scored alike.
        **settings: Of `OpenVLAPolicy`.

    Raises:
        OSError: A file is missing.
        ValueError: A setting is out of range, or a file does not fit.
        ModuleNotFoundError: A library that only this policy needs is not installed.
    """

    model: OpenVLATokens

    def __init__(
        self,
        checkpoint: str,
        statistics: str,
        adapter: str | None = None,
        lora: LoraSizes | None = DEFAULT_LORA,
        forward: Forward = "single_pass",
        cameras: Sequence[str] = CAMERAS[:1],
        proprio: bool = False,
        temperature: float = 1.0,
        **settings: Any,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        super().__init__(
            load_openvla_tokens,
            checkpoint,
            statistics,
            adapter=adapter,
            lora=lora,
            forward=forward,
            cameras=cameras,
            proprio=proprio,
            **settings,
        )
        self.temperature = temperature
        self.noise_shape = (CHUNK * ACTION_DIM,)

    def check_ready(self) -> None:
        """Refuses to learn without anything that could.

        Raises:
            ValueError: There is no adapter.
        """
        if not self.has_adapter:
            raise ValueError("With action tokens only a LoRA learns: set model.policy.lora")

    def _choose(self, prediction: Tensor, noise: Tensor | None) -> Tensor:
        """Bins (B, 56) of logits (B, 56, 256)."""
        if noise is None:
            return prediction.argmax(-1)
        noise = noise.to(prediction.device)
        return sample_tokens(prediction, noise, temperature=self.temperature)

    def _normalized_actions(self, chosen: Tensor) -> Tensor:
        return actions_of(chosen).unflatten(-1, (CHUNK, ACTION_DIM))

    def _score(self, prediction: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = (prediction / self.temperature).log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, chosen[..., None]).squeeze(-1), entropy
