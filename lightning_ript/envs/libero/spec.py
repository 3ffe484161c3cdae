"""What to simulate of LIBERO, and how. The main process imports this, but no simulator with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from gymnasium import spaces

from lightning_ript.envs.base import Environment, EnvironmentSpec
from lightning_ript.envs.libero import graphics
from lightning_ript.envs.libero.assets import STANDIN_CAVEAT, Assets, resolve_assets
from lightning_ript.envs.libero.graphics import CAMERAS, Render, Textures
from lightning_ript.envs.libero.suites import (
    SUITES,
    bddl_path,
    choose_tasks,
    find_tasks,
    init_states,
    read_states,
    scene,
)
from lightning_ript.envs.libero.task_files import TaskFile, check_task_files, find_task_files
from lightning_ript.storage.files import cache_folder
from lightning_ript.types import Context, Task

Mode = Literal["exact", "fast"]
Protocol = Literal["settled", "reference"]
BLIND_CAVEAT = (
    "Protocol `reference`: episodes begin as in QueST's own evaluation, whose first observation is "
    "of another scene; the numbers are not comparable with those of `settled`."
)
IMAGE_SIZES = range(16, 1025)
SAMPLED_TESTS, SAMPLED_TESTS_FROM = 50, 2**31
MUJOCO_FROM, MUJOCO_BELOW = (3, 3, 6), (3, 4)


@dataclass(frozen=True)
class LiberoSpec(EnvironmentSpec):
    """A suite of LIBERO, or tasks given by files, and how to simulate them.

    Attributes:
        suite: One of `suites.SUITES`, or another name for tasks given by `bddl`.
        task_subset: Names or numbers of the tasks to use; None for the whole suite.
        bddl: BDDL files, and folders of them, of tasks that are not LIBERO's own.
        init_states: Files of their test states, and folders of them: `NAME.pruned_init`,
            `NAME.init` or `NAME.npz`. Tasks without such a file are tested on 50 sampled starts.
        object_modules: Modules that register further classes of objects with LIBERO.
        image_size: Height and width of the images in pixels.
        max_steps: Control steps (of 50 ms, after settling) until an episode has failed.
        protocol: How an episode begins. `settled`: the state is set, objects come to rest during
            `settle_steps`, and then the policy sees it. `reference`, as RIPT-VLA trains and
            evaluates QueST: a reset of its own, ten zero actions, the first observation, and only
            then the state is set. The first chunk is decided blindly, before anything has settled.
        settle_steps: No-op steps with the gripper open before the first observation, in which
            objects come to rest; `settled` only.
        cameras: Observation keys of the cameras that a policy sees.
        mode: `exact` runs LIBERO's own stepping; `fast` gives the same bits with a quarter of
            the work (docs/performance.md has where that was compared).
        render: `full` gives LIBERO's own pixels; `light` draws meshes with fewer triangles and
            without shadows and reflections, several times as fast in software. Train and evaluate
            with the same; checkpoints from elsewhere want `full`.
        textures: `linear` draws the colours that published data and checkpoints have, those of
            MuJoCo up to 3.3.2; `srgb` the darker ones that MuJoCo draws by default since, for
            policies that were trained on them.
        assets: Folder of LIBERO's assets; None to look for them (see `assets.resolve_assets`).
        init_joint_noise: Standard deviation (rad) of the noise on the arm's joints in sampled
            resets; 0.02 is what the benchmark's own initial states carry.
        max_compiled: Compiled scenes that one environment keeps, the least recently used goes. Each
            takes 0.2 GB (`light`, 64 pixels) to 0.5 GB (`full`, 128 pixels) of memory.
    """

    suite: str
    task_subset: Sequence[int | str] | None = None
    image_size: int = 128
    max_steps: int = 600
    protocol: Protocol = "settled"
    settle_steps: int = 10
    cameras: tuple[str, ...] = tuple(CAMERAS)
    mode: Mode = "fast"
    render: Render = "full"
    textures: Textures = "linear"
    assets: str | None = None
    init_joint_noise: float = 0.02
    max_compiled: int = 1
    bddl: Sequence[str] | str | None = None
    init_states: Sequence[str] | str | None = None
    object_modules: Sequence[str] = ()

    least_workers: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ("hf-libero", "robosuite", "mujoco")
    conventions: ClassVar[Mapping[str, str]] = {
        "agentview_rgb": "from in front of the robot, upright",
        "eye_in_hand_rgb": "from the robot's wrist, upright",
        "joint_states": "angles of the arm's seven joints (rad)",
        "ee_pos": "the gripper's position (m) in the world's axes: x away from the robot, z up",
        "ee_quat": "the hand's rotation, a unit quaternion in the order x, y, z, w",
        "gripper_states": "positions of the two fingers (m), 0.04 and -0.04 when open",
        "action": "OSC_POSE: change of position (3) and of rotation (3) as shares of 5 cm and 0.5 "
        "rad, then the gripper, -1 to open and 1 to close",
    }

    @property
    def scenes_kept(self) -> int:
        """What `max_compiled` says."""
        return self.max_compiled

    def scene(self, task: Task) -> str:
        """Tasks of a suite with the same objects in the same places share a scene."""
        return scene(self.bddl_path(task))

    def bddl_path(self, task: Task) -> Path:
        """The file of one of the tasks."""
        return bddl_path(task) if self.bddl is None else self.task_files[task.name].bddl

    @cached_property
    def task_files(self) -> dict[str, TaskFile]:
        """The tasks that are given by files, by name."""
        return find_task_files(self.bddl or (), self.init_states)

    @property
    def observation_space(self) -> spaces.Dict:
        """The chosen cameras, then proprioception."""
        image = spaces.Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        widths = {"joint_states": 7, "ee_pos": 3, "ee_quat": 4, "gripper_states": 2}
        low = [(key, spaces.Box(-np.inf, np.inf, (n,), np.float32)) for key, n in widths.items()]
        return spaces.Dict([*((camera, image) for camera in self.cameras), *low])

    @property
    def action_space(self) -> spaces.Box:
        """Six OSC_POSE deltas and the gripper."""
        return spaces.Box(-1.0, 1.0, (7,), np.float32)

    @cached_property
    def found_assets(self) -> Assets:
        """The assets that are used; settled once, and for the workers this is sent to as well.

        Raises:
            FileNotFoundError: If there are none.
        """
        return resolve_assets(self.assets, self.suite)

    def tasks(self) -> Sequence[Task]:
        """The chosen tasks.

        Raises:
            ValueError: If the suite or a task does not exist.
        """
        if self.bddl is None:
            return find_tasks(self.suite, self.task_subset)
        files = enumerate(self.task_files.items())
        tasks = tuple(Task(self.suite, i, name, file.language) for i, (name, file) in files)
        return choose_tasks(tasks, self.suite, self.task_subset)

    def test_contexts(self, task: Task) -> Sequence[Context]:
        """The initial states to test a task on, never to be trained on.

        The benchmark has 50 of each task; so many are sampled where a task has no file of them.
        """
        if self.bddl is None:
            states = init_states(task)
        elif (file := self.task_files[task.name].states) is not None:
            states = read_states(file)
        else:  # the seeds of training are lower
            return [Context(task, i, seed=SAMPLED_TESTS_FROM + i) for i in range(SAMPLED_TESTS)]
        return [Context(task, i, state) for i, state in enumerate(states)]

    def of_suite(self, suite: str) -> LiberoSpec:
        """The same with all tasks of one of LIBERO's suites."""
        if self.bddl is None:
            return replace(self, suite=suite)
        return replace(self, suite=suite, task_subset=None, bddl=None, init_states=None)

    def check(self) -> None:
        """Looks at everything that can be known without starting a simulator.

        Call it in the main process: this is where assets may be downloaded.

        Raises:
            ValueError: If a setting is wrong.
            OSError: If the OpenGL library or the assets are missing, or there is no cache folder.
            ModuleNotFoundError: If LIBERO is not installed.
        """
        cache_folder()  # LIBERO reads where its files are from a file there
        if self.bddl is None and self.init_states is not None:
            raise ValueError("init_states are of tasks that bddl names: set it, too.")
        if self.bddl is not None and self.suite in SUITES:
            raise ValueError(
                f"{self.suite} is LIBERO's own suite: give the tasks that bddl names another one."
            )
        self.tasks()
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(
                f"image_size is {self.image_size}, but LIBERO's cameras draw squares of "
                f"{IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} pixels."
            )
        if unknown := set(self.cameras) - set(CAMERAS):
            raise ValueError(f"no camera {unknown.pop()!r}: choose from {', '.join(CAMERAS)}.")
        choosing = {"mode": Mode, "render": Render, "textures": Textures, "protocol": Protocol}
        for name, choice in choosing.items():
            choices = get_args(choice)
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be {' or '.join(choices)}."
                )
        for name, least in (("max_steps", 1), ("settle_steps", 0), ("max_compiled", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be {least} or more.")
        if not 0 <= self.init_joint_noise < np.inf:
            raise ValueError(f"init_joint_noise is {self.init_joint_noise}, but must be 0 or more.")
        _check_mujoco()
        graphics.check_backend()
        self.found_assets.announce()
        if self.bddl is not None:
            for task in self.tasks():
                self.test_contexts(task)
            files = (self.task_files[task.name] for task in self.tasks())
            check_task_files(files, self.found_assets.path, self.object_modules)

    def caveats(self) -> tuple[str, ...]:
        """Stand-in assets and the reference's way to begin, if these are used."""
        standins = (STANDIN_CAVEAT,) if self.found_assets.standin else ()
        return (*standins, BLIND_CAVEAT) if self.protocol == "reference" else standins

    def describe(self) -> dict[str, Any]:
        """The settings, where the assets come from, and who draws."""
        assets = self.found_assets
        found = {
            "assets_source": assets.source,
            "standin_assets": assets.standin,
            "renderer": graphics.renderer(),
        }
        return {**super().describe(), **found}

    def worker_variables(self, device: int) -> dict[str, str]:
        """Each rank's workers draw on its own GPU."""
        return graphics.drawing_variables(device)

    def make(self) -> Environment:
        """Builds the environment; this process must hold no torch, see the developers' guide."""
        from lightning_ript.envs.libero.environment import LiberoEnvironment

        return LiberoEnvironment(self)


def is_as_published(mujoco: str) -> bool:
    """Whether LIBERO's tasks are the same in a version of MuJoCo as in published data."""
    numbers = tuple(int(part) for part in mujoco.split(".")[:3] if part.isdigit())
    return MUJOCO_FROM <= numbers < MUJOCO_BELOW


def _check_mujoco() -> None:
    """Refuses a MuJoCo in which LIBERO's tasks are others than in published data."""
    installed = version("mujoco")
    if not is_as_published(installed):
        raise ValueError(
            f"MuJoCo {installed} is installed. From 3.4 on LIBERO's objects come to rest elsewhere "
            "than in published data, and before 3.3.6 fast mode is not exact: "
            "pip install 'mujoco>=3.3.6,<3.4'."
        )
