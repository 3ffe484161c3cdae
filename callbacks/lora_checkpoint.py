"""Adapter and heads of OpenVLA-OFT in the published layout, beside the run's own checkpoints."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_ript.policies.openvla_oft.adapter import OpenVLAPolicy
from lightning_ript.policies.openvla_oft.lora import save_lora
from lightning_ript.storage.run_directory import adapter_path


class LoRACheckpoint(Callback):
    """Writes the LoRA adapter and the heads, some megabytes, as RIPT-VLA publishes them.

    `<run_dir>/lora/iteration_<n>` every few iterations, and `<run_dir>/lora/best` whenever the
    policy does better on the test states than it ever did. They are what others load; to resume a
    run, with its optimizer, `last.ckpt` is enough.

    Args:
        every_n_iterations: Iterations from one to the next; 0 keeps only the best.

    Raises:
        ValueError: If that is negative.
    """

    def __init__(self, every_n_iterations: int = 1) -> None:
        if every_n_iterations < 0:
            raise ValueError(
                f"LoRACheckpoint.every_n_iterations is {every_n_iterations}: set it to 0 or more."
            )
        self.every_n_iterations = every_n_iterations
        self._best = -1.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a policy without an adapter."""
        policy = pl_module.policy
        if not isinstance(policy, OpenVLAPolicy) or not policy.has_adapter:
            raise TypeError(
                "LoRACheckpoint saves a LoRA adapter, but the policy has none: set "
                "model.policy to a policy of openvla_oft with lora, or leave the callback out."
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the adapter of the policy that has just done best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        rate = float(trainer.callback_metrics["val/success_rate"])
        if rate > self._best:
            self._best = rate
            self._save(trainer, pl_module, "best")
            rank_zero_info(f"The adapter with the best success so far, {rate:.1%}, is in lora/best")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the adapter of every `every_n_iterations`."""
        iteration = trainer.current_epoch + 1
        if self.every_n_iterations and iteration % self.every_n_iterations == 0:
            self._save(trainer, pl_module, f"iteration_{iteration:03d}")

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        policy: OpenVLAPolicy = pl_module.policy  # type: ignore[assignment]
        folder = adapter_path(trainer.default_root_dir, name)
        # Every rank calls it: where weights lie in shards, each has to give its own.
        save_lora(policy.model, folder, policy.checkpoint, write=trainer.is_global_zero)

    def state_dict(self) -> dict[str, Any]:
        """The best success so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self._best = state_dict["best"]
