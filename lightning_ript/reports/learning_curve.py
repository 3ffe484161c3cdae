"""The learning curve of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_ript.reports.figures import draw_band, new_figure, rates_over_iterations
from lightning_ript.storage.evaluation_result import EvaluationResult


def draw_learning_curve(
    history: Sequence[dict[str, Any]], baseline: EvaluationResult | None = None
) -> Figure:
    """Draws success over iterations of learning, with the time they took on top.

    The rollouts of iteration n are collected before it learns, so they stand at n - 1, where the
    evaluation of the same policy stands.

    Args:
        history: Entries of `RunReport.history`.
        baseline: Evaluation of the starting policy, if there is one.

    Returns:
        The figure, to be saved.
    """
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    rollouts = [
        (entry["iteration"] - 1, entry["metrics"]["rollout/success_rate"])
        for entry in history
        if "rollout/success_rate" in entry["metrics"]
    ]
    if rollouts:
        x, rates = zip(*rollouts, strict=True)
        axes.plot(x, rates, "o-", color="tab:gray", markersize=3, label="training rollouts")
    evaluations = [(0, baseline)] if baseline is not None else []
    evaluations += [
        (entry["iteration"], EvaluationResult.from_dict(entry["evaluation"]))
        for entry in history
        if entry["evaluation"] is not None
    ]
    evaluations = [(x, result) for x, result in evaluations if result.overall.episodes]
    if evaluations:
        x, results = zip(*evaluations, strict=True)
        low, high = zip(*(result.interval() for result in results), strict=True)
        draw_band(axes, x, low=low, high=high, colour="tab:blue")
        episodes = results[-1].overall.episodes
        axes.plot(
            x,
            [result.rate for result in results],
            "o-",
            color="tab:blue",
            label=f"test states ({episodes} episodes, 95 % interval)",
        )
        tasks = results[-1].tasks
        axes.set_title(tasks[0].language if len(tasks) == 1 else f"{len(tasks)} tasks", pad=10)
    last = history[-1]["iteration"] if history else 1
    rates_over_iterations(axes, last)
    axes.set_ylabel("success rate")
    if rollouts or evaluations:
        axes.legend(loc="lower right")
    seconds = {0: 0.0} | {entry["iteration"]: entry["seconds"] for entry in history}
    unit, name = (60, "minutes") if max(seconds.values()) >= 120 else (1, "seconds")
    ticks = [tick for tick in axes.get_xticks() if tick in seconds]
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    top.set_xticks(ticks, [f"{seconds[int(tick)] / unit:.1f}" for tick in ticks])
    top.set_xlabel(name)
    return figure
