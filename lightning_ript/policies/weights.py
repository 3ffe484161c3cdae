"""Files of weights: reading them as nothing but tensors, and whether they fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_ript.storage.torch_files import read_data

SHOWN = 8  # differences that a sentence names
Shapes = Mapping[str, tuple[int, ...]]


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads a file that torch.save wrote, mapped into memory where its format allows.

    Raises:
        OSError: There is no such file, or it cannot be read at the moment.
        ValueError: It is damaged, or is more than tensors in dictionaries.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}")
    contents = read_data(path)
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds no tensors by name")
    return contents


def without_module(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the `module.` that training on several GPUs put before their names."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], place: str | Path) -> None:
    """Compares weights with what a module has.

    Raises:
        ValueError: Names or shapes differ.
    """
    check_fit(
        {name: tuple(value.shape) for name, value in module.state_dict().items()},
        {name: tuple(value.shape) for name, value in weights.items()},
        place,
    )


def check_fit(expected: Shapes, found: Shapes, place: str | Path) -> None:
    """Compares names and shapes.

    Args:
        expected: The model's.
        found: The files'.
        place: What the sentence begins with.

    Raises:
        ValueError: They differ; one sentence names the first few differences.
    """
    problems = [f"{name!r} is missing from it" for name in expected if name not in found]
    problems += [f"{name!r} is unknown to the model" for name in found if name not in expected]
    problems += [
        f"{name!r} has shape {found[name]} there and {shape} in the model"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{place} does not fit: {'; '.join(problems[:SHOWN])}{more}")
