"""Collecting demonstrations: order, resuming, failures, bad settings; and once for real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import mujoco
import numpy as np
import pytest
from test_hdf5 import episode

from lightning_ript.commands import collect_demos as collect
from lightning_ript.commands.check_data import inspect_folder
from lightning_ript.commands.collect_demos import attempt_context, collect_demos
from lightning_ript.demos.find_files import find_files
from lightning_ript.demos.hdf5 import RecordedEpisode, read_demonstrations
from lightning_ript.demos.recorder import RecorderSpec
from lightning_ript.envs.libero.assets import Assets
from lightning_ript.envs.libero.standins import build_standins
from lightning_ript.envs.libero.suites import suite_tasks
from lightning_ript.types import Context


class FakePool:
    """Answers the latest request first; some attempts fail."""

    fail: ClassVar[set[int]] = set()
    made: ClassVar[list[FakePool]] = []
    stop_after = 10**6

    def __init__(self, spec: RecorderSpec, num_workers: int) -> None:
        self.slots = range(num_workers)
        self.waiting: list[tuple[int, Context]] = []
        self.attempts: list[tuple[int, int]] = []
        self.made.append(self)

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, slot: int, method: str, context: Context) -> None:
        assert method == "record"
        self.waiting.append((slot, context))
        self.attempts.append((context.task.index, context.index))

    def wait(self) -> list[tuple[int, RecordedEpisode | None]]:
        if len(self.attempts) > self.stop_after:
            raise KeyboardInterrupt
        slot, context = self.waiting.pop()
        failed = context.index in self.fail
        return [(slot, None if failed else episode(context.index))]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[FakePool]:
    monkeypatch.setattr(collect, "EnvironmentPool", FakePool)
    monkeypatch.setattr(collect.LiberoSpec, "check", lambda self: self.tasks())
    found = Assets(Path("assets"), "a test", standin=True)
    monkeypatch.setattr(collect.LiberoSpec, "found_assets", found)
    monkeypatch.setattr(FakePool, "fail", set())
    monkeypatch.setattr(FakePool, "made", [])
    monkeypatch.setattr(FakePool, "stop_after", 10**6)
    return FakePool


def attempts(file: Path) -> list[int]:
    with h5py.File(file) as opened:
        groups = [opened["data"][d.name] for d in read_demonstrations(file)]
        return [int(group.attrs["attempt"]) for group in groups]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_files_do_not_depend_on_the_workers(
    tmp_path: Path, pool: type[FakePool], workers: int
) -> None:
    pool.fail.update({0, 3, 4})
    results = collect_demos(tmp_path, tasks=[1, 4], demos=4, workers=workers)
    assert [(r.task.index, r.demonstrations, r.failures) for r in results] == [(1, 4, 3), (4, 4, 3)]
    for result in results:
        assert result.file.name == f"{result.task.name}_demo.hdf5"
        assert attempts(result.file) == [1, 2, 5, 6]


def test_an_interrupted_run_goes_on(
    tmp_path: Path, pool: type[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.fail.add(2)
    monkeypatch.setattr(pool, "stop_after", 3)
    with pytest.raises(KeyboardInterrupt):
        collect_demos(tmp_path, tasks=[0], demos=5, workers=1)
    file = tmp_path / f"{suite_tasks('libero_object')[0].name}_demo.hdf5"
    assert attempts(file) == [0, 1]
    monkeypatch.setattr(pool, "stop_after", 10**6)
    (result,) = collect_demos(tmp_path, tasks=[0], demos=5, workers=1)
    assert attempts(file) == [0, 1, 3, 4, 5]
    assert result.failures == 1
    assert pool.made[-1].attempts[0] == (0, 2)
    runs = len(pool.made)
    collect_demos(tmp_path, tasks=[0], demos=5, workers=1)  # all there: no simulator starts
    assert len(pool.made) == runs


def test_an_expert_that_always_fails_ends_the_run(tmp_path: Path, pool: type[FakePool]) -> None:
    pool.fail.update(range(100))
    with pytest.raises(RuntimeError, match="failed 10 times in a row at task 2"):
        collect_demos(tmp_path, tasks=[2], demos=3, workers=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": "libero_goal"}, "scripted expert knows libero_object but not 'libero_goal'"),
        ({"suite": "libero_objects"}, "but not 'libero_objects'"),
        ({"demos": 0}, "demos is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"noise": -0.1}, r"noise is -0\.1"),
        ({"tasks": [12]}, "has no task 12"),
    ],
)
def test_bad_settings_are_refused_at_once(
    tmp_path: Path, pool: type[FakePool], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        collect_demos(tmp_path, **settings)
    assert not pool.made


def test_resets_differ_between_attempts_tasks_and_seeds() -> None:
    tasks: Sequence[Any] = suite_tasks("libero_object")
    seeds = [
        attempt_context(task, seed, attempt).seed
        for task in tasks
        for seed in (0, 1)
        for attempt in range(50)
    ]
    assert len(set(seeds)) == len(seeds)
    assert attempt_context(tasks[3], 1, 7) == attempt_context(tasks[3], 1, 7)


REPLAY = """
import sys
from lightning_ript.demos.hdf5 import read_demonstrations
from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.types import Context
demo, = read_demonstrations(sys.argv[1])
spec = LiberoSpec("libero_object", [4], image_size=32, assets=sys.argv[2])
environment = spec.make()
seen = environment.reset(Context(spec.tasks()[0], 0, demo.init_state))
assert (environment.sim_state() == demo.read("states", 0, 1)[0]).all()
for name in ("agentview_rgb", "eye_in_hand_rgb"):  # upside down in the file
    assert (seen[name] == demo.read(f"obs/{name}", 0, 1)[0][::-1]).all(), name
assert (seen["joint_states"] == demo.read("obs/joint_states", 0, 1)[0]).all()
assert len(set(seen["agentview_rgb"].ravel())) > 10
middle = demo.num_samples // 2
environment.step_chunk(demo.read("actions", 0, middle))
assert (environment.sim_state() == demo.read("states", middle, middle + 1)[0]).all()
result = environment.step_chunk(demo.read("actions", middle))
assert result.success and result.steps == demo.num_samples - middle
environment.close()
assert "torch" not in sys.modules
"""


@pytest.mark.libero
def test_a_collected_demonstration_can_be_replayed(tmp_path: Path) -> None:
    assets = str(build_standins(tmp_path / "cache"))
    command = [sys.executable, "-m", "lightning_ript", "collect-demos", "--tasks=[4]"]
    command += [f"--out={tmp_path}", "--demos=1", "--image_size=32", f"--assets={assets}"]
    subprocess.run(command, check=True, timeout=800)
    file = tmp_path / f"{suite_tasks('libero_object')[4].name}_demo.hdf5"
    (demonstration,) = read_demonstrations(file)
    assert demonstration.num_samples < 200
    np.testing.assert_array_equal(
        demonstration.read("dones").nonzero(), [[demonstration.num_samples - 1]]
    )
    with h5py.File(file) as opened:
        model = mujoco.MjModel.from_xml_string(opened["data/demo_0"].attrs["model_file"])
    state = demonstration.read("states", 0, 1)[0]
    assert 1 + model.nq + model.nv == len(state)
    assert model.body("basket_1_main").id > 0
    variables = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, "-c", REPLAY, str(file), assets], check=True, timeout=800, env=variables
    )


def test_files_that_are_being_written_are_not_taken(tmp_path: Path, pool: type[FakePool]) -> None:
    collect_demos(tmp_path, tasks=[0], demos=1)
    (whole,) = tmp_path.glob("*.hdf5")
    (tmp_path / f".{whole.stem}.123.hdf5").write_bytes(b"half of it")
    assert find_files([tmp_path]) == [whole]
    assert [report.file for report in inspect_folder(tmp_path)] == [whole]
