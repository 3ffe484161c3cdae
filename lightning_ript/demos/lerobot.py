"""Demonstrations in LeRobot's dataset format v3: Parquet tables, pictures in them or as videos.

`meta/info.json` names the features, `meta/tasks.parquet` the instructions, and `meta/episodes/`
says which rows of the tables and which seconds of the videos are an episode; files hold many.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from lightning_ript.demos.open_files import OpenFiles
from lightning_ript.demos.pictures import PictureTable, VideoFile, explained, unpacked
from lightning_ript.demos.trajectory import (
    CAMERAS,
    Reading,
    Trajectory,
    chosen_steps,
    default_inputs,
    few_shot,
)
from lightning_ript.storage.files import below
from lightning_ript.storage.hub import is_on_hub, local_dataset
from lightning_ript.types import Task

if TYPE_CHECKING:
    import pyarrow

INFO = Path("meta", "info.json")
NAMES = {
    "agentview_rgb": ("observation.images.image", "image"),
    "eye_in_hand_rgb": (
        "observation.images.image2",
        "observation.images.wrist_image",
        "wrist_image",
    ),
    "state": ("observation.state", "state"),
    "joint_states": ("observation.states.joint_state",),
    "actions": ("action", "actions"),
}
"""Our names, and the features that published datasets of LIBERO have for them."""
STATE = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
"""What `state` holds, one after the other: metres, a rotation vector in radians, metres."""
_VERSION = "v3."
log = logging.getLogger(__name__)


def is_lerobot(place: str | Path) -> bool:
    """Whether a place is a dataset of LeRobot's: a folder of that layout, or one on the hub."""
    return is_on_hub(place) or (Path(place) / INFO).is_file()


@dataclass(frozen=True)
class LeRobotDemonstration:
    """An episode.

    Attributes:
        num_samples: Its steps.
        videos: By camera: the file, and the seconds of the first and of each further picture.
        tables: By camera: the file, and the row of the first picture.
        turned: Whether pictures are rotated by 180 degrees relative to the simulator's upside-down
            renderings, that is upright but mirrored.
    """

    num_samples: int
    videos: Mapping[str, tuple[Path, float, float]]
    tables: Mapping[str, tuple[Path, int]]
    turned: bool

    def picture(self, files: OpenFiles, camera: str, step: int) -> np.ndarray:
        """What a camera saw, upright and not mirrored."""
        if camera in self.videos:
            path, start, each = self.videos[camera]
            picture = files.get(path, VideoFile).picture(start + step * each)
        else:
            path, first = self.tables[camera]
            picture = files.get(path, PictureTable).picture(camera, first + step)
        return np.ascontiguousarray(picture[:, ::-1] if self.turned else picture)


@dataclass(frozen=True)
class LeRobotTask:
    """One task's episodes.

    Attributes:
        dataset: The dataset.
        language: Its instruction there.
        instruction: What a policy is told.
        episodes: The rows of `meta/episodes` that are the task's.
    """

    dataset: LeRobotDataset
    language: str
    instruction: str
    episodes: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        return f"{self.dataset.folder} ('{self.language}')"

    def read(self, reading: Reading, few: int | None) -> list[Trajectory]:
        """Reads what belongs in memory.

        Args:
            reading: What of them. Every observation is the one before its action, as it is.
            few: How many episodes, evenly spaced; None for all.

        Raises:
            ValueError: Files are damaged or lack something, or there are fewer episodes.
        """
        chosen = few_shot(self, len(self.episodes), few)
        return [self.dataset.load(self.episodes[i], self.instruction, reading) for i in chosen]


class LeRobotDataset:
    """A dataset on this machine.

    Args:
        place: Its folder, or `hf://owner/name`, which is downloaded.
        names: Features by our names, where they are not among `NAMES`.
        turned: As `LeRobotDemonstration` has it.
        parts: Folders to download of a dataset on the hub, beside `meta`.

    Raises:
        ImportError: What reads it is not installed.
        OSError: It is not there, or cannot be downloaded.
        ValueError: It is of another version, lacks something or is damaged.
    """

    def __init__(
        self,
        place: str | Path,
        names: Mapping[str, str] | None = None,
        turned: bool = True,
        parts: Sequence[str] = ("data", "videos"),
    ) -> None:
        _need_libraries()
        self.folder = local_dataset(place, [f"{part}/**" for part in ("meta", *parts)])
        self.turned = turned
        self._numbers: tuple[Path, pyarrow.Table] | None = None  # of the last file
        try:
            info = json.loads((self.folder / INFO).read_text())
            version, self.features = str(info["codebase_version"]), info["features"]
            self._seconds = 1 / float(info["fps"])
            self._data, self._video = info["data_path"], info.get("video_path")
        except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(
                f"{self.folder / INFO} is damaged ({type(error).__name__}: {error}): download the "
                "dataset again."
            ) from error
        if not version.startswith(_VERSION):
            raise ValueError(
                f"{self.folder} is in LeRobot's dataset format {version}, not v3: convert it with "
                "LeRobot's script convert_dataset_v21_to_v30."
            )
        self._names = self._found(names or {})
        self.tasks = self._instructions()

    def _found(self, given: Mapping[str, str]) -> dict[str, str]:
        """The features that are there, by our names."""
        for ours, theirs in given.items():
            if ours not in NAMES or theirs not in self.features:
                raise ValueError(
                    f"lerobot_features maps {ours} to {theirs}: the key must be one of "
                    f"{', '.join(NAMES)}, the value one of the features of {self.folder}, "
                    f"{', '.join(self.features)}."
                )
        found = dict(given)
        for ours, candidates in NAMES.items():
            there = [name for name in candidates if name in self.features]
            if ours not in found and there:
                found[ours] = there[0]
        for ours, length in (("actions", None), ("state", sum(STATE.values()))):
            if ours not in found:
                continue
            shape = self.features[found[ours]]["shape"]
            if len(shape) != 1:
                raise ValueError(
                    f"{found[ours]} of {self.folder} has the shape {shape}, not one dimension."
                )
            if length not in (None, shape[0]):
                raise ValueError(
                    f"{found[ours]} of {self.folder} has the shape {shape}; of LIBERO's robot it "
                    f"has {length} numbers: position, rotation vector and two fingers."
                )
        if "actions" not in found:
            raise ValueError(
                f"{self.folder} has no feature `action`, but {', '.join(self.features)}: say which "
                "it is with lerobot_features."
            )
        return found

    def _instructions(self) -> dict[int, str]:
        table = _table(self.folder / "meta" / "tasks.parquet")
        # The instructions are the index of LeRobot's table, whose column has various names.
        texts = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or len(texts) != 1:
            raise ValueError(
                f"{self.folder / 'meta' / 'tasks.parquet'} has the columns "
                f"{', '.join(table.column_names)}, where LeRobot has a task and its task_index."
            )
        numbers = table["task_index"].to_pylist()
        return dict(zip(numbers, table[texts[0]].to_pylist(), strict=True))

    @property
    def cameras(self) -> tuple[str, ...]:
        """The pictures that there are, by our names."""
        return tuple(name for name in CAMERAS if name in self._names)

    @property
    def lowdim(self) -> dict[str, int]:
        """The proprioception that there is, by our names."""
        found = dict(STATE) if "state" in self._names else {}
        if "joint_states" in self._names:
            found["joint_states"] = self.features[self._names["joint_states"]]["shape"][0]
        return found

    def spaces(self) -> tuple[spaces.Dict, spaces.Box]:
        """The observation and action space, as far as `default_inputs` takes them."""
        cameras, lowdim = default_inputs(self.cameras, self.lowdim)
        pictures: list[tuple[str, spaces.Space[Any]]] = []
        for name in cameras:
            feature = self.features[self._names[name]]
            sides = dict(zip(feature.get("names") or (), feature["shape"], strict=False))
            height, width = (sides.get(s, feature["shape"][i]) for i, s in enumerate(_SIDES))
            pictures.append((name, spaces.Box(0, 255, (height, width, 3), np.uint8)))
        free = [(name, spaces.Box(-np.inf, np.inf, (n,), np.float32)) for name, n in lowdim.items()]
        actions = self.features[self._names["actions"]]["shape"]
        return spaces.Dict([*pictures, *free]), spaces.Box(-1.0, 1.0, tuple(actions), np.float32)

    def by_task(self, wanted: Sequence[Task] | None) -> list[LeRobotTask]:
        """The episodes, task by task.

        Args:
            wanted: The tasks that are wanted; None for all that are there.

        Tasks that share an instruction, as some of LIBERO-90's do, cannot be told apart: their
        episodes come once, together.

        Raises:
            FileNotFoundError: A wanted task has no episode.
            ValueError: `meta/episodes` is damaged.
        """
        episodes: dict[str, list[Mapping[str, Any]]] = {}
        texts: dict[str, str] = {}
        for episode in self._episodes():
            text = episode["tasks"][0]
            texts.setdefault(_plain(text), text)
            episodes.setdefault(_plain(text), []).append(episode)
        if wanted is None:
            return [LeRobotTask(self, texts[k], texts[k], found) for k, found in episodes.items()]
        missing = [task.language for task in wanted if _plain(task.language) not in episodes]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"{self.folder} holds no episode of '{missing[0]}'{more}: choose fewer tasks or "
                "another dataset"
            )
        ours = {_plain(task.language): task.language for task in wanted}
        if len(ours) < len(wanted):
            log.warning(
                "%d of %d tasks share an instruction with another: %s does not tell their "
                "episodes apart.",
                len(wanted) - len(ours),
                len(wanted),
                self.folder,
            )
        return [LeRobotTask(self, texts[k], said, episodes[k]) for k, said in ours.items()]

    def _episodes(self) -> Iterator[dict[str, Any]]:
        files = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise FileNotFoundError(f"{self.folder} has no files in meta/episodes: get it again.")
        for file in files:
            names = [n for n in _columns(file) if not n.startswith("stats/")]
            yield from _table(file, names).to_pylist()

    def load(self, episode: Mapping[str, Any], instruction: str, reading: Reading) -> Trajectory:
        """Reads what belongs in memory of an episode, and finds the rest.

        Args:
            episode: Its row of `meta/episodes`.
            instruction: What a policy is told.
            reading: What of it.

        Raises:
            OSError: A file is missing.
            ValueError: A file is damaged, or lacks something.
        """
        number, data = episode["episode_index"], self._file(self._data, "data", episode)
        rows, first = self._rows(data, number)
        actions = _numbers(rows, self._names["actions"])
        if len(actions) != episode["length"]:
            raise ValueError(
                f"{data} has {len(actions)} steps of episode {number}, but meta/episodes "
                f"{episode['length']}: download the dataset again."
            )
        steps = chosen_steps(actions, reading)
        arrays = {"actions": actions[steps]}
        cameras: tuple[str, ...] = ()
        if not reading.only_actions:
            seen, lowdim = default_inputs(self.cameras, self.lowdim)
            cameras = seen if reading.cameras is None else reading.cameras
            names = tuple(lowdim) if reading.lowdim is None else reading.lowdim
            self._check_names(cameras, names)
            arrays |= {name: self._lowdim(rows, name)[steps] for name in names}
        demonstration = self._located(episode, cameras, data, first)
        if reading.in_memory:
            files = OpenFiles()
            for camera in cameras:
                found = [demonstration.picture(files, camera, int(step)) for step in steps]
                arrays[camera] = np.stack(found)
        return Trajectory(demonstration, instruction, steps, cameras, arrays)

    def _rows(self, file: Path, episode: int) -> tuple[pyarrow.Table, int]:
        """The numbers of an episode, in the order of its steps, and the row of the first."""
        if self._numbers is None or self._numbers[0] != file:
            kinds = ("actions", "state", "joint_states")
            names = [self._names[ours] for ours in kinds if ours in self._names]
            self._numbers = file, _table(file, ["episode_index", *names])
        table = self._numbers[1]
        (found,) = np.nonzero(table["episode_index"].to_numpy() == episode)
        if not len(found) or found[-1] - found[0] + 1 != len(found):
            raise ValueError(f"{file} does not hold the steps of episode {episode} in one piece.")
        return table.slice(found[0], len(found)), int(found[0])

    def _lowdim(self, rows: pyarrow.Table, name: str) -> np.ndarray:
        if name not in STATE:
            return _numbers(rows, self._names[name])
        names = list(STATE)
        start = sum(STATE[each] for each in names[: names.index(name)])
        return _numbers(rows, self._names["state"])[:, start : start + STATE[name]]

    def _check_names(self, cameras: Sequence[str], lowdim: Sequence[str]) -> None:
        missing = [name for name in cameras if name not in self.cameras]
        missing += [name for name in lowdim if name not in self.lowdim]
        if missing:
            raise ValueError(
                f"{self.folder} has no {missing[0]} among its features "
                f"{', '.join(self.features)}: say which it is with lerobot_features, or leave it "
                "out."
            )

    def _located(
        self, episode: Mapping[str, Any], cameras: Sequence[str], data: Path, first: int
    ) -> LeRobotDemonstration:
        """Where the pictures are."""
        videos: dict[str, tuple[Path, float, float]] = {}
        tables: dict[str, tuple[Path, int]] = {}
        for camera in cameras:
            feature = self._names[camera]
            if self.features[feature]["dtype"] == "video":
                file = self._file(self._video, f"videos/{feature}", episode, video_key=feature)
                start = episode[f"videos/{feature}/from_timestamp"]
                videos[camera] = file, start, self._seconds
            else:
                tables[camera] = unpacked(data, camera, feature), first
        return LeRobotDemonstration(episode["length"], videos, tables, self.turned)

    def _file(self, pattern: str, prefix: str, episode: Mapping[str, Any], **fields: str) -> Path:
        try:
            numbers = {n: episode[f"{prefix}/{n}"] for n in ("chunk_index", "file_index")}
            file = below(self.folder, pattern.format(**numbers, **fields), self.folder / INFO)
        except (KeyError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{self.folder} does not say where {prefix} of an episode is ({error}): its "
                "metadata is not LeRobot's."
            ) from error
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: download the dataset again.")
        return file


_SIDES = ("height", "width")


def _plain(text: str) -> str:
    """An instruction without what its spellings differ by."""
    return " ".join(text.lower().replace("_", " ").strip(" .").split())


def _numbers(rows: pyarrow.Table, name: str) -> np.ndarray:
    """A column of T lists of n numbers as (T, n) float32."""
    return np.asarray(rows[name].to_pylist(), np.float32)


def _table(file: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    from pyarrow import parquet

    with explained(file):
        return parquet.read_table(file, columns=None if columns is None else list(columns))


def _columns(file: Path) -> list[str]:
    from pyarrow import parquet

    with explained(file):
        return list(parquet.read_schema(file).names)


def _need_libraries() -> None:
    missing = [name for name in ("av", "pyarrow") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"LeRobot's datasets need {' and '.join(missing)}: pip install -e '.[lerobot]' in the "
            "clone"
        )
