"""The metrics of this iteration, and no others."""

from __future__ import annotations

import lightning as L
from torch import Tensor


class FreshMetrics:
    """Tells the metrics logged in this epoch from those that Lightning keeps of earlier ones.

    `trainer.callback_metrics` holds the last value of everything ever logged. What the module logs
    in its own `on_train_epoch_end` is among the stale values, since Lightning calls the callbacks'
    first: a module has to log earlier for callbacks to see it.
    """

    def __init__(self) -> None:
        self._old: dict[str, Tensor] = {}

    def start(self, trainer: L.Trainer) -> None:
        """Marks what there is as old; for `on_train_epoch_start`."""
        self._old = dict(trainer.callback_metrics)

    def read(self, trainer: L.Trainer) -> dict[str, float]:
        """What has been logged since; for `on_train_epoch_end`.

        Call it on every rank: reducing a metric over the ranks is a collective operation.
        """
        return {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if value is not self._old.get(name)  # a new value is a new tensor, even if equal
        }
