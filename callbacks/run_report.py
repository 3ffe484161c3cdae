"""The history of a run and its learning curve."""

from __future__ import annotations

import json
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_ript.callbacks.evaluation_report import success_metric
from lightning_ript.reports.fresh_metrics import FreshMetrics
from lightning_ript.reports.learning_curve import draw_learning_curve
from lightning_ript.reports.run_page import write_page
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.files import replacing
from lightning_ript.storage.run_directory import (
    evaluation_path,
    history_path,
    learning_curve_path,
    page_path,
)


class RunReport(Callback):
    """After each iteration, writes `<run_dir>/history.json` and `<run_dir>/learning_curve.png`.

    When the run has ended, `<run_dir>/report.html` shows it as a whole, see `write_page`.

    The history is part of the checkpoint, so a resumed run goes on with it, and what came after
    the checkpoint is forgotten with the weights. Seconds count from the start of training; those
    between the last checkpoint and a kill are lost.

    An entry holds `iteration` (1 for the first), `seconds`, `metrics` (those of this iteration;
    what the module logs in its own `on_train_epoch_end` comes too late, see `FreshMetrics`) and
    `evaluation`, None when there was none.

    Args:
        baseline: JSON of an evaluation of the starting policy, drawn at iteration 0; by default
            `<run_dir>/evaluation/before.json`, if there is one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an evaluation result.
    """

    def __init__(self, baseline: str | None = None) -> None:
        self._baseline = None if baseline is None else EvaluationResult.read(baseline)
        self._history: list[dict[str, Any]] = []
        self._evaluation: dict[str, Any] | None = None
        self._metrics = FreshMetrics()
        self._started = 0.0  # of the monotonic clock, moved back by the seconds of earlier runs

    @property
    def history(self) -> list[dict[str, Any]]:
        """The entries so far, oldest first."""
        return self._history

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a module that counts no successes."""
        success_metric(pl_module, type(self).__name__)
        before = evaluation_path(trainer.default_root_dir, "before")
        if self._baseline is None and before.is_file():
            self._baseline = EvaluationResult.read(before)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes on from the iteration that training goes on from."""
        done = trainer.current_epoch
        self._history = [entry for entry in self._history if entry["iteration"] <= done]
        spent = self._history[-1]["seconds"] if self._history else 0.0
        self._started = time.monotonic() - spent

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Marks earlier numbers as old."""
        self._metrics.start(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the result for this iteration's entry."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            result = success_metric(pl_module, type(self).__name__).compute()
            self._evaluation = result.to_dict()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the iteration's entry; checkpoints are saved after this hook and contain it."""
        self._history.append(
            {
                "iteration": trainer.current_epoch + 1,
                "seconds": time.monotonic() - self._started,
                "metrics": self._metrics.read(trainer),
                "evaluation": self._evaluation,
            }
        )
        self._evaluation = None
        if trainer.is_global_zero:
            with replacing(history_path(trainer.default_root_dir)) as temporary:
                temporary.write_text(json.dumps(self._history, indent=2) + "\n", encoding="utf-8")
            figure = draw_learning_curve(self._history, self._baseline)
            with replacing(learning_curve_path(trainer.default_root_dir)) as temporary:
                figure.savefig(temporary)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the page, once the last checkpoint is safe."""
        if not trainer.is_global_zero or not self._history:
            return
        page = page_path(trainer.default_root_dir)
        try:
            write_page([trainer.default_root_dir], page)
        except (OSError, ValueError) as error:  # the run is whole without it
            rank_zero_warn(
                f"{page} could not be written ({error}): once that is mended, "
                f"`lightning-ript report {trainer.default_root_dir}` does it."
            )
        else:
            rank_zero_info(f"The run's page: {page}")

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"history": list(self._history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the history of the checkpoint."""
        self._history = list(state_dict["history"])
