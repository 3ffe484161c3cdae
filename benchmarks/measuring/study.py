"""What the studies share: the quickstart's small QueST, imitation first, then practice.

Every step is a command of `lightning-ript`, which says for itself how far it is and goes on where
it was interrupted; what is finished is not run again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.run_directory import evaluation_path, history_path

CONFIGS = Path(__file__).parents[2] / "configs"
QUEST = tuple(f"--config={CONFIGS}/quickstart/{name}.yaml" for name in ("ript", "policy"))


class Study:
    """Runs on some of LIBERO-Object's tasks, which one policy learns together.

    Args:
        out: Folder of all runs.
        tasks: Numbers of the tasks.
        settings: What else decides what the runs find.

    Raises:
        SystemExit: If `out` holds runs of other settings.
    """

    def __init__(self, out: Path, tasks: Sequence[int], settings: Mapping[str, Any]) -> None:
        self.out, self.tasks = out, list(tasks)
        now = {"tasks": self.tasks, **settings}
        file = out / "settings.json"
        if not file.exists():
            out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(now))
        elif (found := json.loads(file.read_text())) != now:
            raise SystemExit(f"{out} holds runs of {found}, not of {now}: use another folder.")

    def demonstrations(self, seed: int, count: int) -> Path:
        """The scripted expert's demonstrations of each task, in a folder.

        Args:
            seed: Theirs.
            count: Of each task.
        """
        files = self.out / "demonstrations" / f"seed{seed}"
        command(
            "collect-demos",
            f"--config={CONFIGS}/quickstart/demos.yaml",
            f"--tasks={self.tasks}",
            f"--demos={count}",
            f"--out={files}",
            f"--seed={seed}",
        )
        return files

    def imitate(self, seed: int, collected: int, used: int, steps: int) -> Path:
        """Demonstrations, skill tokens and supervised fine-tuning.

        Args:
            seed: Of demonstrations and training.
            collected: Demonstrations of each task to collect.
            used: How many of them to learn from.
            steps: Optimizer steps of each of the two stages.

        Returns:
            The checkpoint.
        """
        files = self.demonstrations(seed, collected)
        folder = self.out / "supervised" / f"{used} demonstrations" / f"seed{seed}"
        last = Path("checkpoints", "last.ckpt")
        done = folder / "done"
        shared = (
            f"--config={CONFIGS}/quickstart/policy.yaml",
            f"--data.init_args.files=[{files}]",
            f"--data.init_args.demonstrations_per_file={used}",
            "--data.init_args.validation_fraction=0",
            f"--trainer.max_steps={steps}",
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

    def practise(
        self,
        folder: Path,
        checkpoint: Path | None,
        seed: int,
        iterations: int,
        evaluate_every: int,
        settings: Sequence[str],
        configs: Sequence[str] = QUEST,
        baseline: Path | None = None,
        evaluations: int = 1,
    ) -> None:
        """Evaluation of the start, then RIPT.

        Args:
            folder: The run directory.
            checkpoint: What to start from; None where `settings` say it.
            seed: Of practice.
            iterations: Of RIPT.
            evaluate_every: So many of them.
            settings: Further arguments of `fit` and `validate`.
            configs: Arguments that name the configs of loop and policy.
            baseline: A run that started from the same checkpoint, whose evaluations of it are
                taken.
            evaluations: So many of the start and of the end, each with noise of its own.
        """
        arguments = [
            f"--config={CONFIGS}/quickstart/libero.yaml",
            *configs,
            *schedule(checkpoint, iterations),
            f"--data.init_args.environment.init_args.task_subset={self.tasks}",
            "--data.init_args.eval_videos=0",
            f"--data.init_args.seed={seed}",
            f"--trainer.max_epochs={iterations}",
            f"--trainer.check_val_every_n_epoch={evaluate_every}",
            f"--seed_everything={seed}",
            f"--run_dir={folder}",
            *settings,
        ]
        ends = {
            "before": [f"--config={CONFIGS}/quickstart/before.yaml"],
            "last": [f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"],
        }
        if baseline is not None:
            _take_over_start(baseline, folder, evaluations)
        if not evaluation_path(folder, "before").exists():
            command("validate", *arguments, *ends["before"])
        done = folder / "done"
        if not done.exists():
            command("fit", *arguments)
            done.touch()
        if not _after(folder).exists():
            command("validate", *arguments, *ends["last"])
        for number in range(1, evaluations):
            again = evaluated_again(folder, number)
            other = [f"--data.init_args.seed={seed + 1000 * number}", f"--run_dir={again}"]
            for name, which in ends.items():
                if not evaluation_path(again, name).exists():
                    command("validate", *arguments, *other, *which)


def _take_over_start(baseline: Path, folder: Path, evaluations: int) -> None:
    """Copies the evaluations of the start that `baseline` has and `folder` lacks."""
    runs = (_evaluated(run, evaluations) for run in (baseline, folder))
    for other, own in zip(*runs, strict=True):
        there, here = evaluation_path(other, "before"), evaluation_path(own, "before")
        if there.exists() and not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there, here)


def schedule(checkpoint: Path | None, iterations: int) -> list[str]:
    """Arguments that name the checkpoint, and the end of the learning rate's schedule."""
    if checkpoint is None:
        return []
    return [
        f"--model.init_args.policy.init_args.checkpoint={checkpoint}",
        f"--model.init_args.scheduler.init_args.T_max={iterations}",
    ]


def before_and_after(folder: Path) -> tuple[EvaluationResult, EvaluationResult]:
    """The evaluations before and after RIPT, on the test states."""
    before = EvaluationResult.read(evaluation_path(folder, "before"))
    return before, EvaluationResult.read(_after(folder))


def _after(folder: Path) -> Path:
    """The evaluation by `fit` after the last iteration, or else the one of its checkpoint.

    A run that finds nothing more to learn from ends after an iteration without an evaluation.
    """
    own = evaluation_path(folder, f"epoch={len(history(folder)) - 1:03d}")
    return own if own.exists() else evaluation_path(folder, "last")


def evaluated_again(folder: Path, number: int) -> Path:
    """Where a run's further evaluations are."""
    return folder / "further" / str(number)


def _evaluated(folder: Path, evaluations: int) -> list[Path]:
    """Where a run's evaluations are: its first is its own."""
    return [folder, *(evaluated_again(folder, number) for number in range(1, evaluations))]


def pooled_before_and_after(folder: Path, evaluations: int) -> list[EvaluationResult]:
    """All evaluations of the start as one, and all of the end."""
    pooled = []
    for first, name in zip(before_and_after(folder), ("before", "last"), strict=True):
        again = _evaluated(folder, evaluations)[1:]
        further = [EvaluationResult.read(evaluation_path(each, name)) for each in again]
        tasks = tuple(task for result in (first, *further) for task in result.tasks)
        pooled.append(first._replace(tasks=tasks))
    return pooled


def history(folder: Path) -> list[dict[str, Any]]:
    """What `RunReport` wrote of each iteration."""
    return json.loads(history_path(folder).read_text())


def command(*arguments: str) -> None:
    """Runs a command of the project's.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    subprocess.run([sys.executable, "-m", "lightning_ript", *arguments], check=True)
