"""The learning curve of a run."""

from __future__ import annotations

from matplotlib.figure import Figure

from lightning_ript.reports.figures import (
    History,
    draw_evaluations,
    evaluations,
    new_figure,
    rates_over_iterations,
    rollout_rates,
)
from lightning_ript.storage.evaluation_result import EvaluationResult


def draw_learning_curve(history: History, baseline: EvaluationResult | None = None) -> Figure:
    """Draws success over iterations of learning, with the time they took on top.

    Args:
        history: Entries of `RunReport.history`.
        baseline: Evaluation of the starting policy, if there is one.

    Returns:
        The figure, to be saved.
    """
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    rollouts = rollout_rates(history)
    if rollouts:
        x, rates = zip(*rollouts, strict=True)
        axes.plot(x, rates, "o-", color="tab:gray", markersize=3, label="training rollouts")
    found = evaluations(history, baseline)
    if found:
        last_result = found[-1][1]
        episodes = last_result.overall.episodes
        label = f"test states ({episodes} episodes, 95 % interval)"
        draw_evaluations(axes, found, "tab:blue", label)
        tasks = last_result.tasks
        axes.set_title(tasks[0].language if len(tasks) == 1 else f"{len(tasks)} tasks", pad=10)
    last = history[-1]["iteration"] if history else 1
    rates_over_iterations(axes, last)
    axes.set_ylabel("success rate")
    if rollouts or found:
        axes.legend(loc="lower right")
    seconds = {0: 0.0} | {entry["iteration"]: entry["seconds"] for entry in history}
    unit, name = (60, "minutes") if max(seconds.values()) >= 120 else (1, "seconds")
    ticks = [tick for tick in axes.get_xticks() if tick in seconds]
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    top.set_xticks(ticks, [f"{seconds[int(tick)] / unit:.1f}" for tick in ticks])
    top.set_xlabel(name)
    return figure
