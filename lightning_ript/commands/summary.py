"""What a run has brought: two success rates in the terminal, and a page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_ript.reports.run_page import write_page
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult
from lightning_ript.storage.files import make_folder, replacing
from lightning_ript.storage.run_directory import (
    evaluation_path,
    learning_curve_path,
    page_path,
    videos_of,
)


def report_on(runs: Sequence[str], out: str | None = None) -> None:
    """Writes a page of a run, or of several together, that needs nothing beside itself.

    Of a run that was evaluated before and after, the two success rates are shown as well, and
    written to `summary.md` and `summary.json`.

    Args:
        runs: Run directories.
        out: The HTML file; `<first run>/report.html` by default.

    Raises:
        OSError: One of them is no run directory.
        ValueError: Something in them is damaged.
    """
    page = Path(out) if out is not None else page_path(runs[0])
    if out is not None:
        make_folder(page.parent, "--out")
    evaluations = [evaluation_path(runs[0], name) for name in ("before", "after")]
    if len(runs) == 1 and all(path.is_file() for path in evaluations):
        report(str(evaluations[0]), str(evaluations[1]), runs[0])
    write_page(runs, page)
    sys.stdout.write(f"- page: {page}\n")


def report(before: str, after: str, run_dir: str) -> None:
    """Shows what RIPT changed and writes `summary.md` and `summary.json`.

    Args:
        before: JSON of the evaluation before RIPT, as `EvaluationReport` wrote it.
        after: JSON of the evaluation after RIPT, of the same tasks.
        run_dir: The RIPT run's directory, where its learning curve lies; the summary goes there.

    Raises:
        FileNotFoundError: If an evaluation or the directory is missing.
        ValueError: If a file is not an evaluation, or the two are not of the same test.
    """
    if not Path(run_dir).is_dir():
        raise FileNotFoundError(f"There is no run directory {run_dir}: give trainer's root dir.")
    summary = summarize(before, after, run_dir)
    text = as_markdown(summary)
    with replacing(Path(run_dir) / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    with replacing(Path(run_dir) / "summary.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def summarize(before: str | Path, after: str | Path, run_dir: str | Path) -> dict[str, Any]:
    """The summary in JSON's types; a file that was not made is None. See `report`."""
    old, new = EvaluationResult.read(before), EvaluationResult.read(after)
    for name, result in (("before", old), ("after", new)):
        if not result.overall.episodes:
            raise ValueError(f"The evaluation `{name}` has no episodes: run it again.")
    counts = [{task.task: task.episodes for task in result.tasks} for result in (old, new)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{before} and {after} are not of the same test ({counts[0]} against {counts[1]} "
            "episodes): evaluate both on the same states."
        )
    if old.caveats != new.caveats:
        raise ValueError(
            f"{before} and {after} have different caveats ({old.caveats} and {new.caveats}): "
            "evaluate both alike."
        )
    curve = learning_curve_path(run_dir)
    videos = _pair(videos_of(before), videos_of(after))
    return {
        "before": old.overall.to_dict() | {"evaluation": str(before), "video": videos[0]},
        "after": new.overall.to_dict() | {"evaluation": str(after), "video": videos[1]},
        "tasks": [
            {"task": a.task, "language": a.language, "before": a.to_dict(), "after": b.to_dict()}
            for a, b in zip(old.tasks, new.tasks, strict=True)
        ],
        "caveats": list(old.caveats),
        "learning_curve": str(curve) if curve.is_file() else None,
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """The summary as text for people; see `summarize`."""
    tasks = summary["tasks"]
    what = tasks[0]["language"] if len(tasks) == 1 else f"{len(tasks)} tasks"
    rows = [f"| {name} RIPT | {_cells(summary[name])} |" for name in ("before", "after")]
    lines = [
        f"# RIPT: {what}",
        "",
        "| | success on the test states | rate | 95 % interval | mean steps |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    for caveat in summary["caveats"]:
        lines += [caveat, ""]
    lines += [
        f"- learning curve: {_place(summary['learning_curve'])}",
        f"- video before: {_place(summary['before']['video'])}",
        f"- video after: {_place(summary['after']['video'])}",
    ]
    return "\n".join(lines) + "\n"


def _cells(result: dict[str, Any]) -> str:
    counted = TaskResult(
        task="",
        language="",
        episodes=result["episodes"],
        successes=result["successes"],
        mean_steps=result["mean_steps"],
    )
    low, high = counted.interval()
    return " | ".join(
        [
            f"{counted.successes} of {counted.episodes}",
            f"{counted.rate:.1%}",
            f"{low:.1%} - {high:.1%}",
            f"{counted.mean_steps:.0f}",
        ]
    )


def _place(path: str | None) -> str:
    return path or "none was made"


def _pair(before: list[Path], after: list[Path]) -> tuple[str | None, str | None]:
    """One video of each, of the same episode where possible: best one that RIPT taught."""

    def by_episode(videos: list[Path]) -> dict[str, Path]:
        return {re.sub(r"-(success|failure)$", "", video.stem): video for video in videos}

    old, new = by_episode(before), by_episode(after)
    both = sorted(
        old.keys() & new.keys(),
        key=lambda episode: (
            old[episode].stem.endswith("success"),
            new[episode].stem.endswith("failure"),
            episode,
        ),
    )
    if both:
        return str(old[both[0]]), str(new[both[0]])
    return (str(before[0]) if before else None, str(after[0]) if after else None)
