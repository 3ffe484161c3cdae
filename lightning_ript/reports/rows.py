"""Evaluation results as rows of a tidy table, one per task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_ript.reports.tables import Row
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult


def result_rows(result: EvaluationResult, facts: Mapping[str, object]) -> list[Row]:
    """A row per task: `facts`, then what was found, then how it was evaluated.

    Args:
        result: With the metadata that `EvaluationReport` writes.
        facts: What the result is of, e.g. checkpoint and seed: the first columns.
    """
    how = {
        "sampled_actions": result.metadata["sampled_actions"],
        "caveats": "; ".join(result.caveats),
    }
    return [{**facts, "task": task.task, **found(task), **how} for task in result.tasks]


def found(result: TaskResult) -> Row:
    """The numbers of a result; rates in [0, 1], the interval is Wilson's 95 %."""
    low, high = result.interval()
    return {
        "episodes": result.episodes,
        "successes": result.successes,
        "success_rate": result.rate if result.episodes else None,
        "interval_low": low,
        "interval_high": high,
        "mean_steps": result.mean_steps if result.episodes else None,
    }


def pooled(rows: Sequence[Row], name: str = "all tasks") -> TaskResult:
    """All episodes of the rows together; every episode counts the same."""
    episodes = sum(row["episodes"] for row in rows)
    steps = sum(row["mean_steps"] * row["episodes"] for row in rows if row["episodes"])
    return TaskResult(
        task=name,
        language="",
        episodes=episodes,
        successes=sum(row["successes"] for row in rows),
        mean_steps=steps / episodes if episodes else math.nan,
    )
