"""What the journal saves: the quickstart's first iteration, killed while it collects.

python benchmarks/kill_while_collecting.py runs/quickstart/seed0/sft/checkpoints/last.ckpt

Runs the iteration once without a disturbance. Then again, with SIGKILL to all of its processes once
half of the groups are in the journal, and the same command once more. Prints how long each start
collected.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jsonargparse import auto_cli
from measuring.report import table

from lightning_ript.storage.run_directory import history_path, journals_path

CONFIGS = Path(__file__).parents[1] / "configs" / "quickstart"


def started(checkpoint: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    """One iteration, in a process group of its own."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "log").open("a") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "lightning_ript", "fit"),
                *(f"--config={CONFIGS / name}.yaml" for name in ("libero", "ript", "policy")),
                f"--model.policy.checkpoint={checkpoint}",
                *("--trainer.max_epochs=1", "--trainer.limit_val_batches=0"),
                *("--trainer.enable_progress_bar=false", f"--run_dir={run_dir}"),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finished(process: subprocess.Popen[bytes], run_dir: Path) -> dict[str, float]:
    """The iteration's metrics, once it is done.

    Raises:
        RuntimeError: It fails.
    """
    if process.wait():
        raise RuntimeError(f"the run fails: see {run_dir / 'log'}")
    metrics: dict[str, float] = json.loads(history_path(run_dir).read_text())[-1]["metrics"]
    return metrics


def groups_in(run_dir: Path) -> int:
    """Finished groups in the journal."""
    return len(list(journals_path(run_dir).glob("*/group_*.pt")))


def main(checkpoint: Path, groups: int = 7, out: Path | None = None) -> None:
    """Compares the two.

    Args:
        checkpoint: Of the quickstart's supervised fine-tuning.
        groups: How many are finished when it is killed; an iteration keeps 14.
        out: Folder of both runs; a temporary one by default.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        alone, killed = folder / "alone", folder / "killed"
        whole = finished(started(checkpoint, alone), alone)
        process = started(checkpoint, killed)
        while groups_in(killed) < groups:
            if process.poll() is not None:
                raise RuntimeError(f"the run fails: see {killed / 'log'}")
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        saved = groups_in(killed)
        rest = finished(started(checkpoint, killed), killed)
    rows = [
        ["undisturbed", f"{whole['time/collecting']:.1f}", 0],
        [f"after a kill with {saved} groups finished", f"{rest['time/collecting']:.1f}", saved],
    ]
    print(table(["the iteration's last start", "collecting, s", "groups from the journal"], rows))
    same = [n for n in ("rollout/groups_kept", "rollout/groups_dropped") if whole[n] != rest[n]]
    print("\nGroups kept and dropped are the same." if not same else f"\n{same} differ.")


if __name__ == "__main__":
    auto_cli(main)
