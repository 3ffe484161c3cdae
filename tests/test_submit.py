"""Commands become batch scripts; SLURM itself is played by scripts of its programs' names."""

import os
import subprocess
import sys

import pytest

from lightning_ript.cli import main
from lightning_ript.commands.submit import RESTARTS, Job, batch_script, run_folder

TOY = ["fit", "--config", "configs/toy.yaml"]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Programs of SLURM's names, which note what they are told."""

    def program(name, then):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@" >> {tmp_path}/said\n{then}\n')
        path.chmod(0o755)

    program("sbatch", "echo '77;cluster'")
    program("srun", "true")
    program("scontrol", "true")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "said"


def submit(*arguments):
    main(["submit", *arguments])


def test_a_job_is_submitted(cluster, tmp_path, capsys):
    run = tmp_path / "runs" / "toy"
    submit("--nodes", "2", "--gpus-per-node=4", "--partition=gpu", *TOY, f"--run_dir={run}")
    assert cluster.read_text().split() == ["sbatch", "--parsable", str(run / "submit.sbatch")]
    assert capsys.readouterr().out == (
        f"Job 77 is queued; its output goes to {run}/slurm-77.out.\n"
    )
    options = [x for x in (run / "submit.sbatch").read_text().splitlines() if "#SBATCH" in x]
    for option in (
        *("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu", "--requeue"),
        *("--cpus-per-task=16", "--time=24:00:00", f'--output="{run}/slurm-%j.out"'),
    ):
        assert f"#SBATCH {option}" in options


def test_what_the_script_starts(cluster, tmp_path, monkeypatch):
    run = tmp_path / "a run"
    submit("--dry-run", "--gpus-per-node=2", *TOY, "--run_dir", str(run), "--data.seed=3")
    assert not cluster.exists()
    subprocess.run(["bash", run / "submit.sbatch"], check=True, timeout=30)
    assert cluster.read_text().splitlines() == [
        *("srun", "--kill-on-bad-exit=1", sys.executable, "-m", "lightning_ript", "fit"),
        *("--trainer.strategy", "ddp"),
        *("--config", "configs/toy.yaml", "--run_dir", str(run), "--data.seed=3"),
        *("--trainer.devices", "2", "--trainer.num_nodes", "1", "--trainer.accelerator", "gpu"),
    ]


def test_an_array(cluster, tmp_path, capsys, monkeypatch):
    where = f"--run_dir={tmp_path}/all/seed{{seed}}"
    submit("--gpus-per-node=0", "--over=seed=0,7", *TOY, where, "--data.seed", "{seed}")
    assert f"goes to {tmp_path}/all/slurm-77_*.out" in capsys.readouterr().out
    script = tmp_path / "all" / "submit.sbatch"
    assert "#SBATCH --array=0-1" in script.read_text()
    assert "--gpus-per-node" not in script.read_text()
    cluster.unlink()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    subprocess.run(["bash", script], check=True, timeout=30)
    said = cluster.read_text().splitlines()
    assert f"--run_dir={tmp_path}/all/seed7" in said
    assert said[said.index("--data.seed") + 1] == "7"
    assert said[-4:] == ["--trainer.devices", "1", "--trainer.num_nodes", "1"]


def test_an_array_of_configs(cluster, tmp_path):
    for seed in "07":
        (tmp_path / f"{seed}.yaml").write_text(f"seed_everything: {seed}\n")
    config, where = f"--config={tmp_path}/{{seed}}.yaml", f"--run_dir={tmp_path}/all/{{seed}}"
    submit("--gpus-per-node=0", "--over=seed=0,7", *TOY, config, where)
    assert ".yaml" in (tmp_path / "all" / "submit.sbatch").read_text()
    with pytest.raises(SystemExit):
        submit("--gpus-per-node=0", "--over=seed=0,8", *TOY, config, where)


@pytest.mark.parametrize(
    ("happens", "restarts", "state", "again"),
    [
        ("kill -USR1 $PPID; sleep 1; exit 143", 0, "PENDING", True),
        ("kill -TERM $PPID; sleep 1; exit 143", 0, "CANCELLED", False),
        ("kill -TERM $PPID; sleep 1; exit 143", 0, "COMPLETING", False),  # SLURM queues it again
        ("kill -TERM $PPID; sleep 1; exit 143", 0, "RUNNING", True),  # SLURM gives it time to end
        ("exit 137", 0, "RUNNING", True),
        ("exit 137", RESTARTS, "RUNNING", False),
        ("exit 143", 0, "RUNNING", False),  # a task has failed, and srun has ended the others
        ("exit 2", 0, "RUNNING", False),
    ],
)
def test_when_a_job_is_queued_again(
    cluster, tmp_path, monkeypatch, happens, restarts, state, again
):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    with (tmp_path / "bin" / "scontrol").open("a") as program:
        program.write(f"echo JobState={state}\n")
    script = batch_script(TOY, Job(), tmp_path)
    (tmp_path / "bin" / "srun").write_text(f"#!/bin/bash\n{happens}\n")
    done = subprocess.run(["bash", "-c", script], check=False, timeout=30)
    assert done.returncode
    said = cluster.read_text() if cluster.exists() else ""
    assert said.count("scontrol\nrequeue\n42\n") == again


def test_where_the_script_goes(tmp_path, monkeypatch):
    config = tmp_path / "c.yaml"
    config.write_text("run_dir: $SOMEWHERE/run\n")
    monkeypatch.setenv("SOMEWHERE", "/scratch")
    assert str(run_folder(["fit", "--config", str(config)])) == "/scratch/run"
    assert str(run_folder(["fit", f"--config={config}", "--run_dir=other"])) == "other"
    assert str(run_folder(["fit", "--run_dir=a/{seed}/b"])) == "a"
    assert str(run_folder(["fit"])) == "runs/default"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes=1"], "There is no command to submit"),
        (["--nodes=0", *TOY], "nodes is 0"),
        (["--over=seed", *TOY], "over is 'seed': write NAME=VALUE"),
        (["--over=seed=1,2", *TOY], "{seed} is nowhere in the command"),
        ([*TOY, "--data.nothing=1"], "data has no setting nothing"),
        (["--gpu_count=4", *TOY], "gpu_count"),
        ([*TOY, "--ckpt_path=README.md"], "ckpt_path is README.md, from which the job would start"),
    ],
)
def test_bad_jobs_are_refused_before_they_queue(cluster, arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        submit(*arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert not cluster.exists()


def test_a_refusal_of_slurms_is_passed_on(cluster, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'no such partition' >&2; exit 1\n")
    with pytest.raises(SystemExit, match=r"sbatch refuses .*submit\.sbatch: no such partition"):
        submit("--gpus-per-node=0", *TOY, f"--run_dir={tmp_path}/run")


def test_without_slurm_the_script_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SystemExit):
        submit("--gpus-per-node=0", *TOY, f"--run_dir={tmp_path}/run")
    assert "There is no sbatch on this machine" in capsys.readouterr().err
    assert (tmp_path / "run" / "submit.sbatch").is_file()


def test_names_of_commands_may_be_values(cluster, tmp_path):
    run = tmp_path / "a 50% run"
    submit("--account", "report", "--gpus-per-node=0", *TOY, f"--run_dir={run}")
    script = (run / "submit.sbatch").read_text()
    assert "#SBATCH --account=report" in script
    assert "#SBATCH --job-name=a_50__run" in script
    assert f'#SBATCH --output="{tmp_path}/a 50%% run/slurm-%j.out"' in script


def test_other_commands_run_once(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    submit("--gpus-per-node=4", "collect-demos", "--out={}")
    (script,) = tmp_path.rglob("submit.sbatch")
    assert "--ntasks-per-node=1" in script.read_text()
    assert "'--out={}'" in script.read_text()
