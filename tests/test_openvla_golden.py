"""OpenVLA-OFT against tensors that the reference implementation computed (float32, CPU)."""

import json
import os
from pathlib import Path

import pytest
import torch

from lightning_ript.policies.openvla_oft import laplace
from lightning_ript.policies.openvla_oft.config import OpenVLAConfig
from lightning_ript.policies.openvla_oft.model import OpenVLAOFT

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens")) / "openvla_oft"
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("openvla_models")  # registers the goldens' image encoders with timm
pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason="no golden tensors here")


@pytest.fixture(scope="module")
def golden():
    return safetensors.load_file(GOLDENS / "tensors.safetensors")


@pytest.fixture(scope="module")
def model():
    model = OpenVLAOFT(OpenVLAConfig.from_json(GOLDENS / "config.json")).eval()
    weights = safetensors.load_file(GOLDENS / "model.safetensors")
    model.base.load_state_dict(
        {name.replace("scale_factor", "gamma"): value for name, value in weights.items()}
    )
    for module, file in (
        (model.action_head, "action_head--150000_checkpoint.pt"),
        (model.proprio_projector, "proprio_projector--150000_checkpoint.pt"),
    ):
        contents = torch.load(GOLDENS / file, weights_only=True)
        module.load_state_dict({n.removeprefix("module."): v for n, v in contents.items()})
    scale = torch.load(GOLDENS / "LIBERO_GOAL_scale_header.pth", weights_only=True)
    model.scale_head.trunk.load_state_dict(scale["scale_trunk"])
    model.scale_head.log_b_head.load_state_dict(scale["log_b_head"])
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
def test_vision(model, golden):
    patches = model.base.vision_backbone(golden["in.pixel_values"].float())
    close(patches, golden["vision.patches"])
    close(model.base.projector(patches), golden["vision.projected"])


@torch.no_grad()
@pytest.mark.parametrize("forward", ["prefix_cache", "single_pass"])
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


def test_laplace(golden):
    mean, log_scale = golden["prefix_cache.mean"], golden["prefix_cache.log_scale"]
    sampled = golden["laplace.sampled"]
    close(laplace.log_prob(sampled, mean, log_scale), golden["laplace.log_prob_unclipped"])
    clipped = laplace.clip_log_scale(log_scale)
    close(laplace.log_prob(sampled, mean, clipped), golden["laplace.log_prob"])
