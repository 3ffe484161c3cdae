"""How much a small policy loses on a machine that it shares: the toy, alone and beside others.

python benchmarks/busy_machine.py [--busy 1] [--rounds 3]

Runs `lightning-ript fit --config configs/toy.yaml` alone, and beside processes that compute without
a pause, by turns, and prints the times and their ratio. Beside one process on two cores, a fair
share of the machine is two thirds or more, so up to 1.5 times as long would be no loss at all.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from statistics import median

from jsonargparse import auto_cli
from measuring.processes import cores
from measuring.report import table

TOY = ("fit", "--config=configs/toy.yaml", "--trainer.enable_progress_bar=false")


def seconds() -> float:
    """Wall time of a toy run, from its first import on."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "lightning_ript", *TOY, f"--run_dir={folder}/toy"],
            check=True,
            capture_output=True,
        )
        return time.monotonic() - started


def main(busy: int = 1, rounds: int = 3) -> None:
    """Prints the table.

    Args:
        busy: Processes that compute beside it.
        rounds: Runs of each kind.
    """
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(seconds())
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            beside.append(seconds())
        finally:
            for other in others:
                other.kill()
                other.wait()
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    rows = [
        ["alone", *(f"{value:.1f}" for value in (median(alone), min(alone), max(alone)))],
        [
            f"beside {busy} busy on {cores()} cores",
            *(f"{value:.1f}" for value in (median(beside), min(beside), max(beside))),
        ],
        ["ratio", *(f"{value:.2f}" for value in (median(ratios), min(ratios), max(ratios)))],
    ]
    print(table(["seconds", "median", "least", "most"], rows))


if __name__ == "__main__":
    auto_cli(main)
