"""`lightning-ript`: fit and validate through LightningCLI, and the project's own commands."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from zipfile import is_zipfile

import lightning as L
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_ript.commands.errors import (
    CommandParser,
    LightningCommandParser,
    one_sentence_errors,
)
from lightning_ript.distributed.strategies import ShardedStrategy
from lightning_ript.policies.quest.checkpoint import is_official, load_official
from lightning_ript.storage.hub import local_file

_CHECKPOINTS = "checkpoints"


class RIPTCLI(LightningCLI):
    """LightningCLI with one folder per run, which a second start of the same command resumes.

    `--run_dir` holds checkpoints, metrics, the resolved config and whatever callbacks write. `fit`
    goes on from `<run_dir>/checkpoints/last.ckpt` if there is one, unless `--ckpt_path` says
    otherwise; `validate` takes Lightning checkpoints and official QueST checkpoints alike.
    """

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
            OSError: If there is no checkpoint of that name, here or on the hub.
            ValueError: If it is damaged.
        """
        super().parse_arguments(parser, args)
        settings = self.config[self.config.subcommand]
        last = Path(settings.run_dir, _CHECKPOINTS, "last.ckpt")
        if self.config.subcommand == "fit" and settings.ckpt_path is None and last.exists():
            settings.ckpt_path = str(last)
        if settings.ckpt_path not in (None, "best", "last"):
            settings.ckpt_path = check_checkpoint(settings.ckpt_path, "--ckpt_path")

    @property
    def _settings(self) -> Any:
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds what every run has: a CSV logger if no other is named, `last.ckpt`, `best.ckpt`.

        RIPT's best checkpoint is the one with the highest success rate, a supervised stage's the
        one with the lowest validation loss. A config that names a ModelCheckpoint gets that alone.
        """
        run_dir = self._settings.run_dir
        settings = self.config_init[self.subcommand].trainer
        if settings.logger in (None, True):
            settings.logger = CSVLogger(run_dir, name="metrics")
        callbacks = settings.callbacks or []
        if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            last = ModelCheckpoint(
                Path(run_dir, _CHECKPOINTS),
                filename="last",
                enable_version_counter=False,  # replaces the file of the epoch before
                every_n_epochs=1,
                save_on_train_epoch_end=True,
            )
            settings.callbacks = [*callbacks, *self._best(last.dirpath), last]
        return super().instantiate_trainer(**kwargs)

    def _best(self, folder: Any) -> list[ModelCheckpoint]:
        from lightning_ript.callbacks import BestCheckpoint
        from lightning_ript.module import RIPTLightningModule
        from lightning_ript.policies.quest.stages import DemonstrationTraining

        if isinstance(self.model, RIPTLightningModule):
            return [BestCheckpoint(folder, "val/success_rate", "max")]
        if isinstance(self.model, DemonstrationTraining):
            return [BestCheckpoint(folder, "val/loss", "min")]
        return []

    def before_fit(self) -> None:
        """Says which checkpoint is resumed."""
        if self._settings.ckpt_path is not None:
            logging.getLogger(__name__).info("Resuming %s", self._settings.ckpt_path)

    def before_validate(self) -> None:
        """Loads an official checkpoint, which Lightning could not read."""
        settings = self.config_init[self.subcommand]
        if settings["ckpt_path"] not in (None, "best", "last"):
            settings["ckpt_path"] = self.load_official(settings["ckpt_path"])

    def load_official(self, path: str) -> str | None:
        """Loads an official checkpoint into the policy.

        Returns:
            The path of any other checkpoint, for Lightning to load; None once it is done.
        """
        if not is_official(path):
            return path
        load_official(self.model.policy.model, path)
        self.model.policy.checkpoint = path
        return None


def check_checkpoint(place: str, setting: str) -> str:
    """Finds a checkpoint and refuses a file that cannot be one.

    Lightning would read a file of the hub as a stream, at every start anew.

    Args:
        place: A file, or its address on the hub, see `hub.local_file`.
        setting: The setting that names it.

    Returns:
        The file.

    Raises:
        OSError: If there is none, here or on the hub.
        ValueError: If it is damaged.
    """
    path = local_file(place)
    if not path.is_file():
        raise FileNotFoundError(f"{setting} names {place}, which does not exist.")
    if not is_zipfile(path):  # as everything that torch.save has written since 2020
        raise ValueError(f"{place} is damaged or no checkpoint: delete it or name another.")
    return str(path)


def run_lightning(cli: type[RIPTCLI], arguments: list[str], unit: str = "epoch") -> None:
    """Parses the arguments and does what they say.

    Args:
        cli: What the command line can do.
        arguments: What was typed.
        unit: What a second start of an interrupted command goes on from.
    """
    StrategyRegistry.register(
        "fsdp2", ShardedStrategy, "policies too large for one GPU", override=True
    )
    try:
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
    except SIGTERMException:
        sys.exit(f"Stopped by SIGTERM; the same command goes on from the last finished {unit}.")


def _own(command: str, *functions: str) -> Callable[[list[str]], None]:
    """A command that is a function, or has several as subcommands; imported when it is called."""

    def run(arguments: list[str]) -> None:
        found = [resolve_name(f"lightning_ript.{function}") for function in functions]
        auto_cli(
            found if len(found) > 1 else found[0],
            args=arguments,
            prog=f"lightning-ript {command}",
            parser_class=CommandParser,
        )

    return run


def _export(arguments: list[str]) -> None:
    from lightning_ript.commands.export import export

    parser = CommandParser(prog="lightning-ript export", description=export.__doc__)
    parser.add_function_arguments(export, as_positional=True, skip={"overwrite"})
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")
    export(**parser.parse_args(arguments).as_dict())


def _sweep(arguments: list[str]) -> None:
    from lightning_ript.commands.sweep import SweepCLI

    # The command line is read by a parser of `validate`.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run")
    # Checkpoints of other runs bring the states of their callbacks, which do not matter here.
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
    run_lightning(SweepCLI, ["validate", *arguments], "cell")


def _compare(arguments: list[str]) -> None:
    from lightning_ript.commands.compare import compare

    parser = CommandParser(prog="lightning-ript compare", description="Compares finished runs.")
    parser.add_argument("runs", nargs="+", type=str, help="a line each, see docs/evaluation.md")
    parser.add_argument("--out", required=True, type=str, help="folder of the tables and the plot")
    settings = parser.parse_args(arguments)
    compare(settings.runs, settings.out)


_COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "collect-demos": (
        _own("collect-demos", "commands.collect_demos:collect_demos"),
        "run the scripted expert and write LIBERO HDF5 files",
    ),
    "data": (
        _own("data", "commands.download_data:download", "commands.check_data:check"),
        "download LIBERO's demonstrations; check those in a folder",
    ),
    "export": (_export, "write a QueST checkpoint in the official format"),
    "merge-adapter": (
        _own("merge-adapter", "policies.openvla_oft.merge:merge_adapter"),
        "add a LoRA adapter to OpenVLA-OFT's weights",
    ),
    "report": (
        _own("report", "commands.summary:report"),
        "summarize a run: success before and after, curve, videos",
    ),
    "sweep": (_sweep, "evaluate checkpoints x suites x seeds: table and chart, resumable"),
    "compare": (_compare, "learning curves and a table of several runs, e.g. of an ablation"),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Lightning asks torch in a way that newer ones advise against, once a batch.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated", module=r"lightning\.")
    # It is intended: a policy is trained without dropout, as it acts.
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    # One run, one folder: a second start is meant to find it full.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Nothing here changes what a policy returns in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in _COMMANDS:
        with one_sentence_errors():
            _COMMANDS[arguments[0]][0](arguments[1:])
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        own = "".join(f"  {name:14} {text}\n" for name, (_, text) in _COMMANDS.items())
        sys.stdout.write(f"usage: lightning-ript COMMAND [--config FILE ...]\n\ncommands:\n{own}")
        sys.stdout.write("  fit, validate  train or evaluate; LightningCLI's, see fit --help\n")
        return
    with one_sentence_errors():
        run_lightning(RIPTCLI, arguments)
