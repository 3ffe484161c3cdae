"""The starting policy of a KL penalty: what is kept of it, and that it comes back exactly."""

import copy

import pytest
import torch
from block_policy import BlockPolicy

from lightning_ript.policies.reference import ReferenceWeights
from lightning_ript.policies.toy import ToyPolicy


def shaken(policy):
    """Gives every weight another value; returns them by name."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def test_what_learns_is_as_it_was_and_the_rest_as_it_is():
    policy = BlockPolicy()
    start = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert 0 < len(trained) < len(start)
    reference = ReferenceWeights(policy)
    later = shaken(policy)
    for _ in range(2):
        with reference.in_place_of(policy):
            for name, parameter in policy.named_parameters():
                assert torch.equal(parameter, (start if name in trained else later)[name]), name
        assert all(torch.equal(p, later[name]) for name, p in policy.named_parameters())


def test_it_scores_as_a_copy_would():
    policy = ToyPolicy()
    twin, reference = copy.deepcopy(policy), ReferenceWeights(policy)
    shaken(policy)
    record = {"features": torch.randn(5, 16), "indices": torch.randint(8, (5, 4))}
    with torch.no_grad(), reference.in_place_of(policy):
        assert torch.equal(policy.log_prob(record)[0], twin.log_prob(record)[0])
    assert not torch.equal(policy.log_prob(record)[0], twin.log_prob(record)[0])


def test_it_comes_back_whatever_happens():
    policy = ToyPolicy()
    reference = ReferenceWeights(policy)
    later = shaken(policy)

    def fail():
        with reference.in_place_of(policy):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert all(torch.equal(p, later[name]) for name, p in policy.named_parameters())


def test_large_values_are_swapped_in_portions(monkeypatch):
    monkeypatch.setattr("lightning_ript.policies.reference._PORTION", 100)
    test_what_learns_is_as_it_was_and_the_rest_as_it_is()


def test_of_a_fresh_adapter_half_is_kept(tmp_path):
    tiny = pytest.importorskip("tiny_openvla")  # needs timm
    from lightning_ript.policies.openvla_oft import OpenVLATokenPolicy
    from lightning_ript.policies.openvla_oft.lora import LoraSizes, save_lora

    folder = str(tiny.write_tiny_openvla_tokens(tmp_path / "base"))
    fresh = OpenVLATokenPolicy(folder, tiny.UNNORM_KEY, lora=LoraSizes(r=2))
    names = [name for name, _ in fresh.reference_parameters()]
    assert names
    assert all(".lora_B." in name for name in names)
    with torch.no_grad():
        for _, parameter in fresh.reference_parameters():
            parameter += 1
    save_lora(fresh.model, tmp_path / "adapter")
    loaded = OpenVLATokenPolicy(folder, tiny.UNNORM_KEY, adapter=str(tmp_path / "adapter"))
    assert len(loaded.reference_parameters()) == 2 * len(names)
