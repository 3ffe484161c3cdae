"""The job script: what it starts, and what it does when its time is over."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from lightning_ript.cli import main

SCRIPT = Path(__file__).parents[1] / "configs/slurm.sbatch"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """SLURM's variables, and programs of its names that note what they are told."""
    for name, then in (("srun", 'eval "$SRUN_DOES"'), ("scontrol", "true")):
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/said\n{then}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    monkeypatch.setenv("SRUN_DOES", "true")
    return tmp_path / "said"


def test_every_gpu_gets_a_process(cluster):
    subprocess.run(["bash", SCRIPT, "fit", "--config", "a.yaml"], check=True, timeout=30)
    assert cluster.read_text() == (
        "srun --kill-on-bad-exit=1 lightning-ript fit --trainer.strategy ddp --config a.yaml "
        "--trainer.accelerator gpu --trainer.devices 4 --trainer.num_nodes 2\n"
    )


@pytest.mark.parametrize(
    ("more", "strategy"),
    [([], "ddp"), (["--config=configs/trainers/four_gpus_fsdp2.yaml"], "fsdp2")],
)
def test_a_config_may_name_another_strategy(cluster, capsys, more, strategy):
    files = ["--config=configs/toy.yaml", *more]
    subprocess.run(["bash", SCRIPT, "fit", *files], check=True, timeout=30)
    arguments = cluster.read_text().split()[3:]
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert (trainer["accelerator"], trainer["strategy"]) == ("gpu", strategy)
    assert (int(trainer["devices"]), trainer["num_nodes"]) == (4, 2)


def test_simulators_get_the_cores_of_their_rank(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    monkeypatch.setenv("SRUN_DOES", f'echo "$SRUN_CPUS_PER_TASK cores" >> {cluster}')
    subprocess.run(["bash", SCRIPT, "fit"], check=True, timeout=30)
    assert "12 cores\n" in cluster.read_text()


def test_other_commands_get_no_trainer(cluster):
    subprocess.run(["bash", SCRIPT, "collect-demos"], check=True, timeout=30)
    assert cluster.read_text() == "srun --kill-on-bad-exit=1 lightning-ript collect-demos\n"


def test_a_failed_run_fails_the_job(cluster, monkeypatch):
    monkeypatch.setenv("SRUN_DOES", "exit 3")
    assert subprocess.run(["bash", SCRIPT, "fit"], timeout=30).returncode == 3


def test_a_job_out_of_time_is_queued_again(cluster, monkeypatch):
    monkeypatch.setenv("SRUN_DOES", "sleep 4")
    job = subprocess.Popen(["bash", SCRIPT, "fit"], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not cluster.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=30)
    assert "scontrol requeue 42\n" in cluster.read_text()
    assert "queueing again" in out
