"""How few demonstrations RIPT needs, and what its parts are worth, at this project's own CPU scale.

python benchmarks/sample_efficiency.py [--out runs/sample_efficiency] [--figure FILE.png]

The quickstart's small QueST on two LIBERO-Object tasks at once. For each number of demonstrations
per task and each seed: the scripted expert's demonstrations (fewer are some of the more), skill
tokens, supervised fine-tuning (SFT), evaluation on both tasks' 50 test states, RIPT, evaluation.
At one of these numbers the same SFT is also trained with a critic in place of the group's mean, and
without dynamic sampling. All numbers of demonstrations get the same number of optimizer steps.

Every step is a command of `lightning-ript`, and goes on where it was interrupted. What is finished
is not run again, so more seeds can be added later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import auto_cli
from matplotlib.axes import Axes
from measuring.study import CONFIGS, Study, before_and_after

from lightning_ript.commands.compare import compare
from lightning_ript.reports.figures import as_percent, new_figure

LEAVE_ONE_OUT = "leave-one-out"
METHODS: dict[str, list[str]] = {
    LEAVE_ONE_OUT: [],
    "critic": [f"--config={CONFIGS}/ablations/critic.yaml"],
    "all groups kept": [f"--config={CONFIGS}/ablations/no_dynamic_sampling.yaml"],
}


def arm(out: Path, demonstrations: int, method: str, seed: int) -> Path:
    """The run of RIPT."""
    return out / f"{demonstrations} demonstrations, {method}" / f"seed{seed}"


def success(folder: Path) -> tuple[float, float]:
    """Success on the test states before and after RIPT."""
    before, after = before_and_after(folder)
    return before.rate, after.rate


def draw(
    out: Path, numbers: Sequence[int], compared_at: int, seeds: Sequence[int], title: str, to: Path
) -> None:
    """Success by demonstrations, before and after RIPT; and by method."""
    figure = new_figure(10, 4.2)
    few, methods = figure.subplots(1, 2, sharey=True)
    found = {n: [success(arm(out, n, LEAVE_ONE_OUT, seed)) for seed in seeds] for n in numbers}
    places = range(len(numbers))
    for which, name, colour in ((0, "SFT", "tab:gray"), (1, "after RIPT", "tab:blue")):
        rates = [[pair[which] for pair in found[n]] for n in numbers]
        points(few, places, rates, colour, name)
    few.set_xticks(places, [str(n) for n in numbers])
    few.set_xlabel("demonstrations per task")
    few.set_ylabel("success on the test states")
    few.legend(loc="upper left")
    compared = {m: [success(arm(out, compared_at, m, seed)) for seed in seeds] for m in METHODS}
    for which, name, colour in ((0, "SFT", "tab:gray"), (1, "after", "tab:blue")):
        rates = [[pair[which] for pair in compared[method]] for method in METHODS]
        points(methods, range(len(METHODS)), rates, colour, name, line="")
    methods.set_xticks(range(len(METHODS)), list(METHODS))
    methods.set_xlim(-0.5, len(METHODS) - 0.5)
    methods.set_title(f"{compared_at} demonstrations per task")
    few.set_title(title)
    for axes in (few, methods):
        axes.set_ylim(-0.02, 1.02)
        as_percent(axes.yaxis)
        axes.grid(alpha=0.3)
    figure.savefig(to)


def points(
    axes: Axes,
    places: Sequence[int],
    rates: Sequence[Sequence[float]],
    colour: str,
    name: str,
    line: str = "-",
) -> None:
    """A dot per seed, and their mean."""
    means = [sum(each) / len(each) for each in rates]
    axes.plot(places, means, marker="o", linestyle=line, color=colour, label=f"{name} (mean)")
    for place, each in zip(places, rates, strict=True):
        axes.plot([place] * len(each), each, ".", color=colour, alpha=0.5)


def main(
    out: Path = Path("runs/sample_efficiency"),
    demonstrations: list[int] = [1, 2, 5, 10],  # noqa: B006 (never changed)
    compare_at: int = 5,
    seeds: list[int] = [0, 1],  # noqa: B006
    tasks: list[int] = [0, 1],  # noqa: B006
    iterations: int = 8,
    groups: int = 12,
    steps: int = 1000,
    figure: Path | None = None,
) -> None:
    """Runs the study, and writes tables and figures to `out`.

    Args:
        out: Folder of all runs.
        demonstrations: Numbers of demonstrations per task.
        compare_at: The number at which the methods are compared.
        seeds: Seeds: of demonstrations, training and practice.
        tasks: Numbers of LIBERO-Object's tasks, which one policy learns together.
        iterations: Iterations of RIPT, an even number.
        groups: Groups kept per iteration.
        steps: Optimizer steps of each supervised stage.
        figure: Where to draw; `out/sample_efficiency.png` when left out.
    """
    most = max(demonstrations)
    settings = {"most": most, "iterations": iterations, "groups": groups, "steps": steps}
    study = Study(out, tasks, settings)
    arms: Mapping[tuple[int, str], list[int]] = {
        **{(n, LEAVE_ONE_OUT): seeds for n in demonstrations},
        **{(compare_at, method): seeds for method in METHODS},
    }
    for (number, method), each in arms.items():
        for seed in each:
            study.practise(
                arm(out, number, method, seed),
                study.imitate(seed, collected=most, used=number, steps=steps),
                seed,
                iterations,
                evaluate_every=iterations // 2,
                settings=[
                    *METHODS[method],
                    f"--data.init_args.groups_per_iteration={groups}",
                    f"--data.init_args.max_contexts={3 * groups}",
                ],
                # The same SFT on the same states, most likely actions.
                baseline=arm(out, number, LEAVE_ONE_OUT, seed),
            )
    compare([str(arm(out, n, method, 0).parent) for n, method in arms], str(out / "comparison"))
    title = f"{len(tasks)} tasks, {iterations} iterations"
    to = figure or out / "sample_efficiency.png"
    draw(out, demonstrations, compare_at, seeds, title, to)


if __name__ == "__main__":
    auto_cli(main)
