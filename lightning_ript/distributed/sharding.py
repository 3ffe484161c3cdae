"""FSDP2: parameters lie in shards, one per rank, and are whole only where and while it matters.

A policy is called by `act` and `log_prob` instead of `forward`, does many forward passes that no
other rank does, and is stepped after several backward passes; what follows from that is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has been here."""
    return isinstance(module, FSDPModule)


def shard(
    module: nn.Module, mesh: DeviceMesh, blocks: Sequence[nn.Module] = (), methods: Iterable = ()
) -> None:
    """Leaves each rank its share of every parameter, frozen or not.

    Args:
        module: What is called from outside.
        mesh: The ranks, in one dimension.
        blocks: Parts of it that are gathered one at a time while it runs; the rest is one unit.
        methods: Names of the methods beside `forward` that it is called by.
    """
    for unit in (*blocks, module):
        sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        if mesh.device_type == "cpu":
            # Asked for the mean of gradients, gloo in torch 2.8 silently returns their sum.
            sharded.set_force_sum_reduction_for_comms(True)
    for name in methods:
        register_fsdp_forward_method(module, name)


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Keeps all parameters whole, so that forward passes need no other rank.

    Every rank has to enter; none waits for another until it enters again or learns. Parameters must
    not change within. Nothing happens to modules that are not sharded.
    """
    units = [unit for module in modules for unit in module.modules() if is_sharded(unit)]
    try:
        for unit in units:
            assert isinstance(unit, FSDPModule)
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            assert isinstance(unit, FSDPModule)
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


@contextmanager
def gradients_stay(model: nn.Module | None, stay: bool) -> Iterator[None]:
    """For a backward pass that is not the last before a step: gradients add up on each rank.

    They then travel once per step. Each rank meanwhile holds the whole gradient of what is trained.

    Args:
        model: The strategy's model, which DDP wraps, or has sharded parts.
        stay: Whether it is such a backward pass.
    """
    if model is None or not stay:
        yield
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        units = [unit for unit in model.modules() if isinstance(unit, FSDPModule)]
        for unit in units:
            unit.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_gradient_sync(True, recurse=False)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scales gradients down to a norm, that of the whole gradient though it may lie in shards.

    Returns:
        The norm before, a scalar, the same on every rank. If it is not finite, nothing is scaled.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    if norm.isfinite():
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def whole(value: Tensor) -> Tensor:
    """Gathers a tensor that lies in shards; every rank has to call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """What this rank holds of a tensor; it shares its memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """Cuts `value`, whole on every rank, as `like` is cut; its dtype stays."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements)


# -- the state of an optimizer, as it would be in one process --------------------------------------


def whole_state(optimizer: torch.optim.Optimizer, keep: bool) -> dict:
    """Its state dict with every tensor gathered on the CPU; every rank has to call it.

    Args:
        optimizer: The optimizer.
        keep: Whether this rank needs the result; the others get an empty one.
    """
    state_dict = optimizer.state_dict()
    state: dict = {}
    for number, values in state_dict["state"].items():
        mine = state.setdefault(number, {})
        for name, value in values.items():
            full = whole(value).cpu() if isinstance(value, Tensor) else value
            if keep:
                mine[name] = full
    return {**state_dict, "state": state} if keep else {}


def load_whole_state(optimizer: torch.optim.Optimizer, state_dict: dict) -> None:
    """Loads what `whole_state` or an optimizer in one process has made."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {
            name: sharded_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in state_dict["state"].items()
    }
    optimizer.load_state_dict({**state_dict, "state": state})
