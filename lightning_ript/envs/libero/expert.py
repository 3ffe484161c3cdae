"""A scripted expert for LIBERO-Object: pick up the named object and drop it into the basket.

The expert reads the simulator's true poses and geometry (a policy never sees them) and answers
every control step with an OSC_POSE action, so it recovers by itself from a missed or slipped grasp.
It runs where the simulator runs and works on plain MuJoCo structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import mujoco
import numpy as np

GRIP_SITE = "gripper0_grip_site"
FINGER_JOINTS = ("gripper0_finger_joint1", "gripper0_finger_joint2")

# Reach of one action component of 1.0: OSC_POSE's output limits.
POSITION_STEP = 0.05  # metres
ROTATION_STEP = 0.5  # radians
OPEN, CLOSE = -1.0, 1.0

# The Panda hand, in metres relative to the grip site (+z points up when the hand points down).
PALM_ABOVE_SITE = 0.031
FINGERTIP_BELOW_SITE = 0.010
MAX_OPENING = 0.076

UP = np.array([0.0, 0.0, 1.0])


class Stage(Enum):
    """What the expert is doing."""

    REACH = auto()
    GRASP = auto()
    CARRY = auto()
    RELEASE = auto()


@dataclass(frozen=True)
class Grasp:
    """Where to close the gripper.

    Attributes:
        position: Grip-site position (3,) in metres, world frame.
        closing: Unit vector (3,) along which the fingers close, horizontal.
        clearance: Height of the grip site (metres) above which the fingertips miss the object.
        margin: How far off the hand may be along `closing` (metres) without a finger touching.
    """

    position: np.ndarray
    closing: np.ndarray
    clearance: float
    margin: float


class Shape:
    """The collision geometry of one free body, whatever its pose.

    Args:
        model: The compiled model.
        data: Its state; read at every call.
        body: Name of the body; its children count too.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, body: str) -> None:
        self._model, self._data = model, data
        self.body = _identify(model, mujoco.mjtObj.mjOBJ_BODY, body)
        bodies = [i for i in range(model.nbody) if _descends(model, i, self.body)]
        solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        self._geoms = np.flatnonzero(np.isin(model.geom_bodyid, bodies) & solid)

    @property
    def position(self) -> np.ndarray:
        """Position (3,) of the body's frame in metres."""
        return self._data.xpos[self.body].copy()

    def intervals(self, direction: np.ndarray) -> np.ndarray:
        """Extent of each geom along a unit vector, (geoms, 2) lower and upper bound in metres."""
        model, data = self._model, self._data
        bounds = np.empty((len(self._geoms), 2))
        for row, geom in enumerate(self._geoms):
            axes = np.abs(direction @ data.geom_xmat[geom].reshape(3, 3))
            size, center = model.geom_size[geom], data.geom_xpos[geom] @ direction
            match model.geom_type[geom]:
                case mujoco.mjtGeom.mjGEOM_SPHERE:
                    half = size[0]
                case mujoco.mjtGeom.mjGEOM_CAPSULE:
                    half = size[0] + axes[2] * size[1]
                case mujoco.mjtGeom.mjGEOM_CYLINDER:
                    half = axes[2] * size[1] + np.hypot(axes[0], axes[1]) * size[0]
                case _:  # a box is its own bounding box; a mesh or ellipsoid is taken as its box
                    box = model.geom_aabb[geom]
                    center += direction @ data.geom_xmat[geom].reshape(3, 3) @ box[:3]
                    half = axes @ box[3:]
            bounds[row] = center - half, center + half
        return bounds

    def slanted(self) -> np.ndarray:
        """Which geoms (geoms,) stand neither upright nor lie flat."""
        return np.abs(self._data.geom_xmat[self._geoms, 6:]).max(axis=1) < 0.95

    @property
    def bottom(self) -> float:
        """Lowest point in metres."""
        return float(self.intervals(-UP).max() * -1.0)

    @property
    def top(self) -> float:
        """Highest point in metres."""
        return float(self.intervals(UP).max())


class PickPlaceExpert:
    """Moves above the object, down, grasps, lifts, carries and releases; retries after a slip.

    Args:
        model: The compiled model (`sim.model._model` of a robosuite simulator).
        data: Its live state (`sim.data._data`).
        target: Name of the object to pick, e.g. `ketchup_1`.
        region: Name of the container's region site, e.g. `basket_1_contain_region`.
        container: Name of the container object, e.g. `basket_1`.
        obstacles: Names of the other movable objects; the target is carried over them.
        noise: Standard deviation of Gaussian noise on the six motion components of the normalized
            action, for more diverse demonstrations; the gripper command stays clean.
        seed: Seed of that noise.

    Raises:
        ValueError: The model lacks one of the names, or `noise` is negative.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        *,
        target: str,
        region: str,
        container: str,
        obstacles: Sequence[str] = (),
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        if noise < 0:
            raise ValueError(f"The expert's action noise must not be negative, got {noise}.")
        self._data = data
        self._object = Shape(model, data, f"{target}_main")
        self._obstacles = [Shape(model, data, f"{name}_main") for name in (container, *obstacles)]
        self._region = _identify(model, mujoco.mjtObj.mjOBJ_SITE, region)
        self._site = _identify(model, mujoco.mjtObj.mjOBJ_SITE, GRIP_SITE)
        joints = [_identify(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in FINGER_JOINTS]
        self._finger_qpos = model.jnt_qposadr[joints]
        self._noise, self._random = noise, np.random.default_rng(seed)
        self.stage = Stage.REACH
        self.attempts = 0
        self._plan_grasp()

    @classmethod
    def for_environment(cls, env: Any, noise: float = 0.0, seed: int = 0) -> PickPlaceExpert:
        """Builds the expert of a LIBERO (robosuite) environment whose goal is one `In` predicate.

        Args:
            env: LIBERO's problem environment, just reset.
            noise: See the class.
            seed: See the class.

        Raises:
            ValueError: The task's goal is not "an object in a container's region".
        """
        goal = env.parsed_problem["goal_state"]
        if len(goal) != 1 or goal[0][0] != "in" or goal[0][1] not in env.objects_dict:
            raise ValueError(
                f"The scripted expert only places one object in a container, but the goal of "
                f"{env.bddl_file_name} is {goal}; choose tasks of libero_object."
            )
        _, target, region = goal[0]
        container = env.object_sites_dict[region].parent_name
        others = [name for name in env.objects_dict if name not in (target, container)]
        return cls(
            env.sim.model._model,
            env.sim.data._data,
            target=target,
            region=region,
            container=container,
            obstacles=others,
            noise=noise,
            seed=seed,
        )

    def act(self) -> np.ndarray:
        """Action (7,) float32 in [-1, 1] for the simulator's present state."""
        self._advance()
        match self.stage:
            case Stage.REACH:
                action = self._move(self._approach(), OPEN)
            case Stage.GRASP:
                action = self._move(self._grasp.position, CLOSE)
            case Stage.CARRY:
                action = self._move(self._transport(), CLOSE)
            case Stage.RELEASE:
                action = self._move(self._released_at, OPEN)
        if self._noise:
            action[:6] += self._random.normal(scale=self._noise, size=6)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    # Stages ------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Moves to the stage that the present state asks for."""
        self._steps += 1
        if self.stage is Stage.REACH and self._displaced():
            self._plan_grasp()
        elif self.stage is Stage.REACH and self._in_place():
            self._enter(Stage.GRASP)
        elif self.stage is Stage.GRASP and self._steps > 3 and self._fingers_stopped():
            if self._holding():
                self._held_offset = self._object.position - self._hand
                self._enter(Stage.CARRY)
            else:
                self._plan_grasp()
        elif self.stage is Stage.CARRY:
            if not self._holding() or self._slipped():
                self._plan_grasp()
            elif np.linalg.norm(self._to_region()[:2]) < 0.02 and self._clears():
                self._released_at = self._hand
                self._enter(Stage.RELEASE)
        elif self.stage is Stage.RELEASE and self._steps > 25:
            self._plan_grasp()  # it fell beside the container

    def _enter(self, stage: Stage) -> None:
        self.stage, self._steps, self._last_opening = stage, 0, np.inf

    def _plan_grasp(self) -> None:
        """Starts an attempt: chooses height and yaw for the object as it lies now."""
        self.attempts += 1
        self._enter(Stage.REACH)
        shape = self._object
        vertical = shape.intervals(UP)
        top, bottom = vertical[:, 1].max(), vertical[:, 0].min()
        height = max(top - 0.8 * PALM_ABOVE_SITE, bottom + FINGERTIP_BELOW_SITE + 0.002)
        # Only what lies between the finger pads matters: a bottle is grasped at its neck.
        level = (vertical[:, 0] < height + 0.012) & (vertical[:, 1] > height - 0.004)

        def extent(direction: np.ndarray) -> tuple[float, float]:
            bounds = shape.intervals(direction)[level]
            return bounds[:, 0].min(), bounds[:, 1].max()

        slanted = shape.slanted()

        def cost(yaw: float) -> float:
            bounds = shape.intervals(_horizontal(yaw))
            low, high = bounds[level, 0].min(), bounds[level, 1].max()
            # Narrow is good, and pads that touch no edge of a slanted plate: a carton's roof hooks
            # on them. Of equally good grasps, take the one with less turning.
            touching = (bounds[:, 0] < low + 5e-4) | (bounds[:, 1] > high - 5e-4)
            hooked = np.any(slanted & level & touching)
            return (high - low) + 0.02 * hooked + 0.004 * abs(yaw - np.pi / 2)

        # Yaw of the closing direction; pi / 2 is the rest pose, and wrist limits allow +-pi / 2.
        yaw = min(np.linspace(0.0, np.pi, 73), key=cost)
        closing, along = _horizontal(yaw), _horizontal(yaw + np.pi / 2)
        position = height * UP
        for axis in (closing, along):
            position = position + axis * np.mean(extent(axis))
        low, high = extent(closing)
        margin = float(np.clip((MAX_OPENING - (high - low)) / 2 - 0.001, 0.003, 0.01))
        self._grasp = Grasp(position, closing, top + FINGERTIP_BELOW_SITE, margin)
        self._planned_for = shape.position

    # Conditions --------------------------------------------------------------------------------

    def _displaced(self) -> bool:
        return bool(np.linalg.norm(self._object.position - self._planned_for) > 0.01)

    def _in_place(self) -> bool:
        error = self._grasp.position - self._hand
        turned = np.linalg.norm(self._rotation_error()) < 0.08
        return bool(np.linalg.norm(error[:2]) < 0.006 and abs(error[2]) < 0.006 and turned)

    def _fingers_stopped(self) -> bool:
        before, self._last_opening = self._last_opening, self._opening()
        return abs(before - self._last_opening) < 5e-4

    def _holding(self) -> bool:
        return self._opening() > 0.004

    def _slipped(self) -> bool:
        offset = self._object.position - self._hand
        return bool(np.linalg.norm(offset - self._held_offset) > 0.04)

    def _clears(self) -> bool:
        return self._object.bottom > self._carry_height() - 0.01

    # Motion ------------------------------------------------------------------------------------

    def _approach(self) -> np.ndarray:
        """Down a funnel: the nearer the hand is to the object's axis, the lower it goes."""
        grasp = self._grasp
        error = (grasp.position - self._hand) * [1.0, 1.0, 0.0]
        distance, sideways = float(np.linalg.norm(error)), abs(error @ grasp.closing)
        turned = np.linalg.norm(self._rotation_error()) > 0.2
        floor = grasp.position[2]
        if sideways > grasp.margin or distance > 0.015 or turned:
            # A finger would come down on the object: go, or go back, above it.
            floor = grasp.clearance + 0.005 + 0.5 * max(distance - 0.015, 0.0)
        return np.array([*grasp.position[:2], floor])

    def _transport(self) -> np.ndarray:
        """Up until the object passes over everything, then over the container."""
        missing = self._carry_height() - self._object.bottom
        target = self._hand + max(missing, 0.0) * UP
        if missing < 0.04:  # rises while it moves on; neighbours are farther than that
            target[:2] += self._to_region()[:2]
        return target

    def _carry_height(self) -> float:
        return max(shape.top for shape in self._obstacles) + 0.015

    def _to_region(self) -> np.ndarray:
        return self._data.site_xpos[self._region] - self._object.position

    def _move(self, target: np.ndarray, gripper: float) -> np.ndarray:
        # Gain 1.5: OSC's critically damped spring alone would creep into its goal.
        position = 1.5 * (target - self._hand) / POSITION_STEP
        rotation = 1.5 * self._rotation_error() / ROTATION_STEP
        # Scaled as one, so that the hand travels straight.
        position /= max(1.0, np.abs(position).max())
        return np.concatenate([position, np.clip(rotation, -1.0, 1.0), [gripper]])

    def _rotation_error(self) -> np.ndarray:
        """Rotation vector (3,) in the world frame from the hand's pose to the grasp's."""
        down, closing = -UP, self._grasp.closing
        goal = np.stack([closing, np.cross(down, closing), down], axis=1)
        current = self._data.site_xmat[self._site].reshape(3, 3)
        quat, vector = np.empty(4), np.empty(3)
        mujoco.mju_mat2Quat(quat, (goal @ current.T).ravel())
        mujoco.mju_quat2Vel(vector, quat, 1.0)
        return vector

    @property
    def _hand(self) -> np.ndarray:
        return self._data.site_xpos[self._site].copy()

    def _opening(self) -> float:
        return float(np.abs(self._data.qpos[self._finger_qpos]).sum())


def _horizontal(yaw: float) -> np.ndarray:
    return np.array([np.cos(yaw), np.sin(yaw), 0.0])


def _identify(model: mujoco.MjModel, kind: mujoco.mjtObj, name: str) -> int:
    index = mujoco.mj_name2id(model, kind, name)
    if index < 0:
        raise ValueError(f"The simulator's model has no {kind.name[6:].lower()} named {name!r}.")
    return index


def _descends(model: mujoco.MjModel, body: int, ancestor: int) -> bool:
    while body > ancestor:
        body = model.body_parentid[body]
    return body == ancestor
