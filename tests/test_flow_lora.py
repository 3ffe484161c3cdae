"""LoRA of flow-matching policies, and half precision."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_flow_golden import CLASSES, GOLDENS, load
from test_flow_policies import TASKS, observations

from lightning_ript.cli import main
from lightning_ript.policies.contract import check_contract
from lightning_ript.policies.flow.lerobot import NETWORK
from lightning_ript.policies.lora import LoraSizes, is_adapter_weight

pytestmark = pytest.mark.skipif(
    not (GOLDENS / "smolvla").is_dir(),
    reason=f"no golden tensors in {GOLDENS}: set LIGHTNING_RIPT_GOLDENS",
)
SMALL = LoraSizes(r=2, alpha=4)


def adapted(kind, **settings):
    torch.manual_seed(0)
    return load(kind, steps=3, lora=SMALL, **settings)


def disturb(policy):
    """As if it had learned."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                step = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter += (0.1 if ".lora_B." in name else 0.01) * step


def checkpoint(policy, path):
    """What Lightning keeps of it."""
    state = {f"policy.{n}": v for n, v in policy.state_dict().items() if policy.saved(n)}
    torch.save({"state_dict": state, "policy": policy.described()}, path)
    return str(path)


def chosen(policy):
    policy.prepare(TASKS)
    return policy.act(observations(), TASKS, None).actions


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("train", ["expert", "everything"])
def test_what_learns(kind, train):
    policy, plain = adapted(kind, train=train), load(kind, steps=3)
    torch.testing.assert_close(chosen(policy), chosen(plain), rtol=0, atol=1e-6)
    learns = {n for n, p in policy.named_parameters() if p.requires_grad}
    layers = {n for n in learns if is_adapter_weight(n)}
    expert = {n for n in layers if ".lm_expert." in n or ".gemma_expert." in n}
    assert layers
    assert (layers == expert) == (train == "expert")
    others = learns - layers
    assert "network.action_in_proj.weight" in others
    assert not any(".layers." in name for name in others)
    # Checkpoints hold what learns, and nothing else of the network.
    assert {n for n in policy.state_dict() if policy.saved(n)} == learns
    check_contract(policy, observations(), TASKS)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("train", ["expert", "everything"])
def test_what_is_exported_acts_alike(kind, train, tmp_path):
    policy = adapted(kind, train=train)
    before = chosen(policy)
    disturb(policy)
    saved = checkpoint(policy, tmp_path / "lora.ckpt")
    main(["export", saved, str(tmp_path / "out")])
    cls, own = CLASSES[kind]
    exported = cls(str(tmp_path / "out"), steps=3, **own)
    torch.testing.assert_close(chosen(exported), chosen(policy), rtol=0, atol=1e-4)
    assert not torch.allclose(chosen(policy), before, atol=1e-3)
    # A policy with an adapter takes a published folder as it is.
    assert policy.load_published(tmp_path / "out")
    torch.testing.assert_close(chosen(policy), chosen(exported), rtol=0, atol=1e-6)


def test_weights_of_an_earlier_stage(tmp_path):
    trained = load("smolvla", steps=3, train="everything")
    disturb(trained)
    plain = checkpoint(trained, tmp_path / "sft.ckpt")
    started = adapted("smolvla", weights=plain)
    assert torch.equal(chosen(started), chosen(trained))
    disturb(started)
    both = checkpoint(started, tmp_path / "lora.ckpt")
    again = adapted("smolvla", weights=both)
    assert torch.equal(chosen(again), chosen(started))
    # A third stage leaves out nothing that the folder does not have.
    disturb(again)
    main(["export", checkpoint(again, tmp_path / "third.ckpt"), str(tmp_path / "out")])
    exported = load("smolvla", steps=3, folder=tmp_path / "out")
    torch.testing.assert_close(chosen(exported), chosen(again), rtol=0, atol=1e-4)
    said = r"lora\.ckpt holds a LoRA with alpha / r = 2.0, but the policy's is None"
    with pytest.raises(ValueError, match=said):
        load("smolvla", weights=both)
    with pytest.raises(ValueError, match="does not fit"):
        load("smolvla", weights=both, lora=LoraSizes(r=3, alpha=6))


def test_targets_that_are_not_there():
    with pytest.raises(ValueError, match=r"lora\.targets names no layer that learns"):
        load("smolvla", lora=LoraSizes(targets=("qkv",)))


def test_an_older_folders_names_become_newer_ones(tmp_path):
    """Without a second copy under the old name, which would hold what was not trained."""
    old = tmp_path / "old"
    shutil.copytree(GOLDENS / "pi0", old, ignore=shutil.ignore_patterns("model.safetensors"))
    start = f"{NETWORK}paligemma_with_expert.paligemma."
    tensors = {
        name.replace(f"{start}model.vision_tower.", f"{start}vision_tower."): value
        for name, value in load_file(GOLDENS / "pi0" / "model.safetensors").items()
    }
    save_file(tensors, old / "model.safetensors")
    cls, own = CLASSES["pi0"]
    policy = cls(str(old), train="everything", **own)
    disturb(policy)
    main(["export", checkpoint(policy, tmp_path / "all.ckpt"), str(tmp_path / "out")])
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert names == load_file(GOLDENS / "pi0" / "model.safetensors").keys()
    exported = cls(str(tmp_path / "out"), **own)
    torch.testing.assert_close(chosen(exported), chosen(policy), rtol=0, atol=1e-6)


HALF = {
    "one": {},
    "lora": {"lora": SMALL},
    "lora everywhere": {"lora": SMALL, "train": "everything"},
    "vectors": {"train": "vectors"},
    "all": {"noisy_steps": "all"},
    "noise": {"probability": "flow_noise", "ratio": "dimension"},
}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("way", HALF)
def test_what_learns_is_float32(kind, way):
    policy = load(kind, precision="bfloat16", **HALF[way])
    learns = {p.dtype for p in policy.parameters() if p.requires_grad}
    others = {p.dtype for n, p in policy.named_parameters() if not p.requires_grad}
    assert learns == {torch.float32}
    assert torch.bfloat16 in others
    policy.prepare(TASKS)
    noise = torch.rand(3, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    record = policy.act(observations(), TASKS, noise).record
    policy.log_prob(record)[0].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_half_precision_leaves_something_to_be_halved():
    with pytest.raises(ValueError, match=r"set lora, or leave precision at float32"):
        load("smolvla", precision="bfloat16", train="everything")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("way", HALF)
def test_nothing_is_clipped_at_learning_rate_0_in_bfloat16(kind, way):
    """Scores in batches of another size than those that acted: ratios stay well within the clip."""
    policy = load(kind, steps=4, precision="bfloat16", **HALF[way])
    policy.prepare(TASKS)
    seen, tasks = observations(3) * 4, TASKS * 4
    noise = torch.rand(12, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    decisions = policy.act(seen, tasks, noise)
    ratios = []
    for rows in torch.arange(12).split(5):
        part = {name: value[rows] for name, value in decisions.record.items()}
        with torch.no_grad():
            found, _ = policy.log_prob(part)
        ratios.append((found - decisions.log_probs[rows]).exp())
    off = (torch.cat(ratios) - 1).abs()
    assert off.max() < 0.2, off.max()
    assert off.mean() < 0.02, off.mean()
