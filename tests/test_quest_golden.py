"""QueST against tensors that the reference implementation computed (float32, CPU, eval mode)."""

import os
from pathlib import Path

import pytest
import torch

from lightning_ript.policies.quest.checkpoint import is_official, load_official, save_official
from lightning_ript.policies.quest.model import CAMERAS, LOWDIM, QueST, QueSTConfig
from lightning_ript.ppo import clipped_surrogate

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens")) / "quest"
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason="no golden tensors here")

# The sizes of goldens/quest/config.json.
SMALL = QueSTConfig(
    image_embed_dim=32,
    lowdim_embed_dim=16,
    embed_dim=96,
    prior_layers=2,
    prior_heads=4,
    autoencoder_dim=64,
)


@pytest.fixture(scope="module")
def golden():
    return safetensors.load_file(GOLDENS / "tensors.safetensors")


@pytest.fixture
def model():
    model = QueST(SMALL).eval()
    load_official(model, GOLDENS / "checkpoint.pth")
    return model


def close(ours, golden, atol=1e-5):
    torch.testing.assert_close(ours, golden, atol=atol, rtol=0)


@pytest.mark.parity(
    area="QueST",
    point="Autoencoder: skill tokens and actions",
    reference="golden tensors",
    ours="equal to 1e-5",
)
def test_autoencoder(model, golden):
    actions = golden["in.actions"]
    with torch.no_grad():
        z = model.autoencoder.encode(actions)
        codes, indices = model.autoencoder.quantize(z)
        close(z, golden["out.z"])
        close(codes, golden["out.codes"])
        assert torch.equal(indices, golden["out.indices"])
        assert torch.equal(model.action_indices(actions), golden["out.indices"])
        close(model.autoencoder(actions), golden["out.reconstruction"])
        close(model.decode(indices), golden["out.decoded_actions"])
        close(model.autoencoder_loss(actions), golden["out.autoencoder_l1_loss"][0])


@pytest.mark.parity(
    area="QueST",
    point="Encoders of images, proprioception and task",
    reference="golden tensors",
    ours="equal to 1e-5",
)
def test_context(model, golden):
    images = {name: golden[f"in.{name}"][:, 0].float() / 255 for name in CAMERAS}
    lowdim = {name: golden[f"in.{name}"][:, 0] for name in LOWDIM}
    with torch.no_grad():
        close(model.encode_context(images, lowdim, golden["in.task_emb"]), golden["out.context"])


@pytest.mark.parity(
    area="QueST",
    point="Prior: logits and log-probabilities",
    reference="golden tensors",
    ours="equal to 1e-5",
)
def test_prior(model, golden):
    context, indices = golden["out.context"], golden["out.indices"]
    with torch.no_grad():
        logits = model.prior_logits(context, indices)
        close(logits, golden["out.logits"])
        log_probs = logits.log_softmax(-1).gather(-1, indices[..., None])[..., 0]
        close(log_probs, golden["out.log_probs"])
        close(model.prior_loss(context, indices), golden["out.prior_loss"][0])


def scored_ppo(model, golden, sequence_mean):
    """The golden's PPO step: four padded episodes, scored as one batch of decisions."""
    context, indices = golden["ppo.context_tokens"], golden["ppo.action_indices"]
    valid = torch.arange(context.shape[1]) < golden["ppo.num_valid_steps"][:, None]
    logits = model.prior_logits(context[valid], indices[valid])
    log_probs = logits.log_softmax(-1).gather(-1, indices[valid][..., None])[..., 0]
    close(log_probs, golden["ppo.new_log_probs"][valid])
    weights = torch.ones_like(log_probs)
    if sequence_mean:
        per_step = 1 / (golden["ppo.num_valid_steps"] * indices.shape[-1])
        weights = weights * per_step[:, None].expand_as(valid)[valid][:, None]
    advantages = golden["ppo.advantages"][:, None].expand_as(valid)[valid]
    old_log_probs = golden["ppo.old_log_probs"][valid]
    normalizer = weights.sum().item()
    return clipped_surrogate(log_probs, old_log_probs, advantages, weights, normalizer, 0.2, 0.2)


@pytest.mark.parity(
    area="Loss",
    point="QueST: clipped PPO and its gradient",
    reference="golden tensors, clip 0.2/0.2, mean over tokens",
    ours="equal to 1e-5",
)
def test_ppo_loss_and_gradient(model, golden):
    loss = scored_ppo(model, golden, sequence_mean=False).loss
    close(loss, golden["ppo.loss_token_mean"][0], atol=1e-6)
    loss.backward()
    close(model.policy_prior.head.weight.grad, golden["ppo.grad.head.weight"], atol=1e-7)
    gradients = [p.grad for p in model.policy_prior.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    close(norm, golden["ppo.grad_norm_token_mean"][0])


def test_ppo_sequence_mean(model, golden):
    loss = scored_ppo(model, golden, sequence_mean=True).loss
    close(loss, golden["ppo.loss_sequence_mean"][0], atol=1e-6)


@pytest.mark.parity(
    area="QueST",
    point="Official checkpoint files",
    reference="read and written",
    ours="bit for bit",
)
def test_official_format_round_trips_bit_for_bit(model, tmp_path):
    save_official(model, tmp_path / "copy.pth")
    original = torch.load(GOLDENS / "checkpoint.pth", weights_only=True)["model"]
    copy = torch.load(tmp_path / "copy.pth", weights_only=True)["model"]
    assert is_official(tmp_path / "copy.pth")
    assert copy.keys() == original.keys()
    assert all(torch.equal(copy[name], original[name]) for name in original)


def test_prefix_is_optional(model, tmp_path):
    original = torch.load(GOLDENS / "checkpoint.pth", weights_only=True)["model"]
    bare = {name.removeprefix("module."): value for name, value in original.items()}
    torch.save({"model": bare}, tmp_path / "bare.pth")
    other = QueST(SMALL)
    load_official(other, tmp_path / "bare.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
