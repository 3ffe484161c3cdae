"""LIBERO behind the project's environment protocol."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ript.envs.libero import graphics
from lightning_ript.envs.libero.assets import configure_libero, register_objects
from lightning_ript.types import ChunkResult, Context, Observation, Task

if TYPE_CHECKING:  # importing it needs LIBERO to be configured
    from lightning_ript.envs.libero.simulation import TaskSimulation
    from lightning_ript.envs.libero.spec import LiberoSpec

log = logging.getLogger(__name__)

ACTION_SIZE = 7
BLIND_STEPS = 10  # of the protocol `reference`
FRAME_CAMERA = "agentview_rgb"


class LiberoEnvironment:
    """LIBERO's tasks; their scenes are compiled when first needed.

    Episodes are deterministic: the same context gives the same bits, whatever ran before.
    """

    def __init__(self, spec: LiberoSpec) -> None:
        graphics.use_backend()
        configure_libero(spec.found_assets.path)
        register_objects(spec.object_modules)
        self._spec = spec
        self._simulations: OrderedDict[str, TaskSimulation] = OrderedDict()
        self._current: TaskSimulation | None = None
        self._film = False

    def reset(self, context: Context, film: bool = False) -> Observation:
        """Starts an episode and lets the objects come to rest.

        A context without an initial state samples one from its seed.

        Args:
            context: Where to start.
            film: Whether `step_chunk` returns a frame per control step.

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
        simulation.reset(np.asarray(state, dtype=np.float64), context.perturbation)
        self._film = film
        if self._spec.protocol == "reference":
            return self._begin_blindly(simulation, context)
        steps = self._spec.settle_steps
        for step in range(steps):
            simulation.step(NO_OP, self._spec.cameras if step == steps - 1 else None)
        return simulation.seen if steps else simulation.look(self._spec.cameras)

    def _begin_blindly(self, simulation: TaskSimulation, context: Context) -> Observation:
        """QueST's own start: what the policy sees first is another scene, come to rest."""
        from lightning_ript.envs.libero.simulation import ZERO_ACTION

        state = simulation.state()
        simulation.reset(simulation.sample_state(context.index, joint_noise=0.0))
        for step in range(BLIND_STEPS):
            last = step == BLIND_STEPS - 1
            simulation.step(ZERO_ACTION, self._spec.cameras if last else None)
        seen = simulation.seen
        simulation.replace_state(state)
        return seen

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
            if self._film:
                look = (*cameras, FRAME_CAMERA) if last else (FRAME_CAMERA,)
            success = simulation.step(action, look)
            if self._film:
                frames.append(simulation.seen[FRAME_CAMERA])
            if success:
                break
        observation = simulation.seen if last else simulation.look(cameras)
        return ChunkResult(observation, success, step, tuple(frames))

    def frame(self) -> np.ndarray:
        """Draws the agent's view of the present state, (H, W, 3) uint8."""
        return self._running().look((FRAME_CAMERA,))[FRAME_CAMERA]

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

    @property
    def model_xml(self) -> str:
        """The running episode's scene as MuJoCo saves it, fixtures where they are."""
        return self._running().model_xml

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

        scene, bddl = self._spec.scene(task), self._spec.bddl_path(task)
        if scene not in self._simulations:
            while len(self._simulations) >= self._spec.max_compiled:
                self._simulations.popitem(last=False)[1].close()
            log.info("compiling LIBERO's task %d of %s: %s.", task.index, task.suite, task.name)
            self._simulations[scene] = TaskSimulation(
                bddl,
                image_size=self._spec.image_size,
                mode=self._spec.mode,
                render=self._spec.render,
                textures=self._spec.textures,
            )
        self._simulations.move_to_end(scene)
        self._simulations[scene].set_task(bddl)
        return self._simulations[scene]
