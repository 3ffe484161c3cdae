"""A policy for the toy environment that is built as large ones are."""

import torch
from torch import nn

from lightning_ript.policies.toy import ToyPolicy


class Block(nn.Module):
    """A frozen residual layer with a trained one of low rank beside it."""

    def __init__(self, width, rank, dtype):
        super().__init__()
        self.base = nn.Linear(width, width, dtype=dtype).requires_grad_(False)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, x):
        frozen = self.base(x.to(self.base.weight.dtype)).to(x)
        return x + torch.tanh(frozen + self.up(self.down(x)))


class Stack(nn.Module):
    def __init__(self, inputs, width, depth, rank, outputs, dtype):
        super().__init__()
        self.enter = nn.Linear(inputs, width).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(width, rank, dtype) for _ in range(depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class BlockPolicy(ToyPolicy):
    """Adapters in every block and a head learn, each at its own rate.

    Args:
        base: Name of the dtype of what is frozen in the blocks.
        head_norm: The norm that the head's gradient is clipped to.
        adapter_lr: The adapters' learning rate.
    """

    def __init__(
        self,
        base: str = "float32",
        head_norm: float = 0.5,
        adapter_lr: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = Stack(16, 31, 3, 5, self.chunk * 8, getattr(torch, base))
        self.head_norm, self.adapter_lr = head_norm, adapter_lr

    def blocks(self):
        return tuple(self.net.blocks)

    def parameter_groups(self):
        adapters = [p for p in self.net.blocks.parameters() if p.requires_grad]
        return [
            # The head first, so that no group is in the model's order.
            {
                "name": "head",
                "params": list(self.net.head.parameters()),
                "max_grad_norm": self.head_norm,
            },
            {"name": "adapters", "params": adapters, "lr": self.adapter_lr},
        ]
