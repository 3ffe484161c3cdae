"""Sampling by inversion, and policies that score their own actions."""

import pytest
import torch

from lightning_ript.envs.toy import ToyEnvironment, ToySpec
from lightning_ript.policies.sampling import sample_tokens
from lightning_ript.policies.toy import ToyPolicy

LOGITS = torch.tensor([0.5, 0.2, 0.25, 0.05]).log()


def test_inversion_by_hand():
    # In falling order: token 0 up to 0.5, token 2 up to 0.75, token 1 up to 0.95, token 3.
    noise = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.94, 0.96])
    tokens = sample_tokens(LOGITS.expand(7, 4), noise)
    assert tokens.tolist() == [0, 0, 2, 2, 1, 1, 3]


@pytest.mark.parity(
    area="Sampling",
    point="QueST draws from the 5 most likely tokens",
    reference="top 5, temperature 1, scored by the full softmax",
)
def test_top_k_and_temperature():
    noise = torch.linspace(0, 0.9999, 1000)
    logits = LOGITS.expand(1000, 4)
    assert set(sample_tokens(logits, noise, top_k=2).tolist()) == {0, 2}
    # Probabilities squared: 0.25, 0.0625, 0.04, 0.0025 of 0.355.
    cold = sample_tokens(logits, noise, temperature=0.5)
    assert (cold == 0).float().mean().item() == pytest.approx(0.25 / 0.355, abs=0.002)


def test_frequencies_are_the_probabilities():
    noise = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    tokens = sample_tokens(LOGITS.expand(len(noise), 4), noise)
    shares = torch.bincount(tokens) / len(noise)
    torch.testing.assert_close(shares, LOGITS.exp(), rtol=0, atol=0.005)


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_the_largest_noise_still_gives_a_token(top_k):
    largest = torch.tensor(1.0).nextafter(torch.tensor(0.0)).expand(64)
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    tokens = sample_tokens(logits, largest, top_k)
    assert ((tokens >= 0) & (tokens < 1000)).all()


def test_toy_policy_scores_what_it_did():
    policy = ToyPolicy()
    spec = ToySpec()
    environment = ToyEnvironment()
    tasks = [spec.tasks()[i % 2] for i in range(6)]
    observations = [environment.reset(spec.test_contexts(task)[i]) for i, task in enumerate(tasks)]
    noise = torch.rand(6, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    decisions = policy.act(observations, tasks, noise)
    log_probs, entropy = policy.log_prob(decisions.record)
    torch.testing.assert_close(log_probs, decisions.log_probs, rtol=1e-6, atol=1e-6)
    assert log_probs.requires_grad
    assert not decisions.log_probs.requires_grad
    assert (entropy > 0).all()
    assert (entropy <= torch.tensor(8.0).log() + 1e-5).all()
    one = policy.act(observations[3:4], tasks[3:4], noise[3:4])
    assert torch.equal(one.record["indices"][0], decisions.record["indices"][3])
    greedy = policy.act(observations, tasks, None)
    likely, _ = policy.log_prob(greedy.record)
    assert (likely >= log_probs - 1e-6).all()
