"""Two ranks on one machine end where one process ends."""

import json

import pytest
import torch
from toy_runs import SGD, checkpoint, fit, history, start, weights

ITERATIONS = 2
EVALUATION = [
    "--trainer.limit_val_batches=1.0",
    "--data.init_args.eval_states_per_task=5",
    "--data.init_args.eval_videos=3",
    "--trainer.callbacks+=lightning_ript.callbacks.RolloutVideo",
    "--trainer.callbacks.per_task=1",
    "--trainer.callbacks+=lightning_ript.callbacks.EvaluationSweep",
    '--trainer.callbacks.environments={"more": {"class_path": "lightning_ript.envs.toy.ToySpec"}}',
    "--trainer.callbacks.states_per_task=7",
]
TIMES = {"time/collecting", "time/learning", "rollout/episodes_per_second"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    ranks = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.callbacks+=toy_runs.SaveEveryRank",
        f"--trainer.callbacks.folder={two}",
    ]
    process = start(two, ITERATIONS, *SGD, *EVALUATION, *ranks)
    fit(one, ITERATIONS, *SGD, *EVALUATION)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, out + err
    assert "Warning" not in err
    assert "It is recommended" not in err
    return one, two


def test_both_ranks_end_with_the_weights_of_one_process(runs):
    one, two = runs
    alone = weights(checkpoint(one))
    ranks = [torch.load(two / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0].keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-5, atol=1e-5)


def test_metrics_are_of_all_ranks(runs):
    one, two = runs
    for entry, other in zip(history(one), history(two), strict=True):
        assert entry["metrics"].keys() == other["metrics"].keys()
        for name in entry["metrics"].keys() - TIMES:
            expected = pytest.approx(entry["metrics"][name], rel=1e-4, abs=1e-5)
            assert other["metrics"][name] == expected, name


def test_evaluation_counts_the_episodes_of_all_ranks(runs):
    one, two = runs
    for i in range(ITERATIONS):
        name = f"evaluation/epoch={i:03d}.json"
        alone, shared = (json.loads((run / name).read_text()) for run in (one, two))
        assert [task["episodes"] for task in shared["tasks"]] == [5, 5]
        assert shared["tasks"] == alone["tasks"]


def test_a_sweep_counts_the_episodes_of_all_ranks(runs):
    alone, shared = ((run / "sweep.csv").read_text() for run in runs)
    assert ",7," in alone
    assert shared == alone


def test_videos_are_chosen_among_those_of_all_ranks(runs):
    alone, shared = (
        sorted(str(path.relative_to(run)) for path in run.glob("videos/*/*.mp4")) for run in runs
    )
    assert len(alone) == 2 * ITERATIONS  # one of each task
    assert shared == alone


def test_the_checkpoint_says_the_same(runs):
    one, two = runs
    assert checkpoint(one)["RolloutDataModule"] == checkpoint(two)["RolloutDataModule"]
    assert checkpoint(one)["epoch"] == checkpoint(two)["epoch"] == ITERATIONS - 1
