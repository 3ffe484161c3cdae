import json
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_ript.evaluation import SuccessRate
from lightning_ript.reports.evaluation_table import evaluation_table
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult, wilson_interval
from lightning_ript.types import Task

SOUP = Task("libero_object", 0, "pick_up_the_soup", "pick up the soup")
MILK = Task("libero_object", 7, "pick_up_the_milk", "pick up the milk")


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_the_literature(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_and_exact_at_the_ends():
    low, high = wilson_interval(19, 50)
    assert wilson_interval(31, 50) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(0, 50)[0] == 0.0
    assert wilson_interval(50, 50)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_widens_with_confidence():
    low, high = wilson_interval(25, 50, confidence=0.5)
    wide_low, wide_high = wilson_interval(25, 50, confidence=0.99)
    assert wide_low < low < 0.5 < high < wide_high


@pytest.mark.parametrize("counts", [(3, 2), (-1, 2), (1, 2, 0.0), (1, 2, 1.0)])
def test_wilson_interval_refuses_nonsense(counts):
    with pytest.raises(ValueError, match=r"impossible|confidence"):
        wilson_interval(*counts)


def counted() -> SuccessRate:
    metric = SuccessRate([SOUP, MILK])
    for task_index, success, steps in [(0, True, 100), (0, False, 600), (1, True, 80)]:
        metric.update(task_index, success, steps)
    return metric


def test_success_rate_counts_per_task_and_pools():
    result = counted().compute()
    assert result.tasks == (
        TaskResult("pick_up_the_soup", "pick up the soup", 2, 1, 350.0),
        TaskResult("pick_up_the_milk", "pick up the milk", 1, 1, 80.0),
    )
    assert result.tasks[0].rate == 0.5
    # Pooled counts: 2 of 3, not the mean of 1/2 and 1.
    assert result.rate == pytest.approx(2 / 3)
    assert result.overall.mean_steps == pytest.approx(780 / 3)
    assert result.interval() == wilson_interval(2, 3)


def test_reset_keeps_the_tasks_and_reset_tasks_replaces_them():
    metric = counted()
    metric.reset()
    assert [task.episodes for task in metric.compute().tasks] == [0, 0]
    metric.update(1, False, 5)
    metric.reset_tasks([MILK])
    metric.update(0, True, 7)
    assert metric.compute().tasks == (TaskResult(MILK.name, MILK.language, 1, 1, 7.0),)
    metric.reset()
    assert metric.compute().tasks[0].episodes == 0


def test_success_rate_refuses_unknown_and_repeated_tasks():
    with pytest.raises(IndexError, match="2 tasks are evaluated"):
        counted().update(2, True, 1)
    with pytest.raises(IndexError, match="Episode of task -1"):
        counted().update(-1, True, 1)
    with pytest.raises(ValueError, match=r"given twice: pick_up_the_soup\."):
        SuccessRate([SOUP, MILK, SOUP])


def _count_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric = SuccessRate([SOUP, MILK])
    if rank == 0:  # uneven shares: averaging the ranks' rates would give another answer
        for _ in range(3):
            metric.update(0, True, 10)
    else:
        metric.update(0, False, 50)
        metric.update(1, True, 30)
    metric.compute().write(f"{folder}/{rank}.json")
    dist.destroy_process_group()


def test_ranks_sum_their_counts(tmp_path):
    # Forked, since importing torchmetrics anew in each process would take most of a minute.
    mp.start_processes(_count_on_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    results = [EvaluationResult.read(tmp_path / f"{rank}.json") for rank in (0, 1)]
    assert results[0] == results[1]
    assert results[0].tasks[0][2:] == (4, 3, 20.0)
    assert results[0].tasks[1][2:] == (1, 1, 30.0)


def test_json_round_trip(tmp_path):
    result = counted().compute()._replace(metadata={"seed": 3, "checkpoint": None})
    path = tmp_path / "evaluation" / "before.json"
    result.write(path)
    assert EvaluationResult.read(path) == result
    assert [file.name for file in path.parent.iterdir()] == ["before.json"]
    content = json.loads(path.read_text())
    assert content["overall"]["success_rate"] == pytest.approx(2 / 3)
    assert content["tasks"][0]["interval_95"] == pytest.approx(wilson_interval(1, 2))


def test_a_task_without_episodes_is_null_in_json_and_a_dash_in_the_table(tmp_path):
    metric = SuccessRate([SOUP, MILK])
    metric.update(1, True, 5)
    result = metric.compute()
    result.write(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["tasks"][0]["success_rate"] is None
    assert math.isnan(EvaluationResult.read(tmp_path / "result.json").tasks[0].rate)
    assert evaluation_table(result).splitlines()[2].split() == [
        "pick_up_the_soup",
        "0/0",
        "-",
        "-",
        "-",
    ]


def test_table_is_aligned():
    assert evaluation_table(counted().compute()) == "\n".join(
        [
            "task              success    rate   95 % interval  mean steps",
            "-------------------------------------------------------------",
            "pick_up_the_soup      1/2   50.0%    9.5% - 90.5%       350.0",
            "pick_up_the_milk      1/1  100.0%  20.7% - 100.0%        80.0",
            "-------------------------------------------------------------",
            "all tasks             2/3   66.7%   20.8% - 93.9%       260.0",
        ]
    )


def test_read_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No evaluation result at .*missing\.json"):
        EvaluationResult.read(tmp_path / "missing.json")
    for name, text in {"a.json": "{", "b.json": "{}", "c.json": "[1]"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} is not an evaluation result"):
            EvaluationResult.read(tmp_path / name)
