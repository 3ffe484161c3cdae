"""OpenVLA-OFT with discrete action tokens."""

import math

import pytest
import torch

from lightning_ript.policies.contract import check_contract
from lightning_ript.policies.openvla_oft.action_bins import actions_of, bins_of
from lightning_ript.policies.openvla_oft.lora import LoraSizes, lora_parameters, save_lora
from lightning_ript.policies.openvla_oft.statistics import parse_statistics

tiny = pytest.importorskip("tiny_openvla")  # needs timm
from test_openvla_policy import TASKS, observations  # noqa: E402

from lightning_ript.policies.openvla_oft import OpenVLATokenPolicy  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write_tiny_openvla(tmp_path_factory.mktemp("tokens"))
    (folder / "action_head--150000_checkpoint.pt").unlink()  # such a checkpoint has none
    return folder


def make(folder, **settings):
    torch.manual_seed(0)
    settings = {"lora": LoraSizes(r=2, alpha=4), "precision": "float32"} | settings
    return OpenVLATokenPolicy(str(folder), tiny.UNNORM_KEY, **settings)


def test_bins_are_openvlas():
    assert bins_of(torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 2.0])).tolist() == [
        *(0, 0, 127, 254, 255, 255)
    ]
    expected = torch.tensor([-254 / 255, 0, 254 / 255, 254 / 255])
    torch.testing.assert_close(actions_of(torch.tensor([0, 127, 254, 255])), expected)
    assert bins_of(actions_of(torch.arange(255))).tolist() == list(range(255))


def test_the_gripper_needs_no_mapping():
    statistics = parse_statistics({"x": tiny._statistics()}, "x")
    actions = torch.zeros(2, 7)
    actions[1, 6] = 1  # open
    executed = statistics.environment_actions(actions_of(bins_of(actions)))
    assert executed[:, 6].tolist() == [1, -1]


def test_bin_zero_is_the_last_token_before_the_padding(folder):
    model = make(folder).model
    ids, mask, pixels, _ = tiny.tiny_inputs(images=1)
    with torch.no_grad():
        hidden = model.hidden(ids, mask, pixels, None, "single_pass")
        every = model.base.language_model.lm_head(hidden[:, :56])
        logits = model(ids, mask, pixels, None, "single_pass")
    assert logits.shape == (2, 56, 256)
    torch.testing.assert_close(logits[..., 0], every[..., 31999])
    torch.testing.assert_close(logits[..., 255], every[..., 31744])


def test_log_probs_by_hand(folder):
    logits = torch.zeros(1, 56, 256)
    logits[..., 3] = math.log(257)  # 257 parts beside 255 single ones
    bins = torch.full((1, 56), 3)
    log_probs, _ = make(folder)._score(logits, bins)
    torch.testing.assert_close(log_probs, torch.full((1, 56), math.log(257 / 512)))
    # At half the temperature the odds are squared: 257^2 parts beside 255.
    log_probs, _ = make(folder, temperature=0.5)._score(logits, bins)
    torch.testing.assert_close(log_probs, torch.full((1, 56), math.log(257**2 / (257**2 + 255))))
    _, entropy = make(folder)._score(torch.zeros(1, 56, 256), bins)
    torch.testing.assert_close(entropy, torch.full((1, 56), math.log(256)))


def test_sampling_follows_the_probabilities_that_are_scored(folder):
    policy = make(folder, temperature=2.0)
    logits = torch.randn(1, 56, 256, generator=torch.Generator().manual_seed(0)) * 3
    noise = torch.rand(4000, 56, generator=torch.Generator().manual_seed(1))
    bins = policy._choose(logits.expand(4000, -1, -1), noise)
    _, entropy = policy._score(logits, bins[:1])
    log_probs, _ = policy._score(logits.expand(4000, -1, -1), bins)
    # The mean of -log p over samples of p is p's entropy.
    torch.testing.assert_close(-log_probs.mean(), entropy.mean(), atol=0.02, rtol=0)


@pytest.mark.parametrize("forward", ["prefix_cache", "single_pass"])
@pytest.mark.parametrize(
    "seen", [{}, {"proprio": True, "cameras": ["agentview_rgb", "eye_in_hand_rgb"]}]
)
def test_it_keeps_the_contract(folder, forward, seen):
    policy = make(folder, forward=forward, temperature=1.6, executed_actions=5, **seen)
    check_contract(policy, observations(2), TASKS)
    decisions = policy.act(observations(2), TASKS, torch.rand(2, 56))
    assert decisions.actions.shape == (2, 5, 7)
    assert set(decisions.actions[..., 6].flatten().tolist()) <= {-1, 1}
    assert decisions.record["images"].shape[1] == len(policy.cameras)


def test_gradients_reach_the_adapter_of_the_language_models_head(folder):
    policy = make(folder)
    assert [group["name"] for group in policy.parameter_groups()] == ["lora"]
    decisions = policy.act(observations(1), TASKS[:1], torch.full((1, 56), 0.5))
    policy.log_prob(decisions.record)[0].sum().backward()
    heads = {n: p for n, p in policy.named_parameters() if "lm_head.lora_B" in n}
    assert heads
    assert all(p.grad.abs().max() > 0 for p in heads.values())


def test_its_adapter_is_saved_and_loaded(folder, tmp_path):
    policy = make(folder)
    with torch.no_grad():
        for parameter in lora_parameters(policy.model).values():
            parameter.normal_(std=0.1)
    save_lora(policy.model, tmp_path / "lora", str(folder))
    assert not (tmp_path / "lora/openvla_headers.pt").exists()
    again = make(folder, adapter=str(tmp_path / "lora"), lora=None)
    expected = policy.act(observations(1), TASKS[:1], torch.full((1, 56), 0.3))
    found = again.act(observations(1), TASKS[:1], torch.full((1, 56), 0.3))
    torch.testing.assert_close(found.log_probs, expected.log_probs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0"),
        ({"lora": None}, "only a LoRA learns"),
        ({"forward": "both"}, "forward is 'both'"),
    ],
)
def test_bad_settings_are_refused(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        make(folder, **settings)


def test_settings_of_continuous_actions_are_refused(folder):
    with pytest.raises(TypeError, match="sampling_scale"):
        make(folder, sampling_scale=2.0)
