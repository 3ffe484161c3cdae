"""Goes back to the best policy when success has collapsed."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_ript.callbacks.best_checkpoint import BestCheckpoint
from lightning_ript.callbacks.evaluation_report import success_metric


class RollBack(Callback):
    """When an evaluation finds less than `fraction` of the best success, takes the best policy.

    Its weights and its optimizer come back from `best.ckpt`, with a lower learning rate. Iterations
    go on counting, so the next one practises new contexts.

    Args:
        fraction: Of the best success rate below which the policy goes back.
        lr_factor: Multiplies the learning rates of the best checkpoint, once more each time.

    Raises:
        ValueError: If a setting makes no sense.
    """

    def __init__(self, fraction: float = 0.5, lr_factor: float = 0.5) -> None:
        if not 0 < fraction < 1 or not 0 < lr_factor <= 1:
            raise ValueError(
                f"RollBack has fraction {fraction} and lr_factor {lr_factor}: set the first "
                "between 0 and 1, the second above 0 and to 1 at most."
            )
        self.fraction, self.lr_factor = fraction, lr_factor
        self._best, self._wanted, self._times = 0.0, False, 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a run that keeps no best checkpoint, or whose weights lie in shards.

        Raises:
            ValueError: It does.
        """
        success_metric(pl_module, type(self).__name__)
        if stage == "fit" and self._checkpoint(trainer) is None:
            raise ValueError("RollBack needs best.ckpt: add BestCheckpoint to the callbacks.")
        if stage == "fit" and getattr(pl_module, "device_mesh", None) is not None:
            raise ValueError("RollBack cannot restore weights in shards: set trainer.strategy ddp.")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compares the success rate with the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        rate = success_metric(pl_module, type(self).__name__).compute().rate
        self._wanted = rate < self.fraction * self._best
        self._best = max(self._best, rate)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restores the best policy before the next rollouts."""
        if not self._wanted:
            return
        self._wanted = False
        self._times += 1
        best = self._checkpoint(trainer)
        assert best is not None
        # This run has written it, whatever its callbacks keep there.
        contents = torch.load(best.best_model_path, map_location="cpu", weights_only=False)
        pl_module.on_load_checkpoint(contents)
        pl_module.load_state_dict(contents["state_dict"])
        for optimizer, state in zip(trainer.optimizers, contents["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] *= self.lr_factor**self._times
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            scheduler.base_lrs = [rate * self.lr_factor for rate in scheduler.base_lrs]
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        rank_zero_warn(
            f"Iteration {trainer.current_epoch + 1}: success has fallen below {self.fraction:.0%} "
            f"of its best, {self._best:.1%}; the run goes on from {best.best_model_path} with the "
            f"learning rate {rates[0]:.3g}."
        )

    @staticmethod
    def _checkpoint(trainer: L.Trainer) -> BestCheckpoint | None:
        found = (c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
        return next(found, None)

    def state_dict(self) -> dict[str, Any]:
        """The best success so far, and how often it has gone back."""
        return {"best": self._best, "times": self._times}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self._best, self._times = state_dict["best"], state_dict["times"]
