"""One LIBERO task, compiled once and restored for every episode.

LIBERO's own reset compiles the model anew, which takes seconds and draws new places for the
fixtures. Here the model is built as the benchmark builds it (`seed(0)`, then `reset()`), what that
left behind is kept, and an episode starts by putting all of it back: the physics, the controller,
the gripper and the clocks of the observables. A restored episode is therefore bit for bit the one
that LIBERO's `seed(0)`, `reset()`, `set_init_state(...)` would have run, whatever ran before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np
from libero.libero.envs.bddl_utils import robosuite_parse_problem
from libero.libero.envs.env_wrapper import ControlEnv
from robosuite.utils.errors import RandomizationError
from robosuite.utils.observables import Observable, sensor

from lightning_ript.envs.libero.cameras import Cameras
from lightning_ript.envs.libero.compiled import models_from_cache
from lightning_ript.envs.libero.fast_step import FastStepper
from lightning_ript.envs.libero.graphics import Render, Textures
from lightning_ript.envs.libero.small_textures import with_small_textures
from lightning_ript.types import Observation, Perturbation

CONTROL_HZ = 20
ARM_JOINTS = 7
ZERO_ACTION = np.zeros(7)
"""Stands still and leaves the fingers where they are."""
NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
"""Stands still with the gripper open."""

_PLACEMENT_TRIALS = 20
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION  # all that the next step depends on


class TaskSimulation:
    """The simulator of a scene, and of one of its tasks at a time.

    Args:
        bddl: File of the task.
        image_size: Height and width of the images.
        mode: `exact` steps as robosuite does, `fast` with one forward pass per substep.
        render: How the cameras are drawn.
        textures: How the colours in texture files are read.
    """

    def __init__(
        self,
        bddl: Path,
        image_size: int,
        mode: Literal["exact", "fast"],
        render: Render,
        textures: Textures = "linear",
    ) -> None:

        def edited(xml: str) -> str:
            self._xml = xml
            return with_small_textures(xml, image_size) if render == "light" else xml

        # The constructor draws, and `seed` sets, NumPy's global generator.
        with numpy_seed(0), models_from_cache(edited):
            self.libero = ControlEnv(
                bddl_file_name=str(bddl),
                use_camera_obs=False,
                has_offscreen_renderer=False,  # `Cameras` draws, and is built once
                ignore_done=True,  # the caller limits episodes, not LIBERO's horizon
            )
            self.libero.seed(0)
            self.libero.reset()
        self._bddl = bddl
        self.problem = self.libero.env
        self.robot = self.problem.robots[0]
        self.model = self.problem.sim.model._model
        self.data = self.problem.sim.data._data
        self._arm = np.array(self.robot._ref_joint_pos_indexes)
        self._fingers = np.array(self.robot._ref_gripper_joint_pos_indexes)
        self._grip_site = self.robot.eef_site_id
        self._hand = self.problem.sim.model.body_name2id(self.robot.robot_model.eef_name)
        self._cameras = Cameras(self.problem.sim, image_size, render, textures)
        self._physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, self._physics, _PHYSICS)
        self._site_rgba = self.model.site_rgba.copy()
        controller = self.robot.controller
        self._controller = {
            name: np.copy(value) if isinstance(value, np.ndarray) else value
            for name, value in vars(controller).items()
        }
        self._fast = FastStepper(self.problem) if mode == "fast" else None
        self._wanted: Sequence[str] | None = None
        self._seen: Observation | None = None
        if self._fast is None:
            self._add_observer()

    def set_task(self, bddl: Path) -> None:
        """Makes it the simulator of another task of the same scene: only the goal is another."""
        if bddl == self._bddl:
            return
        parsed = robosuite_parse_problem(str(bddl))
        self.problem.parsed_problem = parsed
        self.problem.bddl_file_name = str(bddl)
        self.problem.obj_of_interest = parsed["obj_of_interest"]
        self.libero.language_instruction = " ".join(parsed["language_instruction"])
        self._bddl = bddl

    def reset(self, state: np.ndarray, perturbation: Perturbation | None = None) -> None:
        """Puts everything back as LIBERO's reset left it, then sets the physical state.

        Args:
            state: Flattened state (1 + nq + nv,): time, positions, velocities.
            perturbation: Moves every object on a free joint, at the height and with the rotation it
                has. Objects that end up in one another are pushed apart by the physics.

        Raises:
            ValueError: If the state does not fit the model.
        """
        size = 1 + self.model.nq + self.model.nv
        if state.shape != (size,) or not np.isfinite(state).all():
            raise ValueError(
                f"an initial state of shape {state.shape} was given, but this task's are "
                f"{size} finite numbers: it belongs to another task or other assets."
            )
        if perturbation is not None:
            state = self._move_objects(state, perturbation)
        self._restore()
        self.libero.set_init_state(state)
        if self._fast is not None:
            self._fast.restart()

    def replace_state(self, state: np.ndarray) -> None:
        """Sets the physical state in the midst of an episode; controller and clocks run on.

        Args:
            state: Flattened state (1 + nq + nv,): time, positions, velocities.
        """
        self.libero.set_init_state(state)
        if self._fast is not None:
            self._fast.moved()

    def step(self, action: np.ndarray, look: Sequence[str] | None) -> bool:
        """Runs one control step (25 physics substeps, 50 ms).

        Args:
            action: (7,) float64 in [-1, 1].
            look: Cameras to draw for `seen`; None to observe nothing.

        Returns:
            Whether the task's goal holds afterwards.
        """
        self._wanted = look
        if self._fast is None:
            _, _, success, _ = self.problem.step(action)
        else:
            self._fast.step(action, self._observe if look is not None else None)
            self.problem._post_process()
            success = self.problem._check_success()
        return bool(success)

    @cached_property
    def model_xml(self) -> str:
        """The scene as MuJoCo saves it, with LIBERO's own textures, fixtures where they are.

        MuJoCo can only save what this process has compiled itself, so it is compiled once more.
        """
        mujoco.MjModel.from_xml_string(self._xml)
        return self.problem.sim.model.get_xml()

    @property
    def seen(self) -> Observation:
        """The latest observation made during a step."""
        assert self._seen is not None
        return self._seen

    def look(self, cameras: Sequence[str]) -> Observation:
        """Observes the present state."""
        self._wanted = cameras
        self._observe()
        return self.seen

    def state(self) -> np.ndarray:
        """The present flattened state (1 + nq + nv,) float64."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def sample_state(self, seed: int, joint_noise: float) -> np.ndarray:
        """Draws an initial state as LIBERO's reset does, with the fixtures where they are.

        Args:
            seed: The only thing that the result depends on.
            joint_noise: Standard deviation (rad) of the noise on the arm's joints; the benchmark's
                own initial states have 0.02.

        Returns:
            (1 + nq + nv,) float64.
        """
        self._restore()
        robot = np.concatenate([self._arm, self._fingers])
        start = self.data.qpos[robot]
        self.data.qpos[:] = self.model.qpos0
        self.data.qpos[robot] = start
        with numpy_seed(seed):
            for sampler in self.problem.object_property_initializers:
                self.problem.object_states_dict[sampler.name].set_joint(sampler.sample())
            for position, quaternion, thing in self._place().values():
                if not self.problem.is_fixture(thing.name):
                    pose = np.concatenate([position, quaternion])
                    self.problem.sim.data.set_joint_qpos(thing.joints[-1], pose)
            self.data.qpos[self._arm] += np.random.normal(0.0, joint_noise, ARM_JOINTS)  # noqa: NPY002
        self.data.time = 0.0
        self.data.qvel[:] = 0.0
        return self.state()

    def close(self) -> None:
        """Frees the simulator and its GL context."""
        self._cameras.close()
        self.libero.close()

    def _move_objects(self, state: np.ndarray, perturbation: Perturbation) -> np.ndarray:
        free = self.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
        x = 1 + self.model.jnt_qposadr[free]  # after the time; y comes next
        moved = state.copy()
        moved[np.stack([x, x + 1], axis=1)] += perturbation.offsets(len(x))
        return moved

    def _place(self) -> dict[str, Any]:
        """Samples placements until all objects find room, as LIBERO does, but not for ever."""
        for _ in range(_PLACEMENT_TRIALS):
            try:
                return self._sample_placements()
            except RandomizationError:
                continue
        raise RuntimeError(
            f"no room for the objects of {self.problem.bddl_file_name} was found in "
            f"{_PLACEMENT_TRIALS} trials."
        )

    def _sample_placements(self) -> dict[str, Any]:
        """LIBERO's placement, in its order, around the fixtures as they stand in the model.

        LIBERO would draw new places for the fixtures as well; they would move for every other
        episode, because they are part of the model and not of the state.
        """
        problem, sim = self.problem, self.problem.sim
        fixtures = [sim.model.body_name2id(thing.root_body) for thing in problem.fixtures]
        positions, rotations = self.model.body_pos.copy(), self.model.body_quat.copy()
        placements: dict[str, Any] = {}
        for sampler in problem.placement_initializer.samplers.values():
            (thing,) = sampler.mujoco_objects
            if problem.is_fixture(thing.name):
                body = sim.model.body_name2id(thing.root_body)
                placements[thing.name] = (positions[body], rotations[body], thing)
            else:
                placements = sampler.sample(fixtures=placements)
        # What stands on or in a fixture is placed by adding the fixture's pose to the world
        # position of one of its sites, which is right while the fixture is still at the origin.
        self.model.body_pos[fixtures], self.model.body_quat[fixtures] = 0.0, (1.0, 0.0, 0.0, 0.0)
        mujoco.mj_kinematics(self.model, self.data)
        try:
            placements = problem.conditional_placement_initializer.sample(sim, placements)
        finally:
            self.model.body_pos[:], self.model.body_quat[:] = positions, rotations
        return problem.conditional_placement_on_objects_initializer.sample(placements)

    def _restore(self) -> None:
        mujoco.mj_setState(self.model, self.data, self._physics, _PHYSICS)
        self.model.site_rgba[:] = self._site_rgba  # switched by some predicates, e.g. a lit burner
        vars(self.robot.controller).update(
            (name, value.copy() if isinstance(value, np.ndarray) else value)
            for name, value in self._controller.items()
        )
        self.robot.gripper.current_action = np.zeros(self.robot.gripper.dof)
        self.problem.timestep, self.problem.cur_time = 0, 0
        self._wanted = None
        for observable in self.problem._observables.values():
            observable.reset()
        self.problem._update_observables(force=True)  # LIBERO's reset looks once: sets the clocks

    def _observe(self) -> None:
        if self._wanted is None:
            return
        # OpenGL's first row is the bottom one.
        images = {key: np.ascontiguousarray(self._cameras.draw(key)[::-1]) for key in self._wanted}
        qpos = self.data.qpos
        self._seen = {
            **images,
            "joint_states": qpos[self._arm].astype(np.float32),
            "ee_pos": self.data.site_xpos[self._grip_site].astype(np.float32),
            "ee_quat": self.data.xquat[self._hand][[1, 2, 3, 0]].astype(np.float32),
            "gripper_states": qpos[self._fingers].astype(np.float32),
        }

    def _add_observer(self) -> None:
        """Lets robosuite's own clock decide at which substep to look."""

        @sensor(modality="ours")
        def observer(_: object) -> np.ndarray:
            self._observe()
            return np.zeros(1)

        self.problem.add_observable(Observable("ours", observer, sampling_rate=CONTROL_HZ))


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seeds NumPy's global generator, which robosuite draws from, and puts it back afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
