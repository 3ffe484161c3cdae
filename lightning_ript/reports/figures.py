"""What the project's figures share."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Colour = tuple[float, float, float]


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


def colours(count: int) -> list[Colour]:
    """Colours that are easy to tell apart, or in order if there are too many for that."""
    if count <= 10:
        return [matplotlib.colormaps["tab10"](i)[:3] for i in range(count)]
    return [matplotlib.colormaps["viridis"](i / (count - 1))[:3] for i in range(count)]
