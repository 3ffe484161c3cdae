"""Under a real SLURM: jobs that are preempted, out of time or lose a node go on."""

import pytest
import torch
from fault_probe import fault
from slurm_cluster import Cluster, missing
from toy_runs import SGD, assert_same_state, checkpoint, fit, history, weights

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]
ITERATIONS = 14
# There is always something to learn from, for a while.
LONG = ["--data.init_args.groups_per_iteration=120", "--data.init_args.dynamic_sampling=false"]
TOY = [
    *("fit", "--config=configs/toy.yaml", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--trainer.limit_val_batches=0", *LONG),
    f"--trainer.max_epochs={ITERATIONS}",
    *("--model.init_args.passes=2", "--model.init_args.episodes_per_minibatch=16"),
]


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    if why := missing():
        pytest.skip(why)
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def cluster(machines):
    yield machines
    machines.mend()


def finished(run_dir):
    return len(history(run_dir)) if (run_dir / "history.json").exists() else 0


def is_over(cluster, job):
    return cluster.state(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def output(run_dir, job):
    return (run_dir / f"slurm-{job}.out").read_text()


def test_a_job_that_is_preempted_and_out_of_time(cluster, tmp_path):
    """One task; its weights are those of an undisturbed run, bit for bit."""
    options = ["--gpus-per-node=0", "--cpus-per-task=1", "--time=10:00"]
    job = cluster.submit(*options, *TOY, f"--run_dir={tmp_path}")
    cluster.wait(lambda: finished(tmp_path) >= 2, "two iterations")
    # As a scheduler that needs the nodes for somebody else.
    cluster.run("scontrol", "requeue", job)
    cluster.hasten(job)
    cluster.wait(lambda: finished(tmp_path) >= 5, "five iterations")
    assert cluster.state(job)["Restarts"] == "1"
    # What SLURM sends two minutes before the end, as the script has asked for.
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.hasten(job)
    cluster.wait(lambda: is_over(cluster, job), "the end")
    told = cluster.state(job)
    assert (told["JobState"], told["Restarts"]) == ("COMPLETED", "2"), output(tmp_path, job)
    assert "Traceback" not in output(tmp_path, job)
    assert [entry["iteration"] for entry in history(tmp_path)] == list(range(1, ITERATIONS + 1))
    whole = fit(tmp_path / "whole", ITERATIONS, *LONG)
    assert_same_state(checkpoint(tmp_path), whole)


@pytest.mark.slow
def test_a_job_on_two_nodes_of_which_one_dies(cluster, tmp_path):
    """Which rank runs which episode depends on timing, so sums are rounded otherwise."""
    options = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10:00"]
    job = cluster.submit(*options, *TOY, *SGD, f"--run_dir={tmp_path}")
    cluster.wait(lambda: finished(tmp_path) >= 2, "two iterations")
    assert cluster.state(job)["NumNodes"] == "2"
    cluster.kill("n2")
    cluster.wait(lambda: cluster.state(job)["Restarts"] == "1", "SLURM to notice")
    cluster.start_node("n2")
    # Not hastened: meanwhile SLURM tells the node to end the job's first life, again and again
    # until it answers, and would end a second one with it.
    cluster.wait(lambda: is_over(cluster, job), "the end")
    assert cluster.state(job)["JobState"] == "COMPLETED", output(tmp_path, job)
    assert [entry["iteration"] for entry in history(tmp_path)] == list(range(1, ITERATIONS + 1))
    whole = fit(tmp_path / "whole", ITERATIONS, *LONG, *SGD)
    for name, value in weights(whole).items():
        found = weights(checkpoint(tmp_path))[name]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_array_of_seeds(cluster, tmp_path):
    where = f"--run_dir={tmp_path}/seed{{seed}}"
    options = ["--gpus-per-node=0", "--cpus-per-task=1", "--over=seed=0,7"]
    short = [*TOY, "--trainer.max_epochs=1", "--data.init_args.seed={seed}"]
    job = cluster.submit(*options, *short, where)
    runs = [tmp_path / f"seed{seed}" for seed in (0, 7)]
    cluster.wait(lambda: all(finished(run) == 1 for run in runs), "both")
    cluster.wait(lambda: not cluster.run("squeue", "-h", "-j", job).strip(), "the end")
    successes = {history(run)[0]["metrics"]["rollout/success_rate"] for run in runs}
    assert len(successes) == 2


@pytest.mark.slow
def test_a_job_that_is_cancelled_stays_so(cluster, tmp_path):
    options = ["--gpus-per-node=0", "--cpus-per-task=1", "--time=10:00"]
    job = cluster.submit(*options, *TOY, f"--run_dir={tmp_path}")
    cluster.wait(lambda: finished(tmp_path) >= 1, "an iteration")
    cluster.run("scancel", job)
    cluster.wait(lambda: is_over(cluster, job), "the end")
    told = cluster.state(job)
    assert (told["JobState"], told["Restarts"]) == ("CANCELLED", "0")
    assert "Stopped by SIGTERM" in output(tmp_path, job)
    assert checkpoint(tmp_path)["epoch"] < ITERATIONS - 1


def test_a_job_of_which_a_rank_fails_is_not_tried_again(cluster, tmp_path):
    options = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10:00"]
    flawed = fault(tmp_path, "raise", "learning", 1)
    job = cluster.submit(*options, *TOY, *flawed, f"--run_dir={tmp_path}")
    cluster.wait(lambda: is_over(cluster, job), "the end")
    told = cluster.state(job)
    assert (told["JobState"], told["Restarts"]) == ("FAILED", "0"), output(tmp_path, job)
    assert "Rank 1 (process" in output(tmp_path, job)
    assert "has ended: The elbow names ../hand" in output(tmp_path, job)


@pytest.mark.slow
@pytest.mark.libero
def test_libero_on_two_nodes(cluster, tmp_path):
    """An untrained policy for two short iterations."""
    quick = "configs/quickstart"
    few = "--data.init_args"
    job = cluster.submit(
        *("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10:00", "fit"),
        *(f"--config={quick}/{name}.yaml" for name in ("libero", "ript", "policy")),
        *(f"{few}.groups_per_iteration=2", f"{few}.max_contexts=4", f"{few}.num_workers=1"),
        *(f"{few}.dynamic_sampling=false", f"{few}.rollouts_per_context=2"),
        *(f"{few}.environment.init_args.max_steps=16", "--trainer.max_epochs=2"),
        *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
        f"--run_dir={tmp_path}",
    )
    cluster.wait(lambda: is_over(cluster, job), "the end")
    assert cluster.state(job)["JobState"] == "COMPLETED", output(tmp_path, job)
    assert finished(tmp_path) == 2
    assert "Traceback" not in output(tmp_path, job)
