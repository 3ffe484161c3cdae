"""LIBERO as a plain Gymnasium environment, for projects that want nothing else from here.

Importing this module registers `lightning_ript/Libero-v0`. Gymnasium imports it by itself when the
name says where to look: `lightning_ript.envs.libero.gymnasium_env:lightning_ript/Libero-v0`.
"""

from __future__ import annotations

import importlib.util
import logging
import operator
import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lightning_ript.envs.libero import graphics
from lightning_ript.envs.libero.environment import ACTION_SIZE, FRAME_CAMERA, LiberoEnvironment
from lightning_ript.envs.libero.spec import LiberoSpec
from lightning_ript.types import Context, Observation

log = logging.getLogger(__name__)

ENV_ID = "lightning_ript/Libero-v0"

_RESET_OPTIONS = {"init_state", "init_state_id"}
_SEEDS = 2**31

Observations = dict[str, Any]
Step = tuple[Observations, float, bool, bool, dict[str, Any]]


class LiberoGymEnv(gymnasium.Env[Observations, np.ndarray]):
    """One LIBERO task.

    Observations are what LIBERO's datasets hold: a dict of images (H, W, 3) uint8, **upside down**
    (the first row is the bottom one), and float32 proprioception. Actions are (7,) in [-1, 1]: six
    OSC_POSE deltas and the gripper, -1 open and 1 closed; what lies outside is clipped, as LIBERO
    does. The reward is 1 at the first step on which the task's goal holds, which terminates the
    episode, and 0 before; `max_steps` truncates it.

    The simulator starts at the first reset, so describing an environment (as a vector environment
    does in the main process) loads neither MuJoCo nor OpenGL.

    Attributes:
        settings: What is simulated, and how.
        task: The task; `task.language` is its instruction.

    Args:
        suite: LIBERO's suite, e.g. `libero_object`.
        task: Name of the task or its number in the suite.
        chunk: None for one action per step; else every step takes a chunk (chunk, 7), see
            `step_chunk`.
        render_mode: None or `rgb_array`.
        **settings: Any other setting of `LiberoSpec`: `image_size`, `cameras`, `mode`, ...

    Raises:
        ValueError: If a setting is wrong.
        OSError: If the OpenGL library or LIBERO's assets are missing.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        suite: str,
        task: int | str = 0,
        chunk: int | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}, but must be None or 'rgb_array'.")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}, but must be None or 1 or more.")
        self.settings = LiberoSpec(suite, [task], **settings)
        self.settings.check()
        (self.task,) = self.settings.tasks()
        self.render_mode = render_mode
        self.observation_space = self.settings.observation_space
        self._chunked = chunk is not None
        shape = (ACTION_SIZE,) if chunk is None else (chunk, ACTION_SIZE)
        self.action_space = spaces.Box(-1.0, 1.0, shape, np.float32)
        self._environment: LiberoEnvironment | None = None
        self._seen: Observation | None = None
        self._steps_left = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Starts an episode and lets the objects come to rest.

        Args:
            seed: Seeds the generator that initial states are drawn from.
            options: Nothing, for a sampled initial state; `{"init_state_id": i}` for the i-th of
                the benchmark's 50 test states; `{"init_state": array}` for a flattened simulator
                state (1 + nq + nv,), e.g. a demonstration's.

        Raises:
            ValueError: If an option is unknown or does not fit the task.
        """
        super().reset(seed=seed)
        self._steps_left = 0  # nothing runs if what follows fails
        context = self._context(options or {})
        if self._environment is None:
            _warn_of_torch()
            self._environment = LiberoEnvironment(self.settings)
        self._seen = self._environment.reset(context)
        self._steps_left = self.settings.max_steps
        return as_in_datasets(self._seen), self._info(success=False, steps=0)

    def step(self, action: np.ndarray) -> Step:
        """Executes one action, or one chunk if the environment was made with `chunk`.

        Raises:
            ValueError: If the action has another shape or is not finite.
            RuntimeError: If no episode is running.
        """
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"an action of shape {action.shape} was given, but this environment takes "
                f"{self.action_space.shape}."
            )
        return self.step_chunk(action if self._chunked else action[None])

    def step_chunk(self, actions: np.ndarray) -> Step:
        """Executes actions until the first success or the end of the episode.

        Cameras are drawn in the last step only; what comes back is, bit for bit, what the last of
        as many single steps would have given. Only after a success before the last action the
        observation is made 2 ms later.

        Args:
            actions: (n, 7), n at least 1.

        Returns:
            As `step`; `info["steps"]` is the number of actions executed.

        Raises:
            ValueError: If the actions have another shape or are not finite.
            RuntimeError: If no episode is running.
        """
        if self._environment is None or not self._steps_left:
            raise RuntimeError("no episode is running: call reset() first.")
        result = self._environment.step_chunk(np.atleast_1d(actions)[: self._steps_left])
        self._seen = result.observation
        self._steps_left = 0 if result.success else self._steps_left - result.steps
        truncated = not result.success and not self._steps_left
        info = self._info(result.success, result.steps)
        reward = float(result.success)
        return as_in_datasets(self._seen), reward, result.success, truncated, info

    def render(self) -> np.ndarray:
        """The agent's view (H, W, 3) uint8, upright.

        It is the latest observation's image if that has one; else it is drawn now.

        Raises:
            RuntimeError: If there is no episode to show, or no render mode was chosen.
        """
        if self.render_mode is None:
            raise RuntimeError('render() needs an environment made with render_mode="rgb_array".')
        if self._environment is None or self._seen is None:
            raise RuntimeError("no episode has begun: call reset() before render().")
        image = self._seen.get(FRAME_CAMERA)
        return (self._environment.frame() if image is None else image).copy()

    def sim_state(self) -> np.ndarray:
        """The present flattened simulator state (1 + nq + nv,) float64.

        Raises:
            RuntimeError: If no episode has begun.
        """
        if self._environment is None:
            raise RuntimeError("no episode has begun: call reset() first.")
        return self._environment.sim_state()

    def close(self) -> None:
        """Frees the simulator."""
        if self._environment is not None:
            self._environment.close()
        self._environment, self._seen, self._steps_left = None, None, 0

    def _context(self, options: dict[str, Any]) -> Context:
        """Where the reset options say that the episode starts."""
        if unknown := set(options) - _RESET_OPTIONS:
            raise ValueError(
                f"unknown reset option {unknown.pop()!r}: "
                f"choose from {', '.join(sorted(_RESET_OPTIONS))}."
            )
        if len(options) > 1:
            raise ValueError("both init_state and init_state_id were given: choose one of them.")
        if "init_state" in options:
            return Context(self.task, 0, np.asarray(options["init_state"], dtype=np.float64))
        if "init_state_id" in options:
            contexts = self.settings.test_contexts(self.task)
            index = operator.index(options["init_state_id"])
            if not 0 <= index < len(contexts):
                raise ValueError(
                    f"init_state_id is {index}, but the task's test states are numbered 0 to "
                    f"{len(contexts) - 1}."
                )
            return contexts[index]
        return Context(self.task, 0, seed=int(self.np_random.integers(_SEEDS)))

    def _info(self, success: bool, steps: int) -> dict[str, Any]:
        return {"success": success, "steps": steps, "language": self.task.language}


def as_in_datasets(observation: Observation) -> Observations:
    """An observation with its images (H, W, 3) upside down, as LIBERO's datasets hold them."""
    return {
        key: np.ascontiguousarray(value[::-1]) if value.ndim == 3 else value
        for key, value in observation.items()
    }


def _warn_of_torch() -> None:
    """A software GL driver, and triton loaded after it, are a segmentation fault."""
    loaded = "torch" in sys.modules and "triton" not in sys.modules
    if loaded and importlib.util.find_spec("triton") and graphics.choose_backend() == "osmesa":
        log.warning(
            "this process holds torch and is about to load a software OpenGL driver: should torch "
            "load triton later, the process crashes; run the environment in a process of its own, "
            "e.g. in gymnasium.vector.AsyncVectorEnv."
        )


gymnasium.register(ENV_ID, f"{__name__}:{LiberoGymEnv.__name__}")
