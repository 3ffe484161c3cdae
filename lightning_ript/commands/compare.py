"""`lightning-ript compare`: several runs side by side, e.g. the arms of an ablation."""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_ript.reports.compare_chart import Curve, draw_curves
from lightning_ript.reports.rows import found
from lightning_ript.reports.short_names import short_names
from lightning_ript.reports.tables import Row, markdown, write_csv
from lightning_ript.running.paths import expanded
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult
from lightning_ript.storage.files import make_folder, replacing
from lightning_ript.storage.history import read_history
from lightning_ript.storage.run_directory import evaluation_path, history_path

log = logging.getLogger(__name__)


def compare(runs: Sequence[str], out: str) -> None:
    """Compares finished runs: `comparison.md`, `comparison.csv`, `curves.csv`, `comparison.png`.

    Args:
        runs: An arm of the comparison each: a run's folder; a folder whose subfolders are runs, the
            seeds of one arm, named after it; or `NAME=RUN,RUN` for runs that lie elsewhere.
        out: Folder of the results.

    Raises:
        FileNotFoundError: If there is no history where one is named.
        ValueError: If the runs were not evaluated alike.
    """
    arms = read_arms(runs)
    refuse_different_tests(arms)
    make_folder(out, "--out")
    rows = [summarize(arm) for arm in arms]
    text = as_markdown(rows)
    for caveat in dict.fromkeys(each for arm in arms for run in arm.runs for each in run.caveats):
        text += f"\n{caveat}\n"
    with replacing(Path(out, "comparison.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_csv(Path(out, "comparison.csv"), rows)
    write_csv(Path(out, "curves.csv"), curve_rows(arms))
    tests = [Curve(arm.name, [run.tests() for run in arm.runs]) for arm in arms]
    rollouts = [Curve(arm.name, [run.rollouts() for run in arm.runs]) for arm in arms]
    with replacing(Path(out, "comparison.png")) as temporary:
        draw_curves(tests, rollouts).savefig(temporary)
    sys.stdout.write(f"{text}\nwritten to {out}\n")


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        path: Its folder.
        history: The entries of `RunReport`.
        evaluations: By iterations of learning; 0 is the starting policy's, if it was evaluated.
        caveats: What its evaluations say of themselves.
        sampled_actions: Whether evaluations sampled; None if no `EvaluationReport` tells.
    """

    path: Path
    history: list[dict[str, Any]]
    evaluations: dict[int, EvaluationResult]
    caveats: tuple[str, ...]
    sampled_actions: bool | None

    @property
    def last(self) -> EvaluationResult | None:
        """The last evaluation, None without any."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else None

    def tests(self) -> dict[int, TaskResult]:
        """Success on the test states by iterations of learning."""
        return {iteration: result.overall for iteration, result in self.evaluations.items()}

    def rollouts(self) -> dict[int, float]:
        """Success rate of the training rollouts by iterations of learning before them."""
        name = "rollout/success_rate"
        return {
            entry["iteration"] - 1: entry["metrics"][name]
            for entry in self.history
            if name in entry["metrics"]
        }


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed only.

    Attributes:
        name: What the chart calls them.
        runs: At least one.
    """

    name: str
    runs: list[Run]


def read_arms(arguments: Sequence[str]) -> list[Arm]:
    """Finds and reads the runs; see `compare`.

    Raises:
        FileNotFoundError: If there is no history where one is named.
        ValueError: If an argument is given twice.
    """
    folders: list[list[Path]] = []
    names: list[str | None] = []
    for argument in arguments:
        name, equals, paths = argument.partition("=")
        if equals and "/" not in name and not Path(argument).exists():
            names.append(name)
            folders.append([Path(expanded(path)) for path in paths.split(",")])
            continue
        folder = Path(argument).resolve()
        names.append(None)
        seeds = sorted(path.parent for path in folder.glob("*/history.json"))
        folders.append(seeds if seeds and not history_path(folder).is_file() else [folder])
    if len(set(arguments)) < len(arguments):
        raise ValueError(f"An arm is named twice: {', '.join(arguments)}.")
    unnamed = [str(Path(a).resolve()) for a, name in zip(arguments, names, strict=True) if not name]
    short = iter(short_names(unnamed))
    named = [name or next(short) for name in names]
    if len(set(named)) < len(named):
        raise ValueError(
            f"Two arms have the same name ({', '.join(named)}): call one of them NAME=."
        )
    return [
        Arm(name, [read_run(path) for path in paths])
        for name, paths in zip(named, folders, strict=True)
    ]


def read_run(folder: Path) -> Run:
    """Reads the history of a run and its evaluations.

    Raises:
        FileNotFoundError: If there is no history.
        ValueError: If it is not one.
    """
    history = read_history(folder)
    if not history:
        raise ValueError(f"{folder} has no iteration: the run has not learned anything yet.")
    evaluations = {
        entry["iteration"]: EvaluationResult.from_dict(entry["evaluation"])
        for entry in history
        if entry["evaluation"] is not None
    }
    before = evaluation_path(folder, "before")
    if before.is_file():
        evaluations = {0: EvaluationResult.read(before), **evaluations}
    evaluations = {i: result for i, result in evaluations.items() if result.overall.episodes}
    reports = [*sorted(folder.glob("evaluation/epoch=*.json")), before]
    how = [EvaluationResult.read(report) for report in reports if report.is_file()]
    return Run(
        path=folder,
        history=history,
        evaluations=evaluations,
        caveats=tuple(dict.fromkeys(caveat for result in how for caveat in result.caveats)),
        sampled_actions=how[0].metadata["sampled_actions"] if how else None,
    )


def refuse_different_tests(arms: Sequence[Arm]) -> None:
    """Refuses numbers that cannot be compared.

    Raises:
        ValueError: If tasks, episodes, caveats or the choice of actions differ.
    """
    runs = [run for arm in arms for run in arm.runs]
    first, *others = [run for run in runs if run.last is not None] or [runs[0]]
    for run in others:
        differences = {
            "tasks or episodes": (_test(first), _test(run)),
            "caveats": (first.caveats, run.caveats),
            "sampled actions": (first.sampled_actions, run.sampled_actions),
        }
        for what, (one, other) in differences.items():
            if one != other:
                raise ValueError(
                    f"{first.path} and {run.path} were not evaluated alike ({what}: {one} against "
                    f"{other}): compare runs with the same evaluation."
                )
    ends = {max(run.evaluations) for run in runs if run.evaluations}
    if len(ends) > 1:
        log.warning(
            "The last evaluations are of different iterations (%d to %d): look at the curves.",
            min(ends),
            max(ends),
        )


def _test(run: Run) -> dict[str, int]:
    return {} if run.last is None else {task.task: task.episodes for task in run.last.tasks}


def summarize(arm: Arm) -> Row:
    """The row of an arm; `iterations` is the fewest that one of its runs has.

    Rates are means over its runs: of the starting policy, of each run's last evaluation (with the
    standard deviation over runs, and Wilson's interval of all their episodes), and the best one,
    which is the highest mean at an iteration that all runs were evaluated at.
    """
    evaluated = [run for run in arm.runs if run.last is not None]
    before = [run.evaluations[0].rate for run in evaluated if 0 in run.evaluations]
    last = [run.last.overall for run in evaluated if run.last is not None]
    rates = [result.rate for result in last]
    total = TaskResult(
        task="all tasks",
        language="",
        episodes=sum(result.episodes for result in last),
        successes=sum(result.successes for result in last),
        mean_steps=0.0,
    )
    numbers = found(total)
    means = Curve(arm.name, [run.tests() for run in arm.runs]).means()
    best = max(means, key=lambda iteration: (means[iteration], -iteration)) if means else None
    return {
        "arm": arm.name,
        "runs": len(arm.runs),
        "iterations": min(run.history[-1]["iteration"] for run in arm.runs),
        "before": statistics.mean(before) if before else None,
        "last": statistics.mean(rates) if rates else None,
        "last_std": statistics.stdev(rates) if len(rates) > 1 else None,
        "interval_low": numbers["interval_low"] if rates else None,
        "interval_high": numbers["interval_high"] if rates else None,
        "episodes": numbers["episodes"],
        "best": None if best is None else means[best],
        "best_iteration": best,
        "seconds": statistics.mean(run.history[-1]["seconds"] for run in arm.runs),
    }


def as_markdown(rows: Sequence[Row]) -> str:
    """The arms as a Markdown table."""

    def rate(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    cells = [
        (
            "arm",
            "runs",
            "iterations",
            "before",
            "last",
            "95 % interval",
            "best (iteration)",
            "minutes",
        )
    ]
    for row in rows:
        spread = "" if row["last_std"] is None else f" ± {row['last_std']:.1%}"
        interval = f"{rate(row['interval_low'])} - {rate(row['interval_high'])}"
        best = f"{rate(row['best'])} ({row['best_iteration']})"
        cells.append(
            (
                row["arm"],
                str(row["runs"]),
                str(row["iterations"]),
                rate(row["before"]),
                rate(row["last"]) + spread,
                "-" if row["last"] is None else interval,
                "-" if row["best"] is None else best,
                f"{row['seconds'] / 60:.1f}",
            )
        )
    return markdown(cells)


def curve_rows(arms: Sequence[Arm]) -> list[Row]:
    """A row per arm, run and iterations of learning: what its evaluation and its rollouts found."""
    rows = []
    for arm in arms:
        for run in arm.runs:
            tests, rollouts = run.tests(), run.rollouts()
            for iteration in sorted(tests.keys() | rollouts.keys()):
                result = tests.get(
                    iteration,
                    TaskResult(
                        task="", language="", episodes=0, successes=0, mean_steps=float("nan")
                    ),
                )
                numbers = found(result)
                if not result.episodes:
                    numbers = dict.fromkeys(numbers)
                rows.append(
                    {
                        "arm": arm.name,
                        "run": str(run.path),
                        "iteration": iteration,
                        **numbers,
                        "rollout_success_rate": rollouts.get(iteration),
                    }
                )
    return rows
