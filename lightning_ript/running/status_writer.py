"""Tells whoever watches what the run is doing."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_ript.datamodule import RolloutDataModule
from lightning_ript.storage.run_status import BETWEEN, RunStatus
from lightning_ript.types import CollectingProgress

EVERY = 1.0  # seconds between two writes while something goes on


class StatusWriter(Callback):
    """Keeps `<run_dir>/status.json` up to date, from the first process."""

    def __init__(self) -> None:
        self._started = time.time()
        self._now = RunStatus("starting", self._started)
        self._written = 0.0  # of the monotonic clock

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The run begins: nothing has refused its settings."""
        self._begin(trainer, "starting")

    def on_rollout(self, trainer: L.Trainer, progress: CollectingProgress) -> None:
        """An episode of an iteration is over."""
        counts = {
            "done": progress.episodes,
            "successes": progress.successes,
            "kept": progress.kept,
            "wanted": progress.wanted,
            "dropped": progress.dropped,
        }
        if self._now.doing == "collecting":
            self._change(trainer, **counts)
        else:
            self._begin(trainer, "collecting", iteration=progress.iteration + 1, **counts)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learning begins."""
        self._learn(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """A micro-batch has been learned from, maybe after an evaluation within the epoch."""
        if self._now.doing != "learning":
            self._learn(trainer)
        self._change(trainer, done=batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The iteration is over; what comes next says so itself."""
        self._begin(trainer, BETWEEN, iteration=trainer.current_epoch + 1)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An evaluation begins."""
        iteration = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0
        successes = 0 if _acts(trainer) else None
        of = _count(trainer.num_val_batches)
        self._begin(trainer, "evaluating", of=of, iteration=iteration, successes=successes)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """An episode of it is over, or a batch of a supervised stage."""
        changes = {"done": self._now.done + 1}
        if self._now.successes is not None:
            changes["successes"] = self._now.successes + batch.success
        self._change(trainer, **changes)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The run is over."""
        self._end(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """The run is over, too."""
        self._end(trainer)

    def _end(self, trainer: L.Trainer) -> None:
        if self._written:  # else it was refused, and leaves nothing behind
            self._begin(trainer, "ended", iteration=self._now.iteration)

    def _learn(self, trainer: L.Trainer) -> None:
        of = _count(trainer.num_training_batches)
        self._begin(trainer, "learning", of=of, iteration=trainer.current_epoch + 1)

    def _begin(self, trainer: L.Trainer, doing: str, **more: Any) -> None:
        epochs = trainer.max_epochs if trainer.state.fn == "fit" else None
        self._now = RunStatus(
            doing,
            time.time(),
            iterations=None if epochs is None or epochs < 0 else epochs,
            ranks=trainer.world_size,
            unit="iteration" if _acts(trainer) else "epoch",
            started=self._started,
            **more,
        )
        self._write(trainer)

    def _change(self, trainer: L.Trainer, **changes: Any) -> None:
        self._now = replace(self._now, **changes)
        if time.monotonic() - self._written > EVERY:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            with suppress(OSError):  # nothing is lost with it; a full disk stops the checkpoint
                self._now.write(trainer.default_root_dir)
        self._written = time.monotonic()


def _acts(trainer: L.Trainer) -> bool:
    """Whether a policy acts in this run, rather than learning from demonstrations alone."""
    return isinstance(getattr(trainer, "datamodule", None), RolloutDataModule)


def _count(batches: float | list[int | float]) -> int | None:
    """Batches of all loaders, None where one has no length."""
    total = sum(batches) if isinstance(batches, list) else batches
    return int(total) if math.isfinite(total) else None
