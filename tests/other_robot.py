"""A robot that is not LIBERO's: one camera, four joints, actions of three numbers."""

import json
from dataclasses import dataclass
from typing import ClassVar

import h5py
import numpy as np
from gymnasium import spaces

from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.types import ChunkResult, Context, Task

SIZE = 16


@dataclass(frozen=True)
class OtherSpec(EnvironmentSpec):
    """Success is a coin that the place after six steps tosses."""

    max_steps: int = 16
    image_size: int = SIZE
    packages: ClassVar[tuple[str, ...]] = ("h5py",)

    @property
    def observation_space(self):
        image = spaces.Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        joints = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        return spaces.Dict([("front", image), ("joints", joints)])

    @property
    def action_space(self):
        return spaces.Box(-1.0, 1.0, (3,), np.float32)

    def tasks(self):
        return [Task("other", 0, "wave", "wave the hand")]

    def test_contexts(self, task):
        return [Context(task, i, seed=10_000 + i) for i in range(2)]

    def check(self):
        pass

    def caveats(self):
        return ("This robot is made up.",)

    def make(self):
        return OtherEnvironment(self.image_size)


class OtherEnvironment:
    def __init__(self, size):
        self._size = size

    def reset(self, context, film=False):
        self._rng = np.random.default_rng(context.seed)
        self._place, self._steps = np.zeros(3), 0
        return self._observe()

    def step_chunk(self, actions):
        for done, action in enumerate(actions, start=1):
            assert action.shape == (3,)
            self._place = self._place + np.clip(action, -1, 1)
            self._steps += 1
            if self._steps == 6 and int(abs(self._place.sum()) * 100) % 2 == 0:
                return ChunkResult(self._observe(), True, done, ())
        return ChunkResult(self._observe(), False, len(actions), ())

    def close(self):
        pass

    def _observe(self):
        return {
            "front": self._rng.integers(0, 256, (self._size, self._size, 3), np.uint8),
            "joints": np.append(self._place, 1).astype(np.float32),
        }


def write_demonstrations(path, lengths=(20, 25, 30)):
    """A file in LIBERO's layout with this robot's observations and actions."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "wave the hand"})
        for i, length in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            phase = np.linspace(0, 3, length)[:, None] + np.arange(4)
            demo["actions"], demo["states"] = np.sin(phase[:, :3]), phase
            demo["obs/front"] = rng.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8)
            demo["obs/joints"] = phase
    return str(path)
