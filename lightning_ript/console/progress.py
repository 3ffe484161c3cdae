"""Progress bars in a terminal, lines in a log file."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

log = logging.getLogger(__name__)

LINE_EVERY = 300.0  # seconds between two lines of something that goes on


def progress_bar(*arguments: Any, **settings: Any) -> tqdm:
    """Tqdm's bar; in a file, where every refresh stays, a line every five minutes.

    Args:
        arguments: Of `tqdm.tqdm`.
        settings: Of `tqdm.tqdm`.
    """
    if sys.stderr.isatty():
        return tqdm(*arguments, dynamic_ncols=True, **settings)
    settings.pop("delay", None)
    return tqdm(
        *arguments,
        file=_Lines(),
        mininterval=min(LINE_EVERY, 10.0),
        maxinterval=math.inf,
        miniters=1,
        bar_format="{desc}: {n_fmt} {unit}s in {elapsed}{postfix}",
        **{**settings, "leave": False},
    )


class _Lines:
    """Writes the state of a bar on a line of its own, unless it has just written one."""

    def __init__(self) -> None:
        self._written = time.monotonic()

    def write(self, text: str) -> None:
        text, now = text.strip("\r\n "), time.monotonic()
        if text and now - self._written >= LINE_EVERY:
            self._written = now
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        sys.stderr.flush()


class NoBar(ProgressBar):
    """Stands where Lightning's bar would, in a log file."""

    def disable(self) -> None:
        """Does nothing."""

    def enable(self) -> None:
        """Does nothing."""


class EpochLines(NoBar):
    """A line per epoch, of a module that reports nothing else."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the time."""
        self._started, self._validated = time.monotonic(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers that what validation logs is new."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the line."""
        # Of all ranks, which may have to sum them together.
        metrics = [
            f"{name} {float(value):.4g}"
            for name, value in trainer.progress_bar_metrics.items()
            if self._validated or not name.startswith("val/")
        ]
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._started
        log.info(
            "epoch %d, %d steps: %s, %.1f s",
            *(trainer.current_epoch + 1, trainer.global_step, ", ".join(metrics), seconds),
        )
