"""Which of Lightning's callbacks make no sense here; the rest come beside the run's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer

_AVERAGES = "it averages weights over steps, and the policy that acts is not the one that learns"
_TRIES = "it tries settings out before training, on batches that do not exist yet"
_WITHIN = "it would save within an iteration, from where no run can go on"

RULES_OF_RIPT: Mapping[str, str] = {
    "WeightAveraging": f"{_AVERAGES}: leave it out",
    "StochasticWeightAveraging": f"{_AVERAGES}: leave it out",
    "LearningRateFinder": f"{_TRIES}: set model.optimizer.lr",
    "BatchSizeFinder": f"{_TRIES}: set model.decisions_per_microbatch",
    "GradientAccumulationScheduler": (
        "gradients of a minibatch are accumulated already: set model.episodes_per_minibatch and "
        "model.decisions_per_microbatch"
    ),
    "BaseFinetuning": "the policy's settings say what learns: set those",
    "ModelPruning": (
        "it changes weights between acting and learning, whose probabilities are compared: leave "
        "it out"
    ),
    "OnExceptionCheckpoint": f"{_WITHIN}: leave it out, last.ckpt is of the last whole one",
    "BasePredictionWriter": "nothing is predicted: leave it out",
    "SpikeDetection": (
        "it reads the loss that a training step returns, and RIPT's returns none: "
        "lightning_ript.callbacks.Tripwires watches a run"
    ),
}
RULES_OF_SUPERVISED: Mapping[str, str] = {
    name: RULES_OF_RIPT[name] for name in ("BasePredictionWriter",)
} | {
    "LearningRateFinder": "it would overrule the schedule: set model.lr",
    "BatchSizeFinder": "it would change what a batch is for all ranks: set data.batch_size",
    "GradientAccumulationScheduler": (
        "the learning rate's schedule counts steps of one size: set trainer.accumulate_grad_batches"
    ),
    "BaseFinetuning": "the policy's settings say what learns: set those",
}
"""Lightning's callback, or one that others derive from -> why not, and what instead."""


def check_callbacks(callbacks: Iterable[Callback], ript: bool) -> None:
    """Refuses callbacks of Lightning's that would fail later, or break a guarantee.

    Args:
        callbacks: Those of a config.
        ript: Whether they are for RIPT, or for supervised training.

    Raises:
        ValueError: One makes no sense.
    """
    rules = RULES_OF_RIPT if ript else RULES_OF_SUPERVISED
    for callback in callbacks:
        names = [kind.__name__ for kind in type(callback).__mro__ if _is_lightnings(kind)]
        why = next((rules[name] for name in names if name in rules), None)
        if why is None and ript:
            why = _within_an_iteration(callback)
        if why is not None:
            raise ValueError(f"trainer.callbacks names {type(callback).__name__}, but {why}.")


def _is_lightnings(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")


def _within_an_iteration(callback: Callback) -> str | None:
    """Why not, for callbacks that some settings of theirs let act between optimizer steps."""
    if isinstance(callback, ModelCheckpoint):
        within = callback._every_n_train_steps or callback._train_time_interval
        if within or getattr(callback, "save_on_exception", False):
            return f"{_WITHIN}: set every_n_epochs"
    if isinstance(callback, Timer) and callback._interval == "step":
        return "it would end within an iteration: set its interval to epoch, or trainer.max_time"
    return None
