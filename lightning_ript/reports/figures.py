"""What the project's figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_ript.storage.evaluation_result import EvaluationResult

Colour = tuple[float, float, float]
History = Sequence[Mapping[str, Any]]
"""Entries of `RunReport.history`."""


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, without a window and unknown to pyplot."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_percent(axis: Axis) -> None:
    """Labels an axis of rates in per cent."""
    axis.set_major_formatter(lambda rate, _: f"{rate:.0%}")


def rates_over_iterations(axes: Axes, last: float) -> None:
    """Axes of success rates over iterations of learning, from 0 to `last`."""
    axes.set_xlim(-0.03 * last, 1.03 * last)
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    as_percent(axes.yaxis)
    axes.set_xlabel("iterations of learning")
    axes.grid(alpha=0.3)


def draw_band(
    axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: object
) -> None:
    """A band about a curve, with a line where it has a point: one point has no width."""
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.vlines(x, low, high, color=colour, alpha=0.4, linewidth=1.5)


def rollout_rates(history: History) -> list[tuple[int, float]]:
    """Success of the rollouts of each iteration, after so many iterations of learning.

    The rollouts of iteration n are collected before it learns, so they stand at n - 1, where the
    evaluation of the same policy stands.
    """
    return [
        (entry["iteration"] - 1, entry["metrics"]["rollout/success_rate"])
        for entry in history
        if "rollout/success_rate" in entry["metrics"]
    ]


def evaluations(
    history: History, baseline: EvaluationResult | None
) -> list[tuple[int, EvaluationResult]]:
    """The evaluations that have episodes, after so many iterations of learning.

    Args:
        history: The run's.
        baseline: Evaluation of the starting policy, if there is one.
    """
    found = [] if baseline is None else [(0, baseline)]
    found += [
        (entry["iteration"], EvaluationResult.from_dict(entry["evaluation"]))
        for entry in history
        if entry["evaluation"] is not None
    ]
    return [(x, result) for x, result in found if result.overall.episodes]


def draw_evaluations(
    axes: Axes, found: Sequence[tuple[int, EvaluationResult]], colour: object, label: str
) -> None:
    """A curve of success rates in the band of their 95 % intervals."""
    x, results = zip(*found, strict=True)
    low, high = zip(*(result.interval() for result in results), strict=True)
    draw_band(axes, x, low=low, high=high, colour=colour)
    axes.plot(x, [result.rate for result in results], "o-", color=colour, label=label)


def colours(count: int) -> list[Colour]:
    """Colours that are easy to tell apart, or in order if there are too many for that."""
    if count <= 10:
        return [matplotlib.colormaps["tab10"](i)[:3] for i in range(count)]
    return [matplotlib.colormaps["viridis"](i / (count - 1))[:3] for i in range(count)]
