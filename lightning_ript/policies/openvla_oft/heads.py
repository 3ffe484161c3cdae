"""The small networks around the language model; D is its width, A = 7 an action's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_ript.policies.openvla_oft.config import ACTION_DIM, PROPRIO_DIM


class ProprioProjector(nn.Module):
    """Maps normalized proprioception to one token embedding.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(PROPRIO_DIM, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, proprio: Tensor) -> Tensor:
        """Maps (B, 8) to (B, D)."""
        return self.fc2(F.gelu(self.fc1(proprio)))


class ResidualBlock(nn.Module):
    """Adds one hidden layer's change; `ffn` by the published name.

    Args:
        dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., dim) to the same shape."""
        return x + self.ffn(x)


class ResidualMLP(nn.Module):
    """Both heads' network, with two residual blocks.

    Args:
        input_dim: Width of the input.
        hidden_dim: Width inside.
        output_dim: Width of the output.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.mlp_resnet_blocks = nn.Sequential(ResidualBlock(hidden_dim), ResidualBlock(hidden_dim))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., input_dim) to (..., output_dim)."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        return self.fc2(self.layer_norm2(self.mlp_resnet_blocks(x)))


class ActionHead(nn.Module):
    """The normalized action, trained with an L1 loss: the mean (and median) of the Laplace.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.model = ResidualMLP(ACTION_DIM * dim, dim, ACTION_DIM)

    def forward(self, features: Tensor) -> Tensor:
        """Maps the features of a step, (..., A * D), to its action (..., A)."""
        return self.model(features)


class LaplaceScaleHead(nn.Module):
    """The logarithm of the Laplace's scale b, not clipped.

    Args:
        dim: D.

    Attributes:
        trained: Whether its weights came from somewhere: a fresh head's density means nothing.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.trained = False
        self.trunk = ResidualMLP(ACTION_DIM * dim, dim, dim)
        self.log_b_head = nn.Linear(dim, ACTION_DIM)

    def forward(self, features: Tensor) -> Tensor:
        """Maps the features of a step, (..., A * D), to (..., A)."""
        return self.log_b_head(self.trunk(features))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.trained |= f"{prefix}log_b_head.weight" in state_dict
