"""An environment that OpenVLA-OFT can act in, without a simulator.

Every process of a run imports this module, and with it the tiny encoders that timm has to know.
"""

from dataclasses import dataclass

import numpy as np
import tiny_openvla  # noqa: F401
import torch
from gymnasium import spaces

from lightning_ript.demos.datamodule import DemonstrationDataModule
from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.types import ChunkResult, Context, Task

LANGUAGES = ("turn on the stove", "open the middle drawer of the cabinet")


@dataclass(frozen=True)
class ReachSpec(EnvironmentSpec):
    """The hand has to be in front once, or behind, as the task says; images are noise."""

    max_steps: int = 16
    test_states: int = 3
    image_size: int = 64

    @property
    def observation_space(self):
        image = spaces.Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        widths = {"ee_pos": 3, "ee_quat": 4, "gripper_states": 2}
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
        return [Task("made_up", i, f"task_{i}", text) for i, text in enumerate(LANGUAGES)]

    def test_contexts(self, task):
        return [Context(task, i, seed=10_000_000 + i) for i in range(self.test_states)]

    def check(self):
        pass

    def make(self):
        return ReachEnvironment(self.image_size)


class ReachEnvironment:
    def __init__(self, image_size):
        self._shape = (image_size, image_size, 3)

    def reset(self, context, film=False):
        self._rng = np.random.default_rng([context.task.index, context.seed])
        self._sign = 1 if context.task.index == 0 else -1
        self._place = np.zeros(3)
        return self._observe()

    def step_chunk(self, actions):
        steps, success = 0, False
        for action in actions:
            steps += 1
            self._place = self._place + 0.1 * np.clip(action[:3], -1, 1)
            success = bool(self._sign * self._place[0] > 0.25)
            if success:
                break
        return ChunkResult(self._observe(), success, steps, ())

    def close(self):
        pass

    def _observe(self):
        agent, wrist = (self._rng.integers(0, 256, self._shape, np.uint8)[::-1] for _ in range(2))
        return {
            "agentview_rgb": np.ascontiguousarray(agent),
            "eye_in_hand_rgb": np.ascontiguousarray(wrist),
            "ee_pos": self._place.astype(np.float32),
            "ee_quat": np.array([1, 0, 0, 0], np.float32),
            "gripper_states": np.array([0.04, -0.04], np.float32),
        }


class MadeUpDemonstrations(DemonstrationDataModule):
    """Two batches of noise to learn from, and one to test on."""

    def __init__(self, block_size: int = 8, batch_size: int = 4):
        lowdim = ("ee_pos", "ee_ori", "gripper_states")
        super().__init__(
            [],
            batch_size=batch_size,
            block_size=block_size,
            lowdim=lowdim,
            before_action=True,
        )

    def setup(self, stage):
        pass

    def train_dataloader(self):
        return [self._batch(seed) for seed in range(2)]

    def val_dataloader(self):
        return [self._batch(2)]

    def _batch(self, seed):
        generator = torch.Generator().manual_seed(seed)
        size = self.batch_size
        widths = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
        return {
            "actions": torch.rand(size, 8, 7, generator=generator) * 2 - 1,
            "images": {
                name: torch.randint(0, 256, (size, 64, 64, 3), generator=generator).byte()
                for name in ("agentview_rgb", "eye_in_hand_rgb")
            },
            "lowdim": {n: torch.randn(size, w, generator=generator) for n, w in widths.items()},
            "language": [LANGUAGES[i % 2] for i in range(size)],
        }
