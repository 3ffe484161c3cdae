"""OpenVLA-OFT with discrete action tokens."""

import json
import math

import pytest
import torch

from lightning_ript.cli import main
from lightning_ript.policies.contract import check_contract
from lightning_ript.policies.openvla_oft.action_bins import actions_of, bins_of
from lightning_ript.policies.openvla_oft.checkpoint import load_openvla
from lightning_ript.policies.openvla_oft.lora import (
    LoraSizes,
    add_lora,
    lora_parameters,
    save_lora,
)
from lightning_ript.policies.openvla_oft.merge import merge_lora
from lightning_ript.policies.openvla_oft.statistics import parse_statistics
from lightning_ript.storage.run_directory import adapter_path

load_file = pytest.importorskip("safetensors.torch").load_file
tiny = pytest.importorskip("tiny_openvla")  # needs timm
from test_openvla_policy import TASKS, observations  # noqa: E402

from lightning_ript.policies.openvla_oft import OpenVLATokenPolicy  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of the published kind: without action head and proprioception."""
    return tiny.write_tiny_openvla_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def with_proprio(tmp_path_factory):
    return tiny.write_tiny_openvla_tokens(tmp_path_factory.mktemp("proprio"), proprio=True)


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
@pytest.mark.parametrize("more", [False, True], ids=["one_camera", "two_cameras_and_proprio"])
def test_it_keeps_the_contract(folder, with_proprio, forward, more):
    seen = {"proprio": True, "cameras": ["agentview_rgb", "eye_in_hand_rgb"]} if more else {}
    policy = make(
        with_proprio if more else folder,
        forward=forward,
        temperature=1.6,
        executed_actions=5,
        **seen,
    )
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
    fresh = make(folder).act(observations(1), TASKS[:1], torch.full((1, 56), 0.3))
    assert (fresh.log_probs - expected.log_probs).abs().max() > 0.01


def test_logits_are_precise_whatever_the_base_is(folder):
    policy = make(folder, precision="bfloat16")
    assert policy.dtype == torch.bfloat16
    assert policy.model.base.language_model.lm_head.weight.dtype == torch.float32
    check_contract(policy, observations(2), TASKS, tolerance=0.05)
    decisions = policy.act(observations(1), TASKS[:1], None)
    logits = policy.predict(decisions.record)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_checkpoints_of_another_kind_are_refused(folder, with_proprio, tmp_path):
    with pytest.raises(ValueError, match="has a projector of proprioception: set proprio"):
        make(with_proprio)
    continuous = tiny.write_tiny_openvla(tmp_path / "continuous")
    with pytest.raises(ValueError, match="has an action head, so its actions are not tokens"):
        make(continuous)
    model = load_openvla(continuous, dtype=torch.float32)
    add_lora(model, LoraSizes(r=2, alpha=4))
    save_lora(model, tmp_path / "lora")
    with pytest.raises(ValueError, match="holds heads, but the model predicts tokens"):
        make(folder, adapter=str(tmp_path / "lora"))
    config = json.loads((continuous / "config.json").read_text())
    (continuous / tiny.ACTION_HEAD).unlink()
    (continuous / tiny.PROJECTOR).unlink()
    (continuous / "config.json").write_text(json.dumps({**config, "n_action_bins": 128}))
    with pytest.raises(ValueError, match="n_action_bins is 128, not 256"):
        make(continuous)


def test_without_an_adapter_it_acts_but_does_not_learn(folder):
    policy = make(folder, lora=None)
    assert policy.act(observations(1), TASKS[:1], None).actions.shape == (1, 8, 7)
    with pytest.raises(ValueError, match="only a LoRA learns"):
        policy.check_ready()
    make(folder).check_ready()


def test_its_adapter_merges_into_a_base_without_action_head(folder, tmp_path):
    policy = make(folder)
    with torch.no_grad():
        for parameter in lora_parameters(policy.model).values():
            parameter.normal_(std=0.1)
    save_lora(policy.model, tmp_path / "lora", str(folder))
    merge_lora(folder, tmp_path / "lora", tmp_path / "merged", torch.float32)
    expected = policy.act(observations(1), TASKS[:1], None)
    found = make(tmp_path / "merged", lora=None).act(observations(1), TASKS[:1], None)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-4, rtol=1e-4)


def test_ript_from_the_command_line(folder, tmp_path):
    arguments = [
        "fit",
        "--config=configs/openvla_oft/ript.yaml",
        "--config=configs/openvla_oft/tokens.yaml",
        "--seed_everything=0",
        f"--run_dir={tmp_path}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--model.policy.checkpoint={folder}",
        f"--model.policy.statistics={tiny.UNNORM_KEY}",
        "--model.policy.lora={r: 2, alpha: 4}",
        "--model.policy.precision=float32",
        "--model.optimizer.lr=0.01",
        "--data.environment=openvla_probe.ReachSpec",
        "--data.rollouts_per_context=4",
        "--data.groups_per_iteration=2",
        "--data.num_workers=0",
        "--data.eval_states_per_task=2",
    ]
    main([*arguments, "--trainer.max_epochs=1"])
    main([*arguments, "--trainer.max_epochs=2"])  # the same command, longer
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["iteration"] for entry in history] == [1, 2]
    for entry in history:
        assert entry["metrics"]["train/ratio"] == pytest.approx(1, abs=1e-3)  # one pass, one step
        assert entry["metrics"]["train/grad_norm"] > 0
    adapters = [
        load_file(adapter_path(tmp_path, f"iteration_00{i}") / "adapter_model.safetensors")
        for i in (1, 2)
    ]
    changed = [
        name for name in adapters[0] if not torch.equal(adapters[0][name], adapters[1][name])
    ]
    assert any("lm_head.lora_B" in name for name in changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0"),
        ({"forward": "both"}, "forward is 'both'"),
    ],
)
def test_bad_settings_are_refused(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        make(folder, **settings)


def test_settings_of_continuous_actions_are_refused(folder):
    with pytest.raises(TypeError, match="sampling_scale"):
        make(folder, sampling_scale=2.0)
