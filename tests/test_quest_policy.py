"""QueST as a policy: sampling, scoring, checkpoints. No golden tensors needed."""

import hashlib

import numpy as np
import pytest
import torch

from lightning_ript.policies.quest import (
    QueST,
    QueSTConfig,
    QueSTPolicy,
    is_official,
    load_official,
    load_weights,
    save_official,
)
from lightning_ript.policies.quest.checkpoint import check_language
from lightning_ript.policies.quest.language import hashed_embedding
from lightning_ript.rollouts import acting
from lightning_ript.types import Task

TINY = QueSTConfig(
    image_size=32,
    image_width=8,
    image_embed_dim=16,
    lowdim_embed_dim=8,
    embed_dim=32,
    prior_layers=2,
    prior_heads=2,
    autoencoder_dim=32,
    encoder_layers=1,
    decoder_layers=1,
    autoencoder_heads=2,
)
TASK = Task("libero_object", 0, "pick_up_the_soup", "pick up the soup")
OTHER_TASK = Task("libero_object", 1, "pick_up_the_milk", "pick up the milk")


def observation(seed, size=32):
    rng = np.random.default_rng(seed)
    return {
        "agentview_rgb": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "eye_in_hand_rgb": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "joint_states": rng.normal(size=7).astype(np.float32),
        "ee_pos": rng.normal(size=3).astype(np.float32),
        "ee_quat": rng.normal(size=4).astype(np.float32),
        "gripper_states": rng.normal(size=2).astype(np.float32),
    }


def policy(**settings):
    torch.manual_seed(0)
    made = QueSTPolicy(TINY, **settings)
    with torch.no_grad():  # a peaked distribution, as a trained one is
        made.model.policy_prior.head.weight.mul_(8)
    return made


def decide(made, seeds=(0, 1, 2), noise_seed=0):
    generator = torch.Generator().manual_seed(noise_seed)
    noise = torch.rand(len(seeds), *made.noise_shape, generator=generator)
    return made.act([observation(s) for s in seeds], [TASK] * len(seeds), noise), noise


def test_published_size_has_about_20_million_parameters():
    parameters = sum(p.numel() for p in QueST(QueSTConfig()).parameters())
    assert 18e6 < parameters < 24e6


def test_cached_decoding_gives_the_uncached_logits():
    made = policy()
    context = torch.randn(5, 2, TINY.embed_dim)
    indices, logits = made.model.policy_prior.sample(context, torch.rand(5, 8))
    with torch.no_grad():
        uncached = made.model.prior_logits(context, indices)
    torch.testing.assert_close(logits, uncached, atol=1e-5, rtol=0)
    assert indices.unique(dim=0).shape[0] > 1


@pytest.mark.parametrize("score", ["full", "sampled"])
def test_log_prob_equals_what_act_returned(score):
    made = policy(score=score, temperature=1.7)
    decisions, _ = decide(made)
    log_probs, entropy = made.log_prob(decisions.record)
    torch.testing.assert_close(log_probs, decisions.log_probs, atol=1e-5, rtol=0)
    assert decisions.actions.shape == (3, 8, 7)
    assert log_probs.shape == entropy.shape == (3, 8)
    assert log_probs.requires_grad


def test_score_full_and_sampled_against_a_plain_softmax():
    full, sampled = policy(), policy(score="sampled", temperature=0.5, top_k=3)
    decisions, _ = decide(sampled)
    context, indices = decisions.record["context"], decisions.record["indices"]
    with torch.no_grad():
        logits = full.model.prior_logits(context, indices)
        expected = logits.log_softmax(-1).gather(-1, indices[..., None])[..., 0]
        log_probs, entropy = full.log_prob(decisions.record)
        torch.testing.assert_close(log_probs, expected)
        expected_entropy = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropy, expected_entropy)

        top, tokens = logits.topk(3, dim=-1)
        renormalized = (top / 0.5).softmax(-1)
        expected = (renormalized * (tokens == indices[..., None])).sum(-1).log()
        torch.testing.assert_close(sampled.log_prob(decisions.record)[0], expected)


def test_recorded_support_outlives_a_change_of_weights():
    made = policy(score="sampled")
    decisions, _ = decide(made)
    with torch.no_grad():
        made.model.policy_prior.head.bias.copy_(100 * torch.randn(TINY.vocab_size))
    log_probs, _ = made.log_prob(decisions.record)
    assert log_probs.isfinite().all()


def test_a_decision_depends_on_its_own_noise_only():
    made = policy()
    together, noise = decide(made)
    alone = made.act([observation(1)], [TASK], noise[1:2])
    assert torch.equal(alone.record["indices"], together.record["indices"][1:2])
    torch.testing.assert_close(alone.actions, together.actions[1:2], atol=1e-5, rtol=0)
    other, _ = decide(made, noise_seed=1)
    assert not torch.equal(other.record["indices"], together.record["indices"])


def test_evaluations_may_sample_at_another_temperature():
    warm = policy(temperature=1.0, evaluation_temperature=1e-3)
    seen, noise = [observation(i) for i in range(6)], torch.rand(6, *warm.noise_shape)
    likely = warm.act(seen, [TASK] * 6, None).record["indices"]
    assert not torch.equal(warm.act(seen, [TASK] * 6, noise).record["indices"], likely)
    with acting(warm, 1, evaluating=True):
        assert torch.equal(warm.act(seen, [TASK] * 6, noise).record["indices"], likely)
    assert not torch.equal(warm.act(seen, [TASK] * 6, noise).record["indices"], likely)


def test_samples_follow_the_renormalized_top_k():
    made = policy()
    context = torch.randn(1, 2, TINY.embed_dim).expand(4000, -1, -1)
    indices, logits = made.model.policy_prior.sample(context, torch.rand(4000, 8), 5, 1.0)
    top, tokens = logits[0, 0].topk(5)
    frequencies = (indices[:, :1] == tokens).float().mean(0)
    torch.testing.assert_close(frequencies, top.softmax(-1), atol=0.03, rtol=0)
    assert torch.isin(indices[:, 0], tokens).all()


def test_without_noise_takes_the_most_likely_token():
    made = policy()
    decisions = made.act([observation(0)], [TASK], None)
    with torch.no_grad():
        logits = made.model.prior_logits(decisions.record["context"], decisions.record["indices"])
    assert torch.equal(logits.argmax(-1), decisions.record["indices"])


def test_instruction_and_observation_reach_the_context():
    made = policy()
    one, two = (made.encode_observations([observation(0)], [t]) for t in (TASK, OTHER_TASK))
    assert not torch.equal(one[:, 0], two[:, 0])
    assert torch.equal(one[:, 1], two[:, 1])
    other = made.encode_observations([observation(1)], [TASK])
    assert not torch.equal(one[:, 1], other[:, 1])


def test_only_the_prior_learns_and_nothing_is_random():
    made = policy().train()
    trainable = {name for name, p in made.named_parameters() if p.requires_grad}
    assert trainable == {
        f"model.policy_prior.{n}" for n, _ in made.model.policy_prior.named_parameters()
    }
    assert len(made.parameter_groups()[0]["params"]) == len(trainable)
    assert not any(module.training for module in made.modules())


def test_spatial_softmax_skips_its_convolution_where_the_reference_does():
    sizes = QueSTConfig(**{**TINY.__dict__, "image_embed_dim": 2 * 2 * TINY.image_width})
    model = QueST(sizes)
    name = "image_encoders.agentview_rgb.projection_layer.spatial_softmax._spatial_conv.weight"
    assert name in model.state_dict()
    assert name not in dict(model.named_parameters())
    assert name in dict(QueST(TINY).named_parameters())


def test_hashed_embedding():
    vector = hashed_embedding("pick up the soup")
    assert vector.shape == (512,)
    assert abs(vector.mean()) < 0.15
    assert abs(vector.std() - 1) < 0.1
    assert torch.equal(vector, hashed_embedding(" Pick up the soup"))
    assert not torch.equal(vector, hashed_embedding("pick up the milk"))
    assert torch.equal(vector[:10], hashed_embedding("pick up the soup", 10))
    digest = hashlib.sha256(b"pick up the soup\0" + bytes(4)).digest()
    uniform = ((int.from_bytes(digest[:8], "little") >> 11) + 0.5) / 2**53
    assert torch.special.ndtri(torch.tensor(uniform)).item() == pytest.approx(vector[0].item())


def test_checkpoint_of_other_sizes_names_the_key_and_both_shapes(tmp_path):
    save_official(QueST(TINY), tmp_path / "tiny.pth", "hashed")
    other = QueSTConfig(**{**TINY.__dict__, "lowdim_embed_dim": 16})
    with pytest.raises(ValueError, match=r"lowdim_encoders.joint_states.*\(8, 7\).*\(16, 7\)"):
        QueSTPolicy(other, checkpoint=str(tmp_path / "tiny.pth"))


def test_missing_and_unexpected_keys_are_named_together(tmp_path):
    weights = QueST(TINY).state_dict()
    weights["surplus"] = weights.pop("policy_prior.head.bias")
    torch.save({"model": weights}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"policy_prior.head.bias' is missing.*'surplus' is unkn"):
        load_official(QueST(TINY), tmp_path / "odd.pth")


def test_lightning_checkpoint_of_any_stage(tmp_path):
    model = QueST(TINY)
    state = {f"policy.model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.6"}, tmp_path / "stage.ckpt")
    assert not is_official(tmp_path / "stage.ckpt")
    loaded = QueSTPolicy(TINY, checkpoint=str(tmp_path / "stage.ckpt")).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="not an official QueST checkpoint"):
        load_official(QueST(TINY), tmp_path / "stage.ckpt")


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone.pth"):
        load_weights(QueST(TINY), tmp_path / "gone.pth")
    save_official(QueST(TINY), tmp_path / "whole.pth", "hashed")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pth is cut off"):
        load_weights(QueST(TINY), tmp_path / "cut.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth is not a file that torch.save wrote"):
        load_weights(QueST(TINY), tmp_path / "text.pth")
    torch.save({"weights": {}}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="neither an official"):
        load_weights(QueST(TINY), tmp_path / "foreign.pth")
    torch.save({"state_dict": {"net.weight": torch.zeros(1)}}, tmp_path / "toy.ckpt")
    with pytest.raises(ValueError, match="without a QueST"):
        load_weights(QueST(TINY), tmp_path / "toy.ckpt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executed_actions": 33}, "block has 32"),
        ({"top_k": 0}, "1000 skill tokens"),
        ({"evaluation_temperature": 0}, "evaluation_temperature is 0"),
        ({"temperature": 0.0}, "above 0"),
        ({"score": "some"}, "must be 'full' or 'sampled'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QueSTPolicy(TINY, **settings)


@pytest.mark.parametrize(
    "sizes",
    [
        {"embed_dim": 100},
        {"autoencoder_dim": 36},
        {"downsample_factor": 3},
        {"block_size": 30},
        {"fsq_levels": ()},
        {"dropout": 1.0},
    ],
)
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        QueSTConfig(**sizes)


def test_observations_that_do_not_fit_are_refused():
    made = policy()
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(3, 64, 64\)"):
        made.act([observation(0, size=64)], [TASK], None)
    blind = {k: v for k, v in observation(0).items() if k != "ee_pos"}
    with pytest.raises(ValueError, match="ee_pos"):
        made.act([blind], [TASK], None)


@pytest.mark.parity(
    area="QueST",
    point="Task embeddings",
    reference="CLIP ViT-B/32's text features",
    ours="the same with `language: clip`; official files with `hashed` are refused",
)
def test_an_official_file_wants_the_embeddings_that_it_has_learned(tmp_path):
    """The wrong ones would give actions that mean nothing, without a word."""
    published = tmp_path / "published.pth"
    save_official(QueST(TINY), published)
    with pytest.raises(ValueError, match="has learned CLIP's text features, but language is hash"):
        QueSTPolicy(TINY, checkpoint=str(published))
    with pytest.raises(ValueError, match="set the policy's language to clip"):
        QueSTPolicy(TINY).load_published(published)
    exported = tmp_path / "exported.pth"
    save_official(QueST(TINY), exported, "hashed")
    assert QueSTPolicy(TINY).load_published(exported)
    check_language(published, "clip")
    with pytest.raises(ValueError, match=r"was trained with language hashed, but .* is clip"):
        check_language(exported, "clip")
