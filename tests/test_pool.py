"""The pool of simulator processes, and how it fails."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from core_probe import BulkySpec, CuriousSpec, FaultySpec

from lightning_ript.envs.base import WorkerError
from lightning_ript.envs.libero import LiberoSpec
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
            pool.reset(i, CONTEXTS[i], film=True)
        first = answers(pool, len(slots))
        for i in slots:
            pool.step_chunk(i, ACTIONS[i])
        second = answers(pool, len(slots))
    for i in slots:
        alone = ToyEnvironment()
        expected = alone.reset(CONTEXTS[i], film=True)
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


def fail(pool, slot=0):
    """Makes the simulator of a slot fail in `step_chunk`, and returns what the pool says."""
    pool.reset(slot, CONTEXTS[0])
    pool.wait()
    pool.step_chunk(slot, ACTIONS[0])
    ((where, error),) = pool.wait()
    assert where == slot
    assert isinstance(error, WorkerError)
    return error


def test_a_simulator_that_raises_sends_its_traceback_and_is_replaced():
    with EnvironmentPool(FaultySpec(fault="step"), 2) as pool:
        error = fail(pool)
        assert "the arm fell off" in str(error)
        assert "in step_chunk" in str(error)
        assert not error.unusable
        assert "the arm fell off" in str(fail(pool))


def test_a_simulator_that_cannot_be_built_says_why():
    with EnvironmentPool(FaultySpec(fault="make"), 1) as pool:
        pool.reset(0, CONTEXTS[0])
        ((_, error),) = pool.wait()
    assert "no simulator here" in str(error)
    assert "in make" in str(error)
    assert error.unusable


def test_a_simulator_that_dies_is_replaced():
    with EnvironmentPool(FaultySpec(fault="die"), 1) as pool:
        assert "died with exit code 3" in str(fail(pool))
        assert "died with exit code 3" in str(fail(pool))


def test_a_simulator_that_died_between_two_requests_is_replaced():
    with EnvironmentPool(SPEC, 1) as pool:
        pool.reset(0, CONTEXTS[0])
        pool.wait()
        pool._workers[0].process.kill()
        pool._workers[0].process.wait()
        pool.step_chunk(0, ACTIONS[0])
        ((_, error),) = pool.wait()
        assert "died with exit code -9" in str(error)
        pool.reset(0, CONTEXTS[0])
        assert "ee_pos" in dict(pool.wait())[0]


def test_a_simulator_that_hangs_is_replaced():
    with EnvironmentPool(FaultySpec(fault="hang"), 1, hang_seconds=10) as pool:
        assert "did not answer for 10 s" in str(fail(pool))
        pool.reset(0, CONTEXTS[0])
        assert "ee_pos" in dict(pool.wait())[0]


def test_workers_start_when_needed_and_not_all_at_once():
    with EnvironmentPool(SPEC, 5) as pool:
        assert pool._workers == [None] * 5
        pool._starting_at_once = 2
        for slot in range(4):
            pool.reset(slot, CONTEXTS[slot])
        assert sum(worker is not None for worker in pool._workers) == 2
        assert sorted(answers(pool, 4)) == [0, 1, 2, 3]
        assert [worker is not None for worker in pool._workers] == [True] * 4 + [False]


def test_workers_get_the_variables_of_their_device():
    with EnvironmentPool(CuriousSpec(), 1, device=3) as pool:
        assert pool._variables["CURIOUS_DEVICE"] == "3"


def test_what_a_worker_builds_and_its_first_request_do_not_overwrite_each_other():
    context = replace(CONTEXTS[0], init_state=np.full(4, 0.25))
    with EnvironmentPool(BulkySpec(), 1) as pool:
        pool.reset(0, context)
        ((_, observation),) = pool.wait()
    assert np.array_equal(observation["ee_pos"], ToyEnvironment().reset(context)["ee_pos"])


def test_simulators_that_crash_beside_torch_need_workers():
    with pytest.raises(ValueError, match="num_workers is 0, but must be 1 or more"):
        EnvironmentPool(LiberoSpec("libero_object"), 0)


def test_replaced_workers_leave_no_open_files():
    with EnvironmentPool(FaultySpec(fault="die"), 1) as pool:
        fail(pool)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            fail(pool)
        assert len(os.listdir("/proc/self/fd")) == before


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
        pool._workers[0].process.send_signal(number)
        pool.reset(0, CONTEXTS[1])
        assert len(pool.wait()) == 1


def test_closing_ends_working_processes():
    pool = EnvironmentPool(SPEC, 1)
    pool.reset(0, CONTEXTS[0])
    process = pool._workers[0].process
    pool.close()
    assert process.returncode == 0
    pool.close()


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="num_workers"):
        EnvironmentPool(SPEC, -1)
    with pytest.raises(ValueError, match="hang_seconds"):
        EnvironmentPool(SPEC, 1, hang_seconds=0)
    with EnvironmentPool(SPEC, 1) as pool:
        pool.reset(0, CONTEXTS[0])
        with pytest.raises(RuntimeError, match="before it had answered"):
            pool.step_chunk(0, ACTIONS[0])
        pool.drain()
