"""Reads and writes QueST weights: official files, and Lightning checkpoints of any stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_ript.files import replacing

OFFICIAL_PREFIX = "module."
LIGHTNING_PREFIX = "policy.model."
SHOWN = 8


def is_official(path: str | Path) -> bool:
    """Whether a file has the official format, `{"model": {"module.<name>": tensor}}`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file cannot be read, or holds no QueST.
    """
    return "model" in _read(Path(path))


def load_official(model: nn.Module, path: str | Path) -> None:
    """Loads an official file, with or without the `module.` prefix, into `model`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not readable, not official, or does not fit the model; names every
            key that is missing, unexpected or of another shape (with both shapes).
    """
    contents = _read(Path(path))
    if "model" not in contents:
        raise ValueError(f"{path} is not an official QueST checkpoint: it has no 'model' entry")
    _load(model, _official_weights(contents), Path(path))


def save_official(model: nn.Module, path: str | Path) -> None:
    """Writes `model` as an official file, bit for bit as it is."""
    weights = {OFFICIAL_PREFIX + name: value for name, value in model.state_dict().items()}
    with replacing(path) as temporary:
        torch.save({"model": weights}, temporary)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads an official file or a Lightning checkpoint of any of this project's stages.

    Raises:
        FileNotFoundError: No such file.
        ValueError: As `load_official`.
    """
    contents = _read(Path(path))
    if "model" in contents:
        weights = _official_weights(contents)
    else:
        weights = {
            name.removeprefix(LIGHTNING_PREFIX): value
            for name, value in contents["state_dict"].items()
            if name.startswith(LIGHTNING_PREFIX)
        }
        if not weights:
            raise ValueError(f"{path} is a Lightning checkpoint without a QueST policy")
    _load(model, weights, Path(path))


def _read(path: Path) -> Mapping[str, Mapping[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file makes the unpickler raise anything at all
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint of plain tensors ({reason}); if it is whole "
            "and you trust it, save its 'model' entry alone with torch.save"
        ) from error
    if not isinstance(contents, dict) or not ("model" in contents or "state_dict" in contents):
        raise ValueError(
            f"{path} is neither an official QueST checkpoint nor one of Lightning's: it has no "
            "'model' and no 'state_dict' entry"
        )
    return contents


def _official_weights(contents: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name.removeprefix(OFFICIAL_PREFIX): value for name, value in contents["model"].items()}


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    problems = [f"{name!r} is missing from the file" for name in expected if name not in weights]
    problems += [f"{name!r} is unknown to the model" for name in weights if name not in expected]
    problems += [
        f"{name!r} has shape {tuple(weights[name].shape)} in the file and {tuple(value.shape)} in "
        "the model"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"{path} does not fit a QueST of these sizes: {'; '.join(problems[:SHOWN])}{more}"
        )
    model.load_state_dict(weights)
