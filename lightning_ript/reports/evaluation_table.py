"""An evaluation's result as text."""

from __future__ import annotations

from lightning_ript.reports.tables import aligned
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult


def evaluation_table(result: EvaluationResult) -> str:
    """The result as aligned text, one line per task and one for all of them if several."""
    results = [*result.tasks, *([result.overall] if len(result.tasks) > 1 else [])]
    header = ("task", "success", "rate", "95 % interval", "mean steps")
    rows = [header, *(_table_row(each) for each in results)]
    lines = aligned(rows)
    lines.insert(1, "-" * len(lines[0]))
    if len(result.tasks) > 1:
        lines.insert(-1, lines[1])
    return "\n".join(lines)


def _table_row(result: TaskResult) -> tuple[str, ...]:
    counts = f"{result.successes}/{result.episodes}"
    if not result.episodes:
        return result.task, counts, "-", "-", "-"
    low, high = result.interval()
    return (
        result.task,
        counts,
        f"{result.rate:.1%}",
        f"{low:.1%} - {high:.1%}",
        f"{result.mean_steps:.1f}",
    )
