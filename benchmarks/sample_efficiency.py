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

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import auto_cli
from matplotlib.axes import Axes

from lightning_ript.commands.compare import compare
from lightning_ript.reports.figures import as_percent, new_figure
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.run_directory import evaluation_path

CONFIGS = Path(__file__).parents[1] / "configs"
LEAVE_ONE_OUT = "leave-one-out"
METHODS: dict[str, list[str]] = {
    LEAVE_ONE_OUT: [],
    "critic": [f"--config={CONFIGS}/ablations/critic.yaml"],
    "all groups kept": [f"--config={CONFIGS}/ablations/no_dynamic_sampling.yaml"],
}


class Study:
    """The runs of the study.

    Args:
        out: Folder of all runs.
        tasks: Numbers of the tasks in LIBERO-Object.
        most: Demonstrations per task to collect.
        iterations: Iterations of RIPT.
        groups: Groups kept per iteration.
        steps: Optimizer steps of each supervised stage.
    """

    def __init__(
        self,
        out: Path,
        tasks: Sequence[int],
        most: int,
        iterations: int,
        groups: int,
        steps: int,
    ) -> None:
        self.out, self.tasks, self.most = out, list(tasks), most
        self.iterations, self.groups, self.steps = iterations, groups, steps

    def refuse_other_settings(self) -> None:
        """What is finished is not run again, so `out` holds runs of the same settings only.

        Raises:
            SystemExit: If it holds runs of others.
        """
        settings = {name: value for name, value in vars(self).items() if name != "out"}
        file = self.out / "settings.json"
        if not file.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings))
        elif (found := json.loads(file.read_text())) != settings:
            raise SystemExit(f"{self.out} holds runs of {found}, not of {settings}: use another.")

    def folder(self, demonstrations: int, method: str, seed: int) -> Path:
        """The run of RIPT."""
        return self.out / f"{demonstrations} demonstrations, {method}" / f"seed{seed}"

    def prepare(self, demonstrations: int, seed: int) -> Path:
        """Demonstrations, skill tokens and SFT; returns the checkpoint."""
        files = self.out / "demonstrations" / f"seed{seed}"
        command(
            "collect-demos",
            f"--config={CONFIGS}/quickstart/demos.yaml",
            f"--tasks={self.tasks}",
            f"--demos={self.most}",
            f"--out={files}",
            f"--seed={seed}",
        )
        folder = self.out / "supervised" / f"{demonstrations} demonstrations" / f"seed{seed}"
        last = Path("checkpoints", "last.ckpt")
        done = folder / "done"
        shared = (
            f"--config={CONFIGS}/quickstart/policy.yaml",
            f"--data.init_args.files=[{files}]",
            f"--data.init_args.demonstrations_per_file={demonstrations}",
            "--data.init_args.validation_fraction=0",
            f"--trainer.max_steps={self.steps}",
            "--trainer.max_epochs=-1",
            f"--seed_everything={seed}",
        )
        if not done.exists():
            command(
                "fit",
                f"--config={CONFIGS}/quickstart/autoencoder.yaml",
                *shared,
                "--model.init_args.policy.init_args.sizes.dropout=0",
                f"--run_dir={folder / 'autoencoder'}",
            )
            command(
                "fit",
                f"--config={CONFIGS}/quickstart/sft.yaml",
                *shared,
                "--model.init_args.policy.init_args.checkpoint",
                str(folder / "autoencoder" / last),
                f"--run_dir={folder / 'sft'}",
            )
            done.touch()
        return folder / "sft" / last

    def practise(self, checkpoint: Path, demonstrations: int, method: str, seed: int) -> None:
        """Evaluation of the SFT and RIPT, which evaluates halfway and at the end."""
        folder = self.folder(demonstrations, method, seed)
        before = evaluation_path(folder, "before")
        settings = [
            f"--config={CONFIGS}/quickstart/libero.yaml",
            f"--config={CONFIGS}/quickstart/ript.yaml",
            f"--config={CONFIGS}/quickstart/policy.yaml",
            *METHODS[method],
            f"--model.init_args.policy.init_args.checkpoint={checkpoint}",
            f"--model.init_args.scheduler.init_args.T_max={self.iterations}",
            f"--data.init_args.environment.init_args.task_subset={self.tasks}",
            f"--data.init_args.groups_per_iteration={self.groups}",
            f"--data.init_args.max_contexts={3 * self.groups}",
            "--data.init_args.eval_videos=0",
            f"--data.init_args.seed={seed}",
            f"--trainer.max_epochs={self.iterations}",
            f"--trainer.check_val_every_n_epoch={self.iterations // 2}",
            f"--seed_everything={seed}",
            f"--run_dir={folder}",
        ]
        if not before.exists():
            same = evaluation_path(self.folder(demonstrations, LEAVE_ONE_OUT, seed), "before")
            if same.exists():  # the same SFT on the same states, most likely actions
                before.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(same, before)
            else:
                command("validate", *settings, f"--config={CONFIGS}/quickstart/before.yaml")
        done = folder / "done"
        if not done.exists():
            command("fit", *settings)
            done.touch()

    def success(self, demonstrations: int, method: str, seed: int) -> tuple[float, float]:
        """Success on the test states before and after RIPT."""
        folder = self.folder(demonstrations, method, seed)
        before = EvaluationResult.read(evaluation_path(folder, "before"))
        after = EvaluationResult.read(
            max(folder.glob("evaluation/epoch=*.json"), key=lambda path: path.stat().st_mtime)
        )
        return before.rate, after.rate


def command(*arguments: str) -> None:
    """Runs a command of the project's, which says for itself how far it is.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    # As in the Makefile: OpenMP's threads are not to spin where simulators want the cores.
    environment = {"GOMP_SPINCOUNT": "10000"} | dict(os.environ)
    subprocess.run(
        [sys.executable, "-m", "lightning_ript", *arguments], check=True, env=environment
    )


def draw(
    study: Study, numbers: Sequence[int], compared_at: int, seeds: Sequence[int], to: Path
) -> None:
    """Success by demonstrations, before and after RIPT; and by method."""
    figure = new_figure(10, 4.2)
    few, methods = figure.subplots(1, 2, sharey=True)
    found = {n: [study.success(n, LEAVE_ONE_OUT, seed) for seed in seeds] for n in numbers}
    places = range(len(numbers))
    for which, name, colour in ((0, "SFT", "tab:gray"), (1, "after RIPT", "tab:blue")):
        rates = [[pair[which] for pair in found[n]] for n in numbers]
        points(few, places, rates, colour, name)
    few.set_xticks(places, [str(n) for n in numbers])
    few.set_xlabel("demonstrations per task")
    few.set_ylabel("success on the test states")
    few.legend(loc="upper left")
    compared = {m: [study.success(compared_at, m, seed) for seed in seeds] for m in METHODS}
    for which, name, colour in ((0, "SFT", "tab:gray"), (1, "after", "tab:blue")):
        rates = [[pair[which] for pair in compared[method]] for method in METHODS]
        points(methods, range(len(METHODS)), rates, colour, name, line="")
    methods.set_xticks(range(len(METHODS)), list(METHODS))
    methods.set_xlim(-0.5, len(METHODS) - 0.5)
    methods.set_title(f"{compared_at} demonstrations per task")
    few.set_title(f"{len(study.tasks)} tasks, {study.iterations} iterations")
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
    study = Study(out, tasks, max(demonstrations), iterations, groups, steps)
    study.refuse_other_settings()
    arms: Mapping[tuple[int, str], list[int]] = {
        **{(n, LEAVE_ONE_OUT): seeds for n in demonstrations},
        **{(compare_at, method): seeds for method in METHODS},
    }
    for (number, method), each in arms.items():
        for seed in each:
            study.practise(study.prepare(number, seed), number, method, seed)
    compare([str(study.folder(n, method, 0).parent) for n, method in arms], str(out / "comparison"))
    draw(study, demonstrations, compare_at, seeds, figure or out / "sample_efficiency.png")


if __name__ == "__main__":
    auto_cli(main)
