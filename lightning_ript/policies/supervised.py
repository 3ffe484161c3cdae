"""Supervised training on demonstrations: what the stages of all policies share."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_ript.policies.base import PolicyAdapter

Batch = dict[str, Any]
"""A batch of `DemonstrationDataModule`: its docstring has the shapes."""


class DemonstrationTraining(L.LightningModule):
    """What supervised stages share: optimizer, schedule and logging.

    Args:
        policy: The policy.
        lr: Learning rate at the start.
        min_lr: Learning rate at the end; a cosine over all optimizer steps lies between.
        weight_decay: Decay of AdamW; biases and norms are exempt.
    """

    best_by: ClassVar = ("val/loss", "min")

    def __init__(
        self,
        policy: PolicyAdapter,
        lr: float = 1e-4,
        min_lr: float = 1e-5,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        if not 0 <= min_lr <= lr or lr == 0:
            raise ValueError(f"lr is {lr} and min_lr {min_lr}; 0 <= min_lr <= lr must hold")
        self.policy = policy
        self.lr = lr
        self.min_lr = min_lr
        self.weight_decay = weight_decay

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the stage's `loss` on a batch, and what to log beside it."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss."""
        metrics = self.metrics(batch)
        self._log(metrics, "train", batch)
        return metrics["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss on demonstrations that were held out."""
        self._log(self.metrics(batch), "val", batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and a cosine schedule.

        Raises:
            ValueError: The trainer has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError("The learning rate's schedule needs an end: set trainer.max_epochs")
        learning = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        least = self.min_lr / self.lr if self.lr else 0.0

        # A function is not part of the scheduler's state: a run that is resumed with more epochs
        # follows the longer cosine, where CosineAnnealingLR would climb after the old one's end.
        def cosine(step: int) -> float:
            return least + (1 - least) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _log(self, metrics: dict[str, Tensor], stage: str, batch: Batch) -> None:
        named = {f"{stage}/{name}": value.detach() for name, value in metrics.items()}
        size = len(batch["actions"])
        self.log_dict(named, prog_bar=True, batch_size=size, sync_dist=stage == "val")
