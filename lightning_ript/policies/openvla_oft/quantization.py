"""Base weights in 8 or 4 bits, by bitsandbytes, for cards that 14 GB do not fit."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Quantization = Literal["8bit", "4bit"]


def check_quantization(quantization: Quantization) -> None:
    """Refuses what cannot be done, before anything is read.

    Raises:
        ValueError: No such kind.
        ModuleNotFoundError: bitsandbytes is not installed.
    """
    if quantization not in get_args(Quantization):
        raise ValueError(
            f"quantization must be one of {get_args(Quantization)} or None, but is {quantization!r}"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(
            f"quantization: {quantization} is done by bitsandbytes: pip install "
            "-e '.[quantization]' in the clone, or leave quantization out"
        )


class Quantizer:
    """Quantizes the linear layers of the Llama, one at a time as their weights arrive.

    The image encoders and the projector are a fifteenth of the whole and stay as they are.

    Args:
        kind: How many bits.
        base: The `OpenVLABase` that is being loaded.
        dtype: Of the activations.
    """

    def __init__(self, kind: Quantization, base: nn.Module, dtype: torch.dtype) -> None:
        import bitsandbytes

        self._bnb: Any = bitsandbytes.nn
        self._kind = kind
        self._base = base
        self._dtype = dtype
        # PEFT asks for this before it makes an adapter's layer.
        setattr(base, f"is_loaded_in_{kind}", True)

    def takes(self, name: str) -> bool:
        """Whether a weight of the base is quantized."""
        owner = self._base.get_submodule(name.rpartition(".")[0])
        return name.startswith("language_model.model.layers.") and isinstance(owner, nn.Linear)

    def place(self, name: str, weight: Tensor, device: torch.device) -> None:
        """Puts a linear layer with the quantized weight (out, in) where a plain one was."""
        owner, _, leaf = name.rpartition(".")[0].rpartition(".")
        sizes = {"input_features": weight.shape[1], "output_features": weight.shape[0]}
        layer: Any
        if self._kind == "8bit":
            layer = self._bnb.Linear8bitLt(
                **sizes, bias=False, has_fp16_weights=False, device="meta"
            )
            # bitsandbytes quantizes on the way to the device, and from half precision only.
            half = self._bnb.Int8Params(
                weight.to(torch.float16), requires_grad=False, has_fp16_weights=False
            )
            layer.weight = half.to(device)
        else:
            layer = self._bnb.Linear4bit(
                **sizes, bias=False, compute_dtype=self._dtype, quant_type="nf4", device="meta"
            )
            full = self._bnb.Params4bit(
                weight.to(self._dtype), requires_grad=False, quant_type="nf4", module=layer
            )
            layer.weight = full.to(device)
            # Packed for a CPU's bfloat16 instructions, which it would do on acting, no gradient
            # reaches what is below.
            layer.support_avx512bf16_for_cpu = False
        setattr(self._base.get_submodule(owner), leaf, layer)
