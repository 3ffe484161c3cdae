"""A demonstration as the supervised stages take it, whatever kind of file it is stored in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from lightning_ript.demos.open_files import OpenFiles

CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
LOWDIM = {"joint_states": 7, "ee_pos": 3, "gripper_states": 2}
"""Of what files hold of the robot, what QueST was published with."""
ACTION_DIM = 7
IDLE = 1e-4  # an arm that moves less than this, of the most it can, stands still


class StoredDemonstration(Protocol):
    """Where a demonstration of `num_samples` steps lies."""

    @property
    def num_samples(self) -> int:
        """Its steps."""

    def picture(self, files: OpenFiles, camera: str, step: int) -> np.ndarray:
        """What a camera saw at a step, (H, W, 3) uint8, upright.

        Args:
            files: Files that are open.
            camera: Its name, one of `CAMERAS` or as the file has it.
            step: The step's number in the file.
        """


@dataclass(frozen=True)
class Reading:
    """What is to be read of demonstrations; `DemonstrationDataModule` says more of each.

    Attributes:
        only_actions: Leave out observations.
        in_memory: Read the pictures at once.
        cameras: Pictures to read; None for `default_inputs`.
        lowdim: Proprioception to read; None for `default_inputs`.
        skip_idle: Leave out the steps that `busy_steps` does.
        before_action: Pair each action with the observation before it, whatever the file does.
    """

    only_actions: bool = False
    in_memory: bool = False
    cameras: tuple[str, ...] | None = None
    lowdim: tuple[str, ...] | None = None
    skip_idle: bool = False
    before_action: bool = False


@dataclass(frozen=True)
class Trajectory:
    """T steps of a demonstration, and what of them is in memory.

    Attributes:
        demonstration: Where it lies.
        instruction: What a policy is told.
        steps: The numbers of their observations in the file, (T,) int64.
        cameras: The pictures that are wanted, by their names.
        arrays: `actions` (T, action_dim) float32; if observations are wanted, proprioception
            (T, width) float32; and, with `in_memory`, the pictures (T, H, W, 3) uint8, upright.
    """

    demonstration: StoredDemonstration
    instruction: str
    steps: np.ndarray
    cameras: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]


def default_inputs(
    images: Iterable[str], lowdim: Mapping[str, int]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of images, and names and widths of proprioception, to learn from by default.

    What QueST was published with, if it is all there; else everything that is.

    Args:
        images: Names of the images that there are.
        lowdim: Names and widths of the proprioception that there is.
    """
    images = tuple(images)
    if set(CAMERAS) <= set(images) and LOWDIM.items() <= lowdim.items():
        return CAMERAS, dict(LOWDIM)
    return images, dict(lowdim)


def chosen_steps(actions: np.ndarray, reading: Reading) -> np.ndarray:
    """Numbers of the steps to learn from, of actions (T, action_dim)."""
    return busy_steps(actions) if reading.skip_idle else np.arange(len(actions))


def busy_steps(actions: np.ndarray) -> np.ndarray:
    """Numbers of the steps that do something, as OpenVLA's training data was made of.

    Left out is an action (action_dim,) that moves the arm by less than `IDLE` and leaves the
    gripper, its last number, as the last step that was kept has it.
    """
    kept: list[int] = []
    for step, action in enumerate(actions):
        still = np.linalg.norm(action[:-1]) < IDLE
        if not still or (kept and action[-1] != actions[kept[-1]][-1]):
            kept.append(step)
    return np.array(kept, np.int64)


def few_shot(name: object, count: int, wanted: int | None) -> list[int]:
    """Chooses demonstrations evenly spaced over a file, the first and the last among them.

    As in the reference. Of 50 in a file, 5 are those numbered 0, 12, 24, 36 and 49, and 1 is the
    first.

    Args:
        name: The file, for the error message.
        count: How many demonstrations it holds.
        wanted: How many to use; None for all.

    Raises:
        ValueError: The file holds fewer.
    """
    if wanted is None:
        return list(range(count))
    if wanted > count:
        raise ValueError(
            f"{name} has {count} demonstrations, but {wanted} of each file are to be used: collect "
            "more or use fewer"
        )
    return [int(i) for i in np.linspace(0, count - 1, wanted).astype(int)]


def shared_out(
    found: Sequence[Trajectory], name: object, validation_fraction: float
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Splits a task's demonstrations: those to train on, and the last ones, which are held out.

    Raises:
        ValueError: None is left to train on.
    """
    held_out = max(1, round(validation_fraction * len(found))) if validation_fraction else 0
    if len(found) <= held_out:
        raise ValueError(
            f"{name} has {len(found)} demonstrations to use, of which {held_out} would be held "
            "out: collect more or lower validation_fraction"
        )
    return list(found[: len(found) - held_out]), list(found[len(found) - held_out :])
