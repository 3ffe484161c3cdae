"""A toy run that is killed again and again ends as one that was left alone, bit for bit.

python benchmarks/kills.py [--kills 20] [--seed 0]

Each time, after a random while, SIGKILL ends a random process of the run: the trainer, which the
same command then starts again, or one of its simulators, which the trainer replaces.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli

ITERATIONS = 30
COMMAND = (
    *(sys.executable, "-m", "lightning_ript", "fit", "--config=configs/toy.yaml"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.limit_val_batches=0", "--data.num_workers=2"),
)


def started(run_dir: Path) -> subprocess.Popen[bytes]:
    """The run, in the background."""
    with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
        return subprocess.Popen(
            [*COMMAND, f"--run_dir={run_dir}", f"--trainer.max_epochs={ITERATIONS}"],
            stdout=log,
            stderr=log,
        )


def holds(pid: int, run_dir: Path) -> bool:
    """Whether a process has come so far as to hold its run directory."""
    lock = run_dir / ".lock"
    return lock.exists() and f'"pid": {pid},' in lock.read_text()


def killed(run_dir: Path, kills: int, seed: int) -> None:
    """Runs to the end, with so many kills on the way.

    Raises:
        RuntimeError: The run fails by itself.
    """
    random = np.random.default_rng(seed)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    process = started(run_dir)
    for number in range(kills):
        while process.poll() is None and not holds(process.pid, run_dir):
            time.sleep(0.02)  # most of a start is imports; what comes after them is of interest
        time.sleep(random.uniform(0.0, 2.0))
        if process.poll() is not None:
            raise RuntimeError(f"the run ended after {number} kills: see {run_dir}.log")
        chosen = random.choice([process.pid, *children(process.pid)])
        os.kill(chosen, signal.SIGKILL)
        if chosen == process.pid:
            process.wait()
            process = started(run_dir)
    if process.wait():
        raise RuntimeError(f"the run fails: see {run_dir}.log")


def children(pid: int) -> list[int]:
    """The simulators of a trainer."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in listed.read_text().split()]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Those of the last checkpoint."""
    path = run_dir / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=False)["state_dict"]


def main(kills: int = 20, seed: int = 0, out: Path | None = None) -> None:
    """Compares the two runs.

    Args:
        kills: How often.
        seed: Of the moments.
        out: Folder of both runs; a temporary one by default.

    Raises:
        SystemExit: The weights differ.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        killed(folder / "killed", kills, seed)
        if started(folder / "alone").wait():
            raise RuntimeError(f"the run fails: see {folder / 'alone'}.log")
        expected, found = weights(folder / "alone"), weights(folder / "killed")
    differ = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    print(f"{kills} kills in {ITERATIONS} iterations")
    if differ:
        raise SystemExit(f"The weights differ: {', '.join(differ)}")
    print("The weights are those of a run that was left alone, bit for bit.")


if __name__ == "__main__":
    auto_cli(main)
