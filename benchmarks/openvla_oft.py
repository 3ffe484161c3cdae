"""OpenVLA-OFT: its sizes, and decision steps per second and memory of acting and learning.

python benchmarks/openvla_oft.py [--size small] [--device cuda] [--json FILE]

The parameters of the published model are counted without any memory (on torch's meta device) and
compared with those of the published directories. What is timed has random weights of the same sizes
in bfloat16, heads and LoRA in float32, and made-up records; no simulator and no checkpoint.

acting    `predict` without gradient, by batch size: as many environments decide at once.
learning  Forward, PPO's loss and backward by decision steps per micro-batch. One per forward pass
          is the reference's schedule; more is ours. Gradients add up, so that the optimizer step,
          which both take once per minibatch, is left out.

`--size full` is timed on a GPU only; its weights alone take 17 GB. Without one this counts, says
what it would time, and times the small model on the CPU, whose speed says nothing of it.
"""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from measuring.processes import memory_mib, restart_peak
from measuring.report import spread, table, with_range
from torch import nn

from lightning_ript.policies.openvla_oft import laplace
from lightning_ript.policies.openvla_oft.config import ACTION_DIM, CHUNK, OpenVLAConfig, TextConfig
from lightning_ript.policies.openvla_oft.lora import LoraSizes, add_lora
from lightning_ript.policies.openvla_oft.model import Forward, OpenVLAOFT
from lightning_ript.ppo import clipped_surrogate

# Of the published directories' safetensors. Those of OFT hold what OpenVLA's do.
PUBLISHED_BASE = 7_541_237_184
PROMPT = 32  # tokens; LIBERO's are 20 to 40 long
# Sizes at which a CPU takes a second; image encoders are the smallest that timm has of the kind.
SMALL = OpenVLAConfig(
    text=TextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    ),
    timm_model_ids=("vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m"),
)


def build(config: OpenVLAConfig, lora: LoraSizes, device: str, forward: Forward) -> OpenVLAOFT:
    """A model with random weights, and what RIPT trains of it wanting gradients."""
    with torch.device("meta"):
        model = OpenVLAOFT(config)
        model.base.to(torch.bfloat16)
        model.base.requires_grad_(False)
        add_lora(model, lora)
    if device == "meta":
        return model
    llama = model.base.language_model.model
    model.to_empty(device=device)
    # Computed, not learned.
    llama.rotary_emb = type(llama.rotary_emb)(config=llama.config).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(std=0.02)
    model.freeze_unused(forward)
    model.scale_head.requires_grad_(False)
    return model.eval()


def count(model: OpenVLAOFT) -> dict[str, int]:
    """Parameters of each part."""

    def size(module: nn.Module | None) -> int:
        named = [] if module is None else module.named_parameters()
        return sum(p.numel() for name, p in named if "lora_" not in name)

    base = model.base
    return {
        "vision_dinov2": size(base.vision_backbone.featurizer),
        "vision_siglip": size(base.vision_backbone.fused_featurizer),
        "projector": size(base.projector),
        "language_model": size(base.language_model),
        "base": size(base),
        "proprio_projector": size(model.proprio_projector),
        "action_head": size(model.action_head),
        "scale_head": size(model.scale_head),
        "lora": sum(p.numel() for name, p in base.named_parameters() if "lora_" in name),
    }


def made_up(model: OpenVLAOFT, decisions: int, device: str) -> tuple[torch.Tensor, ...]:
    """What the model takes for so many decision steps: two images each."""
    tokens = torch.randint(3, 1000, (decisions, PROMPT), device=device)
    size = model.config.image_size
    pixels = torch.randn(decisions, 12, size, size, device=device, dtype=torch.bfloat16)
    proprio = torch.rand(decisions, 8, device=device) * 2 - 1
    return tokens, torch.ones_like(tokens), pixels, proprio


def act(model: OpenVLAOFT, inputs: tuple[torch.Tensor, ...], forward: Forward) -> None:
    """A batch of decisions."""
    with torch.no_grad():
        model(*inputs, forward)


def learn(model: OpenVLAOFT, inputs: tuple[torch.Tensor, ...], forward: Forward) -> None:
    """A micro-batch's share of the gradient, by PPO's loss."""
    prediction = model(*inputs, forward)
    actions = torch.zeros(len(inputs[0]), CHUNK, ACTION_DIM, device=prediction.mean.device)
    log_scale = laplace.clip_log_scale(prediction.log_scale)
    log_probs = laplace.aggregate(laplace.log_prob(actions, prediction.mean, log_scale))
    advantages = torch.ones(len(actions), device=actions.device)
    weights = torch.ones_like(log_probs)
    old = log_probs.detach()
    loss = clipped_surrogate(log_probs, old, advantages, weights, float(weights.numel())).loss
    loss.backward()


def measure(
    work: Callable[[OpenVLAOFT, tuple[torch.Tensor, ...], Forward], None],
    model: OpenVLAOFT,
    decisions: int,
    forward: Forward,
    rounds: int,
    device: str,
) -> dict[str, Any]:
    """Decision steps per second over the rounds, and peak memory."""
    on_gpu = device.startswith("cuda")
    inputs = made_up(model, decisions, device)
    work(model, inputs, forward)  # warms up, and makes room for gradients
    torch.cuda.reset_peak_memory_stats() if on_gpu else restart_peak()
    speeds = []
    for _ in range(rounds):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work(model, inputs, forward)
        if on_gpu:
            torch.cuda.synchronize()
        speeds.append(decisions / (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory_mib("self", "VmHWM")
    return {"decisions_per_second": spread(speeds), "peak_memory_mib": peak}


def main(
    size: Literal["small", "full"] = "full",
    forward: Forward = "prefix_cache",
    batch_sizes: tuple[int, ...] = (1, 4, 8, 16),
    microbatches: tuple[int, ...] = (1, 2, 4, 8),
    gradient_checkpointing: bool = True,
    rounds: int = 5,
    device: str | None = None,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Counts, measures and prints tables.

    Args:
        size: The published sizes, or small ones.
        forward: Which of the policy's forward passes.
        batch_sizes: Environments that decide at once.
        microbatches: Decision steps per forward and backward pass; 1 is the reference's.
        gradient_checkpointing: Whether activations are computed again.
        rounds: Repetitions that are measured.
        device: Where to compute; by default the GPU if there is one.
        seed: Decides weights and inputs.
        json: File to write all numbers to.

    Raises:
        AssertionError: If the full base has not as many parameters as the published one.
    """
    torch.manual_seed(seed)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    full = count(build(OpenVLAConfig(), LoraSizes(), "meta", forward))
    if full["base"] != PUBLISHED_BASE:
        raise AssertionError(f"the base has {full['base']:,} parameters, not {PUBLISHED_BASE:,}.")
    print(table(["part", "parameters"], [[name, f"{n:,}"] for name, n in full.items()]))
    print("\nthe base has as many as the published directories\n")
    timed = size
    if size == "full" and device == "cpu":
        timed = "small"
        print(
            f"There is no GPU. With one, this would time the full model: acting with {batch_sizes} "
            f"environments and learning from {microbatches} decision steps at once. Timed here is "
            "the small model.\n"
        )
    config, lora = (OpenVLAConfig(), LoraSizes()) if timed == "full" else (SMALL, LoraSizes(2, 4))
    model = build(config, lora, device, forward)
    model.gradient_checkpointing = gradient_checkpointing
    acting = {n: measure(act, model, n, forward, rounds, device) for n in batch_sizes}
    learning = {n: measure(learn, model, n, forward, rounds, device) for n in microbatches}
    for title, results in (("acting", acting), ("learning", learning)):
        rows = [
            [n, with_range(each["decisions_per_second"], 2), f"{each['peak_memory_mib']:.0f}"]
            for n, each in results.items()
        ]
        print(table([f"{title}: at once", "decision steps/s", "peak memory MiB"], rows), "\n")
    if json is not None:
        settings = {"size": timed, "device": device, "forward": forward}
        summary = {"settings": settings, "parameters": full, "published_base": PUBLISHED_BASE}
        json.write_text(
            json_format.dumps({**summary, "acting": acting, "learning": learning}, indent=2)
        )


if __name__ == "__main__":
    auto_cli(main)
