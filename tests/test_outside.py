"""Somebody else's package brings policy, simulator, estimator and loss; YAML alone joins them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_ript.advantages import estimate
from lightning_ript.storage.evaluation_result import EvaluationResult

OUTSIDE = Path(__file__).parent / "outside"


def run(tmp_path, *more):
    """From another folder, with nothing but that package on the path."""
    (tmp_path / "traces").mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(OUTSIDE),
        "LAB_TRACES": str(tmp_path / "traces"),
    }
    config = OUTSIDE / "lab/run.yaml"
    return subprocess.run(
        [
            *(sys.executable, "-m", "lightning_ript", "fit"),
            *(f"--config={config}", f"--run_dir={tmp_path}/run", *more),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def test_it_learns_by_a_yaml_file_alone(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "run/history.json").read_text())
    rates = [entry["metrics"]["val/success_rate"] for entry in history]
    assert rates[0] < 0.9 < rates[-1]
    assert {path.name for path in (tmp_path / "traces").iterdir()} == {"estimator", "loss"}
    result = EvaluationResult.read(tmp_path / "run/evaluation/epoch=000.json")
    assert result.caveats == ("A line is not a robot.",)
    assert "gymnasium" in result.metadata["versions"]
    (config,) = (tmp_path / "run").glob("metrics/version_0/config.yaml")
    text = config.read_text()
    assert "advantage: lab.learning.halved" in text
    assert "surrogate: lab.learning.unclipped" in text
    assert "sides: 2" in text  # as the environment says


@pytest.mark.slow
def test_the_same_command_goes_on_by_the_config_that_was_saved(tmp_path):
    done = run(tmp_path, "--trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, "--trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "run/history.json").read_text())) == 2


@pytest.mark.parametrize("nonsense", [lambda rewards: rewards.sum(-1), lambda rewards: rewards / 0])
def test_an_estimator_that_returns_nonsense_is_refused(nonsense):
    with pytest.raises(ValueError, match="one finite advantage for each reward"):
        estimate(nonsense, torch.tensor([1.0, 0.0]))
