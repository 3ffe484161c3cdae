"""Dynamic sampling's criterion."""

import pytest
import torch

from lightning_ript.advantages import leave_one_out
from lightning_ript.filtering import is_informative


@pytest.mark.parametrize(
    ("rewards", "kept"), [([1, 1, 1], False), ([0, 0], False), ([0, 1, 0], True), ([1, 0], True)]
)
@pytest.mark.parity(
    area="Rollouts",
    point="Dynamic sampling",
    reference="groups of equal rewards are dropped",
)
def test_groups_of_equal_rewards_are_dropped(rewards, kept):
    assert is_informative(rewards) == kept
    # That is to say: those that leave-one-out learns nothing from.
    assert bool(leave_one_out(torch.tensor(rewards, dtype=torch.float)).any()) == kept
