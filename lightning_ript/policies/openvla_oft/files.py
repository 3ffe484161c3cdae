"""Reads the files of a published directory without holding them in memory."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ript.storage.hub import first_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHOWN = 8
Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file, of which tensors are read one at a time.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as contents:
            yield contents
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}): fetch it again") from error


def shards(folder: Path) -> list[Path]:
    """The safetensors files that hold a directory's base weights.

    Raises:
        FileNotFoundError: The directory, its weights or some of them are missing.
        ValueError: The index cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no directory {folder}")
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise FileNotFoundError(f"{folder} holds neither {INDEX} nor {SINGLE}")
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of safetensors files: {error!r}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its {INDEX} names")
    return [folder / name for name in names]


def shapes(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of safetensors files, from their headers alone."""
    found = {}
    for path in paths:
        with opened(path) as contents:
            for name in contents.keys():  # noqa: SIM118  (not a mapping)
                found[name] = tuple(contents.get_slice(name).get_shape())
    return found


def only(folder: Path, pattern: str, what: str) -> Path:
    """The one file of a directory whose name fits.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There are several.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{folder} holds no {what} ({pattern})")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} holds more than one {what}: keep one of {names}")
    return found[0]


def read_pickle(path: Path) -> dict[str, Any]:
    """Reads a file that torch.save wrote, mapped into memory where its format allows.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or is more than tensors in dictionaries.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}")
    try:
        contents = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # a foreign file makes the unpickler raise anything at all
        raise ValueError(f"{path} cannot be read as plain tensors ({first_line(error)})") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds no tensors by name")
    return contents


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the `module.` that training on several GPUs put before their names."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


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
