"""The quickstart: demonstrations, SFT, RIPT and evaluation on one LIBERO task."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_ript.running.configs import CONFIGS


@dataclass(frozen=True)
class Step:
    """A command of the quickstart.

    Attributes:
        title: What it does.
        arguments: The command.
        result: A file that it makes last; where it is there, the step is left out. None for
            commands that find out for themselves what there is to do.
    """

    title: str
    arguments: Sequence[str]
    result: Path | None = None


def steps(seed: int, folder: Path) -> list[Step]:
    """All of them, in order.

    Args:
        seed: Of demonstrations, training and practice.
        folder: Where everything goes.
    """

    def config(*names: str) -> list[str]:
        return [f"--config={CONFIGS}/quickstart/{name}.yaml" for name in names]

    demonstrations, ript = folder / "demonstrations", folder / "ript"
    seeded = f"--seed_everything={seed}"
    practice = [
        *config("libero", "ript", "policy"),
        f"--model.policy.checkpoint={folder}/sft/checkpoints/last.ckpt",
        f"--data.seed={seed}",
        seeded,
        f"--run_dir={ript}",
    ]
    before, after = (ript / "evaluation" / f"{name}.json" for name in ("before", "after"))
    files = f"--data.files=[{demonstrations}]"
    return [
        Step(
            "demonstrations of a scripted expert",
            ["collect-demos", *config("demos"), f"--out={demonstrations}", f"--seed={seed}"],
        ),
        Step(
            "skill tokens from their actions",
            [
                *("fit", *config("autoencoder", "policy"), "--model.policy.sizes.dropout=0"),
                *(files, seeded, f"--run_dir={folder}/autoencoder"),
            ],
        ),
        Step(
            "supervised fine-tuning (SFT)",
            [
                *("fit", *config("sft", "policy"), files),
                f"--model.policy.checkpoint={folder}/autoencoder/checkpoints/last.ckpt",
                *(seeded, f"--run_dir={folder}/sft"),
            ],
        ),
        Step("evaluation before RIPT", ["validate", *practice, *config("before")], before),
        Step("RIPT", ["fit", *practice], after),
        Step(
            "evaluation after RIPT",
            [
                *("validate", *practice, *config("after")),
                f"--ckpt_path={ript}/checkpoints/last.ckpt",
            ],
            after,
        ),
        Step("summary", ["report", str(ript)]),
    ]


def quickstart(seed: int = 0, run: Path | None = None) -> None:
    """Runs the main job on one LIBERO-Object task, in about 20 minutes on two fast cores.

    Every step goes on where it was interrupted, and does nothing when it has been done.

    Args:
        seed: Of demonstrations, training and practice.
        run: Folder of everything; `runs/quickstart/seed<seed>` by default.

    Raises:
        SystemExit: A step fails, with its status; it has said why.
    """
    folder = Path("runs", "quickstart", f"seed{seed}") if run is None else run
    todo = steps(seed, folder)
    for number, step in enumerate(todo, start=1):
        done = step.result is not None and step.result.is_file()
        said = "done before" if done else f"lightning-ript {step.arguments[0]}"
        sys.stdout.write(f"\n[{number}/{len(todo)}] {step.title} ({said})\n")
        sys.stdout.flush()
        if not done:
            status = _status([sys.executable, "-m", "lightning_ript", *step.arguments])
            if status:
                raise SystemExit(status)


def _status(command: Sequence[str]) -> int:
    """Runs a command to its end, which it finds by itself when it is told to stop."""
    with subprocess.Popen(command) as process:

        def pass_on(number: int, frame: Any) -> None:
            if number != signal.SIGINT:  # a terminal sends that to both
                process.send_signal(number)

        told = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, pass_on) for number in told]
        try:
            return process.wait()
        finally:
            for number, handler in zip(told, before, strict=True):
                signal.signal(number, handler)
