"""A small SmolVLA on one LIBERO-Object task: imitation, then RIPT by Flow-SDE and by Flow-Noise.

python benchmarks/flow_study.py [--out runs/flow_study] [--seeds "[0, 1]"] [--ways "[Flow-SDE]"]
  [--figure FILE.png]

For each seed: the scripted expert's demonstrations, a SmolVLA of 1.3 M parameters with random
weights, supervised fine-tuning (SFT) by flow matching; then, for each kind of probability, RIPT
from the same weights. Before and after, the 50 test states are evaluated three times, without noise
within the denoising: where it starts is enough to turn ten of fifty episodes.

Every step goes on where it was interrupted. What is finished is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli
from measuring.report import table
from measuring.study import CONFIGS, Study, command, history, pooled_before_and_after

from lightning_ript.reports.figures import colours, new_figure, rates_over_iterations

SMALL = f"--config={CONFIGS}/smolvla/small"
EVALUATIONS = 3
WAYS = {
    "Flow-SDE": [],
    "Flow-Noise": ["--model.init_args.policy.init_args.probability=flow_noise"],
}


def main(
    out: Path = Path("runs/flow_study"),
    seeds: list[int] = [0, 1],  # noqa: B006 (never changed)
    ways: list[Literal["Flow-SDE", "Flow-Noise"]] = ["Flow-SDE", "Flow-Noise"],  # noqa: B006
    task: int = 1,
    demonstrations: int = 16,
    epochs: int = 8,
    iterations: int = 12,
    figure: Path | None = None,
) -> None:
    """Runs the study, prints a table and draws a figure.

    Args:
        out: Folder of all runs.
        seeds: Seeds: of demonstrations, weights, training and practice.
        ways: Which kinds of probability.
        task: Its number in LIBERO-Object.
        demonstrations: Demonstrations of it.
        epochs: Of SFT.
        iterations: Iterations of RIPT.
        figure: Where to draw; `out/flow_study.png` when left out.
    """
    settings = {"demonstrations": demonstrations, "epochs": epochs, "iterations": iterations}
    study = Study(out, [task], settings)
    for seed in seeds:
        files = study.demonstrations(seed, demonstrations)
        start, weights = fine_tuned(out / "supervised" / f"seed{seed}", files, seed, epochs)
        policy = [f"--model.init_args.policy.init_args.checkpoint={start}"]
        for way in ways:
            study.practise(
                run(out, way, seed),
                None,
                seed,
                iterations,
                evaluate_every=iterations,
                configs=[f"{SMALL}/ript.yaml", f"{SMALL}/policy.yaml"],
                settings=[
                    *policy,
                    f"--model.init_args.policy.init_args.weights={weights}",
                    *WAYS[way],
                ],
                baseline=run(out, ways[0], seed),
                evaluations=EVALUATIONS,
            )
    text = table(
        ["probability", "seed", "SFT", "after RIPT"],
        [row(out, way, seed) for way in ways for seed in seeds],
    )
    print(text)
    (out / "flow_study.md").write_text(text + "\n")
    draw(out, ways, seeds, iterations, figure or out / "flow_study.png")


def fine_tuned(folder: Path, files: Path, seed: int, epochs: int) -> tuple[Path, Path]:
    """The published folder that a SmolVLA starts from, and what it has learned by imitation."""
    start = folder / "start"
    if not start.exists():
        command("new-smolvla", str(start), f"[{files}]", f"--seed={seed}")
    done = folder / "done"
    if not done.exists():
        command(
            "fit",
            f"{SMALL}/sft.yaml",
            f"{SMALL}/policy.yaml",
            f"--data.init_args.files=[{files}]",
            f"--model.init_args.policy.init_args.checkpoint={start}",
            f"--trainer.max_epochs={epochs}",
            f"--seed_everything={seed}",
            f"--run_dir={folder / 'sft'}",
        )
        done.touch()
    return start, folder / "sft" / "checkpoints" / "last.ckpt"


def run(out: Path, way: str, seed: int) -> Path:
    """The run of RIPT."""
    return out / way / f"seed{seed}"


def row(out: Path, way: str, seed: int) -> list[object]:
    """A line of the table."""
    found = []
    for result in pooled_before_and_after(run(out, way, seed), EVALUATIONS):
        low, high = result.interval()
        found.append(f"{result.rate:.0%} ({low:.0%} to {high:.0%})")
    return [way, seed, *found]


def draw(out: Path, ways: Sequence[str], seeds: Sequence[int], iterations: int, to: Path) -> None:
    """Success of the rollouts over iterations, a colour per kind of probability."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    for way, colour in zip(ways, colours(len(ways)), strict=True):
        for seed, line in zip(seeds, ("-", "--", ":", "-.") * len(seeds), strict=False):
            entries = history(run(out, way, seed))
            rates = [(e["iteration"] - 1, e["metrics"]["rollout/success_rate"]) for e in entries]
            axes.plot(*zip(*rates, strict=True), line, color=colour, label=f"{way}, seed {seed}")
    rates_over_iterations(axes, iterations)
    axes.set_ylabel("success of the rollouts")
    axes.legend(loc="lower right")
    figure.savefig(to)


if __name__ == "__main__":
    auto_cli(main)
