"""SmolVLA, pi0 and pi0.5 as policies of the loop, at the size of the golden files."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from test_flow_golden import CLASSES, GOLDENS, load
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.toy import ToySpec
from lightning_ript.policies.contract import check_contract
from lightning_ript.policies.flow.prompts import Prompts
from lightning_ript.policies.lora import LoraSizes
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


@pytest.mark.parametrize("kind", CLASSES)
def test_a_critic_sees_the_state(kind):
    policy = load(kind)
    policy.prepare(TASKS)
    record = policy.act(observations(), TASKS, None).record
    features = policy.features(record)
    assert features.shape == (3, policy.feature_size)
    assert torch.equal(
        features, policy.inputs(observations(), [t.language for t in TASKS])["state"]
    )


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("probability", ["flow_sde", "flow_noise"])
def test_vectors_alone_learn(kind, probability):
    policy = load(kind, steps=3, train="vectors", probability=probability)
    expert = {n for n, p in load(kind).named_parameters() if p.requires_grad and p.ndim == 1}
    learning = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert expert
    assert {name for name in learning if not name.startswith("noise_network.")} == expert
    # What is new has learned nothing yet, so all of it is to learn.
    assert ("noise_network.out.weight" in learning) == (probability == "flow_noise")
    check_contract(policy, observations(), TASKS)


def test_actions_that_are_not_normalized(tmp_path):
    """The folder has no numbers of them then, but says how many each has."""
    folder = tmp_path / "smolvla"
    shutil.copytree(GOLDENS / "smolvla", folder)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        found = json.loads((folder / name).read_text())
        for step in found["steps"]:
            step["config"].get("norm_map", {})["ACTION"] = "IDENTITY"
        (folder / name).write_text(json.dumps(found))
    policy = load("smolvla", folder=folder, steps=3)
    policy.prepare(TASKS)
    noise = torch.rand(3, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    decisions = policy.act(observations(), TASKS, noise)
    assert decisions.actions.shape == (3, policy.executed_actions, 7)
    assert torch.equal(decisions.actions, decisions.record["actions"])
    assert decisions.log_probs.abs().min() > 0


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


def test_gradient_checkpointing_reaches_the_image_encoder():
    policy = load("pi05", train="everything", gradient_checkpointing=True)
    ran = []
    for layer in policy.network.vision.encoder.layers:
        layer.register_forward_pre_hook(lambda *_: ran.append(1))
    policy.prepare(TASKS)
    noise = torch.rand(3, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    record = policy.act(observations(), TASKS, noise).record
    ran.clear()
    policy.log_prob(record)[0].sum().backward()
    assert len(ran) == 2 * len(policy.network.vision.encoder.layers)


def test_what_the_tokenizer_does_not_know_is_said(tmp_path):
    tokenizer = Tokenizer(WordLevel({"lift": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompts = Prompts(tmp_path, 2, None, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompts.longest(["lift", "lift lift"]) == 2
    with pytest.warns(UserWarning, match="does not know all words of 'lift milk'"):
        prompts.longest(["lift milk"])
    with pytest.warns(UserWarning, match="no more than 2 tokens of 'lift lift lift'"):
        prompts.longest(["lift lift lift"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"executed_actions": 11}, "executed_actions is 11, but a chunk has 10 actions"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"noise_level": 0.0}, r"noise_level is 0\.0; it must be above 0"),
        ({"probability": "laplace"}, "probability is 'laplace'; it must be one of flow_sde"),
        ({"ratio": "token"}, "ratio is 'token'; it must be one of chunk, action, dimension"),
        ({"train": "vectors", "lora": LoraSizes()}, "leaves no layer to an adapter: leave lora"),
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
    with pytest.raises(ValueError, match=r"7 numbers, but the environment takes \(2,\)"):
        policy.check_spaces(spec.observation_space, ToySpec().action_space)
    with pytest.raises(ValueError, match="needs agentview_rgb, eye_in_hand_rgb, ee_quat"):
        policy.check_spaces(ToySpec().observation_space, spec.action_space)
    blind = LiberoSpec("libero_object", cameras=("agentview_rgb",))
    with pytest.raises(ValueError, match="needs eye_in_hand_rgb"):
        policy.check_spaces(blind.observation_space, blind.action_space)
