"""Where a run's results lie below its directory, `trainer.default_root_dir`."""

from __future__ import annotations

import json
from pathlib import Path


def evaluation_path(run_dir: str | Path, name: str) -> Path:
    """The JSON of the evaluation called `name`."""
    return Path(run_dir) / "evaluation" / f"{name}.json"


def seen_path(run_dir: str | Path, name: str) -> Path:
    """The picture of what the policy saw in an evaluation in which nothing succeeded."""
    return Path(run_dir) / "evaluation" / f"{name}_seen.png"


def videos_path(run_dir: str | Path, name: str) -> Path:
    """The folder of the evaluation's videos."""
    return Path(run_dir) / "videos" / name


def videos_of(evaluation: str | Path) -> list[Path]:
    """The videos that were made along with an evaluation's JSON, sorted by name."""
    path = Path(evaluation)
    return sorted(videos_path(path.parent.parent, path.stem).glob("*.mp4"))


def history_path(run_dir: str | Path) -> Path:
    """The history of the iterations, as JSON."""
    return Path(run_dir) / "history.json"


def journals_path(run_dir: str | Path) -> Path:
    """The folder of the journal: finished groups of the iteration in progress."""
    return Path(run_dir) / "checkpoints" / "journal"


def finished_iterations(run_dir: str | Path) -> int:
    """Iterations in the history of a run; 0 where there is none that can be read."""
    try:
        return len(json.loads(history_path(run_dir).read_text()))
    except (OSError, ValueError):
        return 0


def learning_curve_path(run_dir: str | Path) -> Path:
    """The picture of the history."""
    return Path(run_dir) / "learning_curve.png"


def page_path(run_dir: str | Path) -> Path:
    """The page of the run."""
    return Path(run_dir) / "report.html"


def warnings_path(run_dir: str | Path) -> Path:
    """The warnings of the run, a line of JSON each."""
    return Path(run_dir) / "warnings.jsonl"


def status_path(run_dir: str | Path) -> Path:
    """What the run is doing now, as JSON."""
    return Path(run_dir) / "status.json"


def sweep_table_path(run_dir: str | Path) -> Path:
    """The table of a sweep, and of the sweeps during training."""
    return Path(run_dir) / "sweep.csv"


def adapter_path(run_dir: str | Path, name: str) -> Path:
    """The folder of a LoRA adapter and its heads."""
    return Path(run_dir) / "lora" / name


def scale_head_path(run_dir: str | Path) -> Path:
    """The scale head that the run has trained."""
    return Path(run_dir) / "scale_head.pth"


def diverged_path(run_dir: str | Path, rank: int) -> Path:
    """The micro-batch whose loss was not finite, as rank `rank` had it."""
    return Path(run_dir) / f"diverged_rank{rank}.pt"
