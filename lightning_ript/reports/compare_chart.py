"""The chart of a comparison: learning curves of several arms."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_ript.reports.figures import (
    Colour,
    colours,
    draw_band,
    new_figure,
    rates_over_iterations,
)
from lightning_ript.storage.evaluation_result import TaskResult


@dataclass(frozen=True)
class Curve:
    """Success rates of an arm over iterations of learning.

    Attributes:
        name: The arm.
        runs: For each run: iteration -> counts of an evaluation, or the rate alone.
    """

    name: str
    runs: Sequence[Mapping[int, TaskResult] | Mapping[int, float]]

    def rates(self) -> dict[int, list[float]]:
        """The rates of all runs, at the iterations that every run has."""
        shared = set.intersection(*(set(run) for run in self.runs))
        return {i: [_rate(run[i]) for run in self.runs] for i in sorted(shared)}

    def means(self) -> dict[int, float]:
        """Their mean over the runs."""
        return {i: statistics.mean(rates) for i, rates in self.rates().items()}

    def band(self) -> dict[int, tuple[float, float]]:
        """Lowest and highest of several runs; of one, Wilson's 95 % interval if it has counts."""
        if len(self.runs) > 1:
            return {i: (min(rates), max(rates)) for i, rates in self.rates().items()}
        (run,) = self.runs
        return {i: x.interval() for i, x in sorted(run.items()) if isinstance(x, TaskResult)}


def draw_curves(tests: Sequence[Curve], rollouts: Sequence[Curve]) -> Figure:
    """Draws the arms' success on the test states, and beside it that of the training rollouts.

    Args:
        tests: A curve per arm; a panel without any point is left out.
        rollouts: The same of the training rollouts, in the same order of arms.
    """
    panels = [
        (title, curves)
        for title, curves in (("test states", tests), ("training rollouts", rollouts))
        if any(curve.means() for curve in curves)
    ]
    arms = tests or rollouts
    # A line of the legend per arm, and one for what the bands are.
    figure = new_figure(1.2 + 5.2 * max(1, len(panels)), 4.3 + 0.2 * len(arms))
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)[0]
    last = max((i for curve in (*tests, *rollouts) for i in curve.means()), default=1)
    for panel, (title, curves) in zip(axes, panels, strict=False):
        for curve, colour in zip(curves, colours(len(curves)), strict=True):
            _draw_curve(panel, curve, colour)
        panel.set_title(title)
    for panel in axes:
        rates_over_iterations(panel, max(1, last))
    axes[0].set_ylabel("success rate")
    if panels:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            title=_bands([*tests, *rollouts]),
            title_fontsize=8,
            fontsize=9,
            alignment="left",
            frameon=False,
        )
    return figure


def _draw_curve(axes: Axes, curve: Curve, colour: Colour) -> None:
    several = len(curve.runs) > 1
    if several:
        for run in curve.runs:
            rates = [_rate(run[i]) for i in sorted(run)]
            axes.plot(sorted(run), rates, color=colour, linewidth=0.7, alpha=0.5)
    if band := curve.band():
        low, high = zip(*band.values(), strict=True)
        draw_band(axes, list(band), low=low, high=high, colour=colour)
    means = curve.means()
    label = f"{curve.name} (mean of {len(curve.runs)} runs)" if several else curve.name
    axes.plot(list(means), list(means.values()), "o-", color=colour, markersize=4, label=label)


def _bands(curves: Sequence[Curve]) -> str | None:
    """What the bands are, None without any."""
    counts = [len(curve.runs) for curve in curves if curve.band()]
    said = ["lowest to highest of several runs"] if max(counts, default=0) > 1 else []
    said += ["95 % interval of a single run's evaluation"] if 1 in counts else []
    return f"bands: {'; '.join(said)}" if said else None


def _rate(point: TaskResult | float) -> float:
    return point.rate if isinstance(point, TaskResult) else point
