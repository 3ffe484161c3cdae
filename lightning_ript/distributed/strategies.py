"""The strategy for policies that one GPU cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer

from lightning_ript.distributed.sharding import load_whole_state, sharded_like, whole_state


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes: each holds its share of parameters, gradients, optimizer state.

    It is Lightning's `ModelParallelStrategy` with all processes in the data-parallel dimension, and
    with checkpoints that are one file, the same as a single process writes, so that a run can go on
    with any number of processes and any strategy. (Lightning numbers an optimizer's parameters
    among all of the model's, frozen ones too, which only fits the same strategy again, and cannot
    load an optimizer without state.)

    Args:
        process_group_backend: torch.distributed's backend, by default NCCL on GPUs, gloo elsewhere.
    """

    weights_only: bool | None = True
    """Whether checkpoints may hold nothing but data, where Lightning does not say."""

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        """Puts every process into one dimension."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning asks for optimizer states after the weights, as with other strategies."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on rank zero, nothing on others; every rank has to call it."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return whole_state(optimizer, keep=self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Leaves each rank its share."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_whole_state(optimizer, state)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Opens the file without reading all of it into every process's memory."""
        path = self.broadcast(checkpoint_path)
        if weights_only is None:  # Lightning forgets it where it restores after the setup
            weights_only = self.weights_only
        return torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Leaves each rank its share."""
        assert self.lightning_module is not None
        mine = self.lightning_module.state_dict()
        state = {
            name: sharded_like(value, mine[name]) if name in mine else value
            for name, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(state, strict=strict)
