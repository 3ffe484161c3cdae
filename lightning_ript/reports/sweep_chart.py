"""The chart of a sweep: success per task."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_ript.reports.figures import as_percent, colours, new_figure
from lightning_ript.reports.rows import pooled
from lightning_ript.reports.short_names import short_names
from lightning_ript.reports.tables import Row
from lightning_ript.storage.evaluation_result import TaskResult

_WIDTH = 11.0  # inches, like all that follows
_BAR = 0.16
_GAP = 0.1  # between tasks
_LINE = 0.145  # of a task's name
_LETTERS = 56  # of a line of it
_AROUND = 0.75  # a suite's title and the labels below it
_TALL = 8.0  # where the labels below are out of sight from the top


def draw_tasks(rows: Sequence[Row]) -> Figure:
    """Draws a panel per suite: the rate of each task and of all of them, with 95 % intervals.

    Each task has a bar per checkpoint, over the episodes of all seeds. The figure grows with the
    number of tasks, so that the names of ninety can be read as well as those of ten.

    Args:
        rows: A row per task of every cell, see `sweep_report.CellResult`.
    """
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    counted = {suite: _count([row for row in rows if row["suite"] == suite]) for suite in suites}
    heights = {suite: _heights(list(tasks), len(checkpoints)) for suite, tasks in counted.items()}
    inches = [sum(heights[suite]) + _AROUND for suite in suites]
    # A line of the legend per checkpoint, as their names may be long.
    legend = 0.3 + 0.2 * len(checkpoints)
    figure = new_figure(_WIDTH, sum(inches) + legend)
    panels = figure.subplots(len(suites), 1, squeeze=False, gridspec_kw={"height_ratios": inches})
    for axes, suite in zip(panels[:, 0], suites, strict=True):
        _draw_suite(axes, counted[suite], checkpoints, heights[suite])
        seeds = len({row["seed"] for row in rows if row["suite"] == suite})
        acted = {row["sampled_actions"] for row in rows if row["suite"] == suite}
        notes = ["sampled actions" if acted == {True} else "most likely actions"]
        notes += [f"{seeds} seeds"] if seeds > 1 else []
        axes.set_title(f"{suite} ({', '.join(notes)})", loc="left", fontsize=11, weight="bold")
    panels[-1, 0].set_xlabel("success rate on the test states, 95 % interval")
    if caveats := list(dict.fromkeys(row["caveats"] for row in rows if row["caveats"])):
        figure.supxlabel("\n".join(caveats), fontsize=9, color="tab:red")
    handles, _ = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        short_names(checkpoints, least=2),
        loc="outside upper left",
        fontsize=9,
        frameon=False,
    )
    return figure


def _count(rows: Sequence[Row]) -> dict[str, dict[str, TaskResult]]:
    """Task, `all tasks` at first -> checkpoint -> counts over all seeds."""
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    counted = {
        task: {
            checkpoint: pooled(
                [r for r in rows if (r["task"], r["checkpoint"]) == (task, checkpoint)]
            )
            for checkpoint in checkpoints
        }
        for task in tasks
    }
    if len(tasks) == 1:
        return counted
    overall = {c: pooled([row for row in rows if row["checkpoint"] == c]) for c in checkpoints}
    return {"all tasks": overall, **counted}


def _heights(tasks: Sequence[str], checkpoints: int) -> list[float]:
    """Inches that each task takes: its bars or its name, whichever is more."""
    return [max(checkpoints * _BAR, _LINE * len(_lines(task))) + _GAP for task in tasks]


def _draw_suite(
    axes: Axes,
    counted: dict[str, dict[str, TaskResult]],
    checkpoints: Sequence[str],
    heights: Sequence[float],
) -> None:
    """Draws from the top down; the vertical unit is an inch."""
    centres, below = [], 0.0
    for height in heights:
        centres.append(below + height / 2)
        below += height
    for number, (checkpoint, colour) in enumerate(
        zip(checkpoints, colours(len(checkpoints)), strict=True)
    ):
        shift = (number - (len(checkpoints) - 1) / 2) * _BAR
        results = [
            (centre + shift, result)
            for centre, by_checkpoint in zip(centres, counted.values(), strict=True)
            if (result := by_checkpoint.get(checkpoint)) is not None and result.episodes
        ]
        rates = [result.rate for _, result in results]
        intervals = [result.interval() for _, result in results]
        axes.barh(
            [place for place, _ in results],
            rates,
            height=0.86 * _BAR,
            color=colour,
            xerr=[
                [rate - low for rate, (low, _) in zip(rates, intervals, strict=True)],
                [high - rate for rate, (_, high) in zip(rates, intervals, strict=True)],
            ],
            error_kw={"ecolor": "0.25", "elinewidth": 0.9, "capsize": 1.5},
            label=checkpoint,
        )
    axes.set_yticks(centres, ["\n".join(_lines(task)) for task in counted], fontsize=8)
    if "all tasks" in counted:
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.axhline(heights[0], color="0.6", linewidth=0.8)
    axes.set_ylim(below, 0)
    axes.set_xlim(0, 1.01)
    as_percent(axes.xaxis)
    tall = below > _TALL
    axes.tick_params(axis="x", labelsize=9, top=tall, labeltop=tall)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _lines(task: str) -> list[str]:
    return textwrap.wrap(task.replace("_", " "), _LETTERS)
