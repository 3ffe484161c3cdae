"""`lightning-ript`: fit and validate through LightningCLI, and the project's own commands."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    ProgressBar,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_ript.commands import COMMANDS, check_command, usage
from lightning_ript.commands.errors import (
    LightningCommandParser,
    one_sentence_errors,
)
from lightning_ript.commands.old_names import with_current_names
from lightning_ript.console.chatter import leave_out_chatter, leave_out_missing_callbacks
from lightning_ript.console.progress import EpochLines, NoBar
from lightning_ript.distributed.sigterm import ending_on_sigterm
from lightning_ript.distributed.strategies import ShardedStrategy
from lightning_ript.evaluation import SuccessRate
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.running.callback_rules import check_callbacks
from lightning_ript.running.configs import with_config_paths
from lightning_ript.running.paths import with_expanded_paths
from lightning_ript.running.places import check_checkpoint
from lightning_ript.running.rank_watch import ENDS_TOO, RankWatch, is_broken_connection
from lightning_ript.running.resumed_settings import ResumedSettings
from lightning_ript.running.status_writer import StatusWriter
from lightning_ript.running.surroundings import settle
from lightning_ript.storage.checkpoint_files import (
    WholeCheckpointIO,
    checkpoint_to_resume,
    read_checkpoint,
)
from lightning_ript.storage.files import make_folder
from lightning_ript.storage.given_warnings import GivenWarnings
from lightning_ript.storage.hub import is_on_hub
from lightning_ript.storage.run_directory import finished_iterations
from lightning_ript.storage.run_lock import RunLock

log = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"
TINY = 100_000  # parameters


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` at the end of every epoch, from which the same command goes on.

    Args:
        folder: Folder of the checkpoint.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(
            folder,
            filename="last",
            enable_version_counter=False,  # replaces the file of the epoch before
            every_n_epochs=1,
            save_on_train_epoch_end=True,
        )


class RIPTCLI(LightningCLI):
    """LightningCLI with one folder per run, which a second start of the same command resumes.

    `--run_dir` holds checkpoints, metrics, the resolved config and whatever callbacks write. `fit`
    goes on from `<run_dir>/checkpoints/last.ckpt` if there is one, unless `--ckpt_path` says
    otherwise; `validate` takes Lightning's checkpoints, and those in a format of the policy's own.
    """

    holds_run_dir = True
    settings: ResumedSettings | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of Lightning's that mean something here."""
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `--run_dir`, and checkpoints of every epoch."""
        parser.add_argument("--run_dir", type=str, default="runs/default", help="Folder of the run")
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.set_defaults({"trainer.num_sanity_val_steps": 0, "trainer.log_every_n_steps": 1})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Finds the checkpoint, and refuses a bad one before anything is built.

        Raises:
            OSError: If there is no checkpoint of that name, here or on the hub, it cannot be read
                at the moment, the run directory cannot be written, or another command is at work
                in it.
            ValueError: If it is damaged, or the run directory holds a run without a checkpoint.
        """
        super().parse_arguments(parser, args)
        settings = with_expanded_paths(self.config)[self.config.subcommand]
        if isinstance(settings.trainer.callbacks, Namespace):  # one alone
            settings.trainer.callbacks = [settings.trainer.callbacks]
        if self.holds_run_dir:
            self.hold(settings.run_dir, "--run_dir", self.config.subcommand)
        saves = settings.trainer.enable_checkpointing is not False
        if self.config.subcommand == "fit" and settings.ckpt_path is None and saves:
            settings.ckpt_path = self._to_resume(settings.run_dir)
        if settings.weights_only is None:
            settings.weights_only = True  # a checkpoint is data; nothing in it is executed
        if settings.ckpt_path in ("best", "last"):
            settings.ckpt_path = str(
                Path(settings.run_dir, _CHECKPOINTS, f"{settings.ckpt_path}.ckpt")
            )
        if settings.ckpt_path is not None:
            settings.ckpt_path = check_checkpoint(
                settings.ckpt_path,
                "--ckpt_path",
                self.config.subcommand,
                trusted=not settings.weights_only,
            )

    def hold(self, folder: str, setting: str, command: str) -> None:
        """Makes sure that this command, and no other, can write to a folder.

        Args:
            folder: The folder.
            setting: The setting that names it.
            command: The command.

        Raises:
            OSError: It cannot be written, or another command is at work in it.
        """
        make_folder(folder, setting)
        if is_first_process():
            RunLock(folder, f"lightning-ript {command}")
            GivenWarnings(folder)

    def _parse_ckpt_path(self) -> None:
        """Leaves out what Lightning does here: read a whole checkpoint for its hyperparameters.

        Ours has the settings of its run, which `fit` compares with this start's.
        """

    def _to_resume(self, run_dir: str) -> str | None:
        """The checkpoint of an earlier start of the same command, None if there was none."""
        found = checkpoint_to_resume(Path(run_dir, _CHECKPOINTS), set_aside=is_first_process())
        done = finished_iterations(run_dir) if found is None else 0
        if done == 1:  # it may have been killed before its first checkpoint
            log.warning("%s has one iteration and no checkpoint: it is begun again.", run_dir)
        elif done:
            raise ValueError(
                f"{run_dir} holds {done} finished iterations, but no checkpoint to go on from: "
                "name one with --ckpt_path, or another --run_dir to begin anew."
            )
        return None if found is None else str(found)

    def before_instantiate_classes(self) -> None:
        """Fills in the policy's settings that follow from what environment or data show."""
        settings = self._settings
        policy = settings.model.get("init_args", Namespace()).get("policy")
        data = settings.get("data")
        if not isinstance(policy, Namespace) or not isinstance(data, Namespace):
            return
        spaces_of = getattr(resolve_name(data.class_path), "spaces_of", None)
        given = data.get("init_args", Namespace()).as_dict()
        spaces = spaces_of(given) if spaces_of is not None else None
        if spaces is not None:
            inferred = resolve_name(policy.class_path).settings_for(*spaces)
            _fill_in(policy.get("init_args", Namespace()), inferred)

    @property
    def _settings(self) -> Any:
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds what every run has: a CSV logger if no other is named, `last.ckpt`, `best.ckpt`.

        With `enable_checkpointing: false` it has no checkpoints, and cannot go on from any.

        RIPT's best checkpoint is the one with the highest success rate, a supervised stage's the
        one with the lowest validation loss. A config's own ModelCheckpoint comes beside them.

        Raises:
            ValueError: RIPT is to stop after a number of optimizer steps, or a callback or
                `barebones` makes no sense.
        """
        run_dir = self._settings.run_dir
        settings = self.config_init[self.subcommand].trainer
        if settings.barebones:
            raise ValueError(
                "trainer.barebones is true, which turns off the metrics and checkpoints that a run "
                "is for: leave it out."
            )
        if settings.logger in (None, True):
            settings.logger = CSVLogger(run_dir, name="metrics")
        given = settings.callbacks or []
        check_callbacks(given, ript=self._counts_successes())
        # First: where others exchange what they have counted, all ranks have to be there.
        callbacks = [RankWatch(run_dir), *given, *self._tripwires(given), StatusWriter()]
        folder = Path(run_dir, _CHECKPOINTS)
        if settings.enable_checkpointing is not False:
            callbacks += [*self._best(folder, callbacks), LastCheckpoint(folder)]
        callbacks += self._end_between_iterations(settings)
        settings.callbacks = [*callbacks, *self._bar(settings, callbacks)]
        plugins = settings.plugins or []
        plugins = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(WholeCheckpointIO())
        settings.plugins = plugins
        return super().instantiate_trainer(**kwargs)

    def _end_between_iterations(self, settings: Namespace) -> list[Callback]:
        """Lets RIPT stop where an iteration is finished: half of one would be collected again."""
        if not self._counts_successes():
            return []
        if settings.max_steps not in (-1, None):
            raise ValueError(
                f"trainer.max_steps is {settings.max_steps}, but optimizer steps end within an "
                "iteration, of which a resumed run would know nothing: set trainer.max_epochs, "
                "which counts iterations."
            )
        if settings.max_time is None:
            return []
        timer = Timer(settings.max_time, interval="epoch")
        settings.max_time = None
        return [timer]

    def _bar(self, settings: Namespace, callbacks: list[Callback]) -> list[Callback]:
        """Lightning's bar in a terminal, and what takes its place in a file.

        Not rich's, which redraws itself over what others draw on the same terminal.
        """
        given = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if given or settings.enable_progress_bar is False:
            return []
        if sys.stdout.isatty() and sys.stderr.isatty():
            return [TQDMProgressBar()]
        return [NoBar() if self._counts_successes() else EpochLines()]

    def _counts_successes(self) -> bool:
        return isinstance(getattr(self.model, "success_rate", None), SuccessRate)

    def _tripwires(self, callbacks: list[Callback]) -> list[Callback]:
        from lightning_ript.callbacks import Tripwires

        given = any(isinstance(callback, Tripwires) for callback in callbacks)
        return [Tripwires()] if self._counts_successes() and not given else []

    def _best(self, folder: Path, callbacks: list[Callback]) -> list[ModelCheckpoint]:
        from lightning_ript.callbacks import BestCheckpoint

        best_by = getattr(self.model, "best_by", None)
        given = any(isinstance(callback, BestCheckpoint) for callback in callbacks)
        return [] if best_by is None or given else [BestCheckpoint(folder, *best_by)]

    def before_fit(self) -> None:
        """Says which checkpoint is resumed, and settles how many threads learn."""
        use_few_threads(self.model)
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        saved = [each for each in callbacks if isinstance(each, SaveConfigCallback)]
        if saved:  # not where a run only tries itself out
            text = saved[0].parser.dump(saved[0].config, skip_unset=False)
            self.settings = ResumedSettings(yaml.safe_load(text))
            callbacks.append(self.settings)
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.weights_only = self._settings.weights_only
        place = self._settings.ckpt_path
        if place is None:
            return
        log.info("Resuming %s", place)
        if self.settings is not None:
            self.settings.compare(place, trusted=not self._settings.weights_only)

    def fit(self, model: L.LightningModule, **kwargs: Any) -> None:
        """Trains; a checkpoint that does not fit is explained by the settings that have changed."""
        try:
            self.trainer.fit(model, **kwargs)
        except (RuntimeError, ValueError, KeyError) as error:
            explained = self.settings and self.settings.explained(error)
            if not explained:
                raise
            raise explained from error

    def before_validate(self) -> None:
        """Lets the policy load a checkpoint in a format of its own, which Lightning cannot read."""
        leave_out_missing_callbacks()
        settings = self.config_init[self.subcommand]
        if settings["ckpt_path"] is not None:
            settings["ckpt_path"] = self.load_published(settings["ckpt_path"])
        if settings["ckpt_path"] is not None:
            read_checkpoint(settings["ckpt_path"], trusted=not settings["weights_only"])

    def load_published(self, place: str) -> str | None:
        """Lets the policy load a checkpoint in a format of its own.

        Returns:
            The path of any other checkpoint, for Lightning to load; None once it is done.

        Raises:
            ValueError: If it is a folder, and of no format that the policy knows.
        """
        policy = getattr(self.model, "policy", None)
        if isinstance(policy, PolicyAdapter) and policy.load_published(place):
            return None
        if is_on_hub(place) or Path(place).is_dir():
            raise ValueError(
                f"{place} is a folder, but {type(policy).__name__} has no checkpoints in folders: "
                "name a file."
            )
        return place


def is_first_process() -> bool:
    """Whether this is the first process of a run, whoever started the others."""
    return not getattr(rank_zero_only, "rank", 0) and os.environ.get("NODE_RANK", "0") == "0"


def use_few_threads(module: torch.nn.Module) -> None:
    """Lets a tiny policy learn in one thread.

    That is no slower, and on a shared machine threads would wait for one another longer than they
    compute. The number is the same on every machine, so that results repeat bit for bit.
    """
    size = sum(parameter.numel() for parameter in module.parameters())
    if size < TINY and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _fill_in(settings: Namespace, inferred: Mapping[str, Any]) -> None:
    """Sets what is None, in nested settings too."""
    for name, value in inferred.items():
        present = settings.get(name)
        if isinstance(present, Namespace) and isinstance(value, Mapping):
            _fill_in(present, value)
        elif present is None:
            settings[name] = value


def run_lightning(cli: type[RIPTCLI], arguments: list[str], unit: str = "epoch") -> None:
    """Parses the arguments and does what they say.

    Args:
        cli: What the command line can do.
        arguments: What was typed.
        unit: What a second start of an interrupted command goes on from.
    """
    arguments = with_current_names(arguments)
    _take_hangups_for_sigterm()
    StrategyRegistry.register(
        "fsdp2", ShardedStrategy, "policies too large for one GPU", override=True
    )
    try:
        with ending_on_sigterm():
            cli(
                L.LightningModule,
                L.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_kwargs={"overwrite": True},
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_class=LightningCommandParser,
                args=None if arguments == sys.argv[1:] else arguments,
            )
    except (SIGTERMException, RuntimeError) as error:
        is_told = isinstance(error, SIGTERMException)
        if RankWatch.lost is None and is_told:
            sys.exit(f"Stopped by SIGTERM; the same command goes on from the last finished {unit}.")
        if RankWatch.lost is None or not (is_told or is_broken_connection(error)):
            raise
        sys.exit(1 if RankWatch.said else f"lightning-ript: error: {RankWatch.lost} {ENDS_TOO}")
    finally:
        GivenWarnings.end_all()
        RunLock.release_all()


def _take_hangups_for_sigterm() -> None:
    """A terminal that is closed stops a run as a scheduler does; `nohup` keeps it going."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def main(arguments: list[str] | None = None) -> None:
    """Does what was typed.

    Args:
        arguments: A command and its arguments; the program's own by default.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settle()
    leave_out_chatter()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return
    with one_sentence_errors():
        check_command(arguments[0], RIPTCLI.subcommands())
        if arguments[0] != "submit":  # its configs may have names that are filled in later
            arguments = with_config_paths(arguments)
        if arguments[0] in COMMANDS:
            COMMANDS[arguments[0]][0](arguments[1:])
        else:
            run_lightning(RIPTCLI, arguments)
