"""OpenVLA-OFT against what the reference implementation computed (float32, CPU, eval mode)."""

import json
import os
from pathlib import Path

import pytest
import torch

from lightning_ript.policies.openvla_oft import laplace
from lightning_ript.policies.openvla_oft.checkpoint import load_openvla
from lightning_ript.policies.openvla_oft.lora import load_lora, lora_parameters
from lightning_ript.ppo import clipped_surrogate

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens")) / "openvla_oft"
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("openvla_models")  # registers the goldens' image encoders with timm
pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason="no golden tensors here")


@pytest.fixture(scope="module")
def golden():
    return safetensors.load_file(GOLDENS / "tensors.safetensors")


def load():
    return load_openvla(GOLDENS, GOLDENS / "LIBERO_GOAL_scale_header.pth", dtype=torch.float32)


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def adapted():
    pytest.importorskip("peft")
    model = load()
    load_lora(model, GOLDENS / "lora")
    return model


def close(ours, golden, atol=1e-5):
    torch.testing.assert_close(ours, golden, atol=atol, rtol=0)


def inputs(golden):
    return (
        golden["in.input_ids"],
        golden["in.attention_mask"],
        golden["in.pixel_values"].float(),
        golden["in.proprio_normalized"],
    )


@torch.no_grad()
@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Image encoders and projector",
    reference="golden tensors",
    ours="equal to 1e-5",
)
def test_vision(model, golden):
    patches = model.base.vision_backbone(golden["in.pixel_values"].float())
    close(patches, golden["vision.patches"])
    close(model.base.projector(patches), golden["vision.projected"])


@torch.no_grad()
@pytest.mark.parametrize("forward", ["prefix_cache", "single_pass"])
@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Both forward passes: mean, log scale, actions",
    reference="golden tensors",
    ours="equal to 1e-5",
)
def test_prediction(model, golden, forward):
    prediction = model(*inputs(golden), forward=forward)
    close(prediction.mean, golden[f"{forward}.mean"])
    close(prediction.log_scale, golden[f"{forward}.log_scale"])
    statistics = json.loads((GOLDENS / "dataset_statistics.json").read_text())
    action = statistics["libero_goal_no_noops"]["action"]
    low, high = (torch.tensor(action[name], dtype=torch.float64) for name in ("q01", "q99"))
    mean = prediction.mean.double()
    actions = torch.where(
        torch.tensor(action["mask"]), (mean + 1) / 2 * (high - low + 1e-8) + low, mean
    )
    close(actions, golden[f"{forward}.actions"])


@pytest.mark.parity(
    area="Sampling",
    point="Laplace log-probabilities",
    reference="golden tensors",
    ours="equal to 1e-5",
)
def test_laplace(golden):
    mean, log_scale = golden["prefix_cache.mean"], golden["prefix_cache.log_scale"]
    sampled = golden["laplace.sampled"]
    close(laplace.log_prob(sampled, mean, log_scale), golden["laplace.log_prob_unclipped"])
    clipped = laplace.clip_log_scale(log_scale)
    close(laplace.log_prob(sampled, mean, clipped), golden["laplace.log_prob"])


@torch.no_grad()
@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Published LoRA adapters",
    reference="golden tensors",
    ours="equal to 1e-5",
)
def test_lora(adapted, golden):
    prediction = adapted(*inputs(golden))
    close(prediction.mean, golden["lora.prefix_cache.mean"])
    close(prediction.log_scale, golden["lora.prefix_cache.log_scale"])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parity(
    area="Loss",
    point="OpenVLA-OFT: clipped PPO and its gradient",
    reference="golden tensors, clip 0.1/0.1",
    ours="equal to 1e-5",
)
def test_ppo(adapted, golden, checkpointing):
    adapted.gradient_checkpointing = checkpointing
    adapted.train(checkpointing)  # there is no dropout: only checkpointing asks for the mode
    adapted.zero_grad()
    mean, log_scale, _ = adapted(*inputs(golden))
    scores = laplace.log_prob(golden["laplace.sampled"], mean, laplace.clip_log_scale(log_scale))
    log_probs = laplace.aggregate(scores)
    old = golden["ppo.old_log_probs"]
    weights = torch.ones_like(old)
    surrogate = clipped_surrogate(
        log_probs, old, golden["ppo.advantages"], weights, old.numel(), 0.1, 0.1
    )
    close(surrogate.loss, golden["ppo.loss"][0])
    surrogate.loss.backward()
    lora = lora_parameters(adapted)
    gradients = {name: p.grad for name, p in lora.items() if p.grad is not None}
    assert len(gradients) == golden["ppo.num_lora_tensors_with_grad"][0]
    norm = torch.nn.utils.get_total_norm(gradients.values())
    torch.testing.assert_close(norm, golden["ppo.lora_grad_norm"][0], atol=0, rtol=1e-5)
    (sample,) = (g for name, g in gradients.items() if "layers.1.self_attn.q_proj.lora_B" in name)
    close(sample, golden["ppo.grad.layer1.q_proj.lora_B"])
