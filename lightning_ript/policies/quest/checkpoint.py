"""Reads and writes QueST weights: official files, and Lightning checkpoints of any stage.

Wherever a file is read, it may be the hub's, `hf://owner/repo/path/in/repo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ript.policies.weights import check_weights, read_tensors, without_module
from lightning_ript.storage.files import replacing
from lightning_ript.storage.hub import local_file

OFFICIAL_PREFIX = "module."
LIGHTNING_PREFIX = "policy.model."


def is_official(place: str | Path) -> bool:
    """Whether a file has the official format, `{"model": {"module.<name>": tensor}}`.

    Raises:
        OSError: No such file, here or on the hub.
        ValueError: The file cannot be read, or holds no QueST.
    """
    return "model" in _read(place)


def load_official(model: nn.Module, place: str | Path, language: str | None = None) -> None:
    """Loads an official file, with or without the `module.` prefix, into `model`.

    Args:
        model: QueST.
        place: The file, here or on the hub.
        language: How instructions become vectors, for `check_language`; None checks nothing.

    Raises:
        OSError: No such file, here or on the hub.
        ValueError: The file is not readable, not official, or does not fit the model; names every
            key that is missing, unexpected or of another shape (with both shapes). Or `language` is
            not what it has learned.
    """
    contents = _read(place)
    if "model" not in contents:
        raise ValueError(f"{place} is not an official QueST checkpoint: it has no 'model' entry")
    if language is not None:
        _check_language(contents, place, language)
    _load(model, _official_weights(contents), place)


def save_official(model: nn.Module, path: str | Path, language: str | None = None) -> None:
    """Writes `model` as an official file, bit for bit as it is.

    Args:
        model: QueST.
        path: The file.
        language: How instructions became vectors, for `check_language`.
    """
    write_official(model.state_dict(), path, language)


def write_official(
    weights: Mapping[str, Tensor], path: str | Path, language: str | None = None
) -> None:
    """Writes weights, by QueST's names, as an official file.

    The reference's reader takes `model` and leaves `language`, our own entry, alone.
    """
    contents: dict[str, Any] = {
        "model": {OFFICIAL_PREFIX + name: value for name, value in weights.items()}
    }
    if language is not None:
        contents["language"] = language
    with replacing(path) as temporary:
        torch.save(contents, temporary)


def recorded_language(place: str | Path) -> str | None:
    """How instructions became vectors for a policy, None where its file does not say.

    Raises:
        OSError: No such file, here or on the hub.
        ValueError: The file cannot be read, or holds no QueST.
    """
    contents: Mapping[str, Any] = _read(place)
    if "model" in contents:
        return contents.get("language")
    return contents.get("policy", {}).get("language")


def check_language(place: str | Path, language: str) -> None:
    """Refuses an official file whose policy has learned other task embeddings.

    Raises:
        OSError: No such file, here or on the hub.
        ValueError: It has: with other vectors for the instructions, it acts at random. A file that
            does not say what it has learned is taken for a published one, which has learned CLIP's.
    """
    _check_language(_read(place), place, language)


def _check_language(contents: Mapping[str, Any], place: str | Path, language: str) -> None:
    if "model" not in contents:
        return  # of this project: an autoencoder has learned none, and SFT may go on with others
    learned = contents.get("language")
    if learned is None and language == "hashed":
        raise ValueError(
            f"{place} is an official QueST checkpoint, which has learned CLIP's text features, but "
            "language is hashed: set the policy's language to clip. (If you exported it from a "
            "policy with hashed language, export it again with --language hashed.)"
        )
    if learned is not None and learned != language:
        raise ValueError(
            f"{place} was trained with language {learned}, but the policy's language is "
            f"{language}: set it to {learned}"
        )


def load_weights(model: nn.Module, place: str | Path, language: str | None = None) -> None:
    """Loads an official file or a Lightning checkpoint of any of this project's stages.

    Args:
        model: QueST.
        place: The file, here or on the hub.
        language: How instructions become vectors, for `check_language`; None checks nothing.

    Raises:
        OSError: No such file, here or on the hub.
        ValueError: As `load_official` and `check_language`.
    """
    contents = _read(place)
    if language is not None:
        _check_language(contents, place, language)
    _load(model, _weights(contents, place), place)


def read_weights(place: str | Path) -> dict[str, Tensor]:
    """Reads the weights of either kind of file, by QueST's names and as they are.

    Raises:
        OSError: No such file, here or on the hub.
        ValueError: The file cannot be read, or holds no QueST.
    """
    return _weights(_read(place), place)


def _weights(contents: Mapping[str, Mapping[str, Tensor]], place: str | Path) -> dict[str, Tensor]:
    if "model" in contents:
        return _official_weights(contents)
    weights = {
        name.removeprefix(LIGHTNING_PREFIX): value
        for name, value in contents["state_dict"].items()
        if name.startswith(LIGHTNING_PREFIX)
    }
    if not weights:
        raise ValueError(f"{place} is a Lightning checkpoint without a QueST policy")
    return weights


def _read(place: str | Path) -> Mapping[str, Mapping[str, Tensor]]:
    path = local_file(place)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {place}")
    contents = read_tensors(path)
    if not ("model" in contents or "state_dict" in contents):
        raise ValueError(
            f"{place} is neither an official QueST checkpoint nor one of Lightning's: it has no "
            "'model' and no 'state_dict' entry"
        )
    return contents


def _official_weights(contents: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return without_module(contents["model"])


def _load(model: nn.Module, weights: dict[str, Tensor], place: str | Path) -> None:
    check_weights(model, weights, place)
    model.load_state_dict(weights)
