"""Fills networks with published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_ript.policies.flow.lerobot import NETWORK
from lightning_ript.policies.safetensor_files import opened, shapes, shards
from lightning_ript.policies.weights import check_fit

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


def fill(network: nn.Module, folder: Path, rename: Rename, dtype: torch.dtype) -> None:
    """Copies a published network's weights, tensor by tensor.

    Args:
        network: Built without values (on the meta device).
        folder: Holds the weights.
        rename: Names in the files -> the network's.
        dtype: What the weights are kept in.

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
    network.load_state_dict(state, assign=True)


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
