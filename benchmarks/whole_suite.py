"""One small policy on all ten tasks of LIBERO-Object: imitation from few demonstrations, then RIPT.

python benchmarks/whole_suite.py [--out runs/whole_suite] [--seeds "[0, 1]"] [--figure FILE.png]

The quickstart's QueST. For each seed: the scripted expert's demonstrations of every task, skill
tokens, supervised fine-tuning (SFT), evaluation on all tasks' 50 test states, RIPT, evaluation.
Prints success per task with 95 % intervals, and draws the learning curves.

Every step goes on where it was interrupted. What is finished is not run again, so more seeds can be
added later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli
from measuring.report import table
from measuring.study import Study, before_and_after, history

from lightning_ript.reports.figures import (
    colours,
    draw_evaluations,
    evaluations,
    new_figure,
    rates_over_iterations,
    rollout_rates,
)
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult


def main(
    out: Path = Path("runs/whole_suite"),
    seeds: list[int] = [0, 1],  # noqa: B006 (never changed)
    tasks: list[int] = list(range(10)),  # noqa: B006
    demonstrations: int = 10,
    steps: int = 3000,
    iterations: int = 10,
    groups: int = 20,
    figure: Path | None = None,
) -> None:
    """Runs the study, prints a table and draws a figure.

    Args:
        out: Folder of all runs.
        seeds: Seeds: of demonstrations, training and practice.
        tasks: Numbers of LIBERO-Object's tasks.
        demonstrations: Demonstrations of each task.
        steps: Optimizer steps of each supervised stage.
        iterations: Iterations of RIPT.
        groups: Groups kept per iteration.
        figure: Where to draw; `out/whole_suite.png` when left out.
    """
    settings = {
        "demonstrations": demonstrations,
        "steps": steps,
        "iterations": iterations,
        "groups": groups,
    }
    study = Study(out, tasks, settings)
    for seed in seeds:
        start = study.imitate(seed, collected=demonstrations, used=demonstrations, steps=steps)
        study.practise(
            out / "ript" / f"seed{seed}",
            start,
            seed,
            iterations,
            evaluate_every=iterations,
            settings=[
                f"--data.init_args.groups_per_iteration={groups}",
                f"--data.init_args.max_contexts={2 * groups}",
            ],
        )
    runs = [out / "ript" / f"seed{seed}" for seed in seeds]
    text = success_table(seeds, [before_and_after(run) for run in runs])
    print(text)
    (out / "whole_suite.md").write_text(text + "\n")
    draw(seeds, runs, figure or out / "whole_suite.png")


def success_table(
    seeds: Sequence[int], found: Sequence[tuple[EvaluationResult, EvaluationResult]]
) -> str:
    """Success per task and of all, before and after RIPT."""
    header = ["task", *(f"seed {seed}, {what}" for seed in seeds for what in ("SFT", "RIPT"))]
    results = [result for pair in found for result in pair]
    names = [task.language for task in results[0].tasks]
    rows = [[name, *(_rate(r.tasks[i]) for r in results)] for i, name in enumerate(names)]
    return table(header, [*rows, ["all", *(_rate(result.overall) for result in results)]])


def _rate(result: TaskResult) -> str:
    low, high = result.interval()
    return f"{result.rate:.0%} ({low:.0%} to {high:.0%})"


def draw(seeds: Sequence[int], runs: Sequence[Path], to: Path) -> None:
    """Success of rollouts and on test states over iterations, a colour per seed."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    last = 1
    for seed, run, colour in zip(seeds, runs, colours(len(seeds)), strict=True):
        entries = history(run)
        rates = rollout_rates(entries)
        axes.plot(*zip(*rates, strict=True), ":", color=colour, label=f"seed {seed}, rollouts")
        before, _ = before_and_after(run)
        found = evaluations(entries, before)
        draw_evaluations(axes, found, colour, f"seed {seed}, test states (95 % interval)")
        last = max(last, *(iteration for iteration, _ in found))
    rates_over_iterations(axes, last)
    axes.set_ylabel("success rate, all tasks")
    axes.legend(loc="lower right")
    figure.savefig(to)


if __name__ == "__main__":
    auto_cli(main)
