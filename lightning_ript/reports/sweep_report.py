"""What a sweep leaves: a row per task, a summary per checkpoint and suite, and a chart."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_ript.reports.rows import found, pooled, result_rows
from lightning_ript.reports.sweep_chart import draw_tasks
from lightning_ript.reports.tables import Row, aligned, write_csv
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.files import replacing
from lightning_ript.storage.run_directory import sweep_table_path


class CellResult(NamedTuple):
    """The result of one evaluation of a sweep.

    Attributes:
        checkpoint: What was evaluated.
        suite: On which suite.
        seed: With which sampling noise.
        result: What came of it.
    """

    checkpoint: str
    suite: str
    seed: int
    result: EvaluationResult

    def rows(self) -> list[Row]:
        """A row per task."""
        facts = {"checkpoint": self.checkpoint, "seed": self.seed, "suite": self.suite}
        return result_rows(self.result, facts)


def write_report(out: str, results: Sequence[CellResult]) -> None:
    """Writes `sweep.csv`, `sweep.json`, `summary.txt` and `tasks.png`.

    Args:
        out: Folder of the sweep.
        results: The finished cells, at least one.
    """
    rows = [row for result in results for row in result.rows()]
    summary = summarize(rows)
    write_csv(sweep_table_path(out), rows)
    with replacing(Path(out, "sweep.json")) as temporary:
        content = json.dumps({"summary": summary, "rows": rows}, indent=2, allow_nan=False)
        temporary.write_text(content + "\n", encoding="utf-8")
    with replacing(Path(out, "summary.txt")) as temporary:
        temporary.write_text(summary_table(summary), encoding="utf-8")
    with replacing(Path(out, "tasks.png")) as temporary:
        draw_tasks(rows).savefig(temporary)


def summarize(rows: Sequence[Row]) -> list[Row]:
    """A row per checkpoint and suite.

    `success_rate` is the mean over seeds of each one's rate over all its episodes, `seed_std` the
    standard deviation (None for one seed). The interval is Wilson's of all episodes together. It
    takes them for independent: seeds repeat the test states, so it tells how well the policy does
    on these, and less about other states.

    Args:
        rows: A row per task of every cell.
    """
    summary = []
    for checkpoint, suite in dict.fromkeys((row["checkpoint"], row["suite"]) for row in rows):
        mine = [row for row in rows if (row["checkpoint"], row["suite"]) == (checkpoint, suite)]
        seeds = list(dict.fromkeys(row["seed"] for row in mine))
        rates = [pooled([row for row in mine if row["seed"] == seed]).rate for seed in seeds]
        summary.append(
            {
                "checkpoint": checkpoint,
                "suite": suite,
                "seeds": len(seeds),
                **found(pooled(mine)),
                "success_rate": statistics.mean(rates),
                "seed_std": statistics.stdev(rates) if len(rates) > 1 else None,
                "sampled_actions": all(row["sampled_actions"] for row in mine),
                "caveats": "; ".join(
                    dict.fromkeys(row["caveats"] for row in mine if row["caveats"])
                ),
            }
        )
    return summary


def summary_table(summary: Sequence[Row]) -> str:
    """The summary as aligned text."""
    header = ["checkpoint", "suite", "seeds", "success", "rate", "95 % interval", "mean steps"]
    table = aligned(
        [
            header,
            *(
                [
                    row["checkpoint"],
                    row["suite"],
                    str(row["seeds"]),
                    f"{row['successes']}/{row['episodes']}",
                    f"{row['success_rate']:.1%}",
                    f"{row['interval_low']:.1%} - {row['interval_high']:.1%}",
                    f"{row['mean_steps']:.1f}",
                ]
                for row in summary
            ),
        ]
    )
    lines = [table[0], "-" * len(table[0]), *table[1:]]
    lines += dict.fromkeys(row["caveats"] for row in summary if row["caveats"])
    return "\n".join(lines) + "\n"


def progress(number: int, cells: int, what: str, results: Sequence[CellResult]) -> str:
    """The line that announces a cell.

    Args:
        number: Its number, 1 for the first.
        cells: Cells in all.
        what: What it evaluates.
        results: Of the cells that are done.
    """
    line = f"cell {number} of {cells}: {what}"
    if not results:
        return line
    total = pooled([row for result in results for row in result.rows()])
    return f"{line} (so far {total.successes}/{total.episodes}, {total.rate:.1%})"
