"""Context streams depend on their number and seed alone."""

from collections import Counter

import numpy as np
import pytest

from lightning_ript.contexts import BenchmarkContexts, DemonstrationContexts, SampledContexts
from lightning_ript.envs.toy import ToySpec
from lightning_ript.types import Context

SPEC = ToySpec(num_tasks=3, test_states=4)


def key(context: Context):
    return context.task.index, context.seed


def test_sampled_contexts_take_the_tasks_in_turn():
    source = SampledContexts()
    stream = [source.context(n, SPEC, seed=0) for n in range(30)]
    assert [c.index for c in stream] == list(range(30))
    assert [c.task.index for c in stream[:4]] == [0, 1, 2, 0]
    assert len({c.seed for c in stream}) == 30
    assert all(0 <= c.seed < 2**31 for c in stream)


def test_streams_can_be_entered_anywhere_and_differ_by_seed():
    for source in (SampledContexts(), BenchmarkContexts()):
        late = [key(source.context(n, SPEC, seed=1)) for n in (20, 21, 22)]
        again = type(source)()
        assert [key(again.context(n, SPEC, seed=1)) for n in (20, 21, 22)] == late
        assert [key(again.context(n, SPEC, seed=2)) for n in (20, 21, 22)] != late


def test_training_resets_are_no_test_states():
    tests = {c.seed for task in SPEC.tasks() for c in SPEC.test_contexts(task)}
    source = SampledContexts()
    assert not tests & {source.context(n, SPEC, seed=0).seed for n in range(1000)}


def test_a_finite_set_is_drawn_without_replacement(caplog):
    source = BenchmarkContexts()
    source.check(SPEC)
    assert "not comparable" in caplog.text
    states = 3 * 4
    stream = [key(source.context(n, SPEC, seed=0)) for n in range(3 * states)]
    assert set(Counter(stream).values()) == {3}
    passes = [stream[i * states : (i + 1) * states] for i in range(3)]
    assert all(len(set(p)) == states for p in passes)
    assert passes[0] != passes[1] != passes[2]


@pytest.fixture
def demonstrations(tmp_path, monkeypatch):
    """Files of two tasks with five demonstrations; the i-th state of task t is all 10 t + i."""
    hdf5 = pytest.importorskip("lightning_ript.demos.hdf5")
    states = {
        f"turn_{90 * task}_demo.hdf5": [np.full(4, 10.0 * task + i) for i in range(5)]
        for task in range(2)
    }
    for name in states:
        (tmp_path / name).touch()
    monkeypatch.setattr(hdf5, "read_init_states", lambda file: states[file.name])
    return [tmp_path / name for name in states]


def test_demonstrations_give_their_first_states(demonstrations):
    source = DemonstrationContexts(demonstrations, per_task=3)
    source.check(SPEC)
    stream = [source.context(n, SPEC, seed=0) for n in range(6)]
    assert Counter(c.task.name for c in stream) == {"turn_0": 3, "turn_90": 3}
    assert {c.init_state[0] for c in stream} == {0, 2, 4, 10, 12, 14}
    assert all(c.init_state[0] // 10 == c.task.index for c in stream)
    assert [c.index for c in stream] == list(range(6))


def test_a_folder_of_demonstrations_is_all_tasks_of_the_environment(demonstrations):
    folder = demonstrations[0].parent
    source = DemonstrationContexts([folder])
    source.check(ToySpec(num_tasks=2))
    stream = [source.context(n, ToySpec(num_tasks=2), seed=0) for n in range(10)]
    assert len({c.init_state[0] for c in stream}) == 10
    with pytest.raises(
        FileNotFoundError, match=r"holds no turn_180_demo\.hdf5: add what is missing"
    ):
        source.check(SPEC)
    DemonstrationContexts([folder]).check(ToySpec(num_tasks=1))  # other tasks' files may lie there


def test_more_demonstrations_than_there_are_are_refused(demonstrations):
    with pytest.raises(ValueError, match=r"turn_0_demo.hdf5 has 5 demonstrations, but 6 of each"):
        DemonstrationContexts(demonstrations, per_task=6).check(SPEC)
    with pytest.raises(ValueError, match="per_task is 0"):
        DemonstrationContexts(demonstrations, per_task=0)


def test_demonstrations_of_another_task_are_refused(tmp_path):
    file = tmp_path / "fly_demo.hdf5"
    file.touch()
    with pytest.raises(ValueError, match=r"fly_demo.hdf5 holds .* not a task"):
        DemonstrationContexts([file]).check(SPEC)
    with pytest.raises(ValueError, match="at least one"):
        DemonstrationContexts([])
