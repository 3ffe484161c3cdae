"""Fills networks with published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_ript.policies.flow.lerobot import NETWORK
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
    network: nn.Module, folder: Path, rename: Rename, dtype: torch.dtype | None = None
) -> None:
    """Copies a published network's weights.

    Args:
        network: The network, which may be on the meta device.
        folder: Holds the weights.
        rename: Names in the files -> the network's.
        dtype: What the weights of a network on the meta device become; another keeps its own.

    Raises:
        OSError: The weights are missing.
        ValueError: They cannot be read or do not fit.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_fit(expected, network_shapes(folder, rename), folder)
    state: dict[str, Tensor] = {}
    for path in shards(folder):
        with opened(path) as contents:
            for full, name in _names(contents.keys(), rename):
                state[name] = contents.get_tensor(full).to(dtype)
    network.load_state_dict(state, assign=next(network.parameters()).is_meta)


def load_trained(policy: nn.Module, place: str | Path) -> None:
    """Copies what one of Lightning's checkpoints of the same policy holds: all of it that learned.

    Args:
        policy: The policy.
        place: The file, here or on the hub.

    Raises:
        OSError: There is no such file.
        ValueError: It cannot be read, or is of another policy.
    """
    path = local_file(place)
    state = read_tensors(path).get("state_dict", {})
    found = {n.removeprefix(POLICY): v for n, v in state.items() if n.startswith(POLICY)}
    own = policy.state_dict()
    expected = {name: tuple(value.shape) for name, value in own.items() if name in found}
    if not found:
        raise ValueError(f"{place} is no checkpoint of a policy: it has no weights of one.")
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
