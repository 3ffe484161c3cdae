"""LoRA adapters of the base, in the layout that RIPT-VLA publishes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_ript.hub import local_folder
from lightning_ript.policies.openvla_oft.checkpoint import check_weights
from lightning_ript.policies.openvla_oft.files import check_fit, opened, read_pickle
from lightning_ript.policies.openvla_oft.model import OpenVLAOFT
from lightning_ript.sharding import whole

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEADERS = "openvla_headers.pt"
PREFIX = "base_model.model."  # before every name in a published file
# All linear layers, and the convolutions that embed patches, by the last part of their names.
TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    *("fc1", "fc2", "fc3", "qkv", "proj", "q", "kv"),
)
_NAME = "default"  # peft's own, which its files leave out


@dataclass(frozen=True)
class LoRAConfig:
    """Sizes of an adapter (Hu et al. 2021, arXiv 2106.09685); the defaults are RIPT-VLA's.

    Attributes:
        rank: r.
        alpha: What the adapter adds is scaled by alpha / r.

    Raises:
        ValueError: If one is less than 1.
    """

    rank: int = 32
    alpha: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(
                f"lora has rank {self.rank} and alpha {self.alpha}: set both to 1 or more."
            )


def attach_lora(model: OpenVLAOFT, config: LoRAConfig) -> None:
    """Adds a fresh adapter, which changes nothing yet, to all linear layers of the base.

    Its weights are float32 whatever the base's are, and want gradients.

    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    _attach(model, config.rank, config.alpha, TARGETS)


def _attach(model: OpenVLAOFT, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "LoRA needs peft: pip install 'lightning-ript[openvla]', or set model.policy.lora to "
            "null"
        ) from error
    # No dropout: the ratio of PPO compares one and the same network.
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        init_lora_weights="gaussian",
        target_modules=list(targets),
        bias="none",
    )
    inject_adapter_in_model(settings, model.base, _NAME)
    for name, parameter in model.base.named_parameters():
        parameter.requires_grad_(is_lora(name))
        if is_lora(name):
            parameter.data = parameter.data.float()


def is_lora(name: str) -> bool:
    """Whether a parameter of the base is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def load_adapter(model: OpenVLAOFT, place: str | Path) -> bool:
    """Adds a published adapter, and takes the heads that were trained with it.

    Args:
        model: A model without one.
        place: A folder, or `hf://owner/repo/folder`.

    Returns:
        Whether a scale head came with it.

    Raises:
        OSError: A file is missing, here or on the hub.
        ValueError: A file cannot be read or does not fit.
        ModuleNotFoundError: peft is not installed.
    """
    folder = local_folder(place, (CONFIG, WEIGHTS, HEADERS))
    rank, alpha, targets = _read_config(folder / CONFIG)
    with opened(folder / WEIGHTS) as contents:
        # peft also stores the layers that it takes for embeddings; the base has them.
        weights = {
            name.removeprefix(PREFIX): contents.get_tensor(name)
            for name in contents.keys()  # noqa: SIM118  (not a mapping)
            if ".base_layer." not in name
        }
    _attach(model, rank, alpha, targets)
    parameters = {_outer(n): p for n, p in model.base.named_parameters() if is_lora(n)}
    check_fit(
        {name: tuple(p.shape) for name, p in parameters.items()},
        {name: tuple(value.shape) for name, value in weights.items()},
        folder / WEIGHTS,
    )
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    if not (folder / HEADERS).is_file():
        return False
    headers = read_pickle(folder / HEADERS)
    heads: dict[str, nn.Module] = {
        "action_header": model.action_head,
        "scale_header": model.scale_head,
    }
    for name, head in heads.items():
        if name in headers:
            check_weights(head, headers[name], folder / HEADERS)
            head.load_state_dict(headers[name])
    return "scale_header" in headers


def save_adapter(model: OpenVLAOFT, folder: Path) -> None:
    """Writes adapter and heads in the published layout.

    Args:
        model: A model with an adapter. Where its parameters lie in shards, they are gathered.
        folder: Where to; made if need be.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # peft has left its settings on what it put the adapter into.
    model.base.peft_config[_NAME].save_pretrained(folder)  # type: ignore[index, union-attr]
    weights = {
        PREFIX + _outer(name): whole(parameter.detach()).cpu().contiguous()
        for name, parameter in model.base.named_parameters()
        if is_lora(name)
    }
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    torch.save(
        {"action_header": _cpu(model.action_head), "scale_header": _cpu(model.scale_head)},
        folder / HEADERS,
    )


def merge_adapter(model: OpenVLAOFT) -> None:
    """Adds the adapter to the weights it adapts and removes it, so that the base is plain again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.base.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            owner, _, leaf = name.rpartition(".")
            setattr(model.base.get_submodule(owner), leaf, module.get_base_layer())
    model.base.requires_grad_(False)


def _outer(name: str) -> str:
    """A parameter's name as files have it, without the adapter's."""
    return name.replace(f".{_NAME}.", ".")


def _cpu(module: nn.Module) -> dict[str, Tensor]:
    # Not state_dict(), which under FSDP takes parameters apart that `gathered` keeps whole: a
    # process that writes on its own would then wait for the others forever.
    return {name: whole(value.detach()).cpu() for name, value in module.named_parameters()}


def _read_config(path: Path) -> tuple[int, float, tuple[str, ...]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: name the folder of a LoRA adapter")
    try:
        contents = json.loads(path.read_text())
        return contents["r"], contents["lora_alpha"], tuple(contents["target_modules"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a LoRA adapter: {error!r}") from error
