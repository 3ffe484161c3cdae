"""The pool of simulator processes, and how it fails."""

import signal

import numpy as np
import pytest
from core_probe import CuriousSpec, FaultySpec

from lightning_ript.envs.base import WorkerError
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.envs.toy import ToyEnvironment, ToySpec
from lightning_ript.types import ChunkResult

SPEC = ToySpec()
CONTEXTS = [context for task in SPEC.tasks() for context in SPEC.test_contexts(task)[:3]]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 4, 2)).astype(np.float32)


def answers(pool, count):
    got = {}
    while len(got) < count:
        got |= dict(pool.wait())
    return got


@pytest.mark.parametrize("num_workers", [0, 2])
def test_slots_answer_as_the_environment_does(num_workers):
    with EnvironmentPool(SPEC, num_workers) as pool:
        slots = list(pool.slots)[:2]
        for i in slots:
            pool.reset(i, CONTEXTS[i], record=True)
        first = answers(pool, len(slots))
        for i in slots:
            pool.step_chunk(i, ACTIONS[i])
        second = answers(pool, len(slots))
    for i in slots:
        alone = ToyEnvironment()
        expected = alone.reset(CONTEXTS[i], record=True)
        for name, value in expected.items():
            assert np.array_equal(first[i][name], value)
        result = alone.step_chunk(ACTIONS[i])
        assert isinstance(second[i], ChunkResult)
        assert (second[i].success, second[i].steps) == (result.success, result.steps)
        assert len(second[i].frames) == second[i].steps
        assert np.array_equal(second[i].observation["ee_pos"], result.observation["ee_pos"])


def test_workers_never_import_torch():
    with EnvironmentPool(CuriousSpec(), 1) as pool:
        pool.reset(0, CONTEXTS[0])
        (_, observation), *_ = pool.wait()
    assert not observation["gripper_states"].any()
    # The probe sees torch where there is torch.
    with EnvironmentPool(CuriousSpec(), 0) as pool:
        pool.reset(0, CONTEXTS[0])
        (_, observation), *_ = pool.wait()
    assert observation["gripper_states"].all()


def test_a_simulator_that_raises_sends_its_traceback():
    with EnvironmentPool(FaultySpec(fault="step"), 2) as pool:
        pool.reset(0, CONTEXTS[0])
        pool.wait()
        pool.step_chunk(0, ACTIONS[0])
        with pytest.raises(WorkerError, match="the arm fell off") as caught:
            pool.wait()
        assert "in step_chunk" in str(caught.value)
        pool.drain()


def test_a_simulator_that_cannot_be_built_says_why():
    with EnvironmentPool(FaultySpec(fault="make"), 2) as pool:
        pool.reset(0, CONTEXTS[0])  # before the process has failed
        with pytest.raises(WorkerError, match="no simulator here") as caught:
            pool.wait()
        assert "in make" in str(caught.value)
        pool._processes[1].wait(20)  # after
        with pytest.raises(WorkerError, match="no simulator here"):
            pool.reset(1, CONTEXTS[0])


def test_a_simulator_that_dies_is_noticed():
    with EnvironmentPool(FaultySpec(fault="die"), 1) as pool:
        pool.reset(0, CONTEXTS[0])
        pool.wait()
        pool.step_chunk(0, ACTIONS[0])
        with pytest.raises(WorkerError, match="died with exit code 3"):
            pool.wait()
        pool.drain()


def test_a_failure_in_this_process_leaves_nothing_to_wait_for():
    with EnvironmentPool(FaultySpec(fault="step"), 0) as pool:
        pool.reset(0, CONTEXTS[0])
        pool.wait()
        with pytest.raises(RuntimeError, match="the arm fell off"):
            pool.step_chunk(0, ACTIONS[0])
        pool.drain()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_are_left_to_the_parent(number):
    with EnvironmentPool(SPEC, 1) as pool:
        pool.reset(0, CONTEXTS[0])
        pool.wait()
        pool._processes[0].send_signal(number)
        pool.reset(0, CONTEXTS[1])
        assert len(pool.wait()) == 1


def test_closing_ends_working_processes():
    pool = EnvironmentPool(SPEC, 1)
    (process,) = pool._processes
    pool.reset(0, CONTEXTS[0])
    pool.close()
    assert process.returncode == 0
    pool.close()


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="num_workers"):
        EnvironmentPool(SPEC, -1)
    with EnvironmentPool(SPEC, 1) as pool:
        pool.reset(0, CONTEXTS[0])
        with pytest.raises(RuntimeError, match="before it had answered"):
            pool.step_chunk(0, ACTIONS[0])
        pool.drain()
