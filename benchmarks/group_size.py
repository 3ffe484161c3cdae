"""What the size of a group, K, does at equal episodes: time, rejected groups, and success.

python benchmarks/group_size.py [--out runs/group_size] [--seeds "[0, 1]"] [--figure FILE.png]

The quickstart's QueST on its task, from one supervised fine-tuning (SFT) per seed. Every iteration
runs the same number of episodes: few contexts with many rollouts each, or many with few. All groups
whose rewards differ are learned from, so a larger K makes fewer groups, of which fewer are
rejected. The passes over the data are the same; their optimizer steps follow from what was kept.

Every step goes on where it was interrupted. What is finished is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from jsonargparse import auto_cli
from measuring.report import table
from measuring.study import Study, before_and_after, history

from lightning_ript.reports.figures import as_percent, colours, new_figure


def main(
    out: Path = Path("runs/group_size"),
    seeds: list[int] = [0, 1],  # noqa: B006 (never changed)
    sizes: list[int] = [4, 8, 16],  # noqa: B006
    episodes: int = 128,
    iterations: int = 6,
    demonstrations: int = 16,
    steps: int = 1500,
    figure: Path | None = None,
) -> None:
    """Runs the study, prints a table and draws a figure.

    Args:
        out: Folder of all runs.
        seeds: Seeds: of demonstrations, training and practice.
        sizes: Rollouts per context, K.
        episodes: Episodes of an iteration, a multiple of every size.
        iterations: Iterations of RIPT.
        demonstrations: Demonstrations of the task.
        steps: Optimizer steps of each supervised stage.
        figure: Where to draw; `out/group_size.png` when left out.

    Raises:
        ValueError: If the episodes cannot be shared out.
    """
    if any(episodes % size for size in sizes):
        raise ValueError(f"episodes is {episodes}, but must be a multiple of each of {sizes}.")
    settings = {
        "episodes": episodes,
        "iterations": iterations,
        "demonstrations": demonstrations,
        "steps": steps,
    }
    study = Study(out, [0], settings)
    for seed in seeds:
        start = study.imitate(seed, collected=demonstrations, used=demonstrations, steps=steps)
        for size in sizes:
            contexts = episodes // size
            study.practise(
                run(out, size, seed),
                start,
                seed,
                iterations,
                evaluate_every=iterations,
                settings=[
                    f"--data.init_args.rollouts_per_context={size}",
                    f"--data.init_args.groups_per_iteration={contexts}",
                    f"--data.init_args.max_contexts={contexts}",
                ],
                baseline=run(out, sizes[0], seed),
            )
    text = table(
        ["K", "seed", "groups rejected", "collecting, s", "learning, s", "SFT", "after RIPT"],
        [row(out, size, seed) for size in sizes for seed in seeds],
    )
    print(text)
    (out / "group_size.md").write_text(text + "\n")
    draw(out, sizes, seeds, figure or out / "group_size.png")


def run(out: Path, size: int, seed: int) -> Path:
    """The run of RIPT."""
    return out / f"K = {size}" / f"seed{seed}"


def row(out: Path, size: int, seed: int) -> list[object]:
    """A line of the table; times are means over the iterations."""
    metrics = [entry["metrics"] for entry in history(run(out, size, seed))]
    kept = sum(each["rollout/groups_kept"] for each in metrics)
    dropped = sum(each["rollout/groups_dropped"] for each in metrics)
    before, after = before_and_after(run(out, size, seed))
    low, high = after.interval()
    return [
        size,
        seed,
        f"{dropped / (kept + dropped):.0%}",
        *(f"{mean(each[name] for each in metrics):.0f}" for name in TIMES),
        f"{before.rate:.0%}",
        f"{after.rate:.0%} ({low:.0%} to {high:.0%})",
    ]


TIMES = ("time/collecting", "time/learning")


def draw(out: Path, sizes: Sequence[int], seeds: Sequence[int], to: Path) -> None:
    """Success of the rollouts and rejected groups over iterations."""
    figure = new_figure(10, 4.2)
    success, rejected = figure.subplots(1, 2)
    for size, colour in zip(sizes, colours(len(sizes)), strict=True):
        for seed, line in zip(seeds, ("-", "--", ":", "-.") * len(seeds), strict=False):
            metrics = [entry["metrics"] for entry in history(run(out, size, seed))]
            x = range(1, len(metrics) + 1)
            rates = [each["rollout/success_rate"] for each in metrics]
            label = f"K = {size}, seed {seed}"
            success.plot(x, rates, line, color=colour, label=label)
            shares = [
                each["rollout/groups_dropped"]
                / (each["rollout/groups_kept"] + each["rollout/groups_dropped"])
                for each in metrics
            ]
            rejected.plot(x, shares, line, color=colour, label=label)
    for axes, name in ((success, "success of the rollouts"), (rejected, "groups rejected")):
        axes.set_ylim(-0.02, 1.02)
        as_percent(axes.yaxis)
        axes.set_ylabel(name)
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    success.legend(loc="lower right")
    figure.savefig(to)


if __name__ == "__main__":
    auto_cli(main)
