"""The checkpoint of the policy that did best when it was evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`: the weights with the best score so far, and the score beside them.

    It is written at the end of an epoch whose weights have just been evaluated, with everything
    that `last.ckpt` has, and of equally good ones the earliest is kept. An epoch without evaluation
    writes nothing: the score that Lightning still holds then is of earlier weights. List it before
    the callback that writes `last.ckpt`, which otherwise knows the best score of the epoch before.

    Args:
        folder: Folder of the checkpoint.
        monitor: What the module logs when it is evaluated.
        mode: Whether large or small is good.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str = "val/success_rate",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(
            folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,  # a better one replaces the file
            every_n_epochs=1,
            save_on_train_epoch_end=True,
        )
        self._evaluated_at: int | None = None  # optimizer steps that the evaluated weights had

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes which weights the score is of."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._evaluated_at = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves them if they are the best so far and still the same."""
        if self._evaluated_at == trainer.global_step:
            super().on_train_epoch_end(trainer, pl_module)
