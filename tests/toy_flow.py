"""A flow-matching policy for the toy environment, with the real policies' probabilities."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lightning_ript.policies.flow.adapter import FlowPolicy
from lightning_ript.policies.flow.lerobot import ACTION, STATE, Normalization, Published
from lightning_ript.policies.flow.network import FlowNetwork, Prefix
from lightning_ript.policies.quest.language import hashed_embeddings

SEEN = 2 + 16  # the way to the goal, and the instruction


class ToyNetwork(FlowNetwork):
    transformers = "expert"
    chunk, action_dim, state_dim, feature_dim = 4, 2, SEEN, 128
    stack = None

    def __init__(self):
        super().__init__()
        numbers = self.chunk * self.action_dim
        inner = nn.Linear(SEEN + numbers + 1, self.chunk * self.feature_dim)
        self.net = nn.Sequential(inner, nn.Tanh())
        self.out = nn.Linear(self.feature_dim, self.action_dim)

    @property
    def expert(self):
        return self.net

    def expert_modules(self):
        return [self.net, self.out]

    def idle_modules(self):
        return []

    def embed(self, seen):
        raise NotImplementedError("the toy's prefix is what is seen, see `prefix`")

    def prefix(self, seen):
        return Prefix((), torch.ones(len(seen), 1, dtype=torch.bool), seen)

    def velocity(self, prefix, x, time):
        features = self.net(torch.cat([prefix.state, x.flatten(1), time[:, None]], -1))
        features = features.unflatten(1, (self.chunk, -1))
        return self.out(features), features


class ToyFlow(FlowPolicy):
    kind = "toy"
    checkpoint = "none"
    absent_cameras = 0

    def __init__(
        self,
        steps: int = 2,
        probability: str = "flow_sde",
        noise_level: float = 1.0,
        ratio: str = "action",
    ) -> None:
        config = {
            "input_features": {STATE: {"shape": [SEEN]}},
            "output_features": {ACTION: {"shape": [2]}},
        }
        plain = Normalization("IDENTITY", torch.zeros(0), torch.zeros(0), 1e-8)
        super().__init__(
            ToyNetwork(),
            Published(Path(), config, plain, plain, None, ("none",)),
            image_size=(1, 1),
            centred=False,
            cameras=("none",),
            steps=steps,
            executed_actions=4,
            probability=probability,
            noise_level=noise_level,
            ratio=ratio,
        )

    @staticmethod
    def renaming(folder):
        raise NotImplementedError("no folder of the toy is published")

    def prepare(self, tasks):
        pass

    def check_spaces(self, observation_space, action_space):
        pass

    def inputs(self, observations, tasks):
        way = np.stack([o["joint_states"][:2] - o["ee_pos"][:2] for o in observations])
        heading = torch.from_numpy(way / np.linalg.norm(way, axis=1, keepdims=True))
        return {"state": torch.cat([heading, hashed_embeddings(list(tasks), 16)], -1).float()}

    def seen(self, record):
        return record["state"]
