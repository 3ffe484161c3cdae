"""An environment that QueST can act in, without a simulator; images are alike upside down.

Runs of version 0.1 named it too, whose `reset` had another name for `film`.
"""

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.types import ChunkResult, Context, Task


@dataclass(frozen=True)
class FlipSpec(EnvironmentSpec):
    """Success is a coin that the sixth step's place tosses."""

    max_steps: int = 16
    image_size: int = 16

    @property
    def observation_space(self):
        image = spaces.Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        widths = {"joint_states": 7, "ee_pos": 3, "gripper_states": 2}
        return spaces.Dict(
            [
                ("agentview_rgb", image),
                ("eye_in_hand_rgb", image),
                *((k, spaces.Box(-np.inf, np.inf, (n,), np.float32)) for k, n in widths.items()),
            ]
        )

    @property
    def action_space(self):
        return spaces.Box(-1.0, 1.0, (7,), np.float32)

    def tasks(self):
        return [Task("made_up", i, f"task_{i}", text) for i, text in enumerate(("push", "pull"))]

    def test_contexts(self, task):
        return [Context(task, i, seed=10_000_000 + i) for i in range(3)]

    def check(self):
        pass

    def make(self):
        return FlipEnvironment(self.image_size)


class FlipEnvironment:
    def __init__(self, image_size):
        self._size = image_size

    def reset(self, context, film=False):
        self._rng = np.random.default_rng([context.task.index, context.seed])
        self._place, self._steps = np.zeros(3), 0
        return self._observe()

    def step_chunk(self, actions):
        for done, action in enumerate(actions, start=1):
            self._place = self._place + 0.1 * np.clip(action[:3], -1, 1)
            self._steps += 1
            # A coarse coin: rounding must not turn it.
            if self._steps == 6 and int(abs(self._place.sum()) * 100) % 2 == 0:
                return ChunkResult(self._observe(), True, done, ())
        return ChunkResult(self._observe(), False, len(actions), ())

    def close(self):
        pass

    def _observe(self):
        half = self._rng.integers(0, 256, (2, self._size // 2, self._size, 3), np.uint8)
        images = np.concatenate([half, half[:, ::-1]], axis=1)
        return {
            "agentview_rgb": images[0],
            "eye_in_hand_rgb": images[1],
            "joint_states": np.concatenate([self._place, self._place, [1]]).astype(np.float32),
            "ee_pos": self._place.astype(np.float32),
            "gripper_states": np.array([0.04, -0.04], np.float32),
        }
