"""A point on a line that has to get past a mark, on the side that the task names."""

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.types import ChunkResult, Context, Task


@dataclass(frozen=True)
class LineSpec(EnvironmentSpec):
    max_steps: int = 12
    mark: float = 4.0

    packages = ("gymnasium",)
    conventions = {"place": "m to the right", "action": "m to the right, at most 1"}  # noqa: RUF012

    @property
    def observation_space(self):
        return spaces.Dict([("place", spaces.Box(-np.inf, np.inf, (1,), np.float32))])

    @property
    def action_space(self):
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def tasks(self):
        return [Task("line", i, side, f"go {side}") for i, side in enumerate(("left", "right"))]

    def test_contexts(self, task):
        return [Context(task, i, seed=10_000_000 + i) for i in range(10)]

    def check(self):
        if self.mark <= 0:
            raise ValueError(f"LineSpec.mark is {self.mark}: set it above 0.")

    def caveats(self):
        return ("A line is not a robot.",)

    def make(self):
        return Line(self.mark)


class Line:
    def __init__(self, mark):
        self.mark = mark

    def reset(self, context, film=False):
        self.place = np.random.default_rng(context.seed).uniform(-1, 1)
        self.side = (-1, 1)[context.task.index]
        return self.observe()

    def step_chunk(self, actions):
        for executed, (step,) in enumerate(actions, start=1):
            self.place += np.clip(step, -1, 1)
            if self.side * self.place > self.mark:
                return ChunkResult(self.observe(), True, executed)
        return ChunkResult(self.observe(), False, len(actions))

    def close(self):
        pass

    def observe(self):
        return {"place": np.array([self.place], np.float32)}
