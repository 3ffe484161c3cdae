"""Loads a published OpenVLA-OFT, tensor by tensor.

A directory, here or on the hub as `hf://owner/repo`, holds config.json, the base's weights in
safetensors, and the action head and the proprio projector in files of their own. RIPT-VLA's scale
heads are published apart from it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_ript.policies.openvla_oft.config import OpenVLAConfig
from lightning_ript.policies.openvla_oft.heads import LaplaceScaleHead
from lightning_ript.policies.openvla_oft.model import (
    OpenVLA,
    OpenVLAOFT,
    OpenVLATokens,
)
from lightning_ript.policies.openvla_oft.quantization import (
    Quantization,
    Quantizer,
    check_quantization,
)
from lightning_ript.policies.safetensor_files import only, opened, shapes, shards
from lightning_ript.policies.weights import check_fit, check_weights, read_tensors, without_module
from lightning_ript.storage.files import replacing
from lightning_ript.storage.hub import local_file, local_folder

FILM = "vision_backbone--*"
PATTERNS = ("*.json", "*.model", "*.txt", "*.safetensors", "*.pt")
ACTION_HEAD = "action_head--*checkpoint.pt"
PROPRIO_PROJECTOR = "proprio_projector--*checkpoint.pt"
# Older transformers stored what every Llama computes for itself.
COMPUTED = "rotary_emb.inv_freq"
# Parts of a scale head: their names in its file, and ours.
SCALE_PARTS = {"scale_trunk": "trunk", "log_b_head": "log_b_head"}

Model = TypeVar("Model", bound=OpenVLA)
Part = tuple[nn.Module, dict[str, Tensor], Path]
"""A module, its weights and the file that holds them."""

log = logging.getLogger(__name__)


def load_openvla(
    place: str | Path,
    scale_head: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    head_dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
    proprio: bool = True,
) -> OpenVLAOFT:
    """Loads a published directory, in eval mode and with the base's weights frozen.

    All files are looked at before the first weight is read. No more than the largest safetensors
    file is ever in memory beside the model itself.

    Args:
        place: The directory, or `hf://owner/repo`, `hf://owner/repo@revision/folder`.
        scale_head: RIPT-VLA's scale head, a `.pth` file here or `hf://owner/repo/path`; None for a
            fresh one.
        device: Where the model goes.
        dtype: Of the base.
        head_dtype: Of action head, proprio projector and scale head. In bfloat16 (the reference's)
            a mean near 1 is one of 256 numbers, and rounding alone moves a log-probability by up
            to 0.03 per dimension.
        quantization: "8bit" or "4bit" stores the language model's weights so; needs bitsandbytes,
            which is made for GPUs and slow on a CPU.
        proprio: Whether the model was trained with proprioception, and so has a projector for it.

    Raises:
        OSError: A file is missing, here or on the hub.
        ValueError: A file cannot be read or does not fit; names every key that is missing, unknown
            or of another shape (with both shapes).
        ModuleNotFoundError: timm, or bitsandbytes if it is asked for, is not installed.
    """

    def heads(model: OpenVLAOFT, folder: Path) -> list[Part]:
        path = only(folder, ACTION_HEAD, "action head")
        parts: list[Part] = [(model.action_head, without_module(read_tensors(path)), path)]
        if scale_head is None:
            return parts
        path = local_file(scale_head)
        return [*parts, (model.scale_head, scale_weights(read_tensors(path), path), path)]

    model = _load(
        OpenVLAOFT,
        place,
        heads=heads,
        device=device,
        dtype=dtype,
        head_dtype=head_dtype,
        quantization=quantization,
        proprio=proprio,
    )
    if scale_head is None:
        log.info("no scale head is given: a fresh one gives actions their density")
        fresh = LaplaceScaleHead(model.config.text.hidden_size)
        model.scale_head = fresh.to(device, head_dtype).eval()
    else:
        model.scale_head.trained = True
    return model


def load_openvla_tokens(
    place: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    head_dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
    proprio: bool = False,
) -> OpenVLATokens:
    """As `load_openvla`, for a directory without an action head: its actions are tokens.

    The language model's head is of `head_dtype`.
    """

    def heads(model: OpenVLATokens, folder: Path) -> list[Part]:
        if any(folder.glob(ACTION_HEAD)):
            raise ValueError(
                f"{folder} has an action head, so its actions are not tokens: load it as an "
                "OpenVLAOFTPolicy, or name another checkpoint"
            )
        return []

    return _load(
        OpenVLATokens,
        place,
        heads=heads,
        device=device,
        dtype=dtype,
        head_dtype=head_dtype,
        quantization=quantization,
        proprio=proprio,
    )


def _load(
    kind: type[Model],
    place: str | Path,
    heads: Callable[[Model, Path], list[Part]],
    device: torch.device | str,
    dtype: torch.dtype,
    head_dtype: torch.dtype,
    quantization: Quantization | None,
    proprio: bool,
) -> Model:
    device = torch.device(device)
    if quantization is not None:
        check_quantization(quantization)
    folder = local_folder(place, PATTERNS)
    paths = shards(folder)
    if film := sorted(folder.glob(FILM)):
        raise ValueError(
            f"{film[0]} holds image encoders with FiLM, which the model here lacks: it would not "
            "see what the checkpoint has learned to see. Name a checkpoint without FiLM"
        )
    config = OpenVLAConfig.from_json(folder / "config.json")
    with torch.device("meta"):
        model = kind(config, proprio)
    expected = {name: tuple(value.shape) for name, value in model.base.state_dict().items()}
    found = shapes(paths)
    check_fit(expected, {ours(n): s for n, s in found.items() if not n.endswith(COMPUTED)}, folder)

    parts = heads(model, folder)
    if not proprio and any(folder.glob(PROPRIO_PROJECTOR)):
        raise ValueError(f"{folder} has a projector of proprioception: set proprio")
    if model.proprio_projector is not None:
        path = only(folder, PROPRIO_PROJECTOR, "proprio projector")
        parts.append((model.proprio_projector, without_module(read_tensors(path)), path))
    for module, weights, path in parts:
        check_weights(module, weights, path)

    for module, weights, _ in parts:
        for name, value in weights.items():
            assign(module, name, value=value, device=device, dtype=head_dtype)
    _stream(
        model, paths, device=device, dtype=dtype, head_dtype=head_dtype, quantization=quantization
    )
    return model.eval()


def load_scale_head(head: LaplaceScaleHead, place: str | Path) -> None:
    """Replaces a scale head's weights by those of a published `.pth` file, here or on the hub.

    Raises:
        OSError: There is no such file.
        ValueError: It cannot be read or does not fit.
    """
    path = local_file(place)
    weights = scale_weights(read_tensors(path), path)
    check_weights(head, weights, path)
    head.load_state_dict(weights)


def save_scale_head(head: LaplaceScaleHead, path: str | Path) -> None:
    """Writes a scale head as RIPT-VLA publishes them."""
    write_scale_weights(head.state_dict(), path)


def write_scale_weights(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes a scale head's weights, by our names, as RIPT-VLA publishes them."""
    parts = {
        theirs: {
            name.removeprefix(f"{ours_}."): value
            for name, value in weights.items()
            if name.startswith(f"{ours_}.")
        }
        for theirs, ours_ in SCALE_PARTS.items()
    }
    with replacing(path) as temporary:
        torch.save(parts, temporary)


def scale_weights(contents: Mapping[str, Mapping[str, Tensor]], path: Path) -> dict[str, Tensor]:
    """A scale head's weights by our names.

    Raises:
        ValueError: The file is no scale head's.
    """
    lacking = [name for name in SCALE_PARTS if not isinstance(contents.get(name), Mapping)]
    if lacking:
        raise ValueError(f"{path} is no scale head: it has no {' and no '.join(lacking)}")
    return {
        f"{ours_}.{name}": value
        for theirs, ours_ in SCALE_PARTS.items()
        for name, value in without_module(contents[theirs]).items()
    }


def ours(name: str) -> str:
    """The name of a published weight in `OpenVLABase`: LayerScale's is timm's own again."""
    return re.sub(r"\.scale_factor$", ".gamma", name)


def published(name: str) -> str:
    """The reverse of `ours`."""
    return re.sub(r"\.gamma$", ".scale_factor", name)


def assign(
    module: nn.Module, name: str, value: Tensor, device: torch.device, dtype: torch.dtype
) -> None:
    """Puts a copy of a weight in place of a module's parameter, as trainable as that was."""
    owner, _, leaf = name.rpartition(".")
    parent = module.get_submodule(owner)
    wanted = getattr(parent, leaf).requires_grad
    # A copy in any case: the tensor may be a view of the mapped file, which others may change.
    placed = value.to(device, dtype, copy=True)
    setattr(parent, leaf, nn.Parameter(placed, requires_grad=wanted))


def _stream(
    model: OpenVLA,
    paths: list[Path],
    device: torch.device,
    dtype: torch.dtype,
    head_dtype: torch.dtype,
    quantization: Quantization | None,
) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    base = model.base
    base.requires_grad_(False)
    quantizer = None if quantization is None else Quantizer(quantization, base, dtype)
    for path in paths:
        with opened(path) as contents:
            for key in contents.keys():  # noqa: SIM118  (not a mapping)
                name = ours(key)
                if name.endswith(COMPUTED):
                    continue
                if name.startswith(model.precise):
                    assign(
                        base, name, value=contents.get_tensor(key), device=device, dtype=head_dtype
                    )
                elif quantizer is not None and quantizer.takes(name):
                    quantizer.place(name, contents.get_tensor(key), device)
                else:
                    assign(base, name, value=contents.get_tensor(key), device=device, dtype=dtype)
    llama = base.language_model.model
    # The one thing that no file holds; in float32 whatever the weights are. Older transformers have
    # one in each layer, too, without using it.
    rotary = LlamaRotaryEmbedding(config=llama.config).to(device)
    for module in list(llama.modules()):
        if hasattr(module, "rotary_emb"):
            module.rotary_emb = rotary
