"""OpenVLA-OFT: how much memory loading takes beside the model itself.

python benchmarks/openvla_loading.py [--layers 8] [--shard_mib 2048] [--json FILE]

Writes a directory in the published format, of the published sizes but for the number of the
language model's layers, all weights zero, in safetensors files of at most the given size; then
loads it on the CPU. The peak counts pages of the files that are mapped, too. What is left of it
without the model's own weights is what a machine whose model lies on a GPU needs, at most. Fails if
that is more than 1.3 times the largest file and 2 GiB.
"""

from __future__ import annotations

import json as json_format
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from measuring.processes import MIB, memory_mib, restart_peak
from measuring.report import table
from openvla_oft import SMALL
from safetensors.torch import save_file

from lightning_ript.policies.openvla_oft.checkpoint import load_openvla, published
from lightning_ript.policies.openvla_oft.config import OpenVLAConfig
from lightning_ript.policies.openvla_oft.model import OpenVLAOFT

# As many weights as a test has time for, most of them the language model's.
WIDE = replace(SMALL, text=replace(SMALL.text, hidden_size=1024, intermediate_size=8192))


def write(config: OpenVLAConfig, folder: Path, limit: int) -> None:
    """Writes zeros in float16 as a published directory, in files of at most `limit` bytes.

    A single weight that is larger has a file of its own.
    """
    with torch.device("meta"):
        model = OpenVLAOFT(config)
    text = {**vars(config.text), "model_type": "llama"}
    contents = {
        "model_type": "openvla",
        "image_sizes": [config.image_size] * 2,
        "n_action_bins": config.n_action_bins,
        "pad_to_multiple_of": config.pad_to_multiple_of,
        "pad_token_id": config.text.pad_token_id,
        "text_config": text,
        "timm_model_ids": config.timm_model_ids,
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
        "norm_stats": {},
    }
    (folder / "config.json").write_text(json_format.dumps(contents))
    files: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, weight in model.base.state_dict().items():
        if size and size + 2 * weight.numel() > limit:
            files.append({})
            size = 0
        files[-1][published(name)] = weight.shape
        size += 2 * weight.numel()
    places = {}
    for number, shapes in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weights = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
        save_file(weights, folder / file, {"format": "pt"})
        places.update(dict.fromkeys(shapes, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json_format.dumps(index))
    for name in ("action_head", "proprio_projector"):
        head = getattr(model, name).state_dict()
        zeros = {f"module.{n}": torch.zeros(v.shape, dtype=torch.bfloat16) for n, v in head.items()}
        torch.save(zeros, folder / f"{name}--1_checkpoint.pt")


def load(place: Path) -> tuple[float, float, float]:
    """MiB of this process before and at most while it loads, and of the model's weights."""
    before = memory_mib("self", "VmRSS")
    restart_peak()
    model = load_openvla(place)
    peak = memory_mib("self", "VmHWM")
    return before, peak, sum(value.nbytes for value in model.state_dict().values()) / MIB**2


def main(
    size: Literal["small", "full"] = "full",
    layers: int = 8,
    shard_mib: float = 2048,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    """Writes, loads and prints a table.

    Args:
        size: The published sizes, or small ones.
        layers: Of the language model; the published has 32.
        shard_mib: MiB of a file at most.
        folder: Where there is room for the files, which are removed in the end.
        json: File to write all numbers to.
    """
    sizes = OpenVLAConfig() if size == "full" else WIDE
    config = replace(sizes, text=replace(sizes.text, num_hidden_layers=layers))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        write(config, place, int(shard_mib * MIB * MIB))
        shards = [path.stat().st_size / MIB**2 for path in place.glob("*.safetensors")]
        # In a process of its own, which does not have what writing has left.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            before, peak, weights = process.submit(load, place).result()
    beside, allowed = peak - weights, 1.3 * max(shards) + 2048
    found = {
        "files": len(shards),
        "largest_file_mib": max(shards),
        "weights_mib": weights,
        "before_mib": before,
        "peak_mib": peak,
        "beside_mib": beside,
        "allowed_mib": allowed,
    }
    print(table(["", "MiB"], [[key, f"{value:,.0f}"] for key, value in found.items()]))
    if json is not None:
        json.write_text(json_format.dumps(found, indent=2))
    if beside > allowed:
        sys.exit(f"loading takes {beside:,.0f} MiB beside the model")


if __name__ == "__main__":
    auto_cli(main)
