"""One line of text per iteration."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_ript.reports.fresh_metrics import FreshMetrics

_NAN = float("nan")


class RolloutStatistics(Callback):
    """After each iteration, shows one line: what was collected, what was learned, how long it took.

    What the module logs in its own `on_train_epoch_end` comes too late, see `FreshMetrics`.
    """

    def __init__(self) -> None:
        self._metrics = FreshMetrics()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Marks earlier numbers as old."""
        self._metrics.start(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the line."""
        metrics = self._metrics.read(trainer)
        iteration = trainer.current_epoch + 1
        if "rollout/success_rate" not in metrics:
            rank_zero_warn(
                f"Iteration {iteration} logged no `rollout/success_rate` before the callbacks' "
                "on_train_epoch_end, so RolloutStatistics has nothing to show."
            )
            return
        rank_zero_info(f"iteration {iteration}: {summary_line(metrics)}")


def summary_line(metrics: Mapping[str, float]) -> str:
    """The statistics of one iteration as text; a metric that is missing shows as nan.

    Args:
        metrics: The module's metrics by their standard names; rates and fractions in [0, 1],
            times in seconds.
    """

    def get(name: str) -> float:
        return metrics.get(name, _NAN)

    return " | ".join(
        [
            f"groups {get('rollout/groups_kept'):.0f} kept, "
            f"{get('rollout/groups_dropped'):.0f} dropped",
            f"success {get('rollout/success_rate'):.1%} of all, "
            f"{get('rollout/success_rate_kept'):.1%} of kept",
            f"{get('rollout/episodes_per_second'):.2f} episodes/s",
            f"collecting {get('time/collecting'):.1f} s, learning {get('time/learning'):.1f} s",
            f"clip fraction {get('train/clip_fraction'):.3f}, KL {get('train/approx_kl'):.4f}",
        ]
    )
