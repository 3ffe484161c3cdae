"""Low-rank adapters (LoRA) by PEFT: their sizes, putting them into a model, merging them.

The layers are put into the model itself, without PEFT's wrapper, so it stays what it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"
BASE = ".base_layer"  # what PEFT puts into the names of the weights that it adapts
# All linear layers, and the patch embeddings' convolutions, which are called proj too; as the
# published adapters, also lm_head, which has a part in actions only if they are tokens.
TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    *("qkv", "q", "kv", "proj", "fc1", "fc2", "fc3"),
)
# Settings of PEFT that leave a LoRA's arithmetic as it is; ONLY has those that do for some values.
# What is in neither may change it, so a file that sets it is refused.
PLAIN = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "inference_mode", "task_type"),
    *("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "runtime_config"),
    *("megatron_core", "qalora_group_size", "layers_pattern"),
}
ONLY = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Others, e.g. pissa, olora, corda and loftq, take their start out of the base's weights.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True)
class LoraSizes:
    """What an adapter is made of; the defaults are the published ones'.

    Attributes:
        r: Rank.
        alpha: The change is scaled by alpha / r.
        targets: Last parts of the names of the adapted layers.
        dropout: Probability of dropping an input of the adapter.
    """

    r: int = 32
    alpha: float = 16
    targets: tuple[str, ...] = TARGETS
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.r < 1 or not self.targets or not 0 <= self.dropout < 1:
            raise ValueError(
                f"A LoRA needs a rank of at least 1, target layers and a dropout in [0, 1): {self}"
            )

    @classmethod
    def from_json(cls, path: Path) -> LoraSizes:
        """Reads PEFT's adapter_config.json.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a LoRA's, or of a kind that is not supported; the message says
                why.
        """
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}: name the folder of a LoRA")
        try:
            contents = json.loads(path.read_text())
            targets = contents["target_modules"]
            sizes = cls(
                r=int(contents["r"]),
                alpha=float(contents["lora_alpha"]),
                targets=tuple(sorted(targets)),
                dropout=float(contents.get("lora_dropout", 0.0)),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the config of a LoRA: {error!r}") from error
        used = [
            f"{name} {value!r}"
            for name, value in contents.items()
            if (value not in ONLY[name] if name in ONLY else value and name not in PLAIN)
        ]
        if isinstance(targets, str):
            used.append("target_modules as a pattern")
        if used:
            raise ValueError(
                f"{path} asks for {', '.join(used)}, which is not supported: only a plain LoRA is"
            )
        return sizes

    def peft(self, layers: Sequence[str] | None = None) -> LoraConfig:
        """The same for PEFT.

        Args:
            layers: Full names of the adapted layers, in place of `targets`.

        Raises:
            ModuleNotFoundError: PEFT is not installed.
        """
        try:
            from peft import LoraConfig
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("LoRA needs the library peft: pip install peft") from error
        return LoraConfig(
            r=self.r,
            # PEFT's type is an integer, its arithmetic is not.
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=sorted(self.targets if layers is None else layers),
            init_lora_weights="gaussian",
        )


def inject(model: nn.Module, sizes: LoraSizes, layers: Sequence[str] | None = None) -> None:
    """Puts a fresh adapter into a model, the only weights of it that learn then.

    At first it changes nothing.

    Args:
        model: The model.
        sizes: Of the adapter.
        layers: Full names of the adapted layers; by default `sizes.targets` everywhere.

    Raises:
        ModuleNotFoundError: PEFT is not installed.
    """
    config = sizes.peft(layers)
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model, ADAPTER)
    for name, parameter in model.named_parameters():
        if is_adapter_weight(name):
            # Half precision would round most steps of a small learning rate away.
            parameter.data = parameter.data.float()


def is_adapter_weight(name: str) -> bool:
    """Whether a weight of this name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """The name that a weight of the model has without an adapter."""
    return name.replace(f"{BASE}.", ".")


def layers_within(
    model: nn.Module, parts: Sequence[nn.Module], targets: Sequence[str]
) -> list[str]:
    """Names of layers in some parts of a model that an adapter can be put into.

    Args:
        model: The model, which names are of.
        parts: Modules in it.
        targets: Last parts of the layers' names.
    """
    inside = {id(module) for part in parts for module in part.modules()}
    return [
        name
        for name, module in model.named_modules()
        if id(module) in inside
        and isinstance(module, nn.Linear | nn.Conv2d)
        and name.rpartition(".")[2] in targets
    ]


def merged(
    state: Mapping[str, Tensor], scaling: float, base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Takes an adapter into the weights it adapts.

    Args:
        state: Weights by name, the adapter's among them.
        scaling: alpha / r.
        base: Adapted weights that `state` lacks, by their plain names.

    Returns:
        Weights by their plain names, without the adapter; those adapted in float32.
    """
    plain = {plain_name(name): v for name, v in state.items() if not is_adapter_weight(name)}
    ending = f".lora_A.{ADAPTER}.weight"
    for name in (name.removesuffix(ending) for name in state if name.endswith(ending)):
        a, b = (state[f"{name}.lora_{m}.{ADAPTER}.weight"].float() for m in "AB")
        weight = plain[f"{name}.weight"] if f"{name}.weight" in plain else base[f"{name}.weight"]
        # A convolution's B is 1 x 1: the change is the same product.
        change = (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
        plain[f"{name}.weight"] = weight.float() + scaling * change
    return plain
