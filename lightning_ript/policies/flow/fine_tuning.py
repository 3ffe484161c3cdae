"""Supervised fine-tuning of flow-matching policies on demonstrations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_ript.policies.augmentation import check_augmentation, jitter_colors, translate
from lightning_ript.policies.flow.adapter import FlowPolicy
from lightning_ript.policies.supervised import Batch, DemonstrationTraining


class FlowFineTuning(DemonstrationTraining):
    """Learns the velocity between demonstrated actions and noise (flow matching).

    At a time drawn as pi0 draws it, 0.999 Beta(1.5, 1) + 0.001, by mean squared error over the
    actions' own numbers. What learns is what the policy's `train` says.

    Args:
        policy: The policy.
        lr: Learning rate at the start.
        min_lr: Learning rate at the end; a cosine over all optimizer steps lies between.
        weight_decay: Decay of AdamW; biases and norms are exempt.
        color_jitter: Strength of the colour augmentation, 0 to 0.5; 0 turns it off.
        translation: Width of the range of random shifts in pixels, 4 for -2 to 2; 0 turns it off.
        batches: Times and noises per demonstrated chunk and step: the prefix, which costs most, is
            computed once for all of them.

    Raises:
        ValueError: A setting is out of range.
    """

    policy: FlowPolicy

    def __init__(
        self,
        policy: FlowPolicy,
        lr: float = 1e-4,
        min_lr: float = 2.5e-6,
        weight_decay: float = 1e-10,
        color_jitter: float = 0.0,
        translation: int = 0,
        batches: int = 1,
    ) -> None:
        super().__init__(policy, lr, min_lr, weight_decay)
        check_augmentation(color_jitter, translation)
        if batches < 1:
            raise ValueError(f"batches is {batches}; it must be 1 or more")
        self.color_jitter, self.translation, self.batches = color_jitter, translation, batches
        if policy.noise_network is not None:
            policy.noise_network.requires_grad_(False)  # demonstrations say nothing of it
        self.train()  # the policy comes in evaluation mode, and Lightning leaves modes alone

    def setup(self, stage: str) -> None:
        """Makes room for all prompts."""
        instructions = getattr(getattr(self.trainer, "datamodule", None), "instructions", None)
        if instructions:
            self.policy.prepare_instructions(instructions)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the velocity's mean squared error."""
        record, actions = self.policy.demonstrated(batch)
        if self.training and (self.color_jitter or self.translation):
            record["images"] = self._augmented(record["images"])
        size = (self.batches, *actions.shape)
        generator = None
        if not self.training:  # the same for every epoch
            generator = torch.Generator(device=actions.device).manual_seed(0)
        noise = torch.randn(size, generator=generator, device=actions.device)
        uniform = torch.rand(size[:2], generator=generator, device=actions.device)
        time = 0.999 * uniform ** (1 / 1.5) + 0.001  # the inverse of Beta(1.5, 1)'s distribution
        errors = self.policy.flow_errors(record, actions, noise, time)
        return {"loss": errors[..., : batch["actions"].shape[-1]].mean()}

    def _augmented(self, images: Tensor) -> Tensor:
        """Colours and shifts of uint8 images (B, cameras, 3, H, W), each camera's its own."""
        scaled = images.flatten(0, 1).float() / 255
        changed = translate(jitter_colors(scaled, self.color_jitter), self.translation)
        return (changed * 255).round().to(torch.uint8).unflatten(0, images.shape[:2])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is in the published folder, and says what the policy was made from."""
        state = checkpoint["state_dict"]
        saved = self.policy.saved_in_module
        checkpoint["state_dict"] = {name: state[name] for name in state if saved(name)}
        checkpoint["policy"] = self.policy.described()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts it back as it is now."""
        saved = self.policy.saved_in_module
        left_out = {n: v for n, v in self.state_dict().items() if not saved(n)}
        checkpoint["state_dict"] = {**left_out, **checkpoint["state_dict"]}
