"""Low-rank adapters of the base, as PEFT has them and RIPT-VLA publishes them.

A folder holds adapter_config.json, adapter_model.safetensors and, with the heads that were trained
along, openvla_headers.pt. The adapter's layers are put into `OpenVLA.base` itself, without
PEFT's wrapper, so the model stays what it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ript.distributed.sharding import whole
from lightning_ript.policies.lora import ADAPTER, LoraSizes, inject
from lightning_ript.policies.openvla_oft.model import OpenVLA
from lightning_ript.policies.safetensor_files import opened, shapes
from lightning_ript.policies.weights import check_fit, check_weights, read_tensors, without_module
from lightning_ript.storage.files import read_json, replacing
from lightning_ript.storage.hub import is_on_hub, local_folder

PATTERNS = ("*.json", "*.safetensors", "*.pt")
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEADERS = "openvla_headers.pt"
PREFIX = "base_model.model."
MERGED = "merged_adapters.json"

log = logging.getLogger(__name__)


def add_lora(model: OpenVLA, sizes: LoraSizes | None = None) -> None:
    """Puts a fresh adapter into the base: the only weights there that are trained.

    At first it changes nothing.

    Raises:
        ModuleNotFoundError: PEFT is not installed.
        ValueError: There is an adapter already.
    """
    if has_lora(model):
        raise ValueError("The model has an adapter already")
    inject(model.base, sizes or LoraSizes())


def has_lora(model: OpenVLA) -> bool:
    """Whether the base has an adapter."""
    return any(True for _ in _lora_layers(model))


def lora_parameters(model: OpenVLA) -> dict[str, nn.Parameter]:
    """The adapter's weights by their names in PEFT's files."""
    return {
        f"{PREFIX}{layer}.{matrix}.weight": parameter
        for layer, matrix, parameter in _lora_layers(model)
    }


def check_not_merged(base: Path, adapter: Path) -> None:
    """Refuses an adapter that a base's weights already hold: added twice, it ruins the policy.

    OpenVLA-OFT's training merges its adapter and leaves it in `lora_adapter/` beside the weights;
    `merge-adapter` writes down what it has merged.

    Args:
        base: The base's directory.
        adapter: The adapter's folder.

    Raises:
        ValueError: It does.
    """
    ours = fingerprint(adapter)
    inside = base.resolve() in adapter.resolve().parents
    beside = base / "lora_adapter"
    known = [entry["sha256"] for entry in merged_adapters(base)]
    if (beside / WEIGHTS).is_file():
        known.append(fingerprint(beside))
    if inside or ours in known:
        raise ValueError(
            f"{adapter} has been merged into the weights of {base} already, and would be added a "
            "second time: use the base without the adapter, or name the base from before the merge"
        )


def fingerprint(adapter: Path) -> str:
    """SHA-256 of an adapter's weights.

    Raises:
        FileNotFoundError: There are none.
    """
    path = adapter / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def merged_adapters(base: Path) -> list[dict[str, str]]:
    """The adapters that `merge-adapter` has merged into a directory: `adapter`, `sha256`."""
    path = base / MERGED
    return read_json(path) if path.is_file() else []


def is_adapter(place: str | Path) -> bool:
    """Whether a folder, here or on the hub, holds an adapter.

    Raises:
        OSError: The hub cannot be reached.
    """
    if not is_on_hub(place) and not Path(place).is_dir():
        return False
    return (local_folder(place, PATTERNS) / CONFIG).is_file()


def load_lora(model: OpenVLA, place: str | Path, heads_too: bool = False) -> None:
    """Loads a published adapter and, where the folder has them, its heads.

    Args:
        model: With an adapter of the same sizes, or none.
        place: The folder, or `hf://owner/repo/folder`.
        heads_too: Refuse a folder without the heads of a model that has some.

    Raises:
        OSError: A file is missing, here or on the hub.
        ValueError: A file cannot be read or does not fit.
        ModuleNotFoundError: PEFT is not installed.
    """
    folder = local_folder(place, PATTERNS)
    sizes = LoraSizes.from_json(folder / CONFIG)
    found = shapes([folder / WEIGHTS])
    if heads_too and model.published_heads() and not (folder / HEADERS).is_file():
        raise FileNotFoundError(f"{folder} has no {HEADERS}, so the action head is missing")
    headers = _read_headers(model, folder)
    if not has_lora(model):
        add_lora(model, sizes)
    own = lora_parameters(model)
    # PEFT took lm_head for an embedding that had grown, and saved all of it: half a gigabyte of
    # what the base has already.
    adapter = {name: shape for name, shape in found.items() if ".base_layer." not in name}
    check_fit({name: tuple(p.shape) for name, p in own.items()}, adapter, folder / WEIGHTS)
    with opened(folder / WEIGHTS) as contents, torch.no_grad():
        for name in adapter:
            own[name].copy_(contents.get_tensor(name))
    scaling = sizes.alpha / sizes.r
    for layer, _, _ in _lora_layers(model):
        adapted: Any = model.base.get_submodule(layer)
        adapted.scaling[ADAPTER] = scaling
    config = _peft_config(model)
    config.lora_alpha = sizes.alpha
    for module, weights in headers:
        module.load_state_dict(weights)


def save_lora(model: OpenVLA, folder: str | Path, base: str = "", write: bool = True) -> None:
    """Writes the adapter and the heads, if the model has some, as the published ones are.

    Sharded weights are gathered, so all ranks have to call this.

    Args:
        model: With an adapter.
        folder: Made if need be; files in it are replaced.
        base: Where the base's weights come from, for whoever reads the folder.
        write: Whether this rank writes.

    Raises:
        ValueError: There is no adapter.
    """
    if not has_lora(model):
        raise ValueError("The model has no adapter that could be saved")
    weights = {
        name: whole(p.detach()).cpu().contiguous() for name, p in lora_parameters(model).items()
    }
    heads = {
        name: {key: whole(p.detach()).cpu().contiguous() for key, p in module.named_parameters()}
        for name, module in model.published_heads().items()
    }
    if not write:
        return
    from safetensors.torch import save_file

    folder = Path(folder)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary, {"format": "pt"})
    if heads:
        with replacing(folder / HEADERS) as temporary:
            torch.save(heads, temporary)
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(_config(model, base), indent=2))


def _config(model: OpenVLA, base: str) -> dict[str, Any]:
    """The content of adapter_config.json.

    Only what every version of PEFT knows: the one that the published adapters were made with
    refuses a file with later versions' settings.
    """
    config = _peft_config(model)
    alpha = float(config.lora_alpha)
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": sorted(config.target_modules),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _read_headers(model: OpenVLA, folder: Path) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    path = folder / HEADERS
    heads = model.published_heads()
    if not heads and path.is_file():
        raise ValueError(
            f"{path} holds heads, but the model predicts tokens: the adapter is for another kind"
        )
    if not heads:
        return []
    if not path.is_file():
        log.info("%s has no %s: the heads stay as they are", folder, HEADERS)
        return []
    contents = read_tensors(path)
    found = []
    for name, module in heads.items():
        if name in contents:
            weights = without_module(contents[name])
            check_weights(module, weights, f"{path}, {name},")
            found.append((module, weights))
    return found


def _lora_layers(model: OpenVLA) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Name of the layer in the base, "lora_A" or "lora_B", and the weight."""
    ends = {f".{matrix}.{ADAPTER}.weight": matrix for matrix in ("lora_A", "lora_B")}
    for name, parameter in model.base.named_parameters():
        for end, matrix in ends.items():
            if name.endswith(end):
                yield name.removesuffix(end), matrix, parameter


def _peft_config(model: OpenVLA) -> Any:
    configs: Any = model.base.peft_config
    return configs[ADAPTER]
