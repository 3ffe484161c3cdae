"""Demonstrations in LIBERO's HDF5 layout: one file per task, one group per demonstration.

`<task name>_demo.hdf5` holds a group `data` with the task's attributes and groups `demo_0`,
`demo_1`, ...: `actions`, `states`, `robot_states`, `rewards`, `dones` and the observations under
`obs/`. Images are upside down.

Files that others have made in this layout, or in robomimic's, from which it comes, lack attributes,
and have further groups and other names. What they do not say is found out by `file_conventions`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces

from lightning_ript.demos.file_conventions import (
    OBSERVED,
    SETTINGS,
    carried_instruction,
    is_observed_after,
    is_upside_down,
)
from lightning_ript.demos.open_files import OpenFiles, open_hdf5
from lightning_ript.demos.trajectory import CAMERAS, default_inputs
from lightning_ript.envs.libero.suites import bddl_path
from lightning_ript.storage.files import drafts_of, replacing
from lightning_ript.types import Task


@dataclass(frozen=True)
class RecordedEpisode:
    """One successful episode of T steps, in memory, on its way to a file.

    Attributes:
        actions: (T, 7) executed actions in [-1, 1].
        states: (T, 1 + nq + nv) float64, the flattened simulator state before each action.
        observations: `agentview_rgb` and `eye_in_hand_rgb` (T, H, W, 3) uint8, upright,
            `joint_states` (T, 7), `ee_pos` (T, 3), `ee_quat` (T, 4, xyzw), `gripper_states`
            (T, 2).
        init_state: (1 + nq + nv,) float64, the state the episode was reset to, before settling:
            a context with this state and these actions repeat the episode.
        model_file: The simulator's model as XML.
        attempt: Which of the run's attempts at the task it was.
    """

    actions: np.ndarray
    states: np.ndarray
    observations: Mapping[str, np.ndarray]
    init_state: np.ndarray
    model_file: str
    attempt: int


@dataclass(frozen=True)
class Demonstration:
    """A demonstration in a file; arrays are read when asked for.

    Attributes:
        file: The HDF5 file.
        name: Its group, e.g. `demo_0`.
        num_samples: Number of steps T.
        language: The instruction that the file carries, if it does.
        upside_down: Whether the file's images begin with the bottom row, as OpenGL's do.
        observed_after: Whether an observation is the one after the action of the same index.
    """

    file: Path
    name: str
    num_samples: int
    language: str | None
    upside_down: bool
    observed_after: bool

    def read(self, dataset: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads steps of one dataset.

        Args:
            dataset: E.g. `actions` or `obs/agentview_rgb`.
            start: First step.
            stop: Step after the last; None for the end.

        Raises:
            ValueError: If there is no such dataset or the file cannot be read.
        """
        with opened(self.file) as data:
            return np.asarray(self.dataset(data, dataset)[start:stop])

    def picture(self, files: OpenFiles, camera: str, step: int) -> np.ndarray:
        """What a camera saw at a step, (H, W, 3) uint8, upright."""
        picture = files.get(self.file)[f"data/{self.name}/obs/{camera}"][step]
        return np.ascontiguousarray(picture[::-1] if self.upside_down else picture)

    @property
    def init_state(self) -> np.ndarray:
        """The simulator state (1 + nq + nv,) float64 that the episode starts from."""
        with opened(self.file) as data:
            return _init_state(data[self.name])

    def dataset(self, data: h5py.Group, name: str) -> h5py.Dataset:
        """One of its datasets.

        Args:
            data: The group `data` of its file, open.
            name: E.g. `actions` or `obs/agentview_rgb`.

        Raises:
            ValueError: If there is no such dataset.
        """
        if name not in data[self.name]:
            raise ValueError(f"{self.file} has no {name} in data/{self.name}.")
        return data[self.name][name]


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """Lists the demonstrations of a file in the order of their numbers.

    Args:
        path: A file in LIBERO's layout or robomimic's.

    Raises:
        OSError: If it does not exist, or cannot be read at the moment.
        ValueError: If it is truncated, no HDF5 file or of another layout.
    """
    with opened(path) as data:
        return demonstrations_in(path, data)


def demonstrations_in(path: str | Path, data: h5py.Group) -> list[Demonstration]:
    """As `read_demonstrations`, of a file that is open.

    Args:
        path: The file.
        data: Its group `data`.
    """
    try:
        names = _names(data)
        lengths = [len(data[name]["actions"]) for name in names]
        language = carried_instruction(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not laid out as LIBERO's demonstrations ({error}): give an HDF5 file "
            "written by `lightning-ript collect-demos` or published by LIBERO."
        ) from error
    for name in names:
        if "obs" not in data[name]:
            raise ValueError(
                f"{path} has no observations in data/{name}: if it is a raw file of robomimic's, "
                "add them with its dataset_states_to_obs.py."
            )
    upside_down = bool(names) and is_upside_down(data, data[names[0]])
    observed_after = bool(names) and is_observed_after(data, data[names[0]])
    return [
        Demonstration(Path(path), name, length, language, upside_down, observed_after)
        for name, length in zip(names, lengths, strict=True)
    ]


def _names(data: h5py.Group) -> list[str]:
    """The groups that are demonstrations: `demo_2` before `demo_10`, and that before `demo_a`."""

    def order(name: str) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]

    groups = [name for name in data if isinstance(data[name], h5py.Group)]
    return sorted(
        (name for name in groups if name.startswith("demo") or "actions" in data[name]), key=order
    )


def read_init_states(path: str | Path) -> list[np.ndarray]:
    """The simulator states (1 + nq + nv,) float64 that a file's demonstrations start from.

    Raises:
        OSError: If it does not exist, or cannot be read at the moment.
        ValueError: If it is truncated, no HDF5 file or of another layout, or holds no states.
    """
    with opened(path) as data:
        return [_init_state(data[found.name]) for found in demonstrations_in(path, data)]


def _init_state(group: h5py.Group) -> np.ndarray:
    if "init_state" not in group.attrs and "states" not in group:
        raise ValueError(
            f"{group.file.filename} has no states in {group.name[1:]}, so no episode can start "
            "where that one did: take other contexts."
        )
    state = group.attrs["init_state"] if "init_state" in group.attrs else group["states"][0]
    return np.asarray(state, dtype=np.float64)


@dataclass
class DemonstrationWriter:
    """Adds demonstrations to a task's file.

    Every addition writes a new copy of the file and puts it in place of the old one, so whenever
    the process is killed, the file holds whole demonstrations only, and a new writer goes on.

    Args:
        path: The file.
        task: Its task.
        image_size: Height and width of the images.
        settings: How the demonstrations are made, everything that must not change within a file.

    Raises:
        ValueError: If the file exists but is damaged, foreign, or made with other settings.
    """

    path: Path
    task: Task
    image_size: int
    settings: Mapping[str, Any]
    count: int = field(init=False, default=0)
    next_attempt: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        for leftover in drafts_of(self.path):
            leftover.unlink()  # half a copy of a killed run
        if not self.path.exists():
            return
        demonstrations = read_demonstrations(self.path)
        with opened(self.path) as data:
            if SETTINGS not in data.attrs:
                raise ValueError(
                    f"{self.path} was not written by `lightning-ript collect-demos`, which will "
                    "not add to it: choose another output folder."
                )
            theirs, ours = json.loads(data.attrs[SETTINGS]), json.loads(json.dumps(self._settings))
            for key in {**theirs, **ours}:
                if theirs.get(key) != ours.get(key):
                    raise ValueError(
                        f"{self.path} was made with {key}={theirs.get(key)!r}, not "
                        f"{ours.get(key)!r}: go on with the same setting, or choose another output "
                        "folder."
                    )
            self.count = len(demonstrations)
            if demonstrations:
                self.next_attempt = int(data[demonstrations[-1].name].attrs["attempt"]) + 1

    @property
    def _settings(self) -> dict[str, Any]:
        return {"task": self.task.name, "image_size": self.image_size, **self.settings}

    def append(self, episode: RecordedEpisode) -> None:
        """Adds one demonstration.

        Raises:
            ValueError: If the episode's arrays differ in length.
        """
        lengths = {len(episode.actions), len(episode.states)}
        lengths |= {len(array) for array in episode.observations.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"the episode's arrays have different or no lengths: {lengths}.")
        with replacing(self.path) as draft:
            if self.path.exists():
                shutil.copyfile(self.path, draft)
            with h5py.File(draft, "a") as file:
                data = file.require_group("data")
                if not self.count:
                    data.attrs.update(self._attributes())
                _write(data.create_group(f"demo_{self.count}"), episode)
                data.attrs["num_demos"] = self.count + 1
                data.attrs["total"] = int(data.attrs.get("total", 0)) + len(episode.actions)
        self.count += 1
        self.next_attempt = episode.attempt + 1

    def _attributes(self) -> dict[str, Any]:
        """What LIBERO's readers expect of `data`."""
        bddl = bddl_path(self.task)
        text = bddl.read_text()
        # `(define (problem LIBERO_Floor_Manipulation)`; the classes are registered in lower case.
        problem = text.split("(problem", 1)[1].split(")", 1)[0].strip()
        # As in LIBERO's own files: relative to its repository, wherever this machine has it.
        bddl_name = f"libero/libero/bddl_files/{self.task.suite}/{bddl.name}"
        environment = {
            "bddl_file_name": bddl_name,
            "robots": ["Panda"],
            "controller_configs": {"type": "OSC_POSE"},
            "camera_names": ["robot0_eye_in_hand", "agentview"],
            "camera_heights": self.image_size,
            "camera_widths": self.image_size,
            "camera_depths": False,
            "use_camera_obs": True,
            "has_renderer": False,
            "has_offscreen_renderer": True,
            "ignore_done": True,
            "reward_shaping": True,
            "control_freq": 20,
        }
        return {
            "env_name": problem,
            "problem_info": json.dumps(
                {
                    "problem_name": problem.lower(),
                    "domain_name": "robosuite",
                    "language_instruction": self.task.language,
                }
            ),
            "env_args": json.dumps(
                {
                    "type": 1,
                    "env_name": problem,
                    "problem_name": problem.lower(),
                    "bddl_file": bddl_name,
                    "env_kwargs": environment,
                }
            ),
            "bddl_file_name": bddl_name,
            "bddl_file_content": text,
            "macros_image_convention": "opengl",
            "tag": "libero-v1",
            OBSERVED: "before",
            SETTINGS: json.dumps(self._settings),
        }


def _write(group: h5py.Group, episode: RecordedEpisode) -> None:
    seen = episode.observations
    steps = len(episode.actions)
    last = np.zeros(steps, dtype=np.uint8)
    last[-1] = 1  # an episode ends with its first success
    position = seen["ee_pos"].astype(np.float64)
    rotation = axis_angle(seen["ee_quat"].astype(np.float64))
    low = {
        "joint_states": seen["joint_states"],
        "ee_states": np.concatenate([position, rotation], axis=1),
        "ee_pos": position,
        "ee_ori": rotation,
        "gripper_states": seen["gripper_states"],
    }
    robot = [seen["gripper_states"], position, seen["ee_quat"]]
    group.attrs["num_samples"] = steps
    group.attrs["model_file"] = episode.model_file
    group.attrs["init_state"] = episode.init_state
    group.attrs["attempt"] = episode.attempt
    group["actions"] = episode.actions.astype(np.float64)
    group["states"] = episode.states.astype(np.float64)
    group["robot_states"] = np.concatenate(robot, axis=1).astype(np.float64)
    group["rewards"] = last
    group["dones"] = last
    for name in CAMERAS:
        group[f"obs/{name}"] = seen[name][:, ::-1]
    for name, array in low.items():
        group[f"obs/{name}"] = array.astype(np.float64)


def axis_angle(quaternions: np.ndarray) -> np.ndarray:
    """Rotation vectors (n, 3) in radians of unit quaternions (n, 4, xyzw).

    The angle lies in [0, 2 pi), as robosuite has it: the sign of a quaternion is kept, so that a
    trajectory does not jump.
    """
    w = np.clip(quaternions[:, 3:], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    angle = 2.0 * np.arccos(w)
    # Vanishing rotations have no axis.
    scale = np.divide(angle, sine, out=np.zeros_like(sine), where=sine > 1e-12)
    return quaternions[:, :3] * scale


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.Group]:
    """Opens a file for reading and yields its group `data`.

    Raises:
        OSError: If it does not exist, or cannot be read at the moment.
        ValueError: If it is truncated, no HDF5 file or has no such group.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no demonstration file {path}.")
    with open_hdf5(path) as file:
        _refuse_other_files(file)
        if not isinstance(file.get("data"), h5py.Group):
            raise ValueError(f"{path} has no group `data`: it holds no LIBERO demonstrations.")
        yield file["data"]


def _refuse_other_files(file: h5py.File) -> None:
    """Links, virtual and external datasets would read any file that this process may read.

    Raises:
        ValueError: There is one.
    """

    def is_link(name: bytes, link: Any) -> str | None:
        return name.decode() if link.type == h5py.h5l.TYPE_EXTERNAL else None

    def is_elsewhere(name: str, found: Any) -> str | None:
        elsewhere = isinstance(found, h5py.Dataset) and (found.external or found.is_virtual)
        return name if elsewhere else None

    if name := file.id.links.visit(is_link, info=True):
        raise ValueError(f"{file.filename} links to another file, at {name}.")
    if name := file.visititems(is_elsewhere):
        raise ValueError(f"{file.filename} has its {name} in another file.")


def inputs_in(data: h5py.Group) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the images, and names and widths of the proprioception, to learn from by default.

    All of the file's demonstrations count, so that one which lacks something is noticed instead of
    setting the rule.

    Args:
        data: The group `data` of an open file.
    """
    seen = {name: found for demo in _names(data) for name, found in data[demo]["obs"].items()}
    arrays = {name: found for name, found in seen.items() if isinstance(found, h5py.Dataset)}
    images = tuple(name for name, found in arrays.items() if _is_picture(found))
    lowdim = {name: found.shape[1] for name, found in arrays.items() if found.ndim == 2}
    return default_inputs(images, lowdim)


def _is_picture(found: h5py.Dataset) -> bool:
    """Whether it holds colours, (T, H, W, 3) uint8, and not depth or segmentation."""
    return found.ndim == 4 and found.shape[-1] == 3 and found.dtype == np.uint8


def spaces_in(path: str | Path) -> tuple[spaces.Dict, spaces.Box]:
    """The observation and action space of a file, as far as `inputs_in` takes them.

    Raises:
        OSError: If the file does not exist, or cannot be read at the moment.
        ValueError: If it is damaged, of another layout or empty.
    """
    with opened(path) as data:
        found = demonstrations_in(path, data)
        if not found:
            raise ValueError(f"{path} holds no demonstration.")
        cameras, lowdim = inputs_in(data)
        first = data[found[0].name]
        shapes = {name: found[0].dataset(data, f"obs/{name}").shape[1:] for name in cameras}
        actions = first["actions"].shape[1:]
    seen = [(name, spaces.Box(0, 255, shape, np.uint8)) for name, shape in shapes.items()]
    free = [(name, spaces.Box(-np.inf, np.inf, (n,), np.float32)) for name, n in lowdim.items()]
    return spaces.Dict([*seen, *free]), spaces.Box(-1.0, 1.0, actions, np.float32)
