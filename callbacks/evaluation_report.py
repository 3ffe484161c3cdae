"""The table and the JSON of an evaluation."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_ript.evaluation import SuccessRate
from lightning_ript.reports.evaluation_table import evaluation_table
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.revision import revision
from lightning_ript.storage.run_directory import evaluation_path

_PACKAGES = ("lightning-ript", "torch", "lightning", "numpy")


class EvaluationReport(Callback):
    """After each evaluation, shows its table and writes `<run_dir>/evaluation/<name>.json`.

    The run directory is `trainer.default_root_dir`. The JSON also tells what was evaluated:
    checkpoint, seed, whether actions were sampled, the environment as it describes itself, with its
    caveats, the versions of the packages that numbers depend on, and the revision of this one.

    Args:
        name: Name of an evaluation by `validate`; by default that of the checkpoint, or `validate`
            without one. Evaluations during `fit` are called `epoch=NNN` as checkpoints are.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a module that counts no successes."""
        success_metric(pl_module, type(self).__name__)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports; callbacks come before the module, so it has not reset its metric yet."""
        if trainer.sanity_checking:
            return
        # Every rank takes part in the sum, though only rank zero reports it.
        result = success_metric(pl_module, type(self).__name__).compute()
        if not trainer.is_global_zero:
            return
        name = evaluation_name(trainer, self.name)
        result = result._replace(metadata=_metadata(trainer, pl_module))
        path = evaluation_path(trainer.default_root_dir, name)
        result.write(path)
        rank_zero_info(f"\nEvaluation {name}\n{_shown(result)}\nwritten to {path}")


def success_metric(pl_module: L.LightningModule, wanted_by: str) -> SuccessRate:
    """The module's success counts.

    Raises:
        TypeError: If the module has none.
    """
    metric = getattr(pl_module, "success_rate", None)
    if not isinstance(metric, SuccessRate):
        raise TypeError(
            f"{wanted_by} needs a module that counts successes in `success_rate`, which "
            f"{type(pl_module).__name__} does not: use it with RIPTLightningModule."
        )
    return metric


def evaluation_name(trainer: L.Trainer, name: str | None) -> str:
    """What the current evaluation is called, see `EvaluationReport`."""
    if trainer.state.fn == "fit":
        return f"epoch={trainer.current_epoch:03d}"
    if name is not None:
        return name
    return Path(trainer.ckpt_path).stem if trainer.ckpt_path else "validate"


def _shown(result: EvaluationResult) -> str:
    protocol = result.metadata["environment"].get("protocol")
    how = [] if protocol is None else [f"Protocol: {protocol}."]
    return "\n".join([evaluation_table(result), *how, *result.caveats])


def _metadata(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    fitting = trainer.state.fn == "fit"
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything keeps it
    environment = getattr(_datamodule(trainer), "environment", None)
    packages = (*_PACKAGES, *(() if environment is None else environment.packages))
    policy_checkpoint = getattr(getattr(pl_module, "policy", None), "checkpoint", None)
    return {
        # During `fit`, ckpt_path is where the run was resumed from, not what is evaluated.
        "checkpoint": None if fitting or not trainer.ckpt_path else str(trainer.ckpt_path),
        "policy_checkpoint": None if policy_checkpoint is None else str(policy_checkpoint),
        "epoch": trainer.current_epoch if fitting else None,
        "seed": None if seed is None else int(seed),
        "datamodule_seed": getattr(_datamodule(trainer), "seed", None),
        "sampled_actions": getattr(_datamodule(trainer), "eval_sampling", None),
        "environment": {} if environment is None else environment.describe(),
        "versions": {package: _version(package) for package in packages},
        "revision": revision(),
    }


def _datamodule(trainer: L.Trainer) -> L.LightningDataModule | None:
    # Lightning sets the attribute only when a data module was given.
    return getattr(trainer, "datamodule", None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
