"""What a run is doing, for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightning_ript.reports.figures import evaluations
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.given_warnings import Given, read_warnings
from lightning_ript.storage.history import read_history
from lightning_ript.storage.run_directory import evaluation_path, history_path
from lightning_ript.storage.run_lock import holder_of
from lightning_ript.storage.run_status import RunStatus

SHOWN_ITERATIONS, SHOWN_WARNINGS = 8, 5
_RECENT = 5  # iterations that the time left is told from


@dataclass(frozen=True)
class Moment:
    """What can be seen of a run.

    Attributes:
        folder: Its directory.
        now: When it was looked at, in seconds since 1970.
        holder: Who is at work in it, None once nobody is.
        status: What the run says that it does, None if it says nothing.
        history: Its finished iterations.
        finished: When the last of them was, in seconds since 1970; None without any.
        before: The evaluation of the starting policy, if there was one.
        warnings: Those that it gave.
    """

    folder: Path
    now: float
    holder: Mapping[str, Any] | None
    status: RunStatus | None
    history: Sequence[Mapping[str, Any]]
    finished: float | None
    before: EvaluationResult | None
    warnings: Sequence[Given]


def read_moment(folder: Path) -> Moment:
    """Looks at a run directory.

    Raises:
        FileNotFoundError: There is none, or no run has left anything in it.
        ValueError: A file in it is damaged.
    """
    holder, status = holder_of(folder), RunStatus.read(folder)
    path, before = history_path(folder), evaluation_path(folder, "before")
    if holder is None and status is None and not path.is_file():
        raise FileNotFoundError(f"{folder} is not the directory of a run: name a --run_dir.")
    return Moment(
        folder=folder,
        now=time.time(),
        holder=holder,
        status=status,
        history=read_history(folder) if path.is_file() else [],
        finished=path.stat().st_mtime if path.is_file() else None,
        before=EvaluationResult.read(before) if before.is_file() else None,
        warnings=read_warnings(folder),
    )


def run_view(moment: Moment) -> RenderableType:
    """The whole view: where the run is, what it does now, its last iterations and its warnings."""
    return Group(*_parts(moment))


def _parts(moment: Moment) -> Iterator[RenderableType]:
    yield Text.assemble((str(moment.folder), "bold"), "  ", _state(moment))
    status = moment.status
    if status is not None and status.iteration and status.iterations:
        yield _bar(status)
    if status is not None and moment.holder is not None:
        yield Text(doing(status, moment.now))
        left = seconds_left(moment)
        if left is not None:
            yield Text(f"about {duration(left)} left")
    tested = evaluations(moment.history, moment.before)
    if tested:
        rates = "  ".join(
            f"{result.overall.rate:.0%} {f'after {n}' if n else 'before'}"
            for n, result in [*tested[:1], *tested[1:][-5:]]
        )
        yield Text.assemble(("success on the test states: ", "dim"), rates)
    if moment.history:
        yield Padding(_iterations(moment.history[-SHOWN_ITERATIONS:]), (1, 0, 0, 0))
    if moment.warnings:
        count = len(moment.warnings)
        yield Text(f"\n{count} warning{'s' if count > 1 else ''}", "bold yellow")
        for given in moment.warnings[-SHOWN_WARNINGS:]:
            clock = time.strftime("%H:%M", time.localtime(given.time))
            yield Text.assemble((f"{clock}  ", "dim"), given.text)


def _state(moment: Moment) -> Text:
    holder, status = moment.holder, moment.status
    if holder is not None:
        return Text(f"running since {holder['since']} on {holder['host']}", "green")
    if status is not None and status.doing != "ended":
        return Text("killed: the same command goes on from the last checkpoint", "red")
    return Text("not running", "dim")


def _bar(status: RunStatus) -> Table:
    assert status.iterations is not None
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=status.iterations, completed=status.iteration, width=30)
    line.add_row(f"{status.unit} {status.iteration} of {status.iterations}", bar)
    return line


def doing(status: RunStatus, now: float) -> str:
    """What a run does at the moment, in a line.

    Args:
        status: What it says.
        now: Seconds since 1970.
    """
    spent = max(now - status.since, 1e-9)
    parts = []
    unit = "batches" if status.successes is None else "episodes"
    if status.done or status.of:
        of = f" of {status.of}" if status.of else ""
        parts.append(f"{unit} {status.done}{of}")
    if status.successes is not None and status.done:
        parts.append(f"{status.done / spent:.2f} episodes/s")
        parts.append(f"success {status.successes / status.done:.0%}")
    if status.kept is not None:
        parts.append(f"groups kept {status.kept} of {status.wanted}, dropped {status.dropped}")
    if parts and status.ranks > 1:
        parts.append(f"as the first of {status.ranks} processes counts")
    return f"{status.doing} for {duration(spent)}" + (f": {', '.join(parts)}" if parts else "")


def seconds_left(moment: Moment) -> float | None:
    """Seconds until the run ends if its iterations take as long as the latest; None if unknown."""
    status, history = moment.status, moment.history
    if status is None or not status.iterations or not history or moment.finished is None:
        return None
    ends = [0.0, *(entry["seconds"] for entry in history)][-_RECENT - 1 :]
    each = (ends[-1] - ends[0]) / (len(ends) - 1)
    remaining = status.iterations - history[-1]["iteration"]
    return max(0.0, remaining * each - (moment.now - max(moment.finished, status.started)))


def duration(seconds: float) -> str:
    """Minutes and seconds, hours and minutes from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


COLUMNS = {
    "success": ("rollout/success_rate", "{:.0%}"),
    "kept": ("rollout/groups_kept", "{:.0f}"),
    "dropped": ("rollout/groups_dropped", "{:.0f}"),
    "episodes/s": ("rollout/episodes_per_second", "{:.2f}"),
    "clipped": ("train/clip_fraction", "{:.1%}"),
    "KL": ("train/approx_kl", "{:.4f}"),
    "collecting": ("time/collecting", "{:.0f} s"),
    "learning": ("time/learning", "{:.0f} s"),
}
"""Column -> metric and how it is written."""


def _iterations(history: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("iteration", *COLUMNS, "test states"):
        table.add_column(name, justify="right")
    for entry in history:
        metrics, evaluation = entry["metrics"], entry["evaluation"]
        cells = [
            shown.format(metrics[metric]) if metric in metrics else "–"
            for metric, shown in COLUMNS.values()
        ]
        result = None if evaluation is None else EvaluationResult.from_dict(evaluation).overall
        rate = f"{result.rate:.0%}" if result is not None and result.episodes else ""
        table.add_row(str(entry["iteration"]), *cells, rate)
    return table
