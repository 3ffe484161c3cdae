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
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_ript.command_errors import (
    CommandParser,
    LightningCommandParser,
    one_sentence_errors,
)
from lightning_ript.hub import local_file
from lightning_ript.policies.quest.checkpoint import is_official, load_official

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
        path = settings.ckpt_path
        if path is None or path in ("best", "last"):
            return
        # Lightning would read a file of the hub as a stream, at every start anew.
        settings.ckpt_path = path = str(local_file(path))
        if not Path(path).is_file():
            raise FileNotFoundError(f"--ckpt_path names {path}, which does not exist.")
        if not is_zipfile(path):  # as everything that torch.save has written since 2020
            raise ValueError(f"{path} is damaged or no checkpoint: delete it or name another.")

    @property
    def _settings(self) -> Any:
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds what every run has: a CSV logger if no other is named, and `last.ckpt`."""
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
            settings.callbacks = [*callbacks, last]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Says which checkpoint is resumed."""
        if self._settings.ckpt_path is not None:
            logging.getLogger(__name__).info("Resuming %s", self._settings.ckpt_path)

    def before_validate(self) -> None:
        """Loads an official checkpoint into the policy, which Lightning could not read."""
        path = self.config_init[self.subcommand]["ckpt_path"]
        if path is not None and path not in ("best", "last") and is_official(path):
            load_official(self.model.policy.model, path)
            self.model.policy.checkpoint = path
            self.config_init[self.subcommand]["ckpt_path"] = None


def _fit(arguments: list[str]) -> None:
    try:
        RIPTCLI(
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
        sys.exit("Stopped by SIGTERM; the same command goes on from the last finished epoch.")


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
    from lightning_ript.policies.quest.export import export

    parser = CommandParser(prog="lightning-ript export", description=export.__doc__)
    parser.add_function_arguments(export, as_positional=True, skip={"overwrite"})
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")
    export(**parser.parse_args(arguments).as_dict())


_COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "collect-demos": (
        _own("collect-demos", "demos.collect:collect_demos"),
        "run the scripted expert and write LIBERO HDF5 files",
    ),
    "data": (
        _own("data", "demos.published:download", "demos.check:check"),
        "download LIBERO's demonstrations; check those in a folder",
    ),
    "export": (_export, "write a QueST checkpoint in the official format"),
    "report": (
        _own("report", "report:report"),
        "summarize a run: success before and after, curve, videos",
    ),
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
        _fit(arguments)
