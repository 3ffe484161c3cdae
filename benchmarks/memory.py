"""Memory of a GPU that acts with and trains a policy, computed without one.

python benchmarks/memory.py --policy smolvla|pi0|pi05|openvla_oft [--gpus 4 --strategy fsdp2]
    [--train everything] [--lora 32] [--checkpointing true] [--precision float32]

Weights, gradients and the optimizer's state are counted; what a forward and backward pass keeps is
found by running one on torch's meta device, which has shapes and no memory, at its peak. Not in it:
the CUDA context and libraries (about 1 GiB), what kernels use inside, and fragments.

`--check true` does the same at a middle size on the CPU, and compares with what the process took.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
from jsonargparse import auto_cli
from measuring.live_bytes import peak_bytes
from measuring.processes import memory_mib, restart_peak
from measuring.report import table
from torch import nn

from lightning_ript.policies.flow.adapter import (
    Trained,
    WeightPrecision,
    add_adapter,
    freeze,
    weight_dtypes,
)
from lightning_ript.policies.flow.decoder import DecoderSizes
from lightning_ript.policies.flow.network import FlowNetwork, Seen
from lightning_ript.policies.flow.vision import VisionEncoder, VisionSizes
from lightning_ript.policies.lora import LoraSizes
from lightning_ript.policies.openvla_oft.config import OpenVLAConfig
from lightning_ript.policies.pi0.network import Pi0Network, Pi0Sizes
from lightning_ript.policies.smolvla.network import SmolVLANetwork, SmolVLASizes

Name = Literal["smolvla", "pi0", "pi05", "openvla_oft"]
GIB = 2.0**30
CAMERAS = {"smolvla": 2, "pi0": 3, "pi05": 3}  # those that are missing among them
PROMPT = {"smolvla": 24, "pi0": 24, "pi05": 64}  # tokens; LIBERO's, with pi0.5's state
EXECUTED = 5
M_MMAP_THRESHOLD = -3  # glibc's number of this setting

_GEMMA = {"heads": 8, "kv_heads": 1, "head_dim": 256}
_LLAMA = {"heads": 15, "kv_heads": 5, "head_dim": 64}
PI0 = Pi0Sizes(
    vision=VisionSizes(width=1152, layers=27, heads=16, mlp=4304, patch=14, image=224),
    language=DecoderSizes(2048, 18, 16384, **_GEMMA),
    expert=DecoderSizes(1024, 18, 4096, **_GEMMA),
    vocabulary=257152,
    chunk=50,
    state_dim=32,
    action_dim=32,
    adaptive=False,
)
SMOLVLA = SmolVLASizes(
    vision=VisionSizes(width=768, layers=12, heads=12, mlp=3072, patch=16, image=512),
    language=DecoderSizes(960, 16, 2560, **_LLAMA),
    expert=DecoderSizes(720, 16, 2048, **_LLAMA),
    shuffle=4,
    self_attention_every=2,
    vocabulary=49280,
    chunk=50,
    state_dim=32,
    action_dim=32,
)
MIDDLE = replace(
    SMOLVLA,
    vision=replace(SMOLVLA.vision, layers=4, image=256),
    language=replace(SMOLVLA.language, layers=8),
    expert=replace(SMOLVLA.expert, layers=8),
)

SMALL = replace(
    SMOLVLA,
    vision=replace(SMOLVLA.vision, layers=1, image=64),
    language=replace(SMOLVLA.language, layers=2),
    expert=replace(SMOLVLA.expert, layers=2),
)


@dataclass(frozen=True)
class Model:
    """A policy's network with what RIPT does with it.

    Attributes:
        module: The network.
        learn: The passes of a micro-batch, forward and backward, from its number of decisions.
        act: A batch of decisions, from its size.
        prefix: Keys and values that a batch's expert needs, in bytes, from its size.
        units: Parts that FSDP gathers one at a time.
    """

    module: nn.Module
    learn: Callable[[int], None]
    act: Callable[[int], None]
    prefix: Callable[[int], int]
    units: Sequence[nn.Module]


def flow_model(
    network: FlowNetwork, name: str, train: Trained, lora: LoraSizes | None, checkpointing: bool
) -> Model:
    """A flow-matching policy, as `FlowPolicy` prepares it."""
    freeze(network, train)
    if lora is not None:
        add_adapter(network, train, lora)
    network.gradient_checkpointing = checkpointing
    side = network.sizes.vision.image  # type: ignore[attr-defined]
    device = next(network.parameters()).device

    def seen(batch: int) -> Seen:
        cameras, words = CAMERAS[name], PROMPT[name]
        return Seen(
            torch.zeros(batch, cameras, 3, side, side, device=device),
            torch.ones(batch, cameras, dtype=torch.bool, device=device),
            torch.zeros(batch, words, dtype=torch.int64, device=device),
            torch.ones(batch, words, dtype=torch.bool, device=device),
            torch.zeros(batch, network.state_dim, device=device),
        )

    def velocity(prefix: Any, batch: int) -> torch.Tensor:
        x = torch.zeros(batch, network.chunk, network.action_dim, device=device)
        return network.velocity(prefix, x, torch.full((batch,), 0.5, device=device))[0]

    def learn(batch: int) -> None:
        with torch.set_grad_enabled(train == "everything"):
            prefix = network.prefix(seen(batch))
        velocity(prefix, batch)[:, :EXECUTED, :7].square().sum().backward()

    @torch.no_grad()
    def act(batch: int) -> None:
        velocity(network.prefix(seen(batch)), batch)

    @torch.no_grad()
    def prefix(batch: int) -> int:
        layers = network.prefix(seen(batch)).layers
        return sum(each.nbytes for layer in layers for each in layer)

    stacks = [vision_layers(network), network.stack.layers, network.expert.layers]
    return Model(network, learn, act, prefix, [unit for stack in stacks for unit in stack])


def vision_layers(network: FlowNetwork) -> Any:
    """Of the image encoder."""
    (encoder,) = (module for module in network.modules() if isinstance(module, VisionEncoder))
    return encoder.encoder.layers


def openvla_model(
    config: OpenVLAConfig, lora: LoraSizes, checkpointing: bool, device: str = "meta"
) -> Model:
    """OpenVLA-OFT with the reference's cached prompt, which needs no gradient."""
    import openvla_oft

    model = openvla_oft.build(config, lora, device, "prefix_cache")
    model.freeze_unused("prefix_cache")
    model.scale_head.requires_grad_(False)
    model.gradient_checkpointing = checkpointing

    def inputs(batch: int) -> tuple[torch.Tensor, ...]:
        return openvla_oft.made_up(model, batch, device)

    text = model.config.text
    per_token = 2 * 2 * text.num_hidden_layers * text.hidden_size  # keys and values, bfloat16
    tokens = 2 * 256 + 1 + openvla_oft.PROMPT

    def run(what: Callable[..., Any], batch: int) -> None:
        # The meta device has no values to check.
        with patch("lightning_ript.policies.openvla_oft.model._check_prompts"):
            what(model, inputs(batch), "prefix_cache")

    return Model(
        model,
        lambda batch: run(openvla_oft.learn, batch),
        lambda batch: run(openvla_oft.act, batch),
        lambda batch: batch * tokens * per_token,
        list(model.base.language_model.model.layers),
    )


def make(
    policy: Name,
    train: Trained,
    lora: int | None,
    checkpointing: bool,
    precision: WeightPrecision,
    device: str = "meta",
    smaller: bool = False,
) -> Model:
    """A policy with random weights, at full size or at one that a CPU can compute."""
    sizes = None if lora is None else LoraSizes(r=lora)
    if policy == "openvla_oft":
        import openvla_oft

        if smaller:
            return openvla_model(openvla_oft.SMALL, LoraSizes(2, 4), checkpointing, device)
        return openvla_model(OpenVLAConfig(), sizes or LoraSizes(), checkpointing, device)
    with torch.device(device):
        network: FlowNetwork
        if policy == "smolvla":
            network = SmolVLANetwork(SMALL if smaller else SMOLVLA)
        else:
            network = Pi0Network(replace(PI0, adaptive=policy == "pi05"))
        dtype = weight_dtypes(network, precision, {"train": train, "lora": sizes})
        for name, parameter in network.named_parameters():
            parameter.data = parameter.data.to(dtype(name))
        return flow_model(network, policy, train, sizes, checkpointing)


def size(parameters: Sequence[torch.Tensor]) -> int:
    """Bytes."""
    return sum(each.nbytes for each in parameters)


@dataclass(frozen=True)
class Resting:
    """Bytes that a GPU holds from step to step.

    Attributes:
        weights: Of the policy.
        gradients: Whole on every GPU, since they travel once per step; with DDP, a second time in
            the buckets that it sends.
        optimizer: Adam's two moments.
        gathered: What FSDP2 adds while it learns: two layers, and what is in none, whole.
        acting: What FSDP2 adds while it acts: the rest of the policy.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int = 0
    acting: int = 0


def resting(model: Model, gpus: int, strategy: str) -> Resting:
    """What is there whatever the batch."""
    parameters = list(model.module.parameters())
    learning = [p for p in parameters if p.requires_grad]
    weights, gradients = size(parameters), size(learning)
    if strategy == "fsdp2" and gpus > 1:
        units = [size(list(unit.parameters())) for unit in model.units]
        share, others = weights // gpus, weights - sum(units)
        gathered = (2 * max(units) + others) * (gpus - 1) // gpus
        return Resting(share, gradients, 2 * gradients // gpus, gathered, weights - share)
    return Resting(weights, gradients * (2 if gpus > 1 else 1), 2 * gradients)


def learning_peak(model: Model, batch: int) -> int:
    """The most that a micro-batch takes beside what is resting."""
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return peak_bytes(lambda: model.learn(batch))


def report(model: Model, gpus: int, strategy: str, decisions: Sequence[int], acting: int) -> str:
    """The table."""
    rest = resting(model, gpus, strategy)
    common = {
        "weights": rest.weights,
        "gradients": rest.gradients,
        "optimizer": rest.optimizer,
    }
    if rest.gathered:
        common["layers gathered"] = rest.gathered
    rows = [[name, *(f"{value / GIB:.2f}" for _ in decisions)] for name, value in common.items()]
    prefix = [model.prefix(batch) for batch in decisions]
    peaks = [learning_peak(model, batch) for batch in decisions]
    held = sum(common.values())
    rows += [
        ["keys and values of the prefix", *(f"{each / GIB:.2f}" for each in prefix)],
        [
            "activations and all else",
            *(f"{(p - k) / GIB:.2f}" for p, k in zip(peaks, prefix, strict=True)),
        ],
        ["learning, in all", *(f"{(held + peak) / GIB:.1f}" for peak in peaks)],
    ]
    act = peak_bytes(lambda: model.act(acting))
    total = rest.weights + rest.acting + rest.gradients + rest.optimizer + act
    text = table(["GiB on each GPU, by decisions of a micro-batch", *map(str, decisions)], rows)
    return f"{text}\n\nActing for {acting} environments at once: {total / GIB:.1f} GiB."


CASES: tuple[tuple[Name, dict[str, Any], int], ...] = (
    ("smolvla", {}, 1),
    ("smolvla", {"train": "everything", "checkpointing": True}, 1),
    ("pi0", {}, 1),
    ("pi0", {"train": "everything", "lora": 32, "checkpointing": True}, 1),
    ("pi0", {"train": "everything", "checkpointing": True}, 4),
    ("pi05", {}, 1),
    ("pi05", {"train": "everything", "lora": 32, "checkpointing": True}, 1),
    ("openvla_oft", {"lora": 32, "checkpointing": True}, 1),
    ("openvla_oft", {"lora": 32, "checkpointing": True}, 4),
)
CARDS = (24, 48, 80)
CONTEXT = 1.5  # GiB for the CUDA context and fragmentation


def overview() -> str:
    """What fits where: 8 decisions of a micro-batch, 16 environments."""
    rows = []
    for policy, settings, gpus in CASES:
        chosen = {"train": "expert", "lora": None, "checkpointing": False, **settings}
        model = make(policy, precision=precision_of(chosen), **chosen)
        rest = resting(model, gpus, "fsdp2" if gpus > 1 else "ddp")
        held = rest.weights + rest.gradients + rest.optimizer
        learning = (held + rest.gathered + learning_peak(model, 8)) / GIB
        acting = (held + rest.acting + peak_bytes(lambda m=model: m.act(16))) / GIB
        least = max(learning, acting) + CONTEXT
        card = next((f"{size} GB" for size in CARDS if least < size / 1.074), "more than 80 GB")
        learns = " ".join(
            [
                "LoRA of" if chosen["lora"] else "",
                "all layers" if policy == "openvla_oft" else str(chosen["train"]),
            ]
        ).strip()
        rows.append(
            [policy, learns, gpus, f"{held / GIB:.1f}", f"{learning:.1f}", f"{acting:.1f}", card]
        )
    header = ["policy", "what learns", "GPUs", "held", "learning", "acting", "fits"]
    return table(header, rows)


def precision_of(settings: Mapping[str, Any]) -> WeightPrecision:
    """Half precision, where some weights do not learn."""
    whole = settings["train"] == "everything" and settings["lora"] is None
    return "float32" if whole else "bfloat16"


def compared(checkpointing: bool, batches: Mapping[Trained, Sequence[int]]) -> str:
    """What the meta device says of a middle-sized SmolVLA, and what a CPU takes."""
    rows = []
    for train, decisions in batches.items():
        said, took = [], []
        for batch in decisions:
            for device, found in (("meta", said), ("cpu", took)):
                with torch.device(device):
                    network = SmolVLANetwork(MIDDLE)
                model = flow_model(network, "smolvla", train, None, checkpointing)
                if device == "meta":
                    found.append(learning_peak(model, batch) / GIB)
                else:
                    found.append(cpu_peak(model, batch))
        rows += [
            [train, batch, f"{a:.3f}", f"{b:.3f}", f"{a / b - 1:+.1%}"]
            for batch, a, b in zip(decisions, said, took, strict=True)
        ]
    return table(["learns", "decisions", "computed, GiB", "process, GiB", "off by"], rows)


def cpu_peak(model: Model, batch: int) -> float:
    """GiB by which the process grows at most while it learns from a micro-batch."""
    libc = ctypes.CDLL("libc.so.6")
    # Tensors get memory of their own, and give it back at once: no holes between others.
    libc.mallopt(M_MMAP_THRESHOLD, 65536)
    model.learn(1)  # what libraries allocate once; makes the gradients as well
    libc.malloc_trim(0)
    restart_peak()
    before = memory_mib("self", "VmRSS")
    model.learn(batch)
    return (memory_mib("self", "VmHWM") - before) / 1024


def main(
    policy: Name = "smolvla",
    gpus: int = 1,
    strategy: Literal["ddp", "fsdp2"] = "ddp",
    train: Trained = "expert",
    lora: int | None = None,
    checkpointing: bool = False,
    precision: WeightPrecision | None = None,
    decisions: list[int] = [1, 8, 32],  # noqa: B006 (never changed)
    environments: int = 16,
    check: bool = False,
    overview_only: bool = False,
) -> None:
    """Prints the table.

    Args:
        policy: Which one.
        gpus: GPUs of a run.
        strategy: What they share.
        train: Of flow-matching policies: what learns.
        lora: Rank of an adapter; OpenVLA-OFT has one of 32 by default.
        checkpointing: Whether activations are computed again in the backward pass.
        precision: Of weights that do not learn; bfloat16 by default, if there are any.
        decisions: Decisions of a micro-batch on a GPU.
        environments: Environments that a GPU decides for at once.
        overview_only: Print what fits on GPUs of 24, 48 and 80 GB, as in the docs.
        check: Compare a middle size with a run on the CPU, instead.
    """
    if check:
        print(compared(checkpointing, {"expert": [16, 32], "everything": [8, 16]}))
        return
    if overview_only:
        print(overview())
        return
    precision = precision or precision_of({"train": train, "lora": lora})
    model = make(policy, train, lora, checkpointing, precision)
    print(report(model, gpus, strategy, decisions, environments))


if __name__ == "__main__":
    auto_cli(main)
