"""`lightning-ript sweep`: `validate` over checkpoints x suites x seeds, resumable."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_ript.callbacks import EvaluationReport, RolloutVideo
from lightning_ript.cli import RIPTCLI, run_lightning
from lightning_ript.datamodule import RolloutDataModule
from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.evaluation import draws_noise
from lightning_ript.reports.short_names import telling_parts
from lightning_ript.reports.sweep_report import CellResult, progress, write_report
from lightning_ript.running.places import check_checkpoint
from lightning_ript.storage.checkpoint_files import read_checkpoint
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.files import listed, read_json, replacing
from lightning_ript.storage.run_directory import evaluation_path

# They change nothing in a result, or each cell has its own.
_PER_CELL = {"seed", "suite", "num_workers", "hang_seconds", "eval_videos"}


@dataclass(frozen=True)
class SweepSettings:
    """What a sweep goes through, and where its results go.

    Attributes:
        checkpoints: Lightning's checkpoints, or those in a format of the policy's own. One alone
            need not be in a list.
        out: Folder of the results; a second start of the same command goes on with what it lacks.
        seeds: Seeds of the sampling noise, in place of `data.seed`.
        suites: Suites, in place of the environment's own.
    """

    checkpoints: list[str] | str
    out: str
    seeds: list[int] | None = None
    suites: list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoints", "seeds", "suites"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"--{name} is {values}: name at least one, and none twice.")


@dataclass(frozen=True)
class Cell:
    """One evaluation of a sweep.

    Attributes:
        checkpoint: The checkpoint, as it was named.
        suite: The suite.
        seed: Seed of the sampling noise.
        environment: The suite's environment.
        name: Name of the evaluation, see `EvaluationReport`.
    """

    checkpoint: str
    suite: str
    seed: int
    environment: EnvironmentSpec
    name: str


class SweepCLI(RIPTCLI):
    """`validate`, with several checkpoints, seeds and suites in place of one of each.

    A cell is one evaluation by Lightning, whose JSON in `<out>/evaluation/` is its result: a cell
    that has one is not run again. Every cell has its own simulators; all share the process.
    """

    holds_run_dir = False  # it writes elsewhere

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one that cells are run by."""
        return {"validate": RIPTCLI.subcommands()["validate"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what a sweep goes through."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(SweepSettings)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Refuses bad checkpoints before anything is built, and moves all output to `--out`.

        Raises:
            OSError: If there is no checkpoint of that name, here or on the hub.
            ValueError: If one is damaged, or settings make no sense.
        """
        super().parse_arguments(parser, args)
        settings = self.config["validate"]
        if settings.ckpt_path is not None:
            raise ValueError("A sweep takes --checkpoints, a list, in place of --ckpt_path.")
        given = {field.name: settings[field.name] for field in dataclasses.fields(SweepSettings)}
        given["checkpoints"] = listed(given["checkpoints"])
        self.sweep = SweepSettings(**given)
        self.hold(self.sweep.out, "--out", "sweep")
        found = [
            check_checkpoint(place, "--checkpoints", "sweep") for place in self.sweep.checkpoints
        ]
        self.sweep = dataclasses.replace(self.sweep, checkpoints=found)
        settings.run_dir = settings.trainer.default_root_dir = self.sweep.out
        if settings.trainer.logger in (None, True):
            settings.trainer.logger = False  # a logger's rows would not say of which cell they are

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds the callback that writes a cell's result, if the config has none."""
        settings = self.config_init["validate"].trainer
        callbacks = settings.callbacks or []
        if not any(isinstance(callback, EvaluationReport) for callback in callbacks):
            settings.callbacks = [*callbacks, EvaluationReport()]
        return super().instantiate_trainer(**kwargs)

    def validate(
        self, model: L.LightningModule, datamodule: L.LightningDataModule, **settings: Any
    ) -> None:
        """Runs the cells that have no result yet; Lightning calls this in place of its own.

        Raises:
            ValueError: If a cell cannot be run or is of other settings, before the first one runs.
            TypeError: If the data module does not run rollouts.
        """
        cells = self._cells(datamodule)
        self._held: str | None = None
        refuse_other_settings(self.sweep.out, self.config_dump)
        todo = [cell for cell in cells if not self._is_done(cell)]
        for path in dict.fromkeys(cell.checkpoint for cell in todo):
            self._try(path)
        if self.trainer.is_global_zero:
            write_settings(self.sweep.out, self.config_dump)
        if len(todo) < len(cells):
            rank_zero_info(f"{len(cells) - len(todo)} of {len(cells)} cells are done already.")
        for number, cell in enumerate(todo, len(cells) - len(todo) + 1):
            what = f"{cell.checkpoint}, {cell.suite}, seed {cell.seed}"
            rank_zero_info(progress(number, len(cells), what, self._results(cells)))
            self._run(cell, datamodule, **settings)
            self._report(cells)
        if not todo:
            self._report(cells)
        if self.trainer.is_global_zero:
            text = Path(self.sweep.out, "summary.txt").read_text(encoding="utf-8")
            rank_zero_info(f"\n{text}written to {self.sweep.out}")

    def _cells(self, datamodule: L.LightningDataModule) -> list[Cell]:
        """All cells, checkpoint by checkpoint; refuses what none of them could run."""
        if not isinstance(datamodule, RolloutDataModule):
            raise TypeError(
                f"A sweep runs rollouts, but the data module is {type(datamodule).__name__}: set "
                "data.class_path to RolloutDataModule."
            )
        seeds = self.sweep.seeds or [datamodule.seed]
        if len(seeds) > 1 and not draws_noise(self.model.policy, datamodule.eval_sampling):
            raise ValueError(
                f"--seeds names {len(seeds)} seeds, but data.eval_sampling is false: acting on the "
                "most likely action, each would repeat the same episodes. Give one seed."
            )
        environments = environments_of(datamodule.environment, self.sweep.suites)
        cells = [
            Cell(
                checkpoint=path,
                suite=suite,
                seed=seed,
                environment=environment,
                name=f"{evaluation_folder(path)}/{suite}-seed{seed}",
            )
            for path in self.sweep.checkpoints
            for suite, environment in environments.items()
            for seed in seeds
        ]
        named: dict[str, Cell] = {}
        for cell in cells:
            if other := named.get(cell.name):
                raise ValueError(
                    f"The results of {other.checkpoint} and {cell.checkpoint} would have the same "
                    "name: rename one of them, or sweep them apart."
                )
            named[cell.name] = cell
        return cells

    def _is_done(self, cell: Cell) -> bool:
        path = evaluation_path(self.sweep.out, cell.name)
        if not path.is_file():
            return False
        if path.stat().st_mtime < Path(cell.checkpoint).stat().st_mtime:
            raise ValueError(
                f"{cell.checkpoint} has been written since it was evaluated in {path}: name "
                "another --out, or delete that file to evaluate it again."
            )
        return True

    def _try(self, path: str) -> None:
        """Loads a checkpoint to see whether it fits, as a later cell will."""
        self._held = path
        if self.load_published(path) is not None:
            self._try_lightning(path)

    def _try_lightning(self, path: str) -> None:
        trusted = not self.config["validate"].weights_only
        contents = read_checkpoint(path, trusted)
        self.model.on_load_checkpoint(contents)  # as Lightning will
        try:
            self.model.load_state_dict(contents["state_dict"], strict=self.model.strict_loading)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit the model of these settings: {error}") from error

    def _run(self, cell: Cell, datamodule: Any, **settings: Any) -> None:
        datamodule.seed, datamodule.environment = cell.seed, cell.environment
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EvaluationReport | RolloutVideo):
                callback.name = cell.name
        if self._held != cell.checkpoint:
            self._build_model()
            self._held = cell.checkpoint
        settings |= {"ckpt_path": self.load_published(cell.checkpoint), "verbose": False}
        self.trainer.validate(self.model, datamodule=datamodule, **settings)

    def _build_model(self) -> None:
        """Makes the model anew: a checkpoint may lack weights that the one before has replaced."""
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
        settings = Namespace(model=self.config["validate"].model)
        self.model = parser.instantiate_classes(settings).model

    def _report(self, cells: list[Cell]) -> None:
        if self.trainer.is_global_zero:
            write_report(self.sweep.out, self._results(cells))

    def _results(self, cells: list[Cell]) -> list[CellResult]:
        """Those of the cells that are done."""
        paths = [(cell, evaluation_path(self.sweep.out, cell.name)) for cell in cells]
        return [
            CellResult(cell.checkpoint, cell.suite, cell.seed, EvaluationResult.read(path))
            for cell, path in paths
            if path.is_file()
        ]


def run_sweep(arguments: list[str]) -> None:
    """Does what the arguments of `lightning-ript sweep` say."""
    # Checkpoints of other runs bring the states of their callbacks, which do not matter here.
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
    # The command line is read by a parser of `validate`.
    run_lightning(SweepCLI, ["validate", *arguments], "cell")


def environments_of(
    configured: EnvironmentSpec, suites: list[str] | None
) -> dict[str, EnvironmentSpec]:
    """The environment of each suite, checked.

    Args:
        configured: The config's environment.
        suites: Suites to put in place of its own; None for its own.

    Raises:
        ValueError: If it has no suites to choose from, or one of them does not exist.
    """
    environments = [configured] if suites is None else [configured.of_suite(s) for s in suites]
    for environment in environments:
        environment.check()
    return {environment.tasks()[0].suite: environment for environment in environments}


def evaluation_folder(checkpoint: str) -> str:
    """Where the results of a checkpoint lie: as the checkpoint lies to the working directory."""
    path = Path(checkpoint).resolve()
    here = Path.cwd()
    return "/".join(telling_parts(str(path.relative_to(here) if here in path.parents else path)))


def refuse_other_settings(out: str, settings: dict[str, Any]) -> None:
    """Compares the settings of model and data with those of the results that are there.

    Args:
        out: Folder of the sweep.
        settings: The resolved config.

    Raises:
        ValueError: If they differ in what can change a result.
    """
    path = _settings_path(out)
    if not path.is_file() or not any(Path(out, "evaluation").rglob("*.json")):
        return
    old = dict(_flat(read_json(path)))
    new = dict(_flat({part: settings[part] for part in ("model", "data")}))
    for name in old.keys() & new.keys():  # another version may have other settings
        if old[name] != new[name]:
            raise ValueError(
                f"{out} holds results of other settings ({name} was {old[name]} and is now "
                f"{new[name]}): name another --out."
            )


def write_settings(out: str, settings: dict[str, Any]) -> None:
    """Writes what `refuse_other_settings` compares."""
    with replacing(_settings_path(out)) as temporary:
        content = json.dumps({part: settings[part] for part in ("model", "data")}, indent=2)
        temporary.write_text(content + "\n", encoding="utf-8")


def _settings_path(out: str) -> Path:
    return Path(out, "settings.json")


def _flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Dotted name and value of every setting that matters to a cell's result."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        path = above if name == "init_args" else f"{above}.{name}".lstrip(".")
        if isinstance(value, dict):
            found += _flat(value, path)
        elif name not in _PER_CELL:
            found.append((path, value))
    return found
