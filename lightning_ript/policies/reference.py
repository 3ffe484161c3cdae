"""The policy that learning started from, for the KL penalty, without a second copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ript.distributed.sharding import local, sharded_like
from lightning_ript.policies.base import PolicyAdapter

_PORTION = 2**18  # numbers that are swapped at once


class ReferenceWeights(nn.Module):
    """Keeps the starting values of what learning changes, and puts them in place for a while.

    All else of the starting policy is the policy's own: of a 7 B model with LoRA it takes the
    memory of the adapter, or of half of it where the adapter was fresh.

    Args:
        policy: The policy as it is before it learns.
    """

    def __init__(self, policy: PolicyAdapter) -> None:
        super().__init__()
        self._names: dict[str, str] = {}  # of the policy's parameters -> of the buffers here
        for number, (name, value) in enumerate(policy.reference_parameters()):
            self._names[name] = f"start_{number}"
            self.register_buffer(self._names[name], value.detach().clone())

    def shard(self, policy: PolicyAdapter) -> None:
        """Leaves this rank its share of each value, as the policy's parameters lie in shards."""
        for value, parameter, buffer in self._pairs(policy):
            self._buffers[buffer] = sharded_like(value, parameter.detach())

    @contextmanager
    def in_place_of(self, policy: PolicyAdapter) -> Iterator[None]:
        """Gives the policy its starting values; nothing may be learned from meanwhile.

        Every rank has to enter if parameters lie in shards, and gather them only within.
        """
        self._exchange(policy)
        try:
            yield
        finally:
            self._exchange(policy)

    @torch.no_grad()
    def _exchange(self, policy: PolicyAdapter) -> None:
        """Swaps values a few rows at a time, so that a third copy is never needed."""
        for value, parameter, _ in self._pairs(policy):
            for mine, theirs in zip(_rows(value), _rows(parameter), strict=True):
                current = theirs.clone()
                theirs.copy_(mine)
                mine.copy_(current)

    def _pairs(self, policy: PolicyAdapter) -> list[tuple[Tensor, nn.Parameter, str]]:
        parameters = dict(policy.named_parameters())
        return [(getattr(self, b), parameters[name], b) for name, b in self._names.items()]

    def adopt(self, state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
        """Renames what checkpoints of version 0.1 hold of the reference: a whole second policy.

        Args:
            state_dict: Of a checkpoint.
            prefix: What this module's names begin with in it.
        """
        theirs = {prefix + name: prefix + buffer for name, buffer in self._names.items()}
        if not any(name in state_dict for name in theirs):
            return dict(state_dict)
        others = {n: v for n, v in state_dict.items() if not n.startswith(prefix)}
        return others | {ours: state_dict[name] for name, ours in theirs.items()}


def _rows(value: Tensor) -> Sequence[Tensor]:
    """Views of what this rank holds of a tensor, of a megabyte or so."""
    mine = local(value.detach())
    rows = max(1, _PORTION // max(1, mine[:1].numel())) if mine.ndim else 1
    return mine.split(rows) if mine.ndim else [mine]
