"""Adapters that a run has written are checkpoints; a KL penalty costs no second model."""

import copy
import os
import subprocess
import sys

import pytest
from test_openvla_sharded import arguments
from toy_runs import refusal

from lightning_ript.cli import main
from lightning_ript.storage.evaluation_result import EvaluationResult
from lightning_ript.storage.run_directory import adapter_path

tiny = pytest.importorskip("tiny_openvla")  # needs timm
MEBI = 2**20
PEAK = """
import sys
from pathlib import Path
from lightning_ript.cli import main
main(sys.argv[1:])
status = Path("/proc/self/status").read_text().split()
print("PEAK", status[status.index("VmHWM:") + 1])
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny.write_tiny_openvla(tmp_path_factory.mktemp("openvla"))


@pytest.fixture(scope="module")
def run(published, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    main(arguments(published, run_dir, 2))
    return run_dir


def evaluation(path):
    result = EvaluationResult.read(path)
    return [(task.successes, task.episodes) for task in result.tasks], result.metadata


def test_an_adapter_is_validated_as_its_checkpoint_is(published, run, tmp_path):
    adapter = adapter_path(run, "iteration_002")
    validate = arguments(published, tmp_path, 2, command="validate")
    main([*validate, f"--ckpt_path={adapter}"])
    main([*validate, f"--ckpt_path={run}/checkpoints/last.ckpt"])
    whole, _ = evaluation(tmp_path / "evaluation/last.json")
    (path,) = set((tmp_path / "evaluation").glob("*.json")) - {tmp_path / "evaluation/last.json"}
    counts, metadata = evaluation(path)
    assert counts == whole
    assert metadata["policy_checkpoint"] == str(adapter)


def test_a_sweep_goes_through_adapters(published, run, tmp_path):
    adapters = [str(adapter_path(run, f"iteration_00{n}")) for n in (1, 2)]
    sweep = [
        word
        for word in arguments(published, tmp_path, 2, command="sweep")
        if not word.startswith(("--run_dir", "--trainer.callbacks"))
    ]
    main([*sweep, f"--checkpoints=[{','.join(adapters)}]", f"--out={tmp_path}"])
    found = sorted((tmp_path / "evaluation").rglob("*.json"))
    assert [EvaluationResult.read(p).metadata["policy_checkpoint"] for p in found] == adapters


def test_what_is_no_adapter_is_refused(published, run, tmp_path, capsys):
    validate = arguments(published, tmp_path, 2, command="validate")
    said = refusal(capsys, *validate, f"--ckpt_path={tmp_path}")
    assert f"{tmp_path} is a folder, but OpenVLAOFTPolicy has no checkpoints in folders" in said
    adapter = adapter_path(run, "iteration_001")
    said = refusal(capsys, *arguments(published, tmp_path, 2), f"--ckpt_path={adapter}")
    assert "which has no optimizer to go on with" in said
    toy = ["validate", "--config=configs/toy.yaml", f"--run_dir={tmp_path}"]
    said = refusal(capsys, *toy, f"--ckpt_path={adapter}")
    assert "ToyPolicy has no checkpoints in folders" in said
    (adapter / "openvla_headers.pt").unlink()
    said = refusal(capsys, *validate, f"--ckpt_path={adapter}")
    assert "has no openvla_headers.pt, so the action head is missing" in said


# -- the starting policy of a KL penalty -----------------------------------------------------------


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A base of 160 MiB, beside which an adapter is small and an interpreter's noise smaller."""
    small = copy.deepcopy(tiny.CONFIG)
    tiny.CONFIG["text_config"] |= {"hidden_size": 512, "intermediate_size": 1024}
    try:
        return tiny.write_tiny_openvla(tmp_path_factory.mktemp("larger"))
    finally:
        tiny.CONFIG.update(small)


def peak(published, run_dir, *more):
    """The most memory that an iteration takes, in bytes, and the size of its adapter's folder."""
    settings = [
        word
        for word in arguments(published, run_dir, 1, *more)
        if not word.startswith(("--model.policy.lora", "--model.passes", "--model.optimizer.mom"))
    ]
    settings += ["--model.policy.lora={r: 64, alpha: 64}", "--trainer.limit_val_batches=0"]
    command = [sys.executable, "-c", PEAK, *settings]
    # One arena and no reuse of large blocks: what is measured is what is held.
    steady = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, env=steady, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stderr
    (kibi,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("PEAK")]
    adapter = adapter_path(run_dir, "iteration_001")
    return int(kibi) * 1024, sum(file.stat().st_size for file in adapter.iterdir())


@pytest.mark.slow
def test_a_kl_penalty_takes_less_memory_than_the_adapter(larger, tmp_path):
    base = sum(file.stat().st_size for file in larger.glob("*.safetensors")) * 2  # in float32
    plain, adapter = peak(larger, tmp_path / "plain")
    penalized, _ = peak(larger, tmp_path / "penalized", "--model.kl_coefficient=0.1")
    assert base > 3 * adapter > 60 * MEBI
    assert penalized - plain < adapter
    loaded = f"--model.policy.adapter={adapter_path(tmp_path / 'plain', 'iteration_001')}"
    plain, _ = peak(larger, tmp_path / "loaded", loaded)
    penalized, _ = peak(larger, tmp_path / "both", loaded, "--model.kl_coefficient=0.1")
    assert penalized - plain < adapter
