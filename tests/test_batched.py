"""Simulators of several episodes at once: equal results, and failures that spread no further."""

import numpy as np
import pytest
from core_probe import FaultyBatchSpec
from test_rollouts import SPEC, assert_same, collect
from toy_runs import assert_same_state, fit

from lightning_ript.envs.base import WorkerError
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.envs.toy import BatchedToyEnvironment, BatchedToySpec, ToyEnvironment
from lightning_ript.types import ChunkResult, Context, Perturbation

BATCHED = BatchedToySpec(episodes_per_worker=5)


def contexts():
    plain = [Context(task, i, seed=i) for task in SPEC.tasks() for i in range(4)]
    moved = Context(SPEC.tasks()[1], 9, seed=9, perturbation=Perturbation(0.1, (0, 9)))
    given = Context(SPEC.tasks()[0], 10, init_state=np.array([0.1, 0.2, -0.3, 0.4]))
    return [*plain, moved, given]


def assert_equal(answer, expected):
    if isinstance(expected, ChunkResult):
        assert (answer.success, answer.steps) == (expected.success, expected.steps)
        assert len(answer.frames) == len(expected.frames)
        assert all(
            np.array_equal(*pair) for pair in zip(answer.frames, expected.frames, strict=True)
        )
        answer, expected = answer.observation, expected.observation
    assert answer.keys() == expected.keys()
    assert all(np.array_equal(answer[key], expected[key]) for key in expected)


def test_together_they_move_as_they_do_alone():
    starts = contexts()
    rng = np.random.default_rng(0)
    together = BatchedToyEnvironment(len(starts))
    alone = [ToyEnvironment() for _ in starts]
    films = [i % 2 == 0 for i in range(len(starts))]
    seen = together.reset(list(range(len(starts))), starts, films)
    for i, start in enumerate(starts):
        assert_equal(seen[i], alone[i].reset(start, films[i]))
    successes = 0
    for _ in range(12):
        # Some of them, in any order, with chunks of any length.
        indices = rng.permutation(len(starts))[: rng.integers(1, len(starts))].tolist()
        chunks = [rng.uniform(-2, 2, (rng.integers(1, 6), 2)) for _ in indices]
        results = together.step_chunk(indices, chunks)
        for i, chunk, result in zip(indices, chunks, results, strict=True):
            assert_equal(result, alone[i].step_chunk(chunk))
            successes += result.success
    assert successes > 0


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_groups_are_those_of_one_at_a_time(num_workers):
    with EnvironmentPool(SPEC, 0) as pool:
        expected = collect(pool)
    with EnvironmentPool(BATCHED, num_workers) as pool:
        assert len(pool.slots) == 5 * max(1, num_workers)
        assert_same(collect(pool), expected)
        assert len(pool.processes) == num_workers


def test_what_is_asked_before_waiting_is_simulated_in_one_call(monkeypatch):
    calls = []
    original = BatchedToyEnvironment.reset

    def counted(self, indices, *arguments):
        calls.append(indices)
        return original(self, indices, *arguments)

    monkeypatch.setattr(BatchedToyEnvironment, "reset", counted)
    with EnvironmentPool(BATCHED, 0) as pool:
        for slot in (3, 0, 4):
            pool.reset(slot, contexts()[slot])
        assert not calls
        assert [slot for slot, _ in pool.wait()] == [0, 3, 4]
    assert calls == [[3, 0, 4]]


@pytest.mark.parametrize("fault", ["step", "die", "hang"])
def test_who_fails_takes_its_neighbours_along_and_all_come_out_the_same(fault, tmp_path, caplog):
    spec = FaultyBatchSpec(fault=fault, flags=str(tmp_path))
    with EnvironmentPool(SPEC, 0) as pool:
        expected = collect(pool, wanted=2)
    with EnvironmentPool(spec, 2, hang_seconds=15 if fault == "hang" else 60) as pool:
        assert_same(collect(pool, wanted=2), expected)
    assert list(tmp_path.iterdir())
    assert "is run again in a new one" in caplog.text


def test_an_episode_that_was_idle_when_its_process_ended_is_told_so(tmp_path):
    starts = [Context(SPEC.tasks()[0], index, seed=1) for index in (0, 1)]  # the first one fails
    chunk = np.zeros((2, 2))
    with EnvironmentPool(FaultyBatchSpec(flags=str(tmp_path)), 1) as pool:
        for slot, start in enumerate(starts):
            pool.reset(slot, start)
        answers = []
        while len(answers) < 2:
            answers += pool.wait()
        pool.step_chunk(0, chunk)
        ((slot, error),) = pool.wait()
        assert slot == 0
        assert isinstance(error, WorkerError)
        pool.step_chunk(1, chunk)
        ((slot, error),) = pool.wait()
        assert slot == 1
        assert "the episode of slot 1 ended with its simulator process" in str(error)
        for slot, start in enumerate(starts):  # and begins again like any other
            pool.reset(slot, start)
        assert len(pool.wait()) == 2
        pool.step_chunk(1, chunk)
        ((_, result),) = pool.wait()
        assert result.steps == 2


def test_weights_are_those_of_one_at_a_time(tmp_path):
    batched = ["--data.init_args.environment=lightning_ript.envs.toy.BatchedToySpec"]
    assert_same_state(fit(tmp_path / "batched", 2, *batched), fit(tmp_path / "single", 2))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_run_with_workers(tmp_path, num_workers):
    batched = [
        "--data.init_args.environment=lightning_ript.envs.toy.BatchedToySpec",
        "--data.init_args.environment.episodes_per_worker=6",
        f"--data.init_args.num_workers={num_workers}",
    ]
    run, other = fit(tmp_path / "batched", 1, *batched), fit(tmp_path / "single", 1)
    places = [each["RolloutDataModule"]["next_context"] for each in (run, other)]
    assert places[0] == places[1]


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="episodes_per_worker is 1: set it to 2 or more"):
        BatchedToySpec(episodes_per_worker=1).check()
