"""LIBERO behind the project's environment protocol."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.envs.libero import graphics
from lightning_ript.envs.libero.assets import configure_libero, resolve_assets
from lightning_ript.envs.libero.graphics import CAMERAS, Render
from lightning_ript.envs.libero.suites import find_tasks, init_states
from lightning_ript.types import ChunkResult, Context, Observation, Task

if TYPE_CHECKING:
    from lightning_ript.envs.libero.simulation import TaskSimulation

log = logging.getLogger(__name__)

Mode = Literal["exact", "fast"]
ACTION_SIZE = 7
IMAGE_SIZES = range(16, 1025)
FRAME_CAMERA = "agentview_rgb"


@dataclass(frozen=True)
class LiberoSpec(EnvironmentSpec):
    """A suite of LIBERO and how to simulate it.

    Attributes:
        suite: One of `suites.SUITES`.
        task_subset: Names or numbers of the tasks to use; None for the whole suite.
        image_size: Height and width of the images in pixels.
        max_steps: Control steps (of 50 ms, after settling) until an episode has failed.
        settle_steps: No-op steps with the gripper open before the first observation, in which
            objects come to rest.
        cameras: Observation keys of the cameras that a policy sees.
        mode: `exact` repeats LIBERO's stepping bit for bit; `fast` does the same physics with a
            quarter of the work (see `fast_step` for how close it stays).
        render: `full` gives LIBERO's own pixels; `light` draws meshes with fewer triangles and
            without shadows and reflections, several times as fast in software. Train and evaluate
            with the same; checkpoints from elsewhere want `full`.
        assets: Folder of LIBERO's assets; None to look for them (see `assets.resolve_assets`).
        init_joint_noise: Standard deviation (rad) of the noise on the arm's joints in sampled
            resets; 0.02 is what the benchmark's own initial states carry.
        max_compiled: Compiled tasks that one environment keeps, the least recently used goes.
    """

    suite: str
    task_subset: Sequence[int | str] | None = None
    image_size: int = 128
    max_steps: int = 600
    settle_steps: int = 10
    cameras: tuple[str, ...] = tuple(CAMERAS)
    mode: Mode = "fast"
    render: Render = "full"
    assets: str | None = None
    init_joint_noise: float = 0.02
    max_compiled: int = 2

    def tasks(self) -> Sequence[Task]:
        """The chosen tasks.

        Raises:
            ValueError: If the suite or a task does not exist.
        """
        return find_tasks(self.suite, self.task_subset)

    def test_contexts(self, task: Task) -> Sequence[Context]:
        """The benchmark's 50 initial states of a task, never to be trained on."""
        return [Context(task, i, state) for i, state in enumerate(init_states(task))]

    def check(self) -> None:
        """Looks at everything that can be known without starting a simulator.

        Call it in the main process: this is where assets may be downloaded.

        Raises:
            ValueError: If a setting is wrong.
            OSError: If the OpenGL library or the assets are missing.
            ModuleNotFoundError: If LIBERO is not installed.
        """
        self.tasks()
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(
                f"image_size is {self.image_size}, but LIBERO's cameras draw squares of "
                f"{IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} pixels."
            )
        if unknown := set(self.cameras) - set(CAMERAS):
            raise ValueError(f"no camera {unknown.pop()!r}: choose from {', '.join(CAMERAS)}.")
        for name, choices in (("mode", get_args(Mode)), ("render", get_args(Render))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be {' or '.join(choices)}."
                )
        for name, least in (("max_steps", 1), ("settle_steps", 0), ("max_compiled", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be {least} or more.")
        if not 0 <= self.init_joint_noise < np.inf:
            raise ValueError(f"init_joint_noise is {self.init_joint_noise}, but must be 0 or more.")
        graphics.check_backend()
        resolve_assets(self.assets, self.suite).announce()

    def make(self) -> LiberoEnvironment:
        """Builds the environment; this process must hold no torch, see the developers' guide."""
        return LiberoEnvironment(self)


class LiberoEnvironment:
    """LIBERO's tasks, compiled when first needed.

    Episodes are deterministic: the same context gives the same bits, whatever ran before.
    """

    def __init__(self, spec: LiberoSpec) -> None:
        graphics.use_backend()
        assets = resolve_assets(spec.assets, spec.suite, download=False)
        assets.announce()
        configure_libero(assets.path)
        self._spec = spec
        self._simulations: OrderedDict[str, TaskSimulation] = OrderedDict()
        self._current: TaskSimulation | None = None
        self._record = False

    def reset(self, context: Context, record: bool = False) -> Observation:
        """Starts an episode and lets the objects come to rest.

        A context without an initial state samples one from its seed.

        Args:
            context: Where to start.
            record: Whether `step_chunk` returns a frame per control step.

        Returns:
            The observation after the settling steps.

        Raises:
            ValueError: If the context's state does not fit its task.
        """
        from lightning_ript.envs.libero.simulation import NO_OP

        simulation = self._current = self._simulation(context.task)
        state = context.init_state
        if state is None:
            state = simulation.sample_state(context.seed, self._spec.init_joint_noise)
        simulation.reset(np.asarray(state, dtype=np.float64))
        self._record = record
        steps = self._spec.settle_steps
        for step in range(steps):
            simulation.step(NO_OP, self._spec.cameras if step == steps - 1 else None)
        return simulation.seen if steps else simulation.look(self._spec.cameras)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Executes actions until the first success.

        Cameras are drawn in the last step only, at the moment LIBERO draws them. After an earlier
        success the observation is made at the end of the successful step, 2 ms later than LIBERO
        would; no policy acts on it.

        Args:
            actions: (n, 7) in [-1, 1], n at least 1.

        Raises:
            ValueError: If the actions have another shape or are not finite.
            RuntimeError: If no episode has begun.
        """
        simulation = self._running()
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != ACTION_SIZE or not len(actions):
            raise ValueError(
                f"actions of shape {actions.shape} were given, but LIBERO takes (n, {ACTION_SIZE})."
            )
        if not np.isfinite(actions).all():
            raise ValueError("an action is not finite (NaN or infinite): the policy has diverged.")
        cameras, frames, success = self._spec.cameras, [], False
        for step, action in enumerate(actions, start=1):
            last = step == len(actions)
            look: Sequence[str] | None = cameras if last else None
            if self._record:
                look = (*cameras, FRAME_CAMERA) if last else (FRAME_CAMERA,)
            success = simulation.step(action, look)
            if self._record:
                frames.append(simulation.seen[FRAME_CAMERA])
            if success:
                break
        observation = simulation.seen if last else simulation.look(cameras)
        return ChunkResult(observation, success, step, tuple(frames))

    def sim_state(self) -> np.ndarray:
        """The present flattened simulator state (1 + nq + nv,) float64."""
        return self._running().state()

    def sample_state(self, task: Task, seed: int) -> np.ndarray:
        """The initial state that a context with this seed and no state of its own starts from."""
        return self._simulation(task).sample_state(seed, self._spec.init_joint_noise)

    @property
    def problem(self) -> Any:
        """LIBERO's problem environment of the running episode, for privileged experts."""
        return self._running().problem

    def close(self) -> None:
        """Frees all simulators."""
        while self._simulations:
            self._simulations.popitem()[1].close()
        self._current = None

    def _running(self) -> TaskSimulation:
        if self._current is None:
            raise RuntimeError("no episode has begun: call reset(context) first.")
        return self._current

    def _simulation(self, task: Task) -> TaskSimulation:
        from lightning_ript.envs.libero.simulation import TaskSimulation

        if task.name not in self._simulations:
            while len(self._simulations) >= self._spec.max_compiled:
                self._simulations.popitem(last=False)[1].close()
            log.info("compiling LIBERO's task %d of %s: %s.", task.index, task.suite, task.name)
            self._simulations[task.name] = TaskSimulation(
                task, self._spec.image_size, self._spec.mode, self._spec.render
            )
        self._simulations.move_to_end(task.name)
        return self._simulations[task.name]
