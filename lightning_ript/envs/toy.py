"""A toy twin of LIBERO: the same schema, no dependency, thousands of episodes per second.

A point starts somewhere in a square and has to reach a goal. The goal is where an image would show
it, in `joint_states`; the right action is obvious, so a policy that does not learn is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from gymnasium import spaces

from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.types import ChunkResult, Context, Observation, Task

_STEP = 0.1  # Distance covered by an action of length 1.
_RADIUS = 0.15  # Distance from the goal that counts as success.
_TEST_SEED = 10_000_000  # Training seeds stay below: test states are never trained on.


@dataclass(frozen=True)
class ToySpec(EnvironmentSpec):
    """Builds `ToyEnvironment`s.

    Attributes:
        num_tasks: Number of tasks; task i rotates the action axes by i quarter turns.
        max_steps: Control steps after which an episode has failed.
        test_states: Evaluation states per task.
    """

    num_tasks: int = 2
    max_steps: int = 32
    test_states: int = 50

    conventions: ClassVar[Mapping[str, str]] = {
        "joint_states": "the goal (x, y), then zeros",
        "ee_pos": "the point (x, y), then zero",
        "gripper_states": "zeros",
        "action": "where to go (x, y) in axes that the task turns; length 1 is a step of 0.1",
    }

    @property
    def observation_space(self) -> spaces.Dict:
        """LIBERO's proprioception, without its cameras."""
        widths = {"joint_states": 7, "ee_pos": 3, "gripper_states": 2}
        return spaces.Dict(
            [(key, spaces.Box(-np.inf, np.inf, (n,), np.float32)) for key, n in widths.items()]
        )

    @property
    def action_space(self) -> spaces.Box:
        """A direction."""
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def tasks(self) -> Sequence[Task]:
        """The toy's tasks."""
        return [
            Task("toy", i, f"turn_{90 * i}", f"reach the goal, turned by {90 * i} degrees")
            for i in range(self.num_tasks)
        ]

    def test_contexts(self, task: Task) -> Sequence[Context]:
        """Fixed starts for evaluation."""
        return [Context(task, i, seed=_TEST_SEED + i) for i in range(self.test_states)]

    def check(self) -> None:
        """Raises if a setting makes no sense.

        Raises:
            ValueError: If a count is not positive.
        """
        for name in ("num_tasks", "max_steps", "test_states"):
            if getattr(self, name) < 1:
                raise ValueError(f"ToySpec.{name} is {getattr(self, name)}, but must be positive.")

    def make(self) -> ToyEnvironment:
        """Builds the environment."""
        return ToyEnvironment()


@dataclass(frozen=True)
class BatchedToySpec(ToySpec):
    """The same toy, several episodes at once in one process.

    Attributes:
        episodes_per_worker: How many.
    """

    episodes_per_worker: int = 32

    def check(self) -> None:
        """Raises if a setting makes no sense.

        Raises:
            ValueError: If a count is not positive, or the batch is of one.
        """
        super().check()
        if self.episodes_per_worker < 2:
            raise ValueError(
                f"BatchedToySpec.episodes_per_worker is {self.episodes_per_worker}: set it to 2 or "
                "more, or use ToySpec."
            )

    def make(self) -> BatchedToyEnvironment:  # type: ignore[override]
        """Builds the environment of all of a worker's episodes."""
        return BatchedToyEnvironment(self.episodes_per_worker)


class ToyEnvironment:
    """A point that has to reach a goal; actions (2,) are clipped to [-1, 1]."""

    def reset(self, context: Context, film: bool = False) -> Observation:
        """Draws start and goal from the context's seed, or takes them from `init_state` (4,).

        The goal is the one object that a perturbation can move.
        """
        rng = np.random.default_rng([context.task.index, context.seed])
        state = rng.uniform(-0.5, 0.5, 4) if context.init_state is None else context.init_state
        self._point, self._goal = np.array(state[:2]), np.array(state[2:])
        if context.perturbation is not None:
            self._goal += context.perturbation.offsets(1)[0]
        turn = context.task.index * np.pi / 2
        self._axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        self._film = film
        return observe(self._point, self._goal)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Moves the point, one action after the other, until it is at the goal."""
        if not np.isfinite(actions).all():
            raise ValueError(f"the policy gave a non-finite action: {actions.tolist()}.")
        frames = []
        success, steps = False, 0
        for action in actions:
            self._point = self._point + _STEP * self._axes @ np.clip(action, -1, 1)
            steps += 1
            if self._film:
                frames.append(draw(self._point, self._goal))
            success = bool(np.linalg.norm(self._point - self._goal) < _RADIUS)
            if success:
                break
        return ChunkResult(observe(self._point, self._goal), success, steps, tuple(frames))

    def close(self) -> None:
        """Nothing to free."""


class BatchedToyEnvironment:
    """The points of several episodes, moved together.

    Args:
        episodes: How many.
    """

    def __init__(self, episodes: int) -> None:
        self._points, self._goals = np.zeros((2, episodes, 2))
        self._axes = np.zeros((episodes, 2, 2))
        self._films = np.zeros(episodes, bool)

    def reset(
        self, indices: list[int], contexts: list[Context], films: list[bool]
    ) -> list[Observation]:
        """As `ToyEnvironment.reset`, for each of these episodes."""
        for i, context, film in zip(indices, contexts, films, strict=True):
            rng = np.random.default_rng([context.task.index, context.seed])
            state = rng.uniform(-0.5, 0.5, 4) if context.init_state is None else context.init_state
            self._points[i], self._goals[i] = state[:2], state[2:]
            if context.perturbation is not None:
                self._goals[i] += context.perturbation.offsets(1)[0]
            turn = context.task.index * np.pi / 2
            self._axes[i] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
            self._films[i] = film
        return [observe(self._points[i], self._goals[i]) for i in indices]

    def step_chunk(self, indices: list[int], actions: list[np.ndarray]) -> list[ChunkResult]:
        """As `ToyEnvironment.step_chunk`, each with its own chunk."""
        for chunk in actions:
            if not np.isfinite(chunk).all():
                raise ValueError(f"the policy gave a non-finite action: {chunk.tolist()}.")
        lengths = np.array([len(chunk) for chunk in actions])
        episodes, steps = np.array(indices), np.zeros(len(indices), int)
        success = np.zeros(len(indices), bool)
        frames: list[list[np.ndarray]] = [[] for _ in indices]
        for step in range(lengths.max()):
            rows = np.flatnonzero(~success & (step < lengths))
            if not len(rows):
                break
            moving = episodes[rows]
            wanted = np.clip([actions[row][step] for row in rows], -1, 1)
            moved = (_STEP * self._axes[moving]) @ wanted[..., None].astype(float)
            self._points[moving] += moved[..., 0]
            steps[rows] += 1
            way = self._points[moving] - self._goals[moving]
            success[rows] = np.hypot(way[:, 0], way[:, 1]) < _RADIUS
            for row in rows[self._films[moving]]:
                i = episodes[row]
                frames[row].append(draw(self._points[i], self._goals[i]))
        return [
            ChunkResult(
                observe(self._points[i], self._goals[i]),
                bool(success[row]),
                int(steps[row]),
                tuple(frames[row]),
            )
            for row, i in enumerate(indices)
        ]

    def close(self) -> None:
        """Nothing to free."""


def observe(point: np.ndarray, goal: np.ndarray) -> Observation:
    """What a policy sees of a point and its goal, (2,) each."""
    joints = np.zeros(7, np.float32)
    joints[:2] = goal
    position = np.zeros(3, np.float32)
    position[:2] = point
    return {
        "joint_states": joints,
        "ee_pos": position,
        "gripper_states": np.zeros(2, np.float32),
    }


def draw(point: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """A frame of a video, (64, 64, 3) uint8: the point in red, the goal in green."""
    frame = np.full((64, 64, 3), 255, np.uint8)
    for place, colour in ((goal, (0, 160, 0)), (point, (200, 0, 0))):
        row, column = (np.clip(place / 2 + 0.5, 0, 0.95) * 64).astype(int)
        frame[row : row + 3, column : column + 3] = colour
    return frame
