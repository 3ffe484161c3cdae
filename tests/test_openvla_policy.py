"""OpenVLA-OFT behind the policy interface, with a tiny random model in the published format."""

import numpy as np
import pytest
import torch

from lightning_ript.policies.contract import check_contract
from lightning_ript.policies.openvla_oft import OpenVLAOFTPolicy
from lightning_ript.policies.openvla_oft.lora import LoraSizes, save_lora
from lightning_ript.types import Task

tiny = pytest.importorskip("tiny_openvla")  # needs timm
LANGUAGES = ("open the middle drawer of the cabinet", "turn on the stove")
TASKS = [Task("libero_goal", i, f"task_{i}", language) for i, language in enumerate(LANGUAGES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_tiny_openvla(tmp_path_factory.mktemp("openvla"))


def make(folder, **settings):
    settings = {"precision": "float32", "lora": LoraSizes(r=2, alpha=4)} | settings
    scale_head = str(folder / "scale_header.pth")
    torch.manual_seed(0)
    return OpenVLAOFTPolicy(str(folder), tiny.UNNORM_KEY, scale_head, **settings)


def test_the_scale_head_that_is_named_is_used_though_an_adapter_brings_another(folder, tmp_path):
    first = make(folder)
    with torch.no_grad():
        first.model.scale_head.log_b_head.bias += 1.0
    save_lora(first.model, tmp_path)
    head = first.model.scale_head.log_b_head
    second = make(folder, adapter=str(tmp_path), lora=None).model.scale_head.log_b_head
    assert torch.equal(second.weight, head.weight)
    torch.testing.assert_close(second.bias + 1.0, head.bias)


def observations(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "agentview_rgb": rng.integers(0, 256, (256, 256, 3), np.uint8),
            "eye_in_hand_rgb": rng.integers(0, 256, (256, 256, 3), np.uint8),
            "ee_pos": rng.normal(size=3).astype(np.float32),
            "ee_quat": np.array([1.0, 0.0, 0.0, 0.0], np.float32),
            "gripper_states": np.array([0.04, -0.04], np.float32),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("forward", ["prefix_cache", "single_pass"])
@pytest.mark.parametrize("aggregation", ["sum", "mean", "per_dimension"])
def test_it_keeps_the_contract(folder, forward, aggregation):
    policy = make(folder, forward=forward, dimension_aggregation=aggregation)
    check_contract(policy, observations(3), [TASKS[0], TASKS[1], TASKS[0]])


@pytest.mark.parametrize(
    ("log_scale", "distance", "full", "sampled"),
    [  # 5 e^s ln 2; -ln 2 - c - distance e^-c with c = s within [-2, 0.5]; -2 ln 2 - s - ln 5
        (-5.0, 0.0233519, 1.1343040, 2.0042677),
        (-3.0, 0.1725488, 0.0318798, 0.0042677),
        (0.0, 3.4657359, -4.1588831, -2.9957323),
        (1.0, 9.4208469, -6.9071797, -3.9957323),
    ],
)
@pytest.mark.parity(
    area="Sampling",
    point="OpenVLA-OFT's draws",
    reference="Laplace with exp(log scale) x factor, the log scale as the head predicts it",
)
@pytest.mark.parity(
    area="Sampling",
    point="OpenVLA-OFT's score",
    reference="Laplace with exp(log scale), the log scale clipped to [-2, 0.5]",
)
def test_actions_are_drawn_from_the_scale_that_is_predicted(
    log_scale, distance, full, sampled, folder
):
    """The clip to [-2, 0.5] is for the score alone."""
    noise = torch.full((1, 8, 7), 0.75)  # the distribution's upper quartile: b ln 2 above the mean
    for score, expected in (("full", full), ("sampled", sampled)):
        policy = make(folder, score=score, sampling_scale=5.0)
        torch.nn.init.zeros_(policy.model.scale_head.log_b_head.weight)
        torch.nn.init.constant_(policy.model.scale_head.log_b_head.bias, log_scale)
        drawn = policy.act(observations(1), TASKS[:1], noise)
        mean = policy.act(observations(1), TASKS[:1], None)
        moved = drawn.record["chosen"] - mean.record["chosen"]
        torch.testing.assert_close(moved, torch.full((1, 8, 7), distance), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            drawn.log_probs, torch.full((1, 8), 7 * expected), atol=1e-4, rtol=1e-5
        )


def test_only_what_learns_and_the_scale_head_is_saved(folder):
    policy = make(folder)
    saved = {name for name in policy.state_dict() if policy.saved(name)}
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained <= saved
    assert {name.split(".")[1] for name in saved} == {
        "base",
        "action_head",
        "scale_head",
        "proprio_projector",
    }
    assert all(".lora_" in name for name in saved if name.startswith("model.base."))
    assert not any("scale_head" in name for name in trained)


def test_learning_without_a_trained_scale_head_is_refused(folder):
    policy = OpenVLAOFTPolicy(str(folder), tiny.UNNORM_KEY, lora=None, precision="float32")
    with pytest.raises(ValueError, match="no trained scale head"):
        policy.check_ready()
    make(folder).check_ready()
    # A checkpoint of the run brings it along.
    policy.load_state_dict(make(folder, lora=None).state_dict())
    policy.check_ready()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executed_actions": 9}, "executed_actions is 9"),
        ({"sampling_scale": 0.0}, "sampling_scale"),
        ({"forward": "both"}, "forward is 'both'"),
    ],
)
def test_bad_settings_are_refused(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        make(folder, **settings)


def test_unknown_statistics_are_refused(folder):
    with pytest.raises(ValueError, match="libero_goal_no_noops"):
        OpenVLAOFTPolicy(str(folder), "libero_spatial")
