"""OpenVLA-OFT's states and actions: against the reference, worked numbers, round trips."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ript.policies.libero_robot import axis_angle, proprio
from lightning_ript.policies.openvla_oft.statistics import load_statistics, parse_statistics

ROOT = Path(__file__).parents[1]
GOLDENS = Path(os.environ.get("LIGHTNING_RIPT_GOLDENS", ROOT / "../shared/goldens"))
GOLDENS = GOLDENS / "openvla_oft"
CONTENT = {
    "libero_goal_no_noops": {
        "action": {
            "q01": [-0.5, -0.6, -0.7, -0.1, -0.2, -0.3, 0.0],
            "q99": [0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 1.0],
            "mask": [True] * 6 + [False],
        },
        "proprio": {"q01": [-1.0] * 3 + [-3.0] * 3 + [0.0, -0.04], "q99": [1.0] * 8},
    },
    "libero_90": {
        "action": {"q01": [-1.0] * 7, "q99": [1.0] * 7},
        "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8},
    },
}


@pytest.fixture
def statistics():
    return parse_statistics(CONTENT, "libero_goal")


@pytest.fixture(scope="module")
def golden():
    safetensors = pytest.importorskip("safetensors.torch")
    if not GOLDENS.is_dir():
        pytest.skip("no golden tensors here")
    return safetensors.load_file(GOLDENS / "preprocess.safetensors")


def golden_observation(golden, dtype):
    names = {"ee_pos": "eef_pos", "ee_quat": "eef_quat_xyzw", "gripper_states": "gripper_qpos"}
    return {ours: golden[theirs].numpy().astype(dtype) for ours, theirs in names.items()}


def test_golden_state(golden):
    ours = proprio([golden_observation(golden, np.float64)])[0]
    torch.testing.assert_close(ours, golden["state"], atol=1e-12, rtol=0)


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Proprioception: percentiles q01 and q99",
    reference="golden tensors",
)
def test_golden_state_normalized(golden):
    ours = load_statistics(GOLDENS, "libero_goal").normalize_proprio(
        [golden_observation(golden, np.float32)] * 2
    )
    assert ours.dtype == torch.float32
    expected = golden["state_normalized"].float().expand(2, -1)
    # Observations are single precision, and the fingers' range is 0.04 m wide.
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Actions out of normalized ones",
    reference="golden tensors",
)
def test_golden_actions(golden):
    tensors = pytest.importorskip("safetensors.torch").load_file(GOLDENS / "tensors.safetensors")
    ranges = load_statistics(GOLDENS, "libero_goal").actions
    for forward in ("prefix_cache", "single_pass"):
        ours = ranges.denormalize(tensors[f"{forward}.mean"].double())
        torch.testing.assert_close(ours, tensors[f"{forward}.actions"], atol=1e-6, rtol=0)


def test_both_files_say_the_same(golden, tmp_path):
    (tmp_path / "config.json").write_text((GOLDENS / "config.json").read_text())
    ours = load_statistics(tmp_path, "libero_goal")
    theirs = load_statistics(GOLDENS, "libero_goal")
    assert torch.equal(ours.actions.low, theirs.actions.low)
    assert torch.equal(ours.proprio.high, theirs.proprio.high)


# -- state -----------------------------------------------------------------------------------------


def test_axis_angle():
    half = math.sqrt(0.5)
    quaternions = torch.tensor(
        [
            [0, 0, half, half],  # a quarter turn about z
            [1, 0, 0, 0],  # half a turn about x
            [0, 0, -half, -half],  # the first again: robosuite says three quarters the other way
            [0, 0, 0, 1],  # none
            [0, 0, 1e-4, 1 + 1e-7],  # none, and w rounded up
            [0, 0, 0, -1],
        ],
        dtype=torch.float64,
    )
    expected = torch.zeros(6, 3, dtype=torch.float64)
    expected[0, 2], expected[1, 0], expected[2, 2] = math.pi / 2, math.pi, -1.5 * math.pi
    torch.testing.assert_close(axis_angle(quaternions), expected)


def test_states_are_clipped_to_the_percentiles(statistics):
    observation = {
        "ee_pos": np.array([0.5, 2, -2], np.float32),
        "ee_quat": np.array([0, 0, 0, 1], np.float32),
        "gripper_states": np.array([0.25, 0], np.float32),
    }
    (state,) = statistics.normalize_proprio([observation])
    expected = [0.5, 1, -1, 0.5, 0.5, 0.5, -0.5, 2 * 0.04 / 1.04 - 1]
    assert state.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_missing_state_is_refused(statistics):
    with pytest.raises(ValueError, match=r"needs \['ee_quat', 'gripper_states'\]"):
        statistics.normalize_proprio([{"ee_pos": np.zeros(3)}])


# -- actions ---------------------------------------------------------------------------------------


def test_actions_are_worked_out(statistics):
    predicted = torch.tensor([[-1.0, 0, 1, 0, 0.5, 2, 0.9], [0, 0, 0, 0, 0, 0, 0.1]])
    expected = torch.tensor([[-0.5, 0.1, 0.7, 0, 0.1, 0.6, -1], [0.2, 0.1, 0, 0, 0, 0, 1]])
    torch.testing.assert_close(statistics.environment_actions(predicted), expected)


@pytest.mark.parity(
    area="OpenVLA-OFT",
    point="Gripper: binary, sign turned",
    reference="-1 opens, 1 closes",
)
def test_the_gripper_opens_and_closes(statistics):
    """1 = open to the model, also when noise carries it beyond; -1 = open to LIBERO."""
    predicted = torch.zeros(6, 7)
    predicted[:, 6] = torch.tensor([1.0, 1.7, 0.51, 0.49, 0.0, -0.4])
    assert statistics.environment_actions(predicted)[:, 6].tolist() == [-1, -1, -1, 1, 1, 1]


def test_demonstrations_survive_the_round_trip(statistics):
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(5, 8, 7, generator=generator)
    low, high = statistics.actions.low.float(), statistics.actions.high.float()
    actions = low + share * (high - low)
    actions[..., 6] = torch.where(share[..., 6] < 0.5, -1.0, 1.0)
    targets = statistics.target_actions(actions)
    assert targets.abs().max() <= 1
    assert set(targets[..., 6].unique().tolist()) == {0, 1}
    torch.testing.assert_close(statistics.environment_actions(targets), actions)


def test_targets_are_worked_out(statistics):
    actions = torch.tensor([[0.2, 5, -5, 0, 0, 0, -1], [0.2, 5, -5, 0, 0, 0, 1]])
    targets = statistics.target_actions(actions)
    expected = torch.tensor([[0.0, 1, -1, 0, 0, 0, 1], [0, 1, -1, 0, 0, 0, 0]])
    torch.testing.assert_close(targets, expected, atol=1e-6, rtol=0)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("libero_goal", "libero_goal_no_noops"),
        ("libero_goal_no_noops", "libero_goal_no_noops"),
        ("libero_90", "libero_90"),
        ("libero_90_no_noops", "libero_90"),
    ],
)
def test_the_ending_may_be_left_out(asked, found):
    assert parse_statistics(CONTENT, asked).key == found


def test_unknown_keys_are_refused():
    with pytest.raises(ValueError, match=r"'libero_object': .* \['libero_90', 'libero_goal_no_noo"):
        parse_statistics(CONTENT, "libero_object")


def test_other_robots_are_refused():
    other = {"bridge": {"action": CONTENT["libero_90"]["action"]}}
    with pytest.raises(ValueError, match="8 numbers for 'proprio': this is not a checkpoint for"):
        parse_statistics(other, "bridge")


def test_its_own_file_wins(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"norm_stats": CONTENT}))
    assert load_statistics(tmp_path, "libero_90").key == "libero_90"
    tuned = {"libero_90": CONTENT["libero_goal_no_noops"]}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(tuned))
    assert load_statistics(tmp_path, "libero_90").actions.low[0] == -0.5


def test_a_folder_without_them_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither dataset_statistics\.json nor config"):
        load_statistics(tmp_path, "libero_goal")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no statistics of 'libero_goal': choose among \[\]"):
        load_statistics(tmp_path, "libero_goal")
