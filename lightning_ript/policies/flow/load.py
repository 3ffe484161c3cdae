"""Fills networks with published weights."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ript.policies.flow.lerobot import NETWORK
from lightning_ript.policies.lora import is_adapter_weight, plain_name
from lightning_ript.policies.safetensor_files import opened, shapes, shards
from lightning_ript.policies.weights import check_fit, read_tensors
from lightning_ript.storage.hub import local_file

POLICY = "policy."  # what names in Lightning's checkpoints begin with

Rename = Callable[[str], str | None]
"""From a name in a file to the network's; None for what no action needs."""


def network_shapes(folder: Path, rename: Rename) -> dict[str, tuple[int, ...]]:
    """Shapes of a published network's tensors, by the network's names.

    Raises:
        OSError: The weights are missing.
        ValueError: They cannot be read.
    """
    found = shapes(shards(folder))
    return {name: found[full] for full, name in _names(found, rename)}


def fill(
    network: nn.Module,
    folder: Path,
    rename: Rename,
    dtype: Callable[[str], torch.dtype] | None = None,
) -> None:
    """Copies a published network's weights; an adapter in the network stays as it is.

    Args:
        network: The network, which may be on the meta device.
        folder: Holds the weights.
        rename: Names in the files -> the network's.
        dtype: What weights of a network on the meta device become, by name; another keeps its own.

    Raises:
        OSError: The weights are missing.
        ValueError: They cannot be read or do not fit.
    """
    own = {name: v for name, v in network.state_dict().items() if not is_adapter_weight(name)}
    places = {plain_name(name): name for name in own}
    expected = {name: tuple(own[place].shape) for name, place in places.items()}
    check_fit(expected, network_shapes(folder, rename), folder)
    state: dict[str, Tensor] = {}
    for path in shards(folder):
        with opened(path) as contents:
            for full, name in _names(contents.keys(), rename):
                value = contents.get_tensor(full)
                state[places[name]] = value if dtype is None else value.to(dtype(name))
    network.load_state_dict(state, strict=False, assign=next(network.parameters()).is_meta)


def published_tensors(folder: Path, rename: Rename, wanted: Container[str]) -> dict[str, Tensor]:
    """Some of a published network's tensors, by the network's names."""
    found: dict[str, Tensor] = {}
    for path in shards(folder):
        with opened(path) as contents:
            for full, name in _names(contents.keys(), rename):
                if name in wanted:
                    found[name] = contents.get_tensor(full)
    return found


def trained_tensors(place: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """What one of Lightning's checkpoints of a policy holds: all of it that learned.

    Args:
        place: The file, here or on the hub.

    Returns:
        Tensors by the policy's names, and what `FlowPolicy.described` said of it.

    Raises:
        OSError: There is no such file.
        ValueError: It cannot be read, or is not a checkpoint of a policy.
    """
    contents = read_tensors(local_file(place))
    state = contents.get("state_dict", {})
    found = {n.removeprefix(POLICY): v for n, v in state.items() if n.startswith(POLICY)}
    if not found:
        raise ValueError(f"{place} is not a checkpoint of a policy: it has no weights of one.")
    return found, contents.get("policy", {})


def load_trained(policy: nn.Module, found: Mapping[str, Tensor], place: str | Path) -> None:
    """Copies what `trained_tensors` has found at a place.

    Raises:
        ValueError: It is of another policy.
    """
    own = policy.state_dict()
    expected = {name: tuple(value.shape) for name, value in own.items() if name in found}
    check_fit(expected, {name: tuple(value.shape) for name, value in found.items()}, place)
    policy.load_state_dict(found, strict=False)


def count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Layers whose tensors are called `prefix.N.`."""
    start = f"{prefix}."
    numbers = {n.removeprefix(start).split(".")[0] for n in shapes if n.startswith(start)}
    return len(numbers)


def _names(names: Iterable[str], rename: Rename) -> list[tuple[str, str]]:
    found = [
        (name, rename(name.removeprefix(NETWORK))) for name in names if name.startswith(NETWORK)
    ]
    return [(full, name) for full, name in found if name is not None]
