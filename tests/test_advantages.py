"""Worked numbers for the advantage estimators."""

import pytest
import torch

from lightning_ript.advantages import estimate, group_normalized, leave_one_out, plain


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        # A success is compared with 1 success in 3 others, a failure with 2 in 3.
        ([1, 0, 0, 1], [2 / 3, -2 / 3, -2 / 3, 2 / 3]),
        ([1, 0, 0, 0], [1, -1 / 3, -1 / 3, -1 / 3]),
        ([1, 0], [1, -1]),
        ([1, 1, 1], [0, 0, 0]),
    ],
)
@pytest.mark.parity(
    area="Loss",
    point="Advantage",
    reference="reward minus the mean of the group's others",
)
def test_leave_one_out_subtracts_the_mean_of_the_others(rewards, expected):
    advantages = leave_one_out(torch.tensor(rewards, dtype=torch.float))
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float))
    others = [(sum(rewards) - r) / (len(rewards) - 1) for r in rewards]
    literal = torch.tensor([r - o for r, o in zip(rewards, others, strict=True)])
    torch.testing.assert_close(advantages, literal, check_dtype=False)


def test_group_normalized_divides_by_the_standard_deviation():
    # Mean 1/2; standard deviation sqrt(4 * (1/2)^2 / 3) = 1 / sqrt(3).
    advantages = group_normalized(torch.tensor([1.0, 0, 0, 1]))
    half = 3**0.5 / 2
    torch.testing.assert_close(
        advantages, torch.tensor([half, -half, -half, half]), rtol=1e-5, atol=0
    )
    assert group_normalized(torch.ones(4)).abs().max() == 0


def test_plain_is_the_reward_and_no_view_of_it():
    rewards = torch.tensor([1.0, 0])
    advantages = plain(rewards)
    advantages[0] = 7
    assert rewards.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["leave_one_out", "group_normalized", "plain"])
def test_groups_are_rows(name):
    rewards = torch.tensor([[1.0, 0, 0, 1], [1, 0, 0, 0]])
    rows = torch.stack([estimate(name, row) for row in rewards])
    torch.testing.assert_close(estimate(name, rewards), rows)


@pytest.mark.parametrize("name", ["leave_one_out", "group_normalized"])
def test_one_rollout_has_nothing_to_be_compared_with(name):
    with pytest.raises(ValueError, match="rollouts_per_context"):
        estimate(name, torch.ones(3, 1))
