"""Steps drawn from a normal distribution whose mean a network predicts."""

import numpy as np
import torch
from torch import nn

from lightning_ript.policies.base import Decisions, PolicyAdapter


class StepPolicy(PolicyAdapter):
    def __init__(self, chunk: int = 3, sides: int | None = None) -> None:
        super().__init__()
        self.chunk, self.noise_shape = chunk, (chunk, 1)
        self.net = nn.Sequential(nn.Linear(1 + (sides or 2), 16), nn.Tanh(), nn.Linear(16, chunk))

    @classmethod
    def settings_for(cls, observation_space, action_space):
        return {"sides": 2}

    def check_spaces(self, observation_space, action_space):
        if action_space.shape != (1,):
            raise ValueError(f"StepPolicy takes steps along a line, not {action_space.shape}.")

    @torch.no_grad()
    def act(self, observations, tasks, noise):
        place = torch.from_numpy(np.stack([o["place"] for o in observations]))
        side = nn.functional.one_hot(torch.tensor([task.index for task in tasks]), 2)
        seen = torch.cat([place, side], -1).to(self.device)
        actions = self.net(seen)[..., None]
        if noise is not None:
            actions = actions + torch.special.ndtri(noise.clamp(1e-6, 1 - 1e-6))
        record = {"seen": seen, "actions": actions}
        return Decisions(actions, record, self.log_prob(record)[0])

    def log_prob(self, record):
        normal = torch.distributions.Normal(self.net(record["seen"])[..., None], 1.0)
        return normal.log_prob(record["actions"]).sum(-1), normal.entropy().sum(-1)
