"""A run that goes on with other settings: which may change, and that they take effect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from traceback import walk_tb
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_ript.storage.checkpoint_files import read_checkpoint

_SETTINGS, _OPTIMIZER = "settings", "optimizer_class"  # in a checkpoint
_RESTORING = "lightning.pytorch.trainer.connectors.checkpoint_connector"
# What says how a run is watched and where, not what it computes.
_SILENT = (
    *("ckpt_path", "run_dir", "config", "weights_only", "trainer.default_root_dir"),
    *("trainer.logger", "trainer.callbacks", "trainer.plugins", "trainer.profiler"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.max_epochs"),
)
# A checkpoint has a state of these that others cannot take over.
_FIXED = {
    "model.class_path": "another stage begins in a --run_dir of its own",
    "model.policy.class_path": "another policy begins in a --run_dir of its own",
    "data.class_path": "another stage begins in a --run_dir of its own",
}
# Files of weights that a run begins with.
_STARTS = ("model.policy.checkpoint", "model.policy.weights")
_RATES = re.compile(r"^model\.(.*\b(optimizer|scheduler|weight_decay|max_grad_norm)\b|.*lr$)")


def flat(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its name; that something is an argument of a class is left out."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            inner = name if key == "init_args" else f"{name}.{key}" if name else str(key)
            yield from flat(value, inner)
    else:
        yield name, settings


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, each as it was and as it is; None where it was not or is not.

    Of settings that only say how a run is watched, nothing is told.
    """
    old, new = dict(flat(before)), dict(flat(now))
    found = {}
    for name in sorted(old.keys() | new.keys()):
        pair = old.get(name), new.get(name)
        quiet = any(name == each or name.startswith(f"{each}.") for each in _SILENT)
        if pair[0] != pair[1] and not quiet:
            found[name] = pair
    return found


class ResumedSettings(Callback):
    """Keeps a run's settings in its checkpoints, and compares with them when it goes on.

    Lightning restores an optimizer with the learning rate that it had, so that another one in the
    config would be overruled without a word. Here what is set counts, and a line says so.

    Args:
        settings: All settings of this start.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.changed: dict[str, tuple[Any, Any]] = {}

    def compare(self, checkpoint: str | Path, trusted: bool = False) -> None:
        """Refuses to go on with settings that a checkpoint's state does not fit.

        Args:
            checkpoint: The checkpoint's file, one of Lightning's.
            trusted: Whether it may hold objects that code makes when they are read.

        Raises:
            ValueError: It names the setting, what it was and what it is.
        """
        found = read_checkpoint(checkpoint, trusted)
        if _SETTINGS not in found:
            return  # of an earlier version
        self.changed = changes(yaml.safe_load(found[_SETTINGS]), self.settings)
        for name, why in _FIXED.items():
            if name in self.changed:
                old, new = self.changed[name]
                raise ValueError(
                    f"{name} is {new}, but {checkpoint} is of a run where it was {old}: {why}."
                )
        if self.changed:
            rank_zero_info(f"Resuming with changed settings: {self.told()}.")
        for name in _STARTS:
            if name in self.changed:
                rank_zero_warn(
                    f"{name} has changed, but what has been learned in {checkpoint} is kept: to "
                    f"begin from {self.changed[name][1]}, name another --run_dir."
                )

    def told(self) -> str:
        """The changes in words."""
        return ", ".join(f"{n} {new} (it was {old})" for n, (old, new) in self.changed.items())

    def explained(self, error: Exception) -> ValueError | None:
        """The error of a checkpoint that does not fit, with the settings that may be why."""
        frames = [frame.f_globals["__name__"] for frame, _ in walk_tb(error.__traceback__)]
        if not self.changed or _RESTORING not in frames or frames[-1].startswith("lightning_ript."):
            return None
        lines = str(error).splitlines()
        why = "".join(lines[1:2] or lines[:1]).strip()
        return ValueError(
            f"The checkpoint does not fit the module ({why}): it is of a run with other settings. "
            f"They are now: {self.told()}."
        )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the settings, and what kind of optimizer has a state in it."""
        checkpoint[_SETTINGS] = yaml.safe_dump(self.settings)
        if len(trainer.optimizers) == 1:
            checkpoint[_OPTIMIZER] = _name(trainer.optimizers[0])

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts the learning rate and its like of now in the place of the checkpoint's.

        Raises:
            ValueError: What learns is not what learned then, or a setting would be dropped.
        """
        if trainer.state.fn != "fit" or not checkpoint.get("optimizer_states"):
            return
        fresh: Any = pl_module.configure_optimizers()
        optimizer, scheduler = fresh, None
        if isinstance(fresh, dict):
            optimizer, scheduler = fresh["optimizer"], fresh.get("lr_scheduler")
        if isinstance(scheduler, dict):
            scheduler = scheduler["scheduler"]
        if not isinstance(optimizer, torch.optim.Optimizer):  # lists, in a module of the user's own
            if self._set_otherwise(checkpoint, list(_optimizers(fresh))):
                raise ValueError(
                    f"{type(pl_module).__name__} makes a list of optimizers, which go on as they "
                    f"were, though other settings are given now: {self.told()}. Take them back, or "
                    "begin in another --run_dir."
                )
            return
        kind = checkpoint.get(_OPTIMIZER, _name(optimizer))
        if kind != _name(optimizer):
            raise ValueError(
                f"model.optimizer is {_name(optimizer)}, but the checkpoint is of a run with "
                f"{kind}, whose state it cannot load: keep that optimizer, or start in another "
                "--run_dir."
            )
        groups = checkpoint["optimizer_states"][0]["param_groups"]
        sizes = [len(group["params"]) for group in groups]
        if sizes != [len(group["params"]) for group in optimizer.param_groups]:
            why = f": {self.told()}" if self.changed else ""
            raise ValueError(
                f"The checkpoint's optimizer has {sum(sizes)} parameters in {len(sizes)} groups, "
                "and other ones are to learn now. What learns is fixed when a run begins; go on "
                f"with the settings that it had, or begin in another --run_dir{why}."
            )
        if not any(_RATES.search(name) for name in self.changed) and not self._set_otherwise(
            checkpoint, [optimizer]
        ):
            return
        steps = _steps(checkpoint, pl_module)
        if scheduler is not None:
            for _ in range(steps):
                optimizer.step()  # it has no gradients; without it the scheduler warns
                scheduler.step()
        for group, now in zip(groups, optimizer.param_groups, strict=True):
            group.update({name: value for name, value in now.items() if name != "params"})
        checkpoint["lr_schedulers"] = [] if scheduler is None else [scheduler.state_dict()]

    def _set_otherwise(
        self, checkpoint: Mapping[str, Any], optimizers: list[torch.optim.Optimizer]
    ) -> bool:
        """Whether a user's own module, which may call its rates anything, now sets others."""
        own = not self.settings["model"]["class_path"].startswith("lightning_ript.")
        if not own or not any(name.startswith("model.") for name in self.changed):
            return False
        then = [
            group for state in checkpoint["optimizer_states"] for group in state["param_groups"]
        ]
        now = [group for optimizer in optimizers for group in optimizer.param_groups]
        return any(
            old.get(name, value) != value
            for old, new in zip(then, now, strict=False)
            for name, value in new.items()
            if name != "params" and not (name == "lr" and "initial_lr" in new)  # a schedule's
        )


def _optimizers(made: Any) -> Iterator[torch.optim.Optimizer]:
    """All optimizers in what `configure_optimizers` returns."""
    if isinstance(made, torch.optim.Optimizer):
        yield made
    elif isinstance(made, Mapping):
        yield from _optimizers(made.get("optimizer"))
    elif isinstance(made, (list, tuple)):
        for each in made:
            yield from _optimizers(each)


def _name(optimizer: Any) -> str:
    """The class of an optimizer, which Lightning may have wrapped."""
    kind = type(getattr(optimizer, "optimizer", optimizer))
    return f"{kind.__module__}.{kind.__qualname__}"


def _steps(checkpoint: Mapping[str, Any], module: L.LightningModule) -> int:
    """How often the learning rate's schedule has been stepped."""
    if checkpoint["lr_schedulers"]:
        steps: int = checkpoint["lr_schedulers"][0]["last_epoch"]
        return steps
    iterations: int = checkpoint["epoch"] + 1
    return iterations // getattr(module, "scheduler_interval", 1)
