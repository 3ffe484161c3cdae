"""Context streams depend on their number and seed alone."""

from collections import Counter
from pathlib import Path

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


def test_demonstrations_give_their_first_states(tmp_path, monkeypatch):
    hdf5 = pytest.importorskip("lightning_ript.demos.hdf5")
    states = {f"turn_{90 * i}_demo.hdf5": np.full((5, 4), float(i)) for i in range(2)}
    monkeypatch.setattr(hdf5, "read_init_states", lambda file: states[file.name])
    source = DemonstrationContexts([tmp_path / name for name in states], per_task=2)
    source.check(SPEC)
    stream = [source.context(n, SPEC, seed=0) for n in range(4)]
    assert Counter(c.task.name for c in stream) == {"turn_0": 2, "turn_90": 2}
    assert all((c.init_state == c.task.index).all() for c in stream)
    assert [c.index for c in stream] == [0, 1, 2, 3]


def test_demonstrations_of_another_task_are_refused():
    source = DemonstrationContexts([Path("fly_demo.hdf5")])
    with pytest.raises(ValueError, match=r"fly_demo.hdf5 holds .* not a task"):
        source.check(SPEC)
    with pytest.raises(ValueError, match="at least one"):
        DemonstrationContexts([])
