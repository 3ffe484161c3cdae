"""Merges an adapter into the weights it adapts, as a directory that needs no adapter."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

from lightning_ript.policies.openvla_oft.checkpoint import (
    ACTION_HEAD,
    PATTERNS,
    ours,
    published,
    write_scale_weights,
)
from lightning_ript.policies.openvla_oft.lora import (
    CONFIG,
    HEADERS,
    MERGED,
    PREFIX,
    WEIGHTS,
    LoraSizes,
    check_not_merged,
    fingerprint,
    merged_adapters,
)
from lightning_ript.policies.openvla_oft.lora import PATTERNS as LORA_PATTERNS
from lightning_ript.policies.safetensor_files import INDEX, SINGLE, only, opened, shapes, shards
from lightning_ript.policies.weights import check_fit, read_tensors
from lightning_ript.storage.files import make_folder, replacing
from lightning_ript.storage.hub import local_folder

SCALE_HEAD = "scale_header.pth"


def merge_adapter(base: str, adapter: str, out: Path) -> None:
    """Writes a published OpenVLA-OFT directory with an adapter's changes added to its weights.

    Args:
        base: The base's directory, or `hf://owner/repo`.
        adapter: The adapter's folder, or `hf://owner/repo/folder`.
        out: Where to; must not exist, or be empty.
    """
    merge_lora(base, adapter, out)
    sys.stdout.write(f"merged weights are in {out}\n")


def merge_lora(
    place: str | Path, adapter: str | Path, folder: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Writes a published directory with the adapter's changes added to its weights.

    Needs no model, no GPU, and of memory twice the largest safetensors file.

    Args:
        place: The base's directory, or `hf://owner/repo`.
        adapter: The adapter's folder, or `hf://owner/repo/folder`. Its action head, if it has one,
            replaces the base's; its scale head is written as scale_header.pth.
        folder: Where to; must not exist, or be empty.
        dtype: Of the weights; None for the base's own.

    Raises:
        OSError: A file is missing, here or on the hub.
        ValueError: A file cannot be read, the adapter does not fit or is in the weights already, or
            the folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: merged weights go into a folder of their own")
    make_folder(folder.parent)
    source, lora = local_folder(place, PATTERNS), local_folder(adapter, LORA_PATTERNS)
    paths = shards(source)
    check_not_merged(source, lora)
    sizes = LoraSizes.from_json(lora / CONFIG)
    layers = _layers(shapes([lora / WEIGHTS]), shapes(paths), sizes.r, lora / WEIGHTS)
    headers = read_tensors(lora / HEADERS) if (lora / HEADERS).is_file() else {}
    trained = headers.get("action_header")
    head = None if trained is None else only(source, ACTION_HEAD, "action head")

    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    total = 0
    for path in paths:
        merged = _merged(
            path, lora / WEIGHTS, layers=layers, scaling=sizes.alpha / sizes.r, dtype=dtype
        )
        _write(merged, folder / path.name)
        places.update(dict.fromkeys(merged, path.name))
        total += sum(value.nbytes for value in merged.values())
        del merged  # or it would stay while the next one grows
    if [path.name for path in paths] != [SINGLE]:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    for pattern in PATTERNS:
        for path in source.glob(pattern):
            if path.suffix != ".safetensors" and path.name != INDEX:
                shutil.copy(path, folder)
    known = [*merged_adapters(source), {"adapter": str(adapter), "sha256": fingerprint(lora)}]
    (folder / MERGED).write_text(json.dumps(known, indent=2))
    if trained is not None and head is not None:
        weights = {f"module.{name}": value for name, value in trained.items()}
        torch.save(weights, folder / head.name)
    if "scale_header" in headers:
        write_scale_weights(headers["scale_header"], folder / SCALE_HEAD)


def _layers(
    adapter: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]], r: int, place: Path
) -> set[str]:
    """Our names of the adapted weights.

    Raises:
        ValueError: The adapter has a layer that the base lacks, or that has another shape there.
    """
    known = {ours(name): shape for name, shape in base.items()}
    found = {name: shape for name, shape in adapter.items() if ".base_layer." not in name}
    names = {name.removeprefix(PREFIX).rpartition(".lora_")[0] + ".weight" for name in found}
    expected = {}
    for name in names & known.keys():
        layer, (outputs, *inputs) = PREFIX + name.removesuffix(".weight"), known[name]
        expected[f"{layer}.lora_A.weight"] = (r, *inputs)
        expected[f"{layer}.lora_B.weight"] = (outputs, r, *(1 for _ in inputs[1:]))
    check_fit(expected, found, place)
    return names


def _merged(
    path: Path, adapter: Path, layers: set[str], scaling: float, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """A file's weights, by their published names, with the adapter's changes."""
    merged = {}
    with opened(path) as weights, opened(adapter) as lora:
        for key in weights.keys():  # noqa: SIM118  (not a mapping)
            name = ours(key)
            value = weights.get_tensor(key)
            kind = dtype or value.dtype
            if name in layers:
                layer = PREFIX + name.removesuffix(".weight")
                a, b = (lora.get_tensor(f"{layer}.lora_{m}.weight").float() for m in "AB")
                # A convolution's B is 1 x 1: the change is the same product.
                change = (b.flatten(1) @ a.flatten(1)).reshape(value.shape)
                value = value.float() + scaling * change
            merged[published(name)] = value.to(kind, copy=True)
    return merged


def _write(weights: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(weights, temporary, {"format": "pt"})
