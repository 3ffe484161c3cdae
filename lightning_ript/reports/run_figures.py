"""The figures of a run's page, as SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_ript.reports.figures import (
    History,
    as_percent,
    colours,
    draw_evaluations,
    evaluations,
    new_figure,
    rates_over_iterations,
    rollout_rates,
)
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult

_BLACK = "#010203"  # no other colour of a figure is like it; the page puts its own in its place


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element as wide as its place, with the page's colour of text.

    Args:
        figure: The figure.
        name: Tells it from the others of the page.
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_BLACK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for side in ("width", "height"):  # of the element: the view box keeps the shape
        text = re.sub(rf' {side}="[^"]*"', "", text, count=1)
    return text


def _axes(height: float = 3.0) -> tuple[Figure, Axes]:
    figure = new_figure(6, height)
    axes = figure.add_subplot()
    _colour(axes)
    return figure, axes


def _colour(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_color(_BLACK)
    axes.tick_params(colors=_BLACK, which="both")
    axes.xaxis.label.set_color(_BLACK)
    axes.yaxis.label.set_color(_BLACK)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=_BLACK, fontsize="small")


def success(runs: Mapping[str, History], baselines: Mapping[str, EvaluationResult | None]) -> str:
    """Success over iterations: of the rollouts, and on the test states with 95 % intervals."""
    figure, axes = _axes(3.4)
    last = 1
    for (name, history), colour in zip(runs.items(), colours(len(runs)), strict=True):
        rates = rollout_rates(history)
        of = f"{name}, " if len(runs) > 1 else ""
        if rates:
            axes.plot(*zip(*rates, strict=True), ":", color=colour, label=f"{of}rollouts")
        if found := evaluations(history, baselines[name]):
            draw_evaluations(axes, found, colour, f"{of}test states")
        last = max([last, *(entry["iteration"] for entry in history)])
    rates_over_iterations(axes, last)
    axes.set_ylabel("success rate")
    _legend(axes)
    return svg(figure, "success")


def curves(history: History, metrics: Mapping[str, str], name: str, percent: bool = False) -> str:
    """Metrics over iterations.

    Args:
        history: The run's.
        metrics: Metric -> label; those that the history lacks are left out.
        name: Of the figure.
        percent: Whether they are fractions.
    """
    figure, axes = _axes()
    for (metric, label), colour in zip(metrics.items(), colours(len(metrics)), strict=True):
        points = [
            (entry["iteration"], entry["metrics"][metric])
            for entry in history
            if metric in entry["metrics"]
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", markersize=3, color=colour, label=label)
    _over_iterations(axes)
    if percent:
        as_percent(axes.yaxis)
    return svg(figure, name)


def stacked(history: History, metrics: Mapping[str, str], name: str, unit: str) -> str:
    """Parts of a whole over iterations, as bars on each other."""
    figure, axes = _axes()
    x = [entry["iteration"] for entry in history]
    bottom = [0.0] * len(x)
    for (metric, label), colour in zip(metrics.items(), colours(len(metrics)), strict=True):
        values = [entry["metrics"].get(metric, 0.0) for entry in history]
        axes.bar(x, values, bottom=bottom, color=colour, label=label)
        bottom = [a + b for a, b in zip(bottom, values, strict=True)]
    _over_iterations(axes)
    axes.set_ylabel(unit)
    return svg(figure, name)


def _over_iterations(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.3)
    _legend(axes)


def tasks(before: EvaluationResult | None, after: EvaluationResult) -> str:
    """Success per task before and after, with 95 % intervals."""
    count = len(after.tasks)
    figure, axes = _axes(1.2 + 0.8 * count)
    pairs = [("after", after, 0.15)] + ([] if before is None else [("before", before, -0.15)])
    for (label, result, shift), colour in zip(pairs, colours(2), strict=False):
        by_name = {task.task: task for task in result.tasks}
        found = [by_name.get(task.task) for task in after.tasks]
        there = [(y, task) for y, task in enumerate(found) if task is not None and task.episodes]
        rates = [task.rate for _, task in there]
        errors = _errors([task for _, task in there])
        y = [number + shift for number, _ in there]
        axes.barh(y, rates, height=0.28, color=colour, label=label, xerr=errors, ecolor=_BLACK)
    axes.set_yticks([])
    for number, task in enumerate(after.tasks):  # above its bars, as phones are narrow
        axes.text(0, number - 0.42, _short(task.language or task.task), color=_BLACK)
    axes.set_ylim(count - 0.6, -0.8)
    axes.set_xlim(0, 1)
    as_percent(axes.xaxis)
    axes.set_xlabel("success on the test states")
    handles, labels = axes.get_legend_handles_labels()
    style = {"frameon": False, "labelcolor": _BLACK, "fontsize": "small"}
    figure.legend(handles[::-1], labels[::-1], loc="outside upper right", **style)
    return svg(figure, "tasks")


def _errors(found: Sequence[TaskResult]) -> list[list[float]]:
    intervals = [(task.rate, *task.interval()) for task in found]
    return [
        [max(0.0, rate - low) for rate, low, _ in intervals],
        [max(0.0, high - rate) for rate, _, high in intervals],
    ]


def _short(text: str, most: int = 70) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


SINGLE: tuple[tuple[str, Callable[[History], str]], ...] = (
    (
        "Groups",
        lambda history: stacked(
            history,
            {"rollout/groups_kept": "kept", "rollout/groups_dropped": "dropped"},
            "groups",
            "groups",
        ),
    ),
    (
        "How far a step goes",
        lambda history: curves(
            history,
            {"train/clip_fraction": "clip fraction", "train/approx_kl": "KL divergence"},
            "steps",
        ),
    ),
    ("Entropy", lambda history: curves(history, {"train/entropy": "per token"}, "entropy")),
    (
        "Length of episodes",
        lambda history: curves(history, {"rollout/episode_length": "control steps"}, "length"),
    ),
    (
        "Time",
        lambda history: stacked(
            history,
            {"time/collecting": "collecting", "time/learning": "learning"},
            "time",
            "seconds",
        ),
    ),
)
"""Title -> figure, of a page on one run."""
