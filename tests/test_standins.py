"""The stand-in asset pack: its files, and all ten LIBERO-Object tasks running on it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from real_assets import REAL_ASSETS

from lightning_ript.envs.libero.standins import OBJECTS, build_standins
from lightning_ript.envs.libero.standins.pack import pack_files
from lightning_ript.envs.libero.suites import bddl_path, init_states, suite_tasks

SUITE = "libero_object"
NO_OP = [0.0] * 6 + [-1.0]
SETTLED = (0, 24, 49)  # the states that also take the settling steps


def test_the_pack_is_written_once(tmp_path: Path) -> None:
    first = build_standins(tmp_path / "cache")
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert build_standins(tmp_path / "cache") == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_the_pack_is_the_same_every_time(tmp_path: Path) -> None:
    packs = [build_standins(tmp_path / name) for name in ("a", "b")]
    assert packs[0].name == packs[1].name
    contents = [
        {str(p.relative_to(pack)): p.read_bytes() for p in pack.rglob("*") if p.is_file()}
        for pack in packs
    ]
    assert contents[0] == contents[1] == pack_files()


def test_another_generator_makes_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_standins(tmp_path)
    changed = pack_files() | {"README.txt": b"changed"}
    monkeypatch.setattr("lightning_ript.envs.libero.standins.pack.pack_files", lambda: changed)
    second = build_standins(tmp_path)
    assert second != first
    assert first.is_dir()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_pack_is_replaced(tmp_path: Path, damage: str) -> None:
    pack = build_standins(tmp_path)
    victim = pack / OBJECTS[0].path
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(b"<mujoco>")
    assert build_standins(tmp_path) == pack
    assert victim.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [pack.name]


def test_processes_may_build_it_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        packs = set(pool.map(build_standins, [tmp_path] * 4))
    assert [path.name for path in tmp_path.iterdir()] == [packs.pop().name]
    assert not packs


def test_objects_weigh_what_the_catalogue_says() -> None:
    for item in OBJECTS:
        assert mass_and_extent(mujoco.MjSpec.from_string(item.mjcf()))[0] == pytest.approx(
            item.mass, rel=1e-3
        )


def test_every_object_but_the_basket_fits_the_gripper() -> None:
    for item in OBJECTS:
        extent = mass_and_extent(mujoco.MjSpec.from_string(item.mjcf()))[1]
        width = min(np.delete(extent, "xyz".index(item.up)))
        assert (width < 0.07) == (item.name != "basket"), item.name


@pytest.mark.skipif(not REAL_ASSETS.is_dir(), reason="needs LIBERO's own assets")
@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: item.name)
def test_dimensions_are_those_of_the_real_object(item: Any) -> None:
    real = mujoco.MjSpec.from_file(str(REAL_ASSETS / item.path))
    ours = mujoco.MjSpec.from_string(item.mjcf())
    for site in real.sites:
        if site.name == "contain_region":
            np.testing.assert_allclose(ours.site(site.name).size, site.size, atol=1e-6)
        np.testing.assert_allclose(ours.site(site.name).pos, site.pos, atol=1e-6)
    mass, extent = mass_and_extent(real)
    our_mass, our_extent = mass_and_extent(ours)
    assert our_mass == pytest.approx(mass, rel=0.01)
    np.testing.assert_allclose(our_extent, extent, atol=0.003)


def mass_and_extent(spec: mujoco.MjSpec) -> tuple[float, np.ndarray]:
    """Mass in kg and full size (3,) in metres, body axes, of an object's collision geometry."""
    spec.compiler.inertiagrouprange = [0, 0]  # as robosuite: what is only seen weighs nothing
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    solid = model.geom_group == 0
    assert set(model.geom_type[solid]) == {mujoco.mjtGeom.mjGEOM_BOX}
    turned = data.geom_xmat[solid].reshape(-1, 3, 3)
    half = (np.abs(turned) @ model.geom_size[solid][:, :, None])[..., 0]
    center = data.geom_xpos[solid]
    return model.body_mass.sum(), (center + half).max(0) - (center - half).min(0)


@dataclass
class Report:
    """What one task did on the stand-ins."""

    task: str
    target: str
    state_size: int
    image: np.ndarray
    early_successes: list[int]
    overlap: float
    drift: float
    tilt: float
    height_error: dict[str, float]
    sinking: float
    target_seen_in_basket: bool
    target_still_in_basket: bool


def run_task(pack: Path, index: int, settled_states: tuple[int, ...]) -> Report:
    """Runs in its own process, where OpenGL and torch do not meet."""
    from lightning_ript.envs.libero.assets import configure_libero
    from lightning_ript.envs.libero.graphics import use_backend

    use_backend()
    configure_libero(pack)
    from libero.libero.envs import OffScreenRenderEnv

    task = suite_tasks(SUITE)[index]
    states = init_states(task)
    env = OffScreenRenderEnv(
        bddl_file_name=str(bddl_path(task)), camera_heights=64, camera_widths=64,
        use_camera_obs=False,
    )  # fmt: skip
    model, data = env.sim.model._model, env.sim.data._data
    bodies = {name: model.body(f"{name}_main").id for name in env.env.objects_dict}
    catalogue = {f"{item.name}_1": item for item in OBJECTS}
    axes = {name: np.eye(3)["xyz".index(catalogue[name].up)] for name in bodies}

    roots = model.body_rootid[model.geom_bodyid]
    floor = roots[model.geom("floor").id]

    def contacts() -> list[tuple[set[int], float]]:
        return [
            ({roots[c.geom1], roots[c.geom2]}, c.dist) for c in data.contact[: data.ncon]
        ]  # fmt: skip

    successes, overlap, drift, tilt, sinking = [], 0.0, 0.0, 0.0, 0.0
    errors = dict.fromkeys(bodies, 0.0)
    for i, state in enumerate(states):
        env.set_init_state(state)
        if env.check_success():
            successes.append(i)
        # LIBERO's states put objects up to 4 cm into the floor or above it, with its own assets
        # too, so only contacts between objects (and the robot) count before settling.
        overlap = min([overlap, *(d for who, d in contacts() if floor not in who)])
        if i not in settled_states:
            continue
        before = {name: data.xpos[body].copy() for name, body in bodies.items()}
        for _ in range(10):
            env.step(NO_OP)
        for name, body in bodies.items():
            position, matrix = data.xpos[body], data.xmat[body].reshape(3, 3)
            drift = max(drift, np.linalg.norm(position[:2] - before[name][:2]))
            tilt = max(tilt, np.arccos(np.clip((matrix @ axes[name])[2], -1, 1)))
            error = abs(position[2] + catalogue[name].lowest())
            errors[name] = max(errors[name], error)
        sinking = min([sinking, *(d for _, d in contacts())])

    image = env.sim.render(camera_name="agentview", width=64, height=64)
    target, basket = env.env.obj_of_interest[0], data.xpos[bodies["basket_1"]]
    joint = model.joint(env.env.objects_dict[target].joints[0])
    floor_of_basket = basket[2] + 0.0216
    data.qpos[joint.qposadr[0] :][:3] = [
        *basket[:2], floor_of_basket - catalogue[target].lowest() + 0.002,
    ]  # fmt: skip
    env.sim.forward()
    seen = False
    for _ in range(20):
        env.step(NO_OP)
        seen = seen or bool(env.check_success())
    report = Report(
        task.name, target, len(env.get_sim_state()), image, successes, overlap, drift, tilt,
        errors, sinking, seen, bool(env.check_success()),
    )  # fmt: skip
    env.close()
    return report


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Report]]:
    pack = build_standins(tmp_path_factory.mktemp("cache"))
    context = multiprocessing.get_context("spawn")
    count = len(suite_tasks(SUITE))
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        yield list(pool.map(run_task, [pack] * count, range(count), [SETTLED] * count))


@pytest.mark.slow
@pytest.mark.libero
class TestTasks:
    def test_all_ten_load_and_take_the_shipped_states(self, reports: list[Report]) -> None:
        assert len(reports) == 10
        for report, task in zip(reports, suite_tasks(SUITE), strict=True):
            assert (50, report.state_size) == init_states(task).shape

    def test_nothing_has_succeeded_at_the_start(self, reports: list[Report]) -> None:
        assert [report.early_successes for report in reports] == [[]] * 10

    def test_objects_do_not_overlap(self, reports: list[Report]) -> None:
        assert min(report.overlap for report in reports) > -0.001

    def test_objects_settle_where_they_were_put(self, reports: list[Report]) -> None:
        for report in reports:
            assert report.drift < 0.005, report.task
            assert report.tilt < 0.02, report.task
            assert max(report.height_error.values()) < 0.001, (report.task, report.height_error)
            assert report.sinking > -0.001, report.task

    def test_a_target_in_the_basket_is_a_success(self, reports: list[Report]) -> None:
        for report in reports:
            assert report.target_seen_in_basket, report.target
            assert report.target_still_in_basket, report.target

    def test_the_camera_sees_the_objects(self, reports: list[Report]) -> None:
        for report in reports:
            image = report.image.astype(int)
            assert image.shape == (64, 64, 3)
            colored = np.ptp(image, axis=2) > 60
            assert 20 < colored.sum() < 1000, report.task
