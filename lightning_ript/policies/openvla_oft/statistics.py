"""From the simulator's numbers to the model's and back.

A fine-tuned checkpoint carries, per data set it was trained on, the 1st and 99th percentile of
every number of the robot's state and actions; the model sees and predicts them mapped to [-1, 1].
The gripper has three conventions: in LIBERO's actions -1 = open and 1 = close; in the model's 1 =
open and 0 = close, not mapped by percentiles; in the state two positions of fingers (m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_ript.policies.libero_robot import proprio
from lightning_ript.storage.files import read_json
from lightning_ript.types import Observation

_FILTERED = "_no_noops"  # Data sets without the demonstrations' idle steps are called so.
_EPSILON = 1e-8  # As in training: it keeps a number that never changes finite.


@dataclass(frozen=True)
class Range:
    """Percentiles of n numbers.

    Attributes:
        low: 1st percentile, (n,) float64.
        high: 99th percentile, (n,) float64.
        mask: Which numbers are mapped; the others stay as they are, (n,) bool.
    """

    low: Tensor
    high: Tensor
    mask: Tensor

    def normalize(self, values: Tensor) -> Tensor:
        """Maps (..., n) to [-1, 1]; what lies beyond the percentiles is clipped."""
        low, high, mask = self._on(values)
        scaled = 2 * (values - low) / (high - low + _EPSILON) - 1
        return torch.where(mask, scaled.clamp(-1, 1), values)

    def denormalize(self, values: Tensor) -> Tensor:
        """Maps (..., n) back; nothing is clipped."""
        low, high, mask = self._on(values)
        return torch.where(mask, (values + 1) / 2 * (high - low + _EPSILON) + low, values)

    def _on(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.low.to(values), self.high.to(values), self.mask.to(values.device)


@dataclass(frozen=True)
class Statistics:
    """Ranges of a data set's numbers, and the conversions that need them.

    Attributes:
        key: Name of the data set.
        actions: Position (3), rotation (3) and gripper, the last not mapped.
        proprio: End effector's position (3) and axis-angle (3), fingers (2).
    """

    key: str
    actions: Range
    proprio: Range

    def normalize_proprio(self, observations: Sequence[Observation]) -> Tensor:
        """What the model knows of the robot's state in B observations, (B, 8) float32 in [-1, 1].

        Raises:
            ValueError: An observation lacks a part of the state.
        """
        return self.proprio.normalize(proprio(observations)).float()

    def environment_actions(self, predicted: Tensor) -> Tensor:
        """LIBERO's actions (..., 7) from the model's, with the gripper either open or closed.

        Position and rotation may exceed [-1, 1]: the simulator clips them.
        """
        actions = self.actions.denormalize(predicted)
        gripper = -torch.sign(2 * actions[..., 6:] - 1)
        return torch.cat([actions[..., :6], gripper], -1)

    def target_actions(self, actions: Tensor) -> Tensor:
        """What the model should predict for demonstrated actions (..., 7), as it was trained."""
        gripper = 1 - actions[..., 6:].clamp(0, 1)
        return self.actions.normalize(torch.cat([actions[..., :6], gripper], -1))


def load_statistics(folder: str | Path, key: str) -> Statistics:
    """Reads the statistics of a data set from a checkpoint's folder.

    Args:
        folder: Holds `dataset_statistics.json`, as fine-tuned checkpoints do, or a `config.json`
            with `norm_stats`.
        key: The data set, e.g. `libero_goal_no_noops`, or a suite's name; the ending may be left
            out or be one too many.

    Raises:
        OSError: The folder has neither file.
        ValueError: The file is damaged, there is no such data set, or its statistics are not of
            LIBERO's form.
    """
    folder = Path(folder)
    own, config = folder / "dataset_statistics.json", folder / "config.json"
    file = own if own.is_file() else config
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds neither dataset_statistics.json nor config.json: give the folder of a "
            "fine-tuned OpenVLA-OFT checkpoint"
        )
    content = read_json(file)
    return parse_statistics(content if file == own else content.get("norm_stats", {}), key)


def parse_statistics(content: Mapping[str, Mapping], key: str) -> Statistics:
    """As `load_statistics`, of what such a file holds: data set -> `action`, `proprio` -> lists."""
    bare = key.removesuffix(_FILTERED)
    found = next((name for name in (key, bare + _FILTERED, bare) if name in content), None)
    if found is None:
        raise ValueError(
            f"the checkpoint has no statistics of {key!r}: choose among {sorted(content)}"
        )
    return Statistics(
        found, _range(content, found, "action", 7), _range(content, found, "proprio", 8)
    )


def _range(content: Mapping[str, Mapping], key: str, kind: str, size: int) -> Range:
    try:
        entry = content[key].get(kind, {})
        low, high = (
            torch.tensor(entry.get(name, []), dtype=torch.float64) for name in ("q01", "q99")
        )
        mask = torch.tensor(entry.get("mask", [True] * size))
    except (AttributeError, TypeError, ValueError):  # no mapping, no lists or no numbers
        low = high = mask = torch.zeros(0)
    if not low.shape == high.shape == mask.shape == (size,):
        raise ValueError(
            f"the statistics {key!r} need q01, q99 and mask of {size} numbers for {kind!r}: this "
            "is not a checkpoint for LIBERO's robot"
        )
    return Range(low, high, mask)
