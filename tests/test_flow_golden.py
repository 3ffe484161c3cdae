"""SmolVLA, pi0 and pi0.5 against what LeRobot computes from the same files."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_ript.policies.flow import transitions
from lightning_ript.policies.flow.images import resized
from lightning_ript.policies.flow.network import Seen, time_embedding
from lightning_ript.policies.pi0 import Pi0Policy, Pi05Policy
from lightning_ript.policies.pi0.policy import state_bins
from lightning_ript.policies.smolvla import SmolVLAPolicy

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens"))
pytestmark = pytest.mark.skipif(
    not (GOLDENS / "smolvla").is_dir(),
    reason=f"no golden tensors in {GOLDENS}: set LIGHTNING_RIPT_GOLDENS",
)
CLASSES = {
    "smolvla": (SmolVLAPolicy, {}),
    "pi0": (Pi0Policy, {"vision_heads": 3}),
    "pi05": (Pi05Policy, {"vision_heads": 3}),
}
EXECUTED = 5


def load(kind, folder=None, **settings):
    cls, own = CLASSES[kind]
    return cls(str(folder or GOLDENS / kind), **own, **settings)


class Golden:
    def __init__(self, kind):
        self.kind = kind
        self.policy = load(kind, train="everything")
        self.tensors = load_file(GOLDENS / kind / "tensors.safetensors")
        self.tasks = json.loads((GOLDENS / kind / "text.json").read_text())["task"]
        state = self.policy.published.state.normalize(self["in.state"])
        images = torch.stack([self["in.images.image"], self["in.images.image2"]], dim=1)
        prompt = {"tokens": self["in.tokens"], "token_mask": self["in.token_mask"]}
        self.record = {"images": images, "state": state, **prompt}

    def __getitem__(self, name):
        return self.tensors[name]

    @property
    def seen(self):
        """With the padding that LeRobot has."""
        seen = self.policy.seen(self.record)
        tokens, mask = self["in.tokens"], self["in.token_mask"]
        return Seen(seen.images, seen.image_mask, tokens, mask, seen.state)


@pytest.fixture(scope="module", params=CLASSES)
def golden(request):
    return Golden(request.param)


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance)


def test_states_and_actions_are_normalized(golden):
    published = golden.policy.published
    close(golden.record["state"], golden["out.state_normalized"])
    if golden.kind != "pi05":  # which has it in its prompt
        close(golden.policy.seen(golden.record).state, golden["out.state_padded"])
    close(published.action.normalize(golden["in.action"]), golden["out.action_normalized"])
    close(published.action.denormalize(golden["out.actions_normalized"]), golden["out.actions"])


def test_prompts(golden):
    tokens, mask = golden.policy.encode_prompts(golden.tasks, golden.record["state"])
    length = mask.sum(1).max()
    assert torch.equal(mask[:, :length], golden["in.token_mask"][:, :length])
    assert not golden["in.token_mask"][:, length:].any()
    there = mask[:, :length]
    assert torch.equal(tokens[:, :length][there], golden["in.tokens"][:, :length][there])
    if golden.kind == "pi05":
        assert torch.equal(state_bins(golden.record["state"]), golden["out.state_bins"])


def test_images(golden):
    seen = golden.policy.seen(golden.record)
    assert torch.equal(seen.image_mask.T, golden["out.image_masks"])
    names = [name.rpartition(".")[2] for name in golden.policy.published.cameras]
    for camera, name in enumerate(names):
        close(seen.images[:, camera], golden[f"out.images.{name}"], 1e-6)


@pytest.mark.parametrize("shape", ["floor", "small", "tall", "wide"])
def test_images_of_other_shapes(golden, shape):
    policy = golden.policy
    found = resized(golden[f"in.odd_image.{shape}"], policy.image_size, policy.centred)
    close(found, golden[f"out.odd_image.{shape}"], 1e-6)


@torch.no_grad()
def test_prefix(golden):
    network, seen = golden.policy.network, golden.seen
    close(network.embed_images(seen.images).transpose(0, 1), golden["out.image_embeddings"])
    embeddings, mask = network.embed(seen)
    assert torch.equal(mask, golden["out.prefix_mask"])
    there = mask[..., None]
    close(embeddings * there, golden["out.prefix_embeddings"] * there)
    close(network.prefix_hidden(seen) * there, golden["out.prefix_hidden"])


@torch.no_grad()
def test_velocities(golden):
    network = golden.policy.network
    prefix = network.prefix(golden.seen)
    times = golden["in.velocity_time"]
    close(time_embedding(times, network.feature_dim), golden["out.time_embedding"], 1e-6)
    for x, time, velocity in zip(
        golden["in.velocity_x"], times, golden["out.velocity"], strict=True
    ):
        close(network.velocity(prefix, x, time.expand(3))[0], velocity)
    # What pads a prompt beyond the longest of a batch changes nothing.
    short = network.prefix(golden.policy.seen(golden.record))
    x, time = golden["in.velocity_x"][0], times[:1].expand(3)
    close(network.velocity(short, x, time)[0], golden["out.velocity"][0])


@torch.no_grad()
def test_the_whole_chain(golden):
    policy = golden.policy
    assert policy.steps == len(golden["out.chain_velocity"])
    close(policy._times[:-1], golden["out.chain_time"], 0)
    prefix = policy.network.prefix(golden.seen)
    x = golden["in.noise"]
    for k in range(policy.steps):
        step = torch.full((3,), k)
        velocity, _ = policy._velocity(prefix, x, step)
        close(velocity, golden["out.chain_velocity"][k])
        x = transitions.plain_step(x, velocity, policy.steps)
        close(x, golden["out.chain"][k + 1])
    size = golden["out.actions_normalized"].shape[-1]
    close(x[..., :size], golden["out.actions_normalized"])


def test_supervised_loss_and_its_gradient(golden):
    policy = golden.policy
    actions = policy.padded(golden["out.action_normalized"], policy.network.action_dim)
    close(actions, golden["out.action_padded"], 1e-6)
    policy.zero_grad()
    noise, time = golden["in.loss_noise"], golden["in.loss_time"]
    errors = policy.flow_errors(golden.record, actions, noise[None], time[None])[0]
    # Elements go up to 27, where float32 itself is no finer than 2e-6, and processors differ.
    torch.testing.assert_close(errors, golden["out.loss"], rtol=3e-6, atol=2e-5)
    mean = errors[..., : golden["in.action"].shape[-1]].mean()
    close(mean, golden["out.loss_mean"][0], 1e-5)
    mean.backward()
    names = [n.removeprefix("out.loss_grad.") for n in golden.tensors if "loss_grad." in n]
    assert names
    gradients = dict(policy.network.named_parameters())
    for name in names:
        close(gradients[name].grad, golden[f"out.loss_grad.{name}"], 1e-5)
    counted = [
        parameter
        for name, parameter in gradients.items()
        # SmolVLA's files freeze the SmolVLM.
        if parameter.grad is not None
        and (golden.kind != "smolvla" or not name.startswith("vlm_with_expert.vlm."))
    ]
    norm = torch.stack([p.grad.double().norm() for p in counted]).norm()
    torch.testing.assert_close(norm, golden["out.loss_grad_norm"][0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("k", range(10))
def test_moments_of_flow_sde(golden, k):
    """From LeRobot's own velocities, so that nothing but the formulas is compared."""
    steps, level = golden.policy.steps, golden["in.noise_level"].item()
    mean, deviation = transitions.sde_moments(
        golden["out.sde.chain"][k], golden["out.sde.velocity"][k], torch.full((3,), k), steps, level
    )
    close(mean, golden["out.sde.mean"][k], 1e-12)
    close(deviation.flatten(), golden["out.sde.std"][k].expand(3), 1e-12)
    drawn = mean + deviation * golden["in.sde_noise"][k].double()
    close(drawn.float(), golden["out.sde.chain"][k + 1], 1e-6)
    density = transitions.log_density(golden["out.sde.chain"][k + 1], mean, deviation)
    density = density[:, :EXECUTED, :7]
    close(density, golden["out.sde.log_prob_elements"][k], 1e-9)
    close(transitions.tokens(density, "action"), golden["out.sde.log_prob_actions"][k], 1e-5)
    close(transitions.tokens(density, "chunk")[:, 0], golden["out.sde.log_prob"][k], 2e-5)


@torch.no_grad()
def test_scores_of_another_policys_chain(golden):
    """Chains of another policy, as they are scored in learning: only these test the velocities."""
    policy = golden.policy
    assert policy.executed_actions == EXECUTED
    chain = golden["in.given_sde_chain"]
    for k in range(policy.steps):
        step = torch.full((3,), k)
        transition = {"before": chain[k], "after": chain[k + 1], "step": step}
        for ratio, name in (("chunk", "log_prob"), ("action", "log_prob_actions")):
            policy.ratio = ratio
            found, entropy = policy.log_prob({**golden.record, **transition})
            expected = golden[f"out.given_sde.{name}"][k].view_as(found)
            close(found, expected, 5e-5)
            assert found.shape == entropy.shape
    policy.ratio = "chunk"


def test_gradient_of_a_score(golden):
    policy = golden.policy
    chain = golden["in.given_sde_chain"]
    transition = {"before": chain[1], "after": chain[2], "step": torch.ones(3, dtype=torch.int64)}
    policy.zero_grad()
    policy.log_prob({**golden.record, **transition})[0].mean().backward()
    for name in ("action_in_proj", "action_out_proj"):
        expected = golden[f"out.given_sde_grad.{name}.weight"]
        found = getattr(policy.network, name).weight.grad
        close(found, expected, 1e-5 * max(1, expected.abs().max().item()))


@torch.no_grad()
def test_one_noisy_step(golden):
    """The chain that `act` makes when the noise is LeRobot's."""
    policy, step = golden.policy, int(golden["in.noisy_step"])
    prefix = policy.network.prefix(golden.seen)
    x, mean, deviation = golden["in.noise"], None, None
    for k in range(policy.steps):
        at = torch.full((3,), k)
        velocity, features = policy._velocity(prefix, x, at)
        after = transitions.plain_step(x, velocity, policy.steps)
        if k == step:
            mean, deviation = policy._moments(x, velocity, features=features, step=at)
            after = (mean + deviation * golden["in.sde_noise"][k].double()).float()
            close(mean, golden["out.one_step.mean"])
            close(deviation.flatten(), golden["out.one_step.std"].expand(3), 1e-12)
        x = after
        close(x, golden["out.one_step.chain"][k + 1])


class GivenDeviations(torch.nn.Module):
    """A noise network that says what it is told, step by step."""

    def __init__(self, deviations):
        super().__init__()
        self.deviations = list(deviations)

    def forward(self, features):
        return self.deviations.pop(0)


@pytest.mark.parametrize("which", ["flow_noise", "given_noise"])
@torch.no_grad()
def test_flow_noise(golden, which):
    policy = load(golden.kind, probability="flow_noise", ratio="dimension")
    policy.noise_network = GivenDeviations(golden["in.flow_noise_std"])
    chain = golden["out.flow_noise.chain" if which == "flow_noise" else "in.given_noise_chain"]
    found, entropy = policy.log_prob({**golden.record, "chain": chain.transpose(0, 1)})
    close(found, golden[f"out.{which}.log_prob_elements"].flatten(1), 5e-5)
    assert entropy.shape == found.shape


def test_a_folder_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="holds a policy of the type 'pi0', not 'pi05'"):
        Pi05Policy(str(GOLDENS / "pi0"))
