"""Reads the files of a published directory without holding them in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_ript.storage.files import below
from lightning_ript.storage.hub import first_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


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
    paths = {name: below(folder, name, index) for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its {INDEX} names")
    return list(paths.values())


def shapes(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of safetensors files, from their headers alone."""
    found = {}
    for path in paths:
        with opened(path) as contents:
            for name in contents.keys():  # noqa: SIM118  (not a mapping)
                found[name] = tuple(contents.get_slice(name).get_shape())
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    with opened(path) as contents:
        return {name: contents.get_tensor(name) for name in contents.keys()}  # noqa: SIM118


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
