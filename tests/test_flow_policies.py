"""SmolVLA, pi0 and pi0.5 as policies of the loop, at the size of the golden files."""

import numpy as np
import pytest
import torch
from test_flow_golden import CLASSES, GOLDENS, load

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.policies.contract import check_contract
from lightning_ript.types import Task

pytestmark = pytest.mark.skipif(
    not (GOLDENS / "smolvla").is_dir(),
    reason=f"no golden tensors in {GOLDENS}: set LIGHTNING_RIPT_GOLDENS",
)
TASKS = [
    Task("suite", 0, "soup", "pick up the alphabet soup and place it in the basket"),
    Task("suite", 1, "drawer", "open the drawer"),
    Task("suite", 2, "bowl", "put the bowl on the plate"),
]
WAYS = {
    "one": {},
    "all": {"noisy_steps": "all", "ratio": "action"},
    "noise": {"probability": "flow_noise", "ratio": "dimension"},
}


def observations(count=3, size=96):
    random = np.random.default_rng(0)
    quaternions = random.normal(size=(count, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return [
        {
            "agentview_rgb": random.integers(0, 256, (size, size, 3), np.uint8),
            "eye_in_hand_rgb": random.integers(0, 256, (size, size, 3), np.uint8),
            "ee_pos": random.normal(size=3).astype(np.float32),
            "ee_quat": quaternions[i].astype(np.float32),
            "gripper_states": random.normal(size=2).astype(np.float32),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("way", WAYS)
def test_contract(kind, way):
    policy = load(kind, steps=4, **WAYS[way])
    check_contract(policy, observations(), TASKS)
    check_contract(load(kind, steps=3, train="everything", **WAYS[way]), observations(), TASKS)


@pytest.mark.parametrize("kind", CLASSES)
def test_scores_equal_those_of_acting(kind):
    policy = load(kind)
    policy.prepare(TASKS)
    noise = torch.rand(3, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    decisions = policy.act(observations(), TASKS, noise)
    assert decisions.actions.shape == (3, policy.executed_actions, 7)
    with torch.no_grad():
        found, _ = policy.log_prob(decisions.record)
    torch.testing.assert_close(found, decisions.log_probs, rtol=0, atol=1e-5)


def test_the_noisy_step_is_drawn_evenly_and_shared_by_a_decision():
    policy = load("smolvla", steps=4)
    policy.prepare(TASKS)
    seen = observations(1) * 4
    noise = torch.rand(1, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    noise = noise.repeat(4, 1)
    noise[:, 0] = torch.tensor([0.0, 0.26, 0.5, 0.999])
    record = policy.act(seen, [TASKS[0]] * 4, noise).record
    assert record["step"].tolist() == [0, 1, 2, 3]
    # All begin alike and are plain up to their noisy step.
    policy.exploring = False
    plain = policy.act(seen, [TASKS[0]] * 4, noise).record
    policy.exploring = True
    assert torch.equal(record["before"], plain["before"])
    assert (record["after"] != plain["after"]).flatten(1).any(1).all()


def test_without_exploring_noise_decides_where_denoising_starts():
    policy = load("pi0", steps=3)
    policy.prepare(TASKS)
    seen = observations(1)
    generator = torch.Generator().manual_seed(0)
    noises = [torch.rand(1, *policy.noise_shape, generator=generator) for _ in range(2)]
    policy.exploring = False
    first, second = (policy.act(seen, TASKS[:1], noise).actions for noise in noises)
    assert (first != second).any()
    changed = noises[0].clone()
    numbers = policy.network.chunk * policy.network.action_dim
    changed[:, 1 + numbers :] = 0.5  # what would be explored with
    assert torch.equal(policy.act(seen, TASKS[:1], changed).actions, first)


def test_only_the_expert_learns_by_default():
    policy = load("smolvla")
    learning = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learning
    assert all(".vlm." not in name and "state_proj" not in name for name in learning)
    assert {name for name in policy.state_dict() if policy.saved(name)} == learning
    policy.prepare(TASKS)
    noise = torch.rand(3, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    record = policy.act(observations(), TASKS, noise).record
    policy.log_prob(record)[0].sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert reached == learning
    everything = load("smolvla", train="everything")
    kept = {name for name in everything.state_dict() if not everything.saved(name)}
    idle = {id(p) for module in everything.network.idle_modules() for p in module.parameters()}
    assert kept == {name for name, p in everything.named_parameters() if id(p) in idle}


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        policy = load("pi05", train="everything", gradient_checkpointing=checkpointing)
        policy.prepare(TASKS)
        noise = torch.rand(3, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
        record = policy.act(observations(), TASKS, noise).record
        policy.log_prob(record)[0].sum().backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"executed_actions": 11}, "executed_actions is 11, but a chunk has 10 actions"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"noise_level": 0.0}, r"noise_level is 0\.0; it must be above 0"),
        ({"probability": "laplace"}, "probability is 'laplace'; it must be one of flow_sde"),
        ({"ratio": "token"}, "ratio is 'token'; it must be one of chunk, action, dimension"),
        ({"cameras": ["a", "b", "c"]}, "cameras names 3 images, but the policy was trained on 2"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        load("smolvla", **settings)


def test_another_environment_is_refused():
    policy = load("smolvla")
    spec = LiberoSpec("libero_object")
    policy.check_spaces(spec.observation_space, spec.action_space)
    blind = LiberoSpec("libero_object", cameras=("agentview_rgb",))
    with pytest.raises(ValueError, match="needs the images eye_in_hand_rgb"):
        policy.check_spaces(blind.observation_space, blind.action_space)
