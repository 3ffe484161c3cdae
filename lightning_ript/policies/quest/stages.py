"""The supervised stages of QueST: autoencoder, then fine-tuning on demonstrations (SFT)."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.policies.augmentation import check_augmentation, jitter_colors, translate
from lightning_ript.policies.quest.adapter import QueSTPolicy, scale_images
from lightning_ript.policies.supervised import Batch, DemonstrationTraining

_FEW_TOKENS = 8  # With no more tokens than these, the prior has hardly anything to choose from.


class AutoencoderTraining(DemonstrationTraining):
    """Learns skill tokens for blocks of actions, by mean absolute error. Needs no images.

    Args:
        policy: The policy; its autoencoder learns.
        lr: Learning rate at the start.
        min_lr: Learning rate at the end; a cosine over all optimizer steps lies between.
        weight_decay: Decay of AdamW; biases and norms are exempt.
    """

    policy: QueSTPolicy

    def __init__(
        self,
        policy: QueSTPolicy,
        lr: float = 1e-4,
        min_lr: float = 1e-5,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__(policy, lr, min_lr, weight_decay)
        self.policy.model.requires_grad_(False)
        self.policy.model.autoencoder.requires_grad_(True)
        self._used = torch.zeros(policy.model.config.vocab_size, dtype=torch.bool)
        self.train()  # the policy comes in evaluation mode, and Lightning leaves modes alone

    def train(self, mode: bool = True) -> AutoencoderTraining:
        """Puts the autoencoder in the mode; the rest stays in evaluation mode."""
        super().train(mode)
        self.policy.model.autoencoder.train(mode)
        return self

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the reconstruction error."""
        return {"loss": self.policy.model.autoencoder_loss(batch["actions"])}

    def on_validation_epoch_start(self) -> None:
        """Starts counting the skill tokens in use."""
        self._used.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss on demonstrations that were held out."""
        super().validation_step(batch, batch_idx)
        self._used[self.policy.model.action_indices(batch["actions"]).flatten().cpu()] = True

    def on_validation_epoch_end(self) -> None:
        """Logs how many different skill tokens the held-out demonstrations have."""
        counts = self._used.to(self.device, torch.float32)  # each process has seen its share
        self._used = (self.trainer.strategy.reduce(counts, reduce_op="sum") > 0).cpu()
        self.log("val/tokens_used", float(self._used.sum()), prog_bar=True, sync_dist=True)

    def on_fit_end(self) -> None:
        """Warns where the tokens have collapsed: the loss alone does not show it."""
        if self._used.any() and self._used.sum() <= _FEW_TOKENS:
            rank_zero_warn(
                f"The autoencoder uses only {int(self._used.sum())} of {len(self._used)} skill "
                "tokens on the held-out demonstrations: its codes have collapsed, and a policy "
                "can hardly act with so few. Lower the learning rate or set "
                "model.policy.sizes.dropout to 0."
            )


class SupervisedFineTuning(DemonstrationTraining):
    """Learns to predict the demonstrators' skill tokens from images and proprioception.

    Encoders and prior learn, by cross-entropy. The autoencoder is frozen, unless `decoder_weight`
    has its decoder tuned as well: by the mean absolute error of the actions that it makes of tokens
    drawn from the prior, which are not differentiated. The autoencoder makes the targets without
    dropout, so that one block of actions always has the same tokens; the reference leaves
    its dropout on, which makes some of its targets random.

    Args:
        policy: The policy; its `checkpoint` brings the trained autoencoder.
        lr: Learning rate at the start.
        min_lr: Learning rate at the end; a cosine over all optimizer steps lies between.
        weight_decay: Decay of AdamW; biases and norms are exempt.
        color_jitter: Strength of the colour augmentation, 0 to 0.5; 0 turns it off.
        translation: Width of the range of random shifts in pixels, 4 for -2 to 2; 0 turns it
            off.
        decoder_weight: Weight of the decoder's loss; 0 leaves the decoder frozen. The reference
            fine-tunes on a few demonstrations with 10.

    Raises:
        ValueError: A setting is out of range, or the policy has no checkpoint.
    """

    policy: QueSTPolicy

    def __init__(
        self,
        policy: QueSTPolicy,
        lr: float = 1e-4,
        min_lr: float = 1e-5,
        weight_decay: float = 1e-4,
        color_jitter: float = 0.3,
        translation: int = 4,
        decoder_weight: float = 0.0,
    ) -> None:
        super().__init__(policy, lr, min_lr, weight_decay)
        if not 0 <= decoder_weight < math.inf:
            raise ValueError(f"decoder_weight is {decoder_weight}; it must be 0 or more")
        check_augmentation(color_jitter, translation)
        if policy.checkpoint is None:
            raise ValueError(
                "Fine-tuning needs a trained autoencoder: set the policy's checkpoint to that of "
                "the autoencoder stage"
            )
        self.color_jitter = color_jitter
        self.translation = translation
        self.decoder_weight = decoder_weight
        self.policy.model.requires_grad_(True)
        self.policy.model.autoencoder.requires_grad_(False)
        self.policy.model.autoencoder.decoder.requires_grad_(decoder_weight > 0)
        self.train()  # the policy comes in evaluation mode, and Lightning leaves modes alone

    def train(self, mode: bool = True) -> SupervisedFineTuning:
        """Puts in the mode what learns; the rest of the autoencoder stays in evaluation mode."""
        super().train(mode)
        self.policy.model.train(mode)
        self.policy.model.autoencoder.eval()
        self.policy.model.autoencoder.decoder.train(mode and self.decoder_weight > 0)
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says how instructions became vectors, for whoever exports it."""
        checkpoint["policy"] = self.policy.described()

    def setup(self, stage: str) -> None:
        """Encodes the instructions now: one that cannot be encoded is refused before training.

        Raises:
            OSError: The policy's text encoder cannot be had.
            ValueError: It does not fit the policy.
        """
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DemonstrationDataModule):
            self.policy.embed(data.instructions)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, and how often the most likely token is the right one."""
        model = self.policy.model
        indices = model.action_indices(batch["actions"])
        images = {name: self._prepare(images) for name, images in batch["images"].items()}
        task_emb = self.policy.embed(batch["language"])
        context = model.encode_context(images, batch["lowdim"], task_emb)
        logits = model.prior_logits(context, indices)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), indices.flatten())
        accuracy = (logits.argmax(-1) == indices).float().mean()
        if not self.decoder_weight:
            return {"loss": loss, "accuracy": accuracy}
        drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
        error = torch.nn.functional.l1_loss(model.decode(drawn), batch["actions"])
        return {
            "loss": loss + self.decoder_weight * error,
            "accuracy": accuracy,
            "cross_entropy": loss,
            "decoder_error": error,
        }

    def _prepare(self, images: Tensor) -> Tensor:
        scaled = scale_images(images)
        if not self.training:
            return scaled
        return translate(jitter_colors(scaled, self.color_jitter), self.translation)
