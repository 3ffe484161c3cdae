"""Worked numbers for the clipped surrogate and the KL penalty.

test_minibatches.py holds the loss against the reference's.
"""

import math

import pytest
import torch

from lightning_ript.ppo import clipped_surrogate, kl_penalty


def surrogate(ratios, advantages, weights=None, normalizer=None, **clip):
    old = torch.full((len(ratios), len(ratios[0])), -1.5)
    log_probs = (old + torch.tensor(ratios).log()).requires_grad_()
    weights = torch.ones_like(old) if weights is None else torch.tensor(weights)
    normalizer = float(weights.sum()) if normalizer is None else normalizer
    result = clipped_surrogate(
        log_probs, old, torch.tensor(advantages), weights, normalizer, **clip
    )
    result.loss.backward()
    return result, log_probs.grad


# ratio, advantage, clip_low, clip_high -> objective of the token, d objective / d log_prob
CASES = [
    (1.0, 2.0, 0.2, 0.2, 2.0, 2.0),
    (1.1, 2.0, 0.2, 0.2, 2.2, 2.2),
    (1.5, 2.0, 0.2, 0.2, 2.4, 0.0),  # gained enough
    (1.5, 2.0, 0.2, 0.6, 3.0, 3.0),  # within the asymmetric clip
    (1.7, 2.0, 0.2, 0.6, 3.2, 0.0),
    (0.5, 2.0, 0.2, 0.2, 1.0, 1.0),  # lost: the clip never takes effect on the worse side
    (0.5, -1.0, 0.2, 0.2, -0.8, 0.0),
    (0.5, -1.0, 0.6, 0.2, -0.5, -0.5),  # within the asymmetric clip
    (1.5, -1.0, 0.2, 0.2, -1.5, -1.5),
]


@pytest.mark.parametrize(("ratio", "advantage", "low", "high", "objective", "slope"), CASES)
def test_clip_by_hand(ratio, advantage, low, high, objective, slope):
    result, gradient = surrogate([[ratio]], [advantage], clip_low=low, clip_high=high)
    assert result.loss.item() == pytest.approx(-objective, rel=1e-5)
    assert gradient.item() == pytest.approx(-slope, rel=1e-5)
    assert result.clipped.item() == (slope == 0)
    assert result.ratio.item() == pytest.approx(ratio, rel=1e-5)
    assert result.approx_kl.item() == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)


def test_weights_share_the_loss_and_padding_has_none():
    # Tokens: 1.1 * 1, 1.0 * 1 | padding, 1.0 * -2.
    result, gradient = surrogate(
        [[1.1, 1.0], [9.0, 1.0]], [1.0, -2.0], weights=[[1.0, 1.0], [0.0, 1.0]]
    )
    assert result.loss.item() == pytest.approx(-(1.1 + 1.0 - 2.0) / 3, rel=1e-4)
    assert gradient[1, 0] == 0
    assert gradient[1, 1].item() == pytest.approx(2 / 3, rel=1e-5)


def test_the_normalizer_spans_more_than_this_micro_batch():
    one, _ = surrogate([[1.1]], [1.0], normalizer=4.0)
    assert one.loss.item() == pytest.approx(-1.1 / 4, rel=1e-5)


def test_kl_penalty_by_hand():
    current = torch.tensor([[0.5, 0.25]]).log().requires_grad_()
    reference = torch.tensor([[0.25, 0.25]]).log()
    penalty = kl_penalty(current, reference, torch.ones(1, 2), 2.0)
    # k3 with q/p = 1/2: 1/2 - 1 + log 2, and 0 where they agree.
    assert penalty.item() == pytest.approx((math.log(2) - 0.5) / 2, rel=1e-5)
    penalty.backward()
    assert current.grad[0].tolist() == pytest.approx([(1 - 0.5) / 2, 0.0], abs=1e-6)
    assert kl_penalty(reference, reference, torch.ones(1, 2), 2.0) == 0
