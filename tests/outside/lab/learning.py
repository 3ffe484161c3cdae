"""An estimator and a loss of one's own; each leaves a trace when it is used."""

import os
from pathlib import Path

from lightning_ript.ppo import Surrogate


def _trace(name):
    Path(os.environ["LAB_TRACES"], name).touch()


def halved(rewards):
    """Rewards less half their mean."""
    _trace("estimator")
    return rewards - rewards.mean(-1, keepdim=True) / 2


def unclipped(log_probs, old_log_probs, advantages, weights, normalizer, **clips):
    """The policy gradient without a clip."""
    _trace("loss")
    assert set(clips) == {"clip_low", "clip_high"}
    ratio = (log_probs - old_log_probs).exp()
    loss = -(weights * ratio * advantages.unsqueeze(-1)).sum() / normalizer
    ratio = ratio.detach()
    return Surrogate(loss, ratio, 0 * ratio, ratio - 1 - ratio.log())
