"""A toy run that is killed again and again ends as one that was left alone, bit for bit.

python benchmarks/kills.py [--kills 20] [--seed 0]

Each time, after a random while, SIGKILL goes to a random process: the trainer or one of its two
simulators. A trainer is started again by the same command, and itself replaces a simulator.
"""

from __future__ import annotations

import contextlib
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
    *("--trainer.limit_val_batches=0", "--data.init_args.num_workers=2"),
)


def started(run_dir: Path) -> subprocess.Popen[bytes]:
    """The run, in the background."""
    with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
        return subprocess.Popen(
            [*COMMAND, f"--run_dir={run_dir}", f"--trainer.max_epochs={ITERATIONS}"],
            stdout=log,
            stderr=log,
        )


def children(pid: int) -> list[int]:
    """The simulators that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found += [int(child) for child in task.read_text().split()]
    return [child for child in found if b"envs.worker" in _command_line(child)]


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def killed(run_dir: Path, kills: int, seed: int) -> tuple[int, int]:
    """Runs to the end, with so many kills on the way.

    Returns:
        How many of them hit the trainer, and how many a simulator.

    Raises:
        RuntimeError: The run fails by itself.
    """
    random = np.random.default_rng(seed)
    hit = [0, 0]
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    process = started(run_dir)
    while sum(hit) < kills:
        # Most of a start is imports; what comes after them is of interest.
        time.sleep(random.uniform(0.0, 1.0))
        if process.poll() is not None:
            raise RuntimeError(f"the run ended after {sum(hit)} kills: see {run_dir}.log")
        workers = children(process.pid)
        if not workers and random.random() < 0.9:
            continue  # still importing
        victim = int(random.choice([process.pid, *workers]))
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            continue
        hit[victim != process.pid] += 1
        if victim == process.pid:
            process.wait()
            process = started(run_dir)
    if process.wait():
        raise RuntimeError(f"the run fails: see {run_dir}.log")
    return hit[0], hit[1]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Those of the last checkpoint."""
    path = run_dir / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=False)["state_dict"]


def main(kills: int = 20, seed: int = 0, out: Path | None = None) -> None:
    """Compares the two runs.

    Args:
        kills: Processes to kill.
        seed: Of whom and when.
        out: Folder of both runs; a temporary one by default.

    Raises:
        SystemExit: The weights differ.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        trainers, simulators = killed(folder / "killed", kills, seed)
        if started(folder / "alone").wait():
            raise RuntimeError(f"the run fails: see {folder / 'alone'}.log")
        expected, found = weights(folder / "alone"), weights(folder / "killed")
    differ = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    print(f"{trainers} kills of the trainer, {simulators} of simulators; {ITERATIONS} iterations")
    if differ:
        raise SystemExit(f"The weights differ: {', '.join(differ)}")
    print("The weights are those of a run that was left alone, bit for bit.")


if __name__ == "__main__":
    auto_cli(main)
