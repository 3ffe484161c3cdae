"""LIBERO's own environment in LIBERO's own vector environment, and its kindest variation.

LIBERO's simulator processes import this module, so there is no torch here. `venv` is LIBERO's
`libero/libero/envs/venv.py`, loaded as a file: importing it by name would load all of LIBERO, and
with it OpenGL, into the main process, which holds torch.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from lightning_ript.envs.libero import LiberoSpec, graphics
from lightning_ript.envs.libero.assets import configure_libero
from lightning_ript.envs.libero.suites import bddl_path, libero_root
from lightning_ript.types import Observation, Task
from measuring.clock import Clock

NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_KEYS = {
    "agentview_rgb": "agentview_image",
    "eye_in_hand_rgb": "robot0_eye_in_hand_image",
    "joint_states": "robot0_joint_pos",
    "ee_pos": "robot0_eef_pos",
    "ee_quat": "robot0_eef_quat",
    "gripper_states": "robot0_gripper_qpos",
}
_IMAGES = ("agentview_image", "robot0_eye_in_hand_image")


def _load_venv() -> ModuleType:
    name = "libero_venv"  # spawned processes find it under this name: they import this module first
    spec = importlib.util.spec_from_file_location(name, libero_root() / "envs" / "venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


venv = _load_venv()


class Reference:
    """LIBERO's `OffScreenRenderEnv` with a clock; what the vector environment calls is here.

    It compiles the scene at every reset and draws both cameras in every control step.

    Args:
        spec: Suite, image size and assets.
        task: The task.
    """

    def __init__(self, spec: LiberoSpec, task: Task) -> None:
        graphics.use_backend()
        configure_libero(spec.found_assets.path)
        from libero.libero.envs import OffScreenRenderEnv

        self._clock = Clock()
        self._clock.time_renders()
        self._settle_steps, self._settling = spec.settle_steps, 0
        size = spec.image_size
        self._env = OffScreenRenderEnv(
            bddl_file_name=str(bddl_path(task)),
            camera_heights=size,
            camera_widths=size,
            horizon=spec.max_steps + spec.settle_steps + 1,
        )

    @property
    def reading(self) -> dict[str, float]:
        """The clock's reading; the vector environment fetches it as an attribute."""
        return self._clock.read()

    def seed(self, seed: int) -> None:
        """Seeds the placement of fixtures and objects."""
        self._env.seed(seed)

    def reset(self) -> dict[str, np.ndarray]:
        """LIBERO's reset."""
        with self._clock.part("reset"):
            return self._env.reset()

    def set_init_state(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Sets the flattened state that the episode starts from."""
        self._settling = self._settle_steps
        with self._clock.part("reset"):
            return self._env.set_init_state(state)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """One control step with an action (7,); settling steps count as part of the reset."""
        settling, self._settling = self._settling > 0, max(0, self._settling - 1)
        with self._clock.part("reset" if settling else "step", 0 if settling else 1):
            return self._env.step(action)

    def close(self) -> None:
        """Frees the simulator."""
        self._env.close()


class KeptReference(Reference):
    """The same without compiling again, and with pictures only at the end of a chunk of actions.

    Both are switches of robosuite: `deterministic_reset` resets without a new model and leaves the
    fixtures where they are, and observables can be disabled.
    """

    def __init__(self, spec: LiberoSpec, task: Task) -> None:
        super().__init__(spec, task)
        self._env.seed(0)
        self._env.reset()
        self._env.env.deterministic_reset = True
        self._draw(False)

    def _draw(self, enabled: bool) -> None:
        for name in _IMAGES:
            self._env.env.modify_observable(name, "enabled", enabled)

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """Executes actions (n, 7); `info["steps"]` is the number up to the first success."""
        part, self._settling = "reset" if self._settling else "step", 0
        steps = len(actions)
        success = False
        with self._clock.part(part, steps if part == "step" else 0):
            for number, action in enumerate(actions, start=1):
                if number == len(actions):
                    self._draw(True)
                seen, reward, done, _ = self._env.step(action)
                if done and not success:
                    success, steps = True, number
            self._draw(False)
        return seen, reward, success, {"steps": steps}


def make_vector(kind: type[Reference], spec: LiberoSpec, task: Task, count: int) -> Any:
    """LIBERO's `SubprocVectorEnv` of `count` environments."""
    with _one_thread():
        return venv.SubprocVectorEnv([partial(kind, spec, task)] * count)


def observations(seen: Sequence[dict[str, np.ndarray]]) -> list[Observation]:
    """LIBERO's observations under the names and types that policies take."""
    return [
        {
            key: one[name] if name in _IMAGES else one[name].astype(np.float32)
            for key, name in _KEYS.items()
        }
        for one in seen
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Gives processes started meanwhile one thread each, as `EnvironmentPool` does."""
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
