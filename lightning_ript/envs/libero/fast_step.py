"""LIBERO's control step with one forward pass per physics substep.

robosuite runs a substep as forward, controller (which runs forward again) and step, and asks every
observable whether it is due. MuJoCo's `mj_step1` computes all that the controller reads, `mj_step2`
the rest, so one pass is enough; the controller is the same arithmetic (operational space control,
Khatib 1987; robosuite's OSC_POSE with fixed impedance). What differs is
where the constraint solver starts. Measured over 104 random actions, positions agree to 1e-11; when
the hand drives into objects, contacts amplify rounding as they do between any two solvers, and
differences of 1e-6, once of 4e-4 on the object hit, were seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from robosuite.utils import transform_utils
from scipy.linalg.lapack import dposv  # a tenth of the overhead of np.linalg.solve on 7 joints

SUBSTEPS = 25
OBSERVED_SUBSTEP = 23
"""robosuite's observables fire once per control step. LIBERO's reset and `set_init_state` look once
each, which puts their clocks two substeps ahead: they fire after the 24th substep of 25."""

_NULLSPACE_KP = 10.0
_NULLSPACE_KD = 2 * np.sqrt(_NULLSPACE_KP)


class FastStepper:
    """Steps a LIBERO problem; call `restart` when an episode begins.

    Args:
        problem: LIBERO's problem environment, just reset, with one arm under OSC_POSE.
    """

    def __init__(self, problem: Any) -> None:
        self._model = model = problem.sim.model._model
        self._data = problem.sim.data._data
        self._robot = robot = problem.robots[0]
        controller = robot.controller
        self._site = robot.eef_site_id
        self._qpos = np.array(controller.qpos_index)
        self._qvel = np.array(controller.qvel_index)
        self._motors = np.array(robot._ref_joint_actuator_indexes)
        self._finger_motors = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._torque_limits = tuple(np.copy(limit) for limit in robot.torque_limits)
        fingers = model.actuator_ctrlrange[self._finger_motors]
        self._finger_bias, self._finger_weight = fingers.mean(1), np.diff(fingers)[:, 0] / 2
        self._kp, self._kd = np.array(controller.kp), np.array(controller.kd)
        self._mass_index = _mass_index(model, self._qvel)
        self._jacobian = np.zeros((6, model.nv))

    def restart(self) -> None:
        """Takes the controller over as LIBERO's reset left it.

        LIBERO's first control step still acts on what the controller saw at the reset, before
        the initial state was set: the goal starts from there, and so does the first torque.
        """
        controller = self._robot.controller
        self._goal_position = np.array(controller.goal_pos)
        self._goal_rotation = np.array(controller.goal_ori)
        self._rest = np.array(controller.initial_joint)
        self._stale: tuple[np.ndarray, ...] | None = (
            np.array(controller.ee_pos),
            np.array(controller.ee_ori_mat),
            np.concatenate([controller.ee_pos_vel, controller.ee_ori_vel]),
            np.array(controller.joint_pos),
            np.array(controller.joint_vel),
            np.array(controller.J_full),
            np.array(controller.mass_matrix),
        )

    def step(self, action: np.ndarray, observe: Callable[[], None] | None) -> None:
        """Runs one control step.

        Args:
            action: (7,) in [-1, 1].
            observe: Called when LIBERO's observables fire.
        """
        model, data = self._model, self._data
        for substep in range(SUBSTEPS):
            mujoco.mj_step1(model, data)
            seen = self._read()
            if substep == 0:
                self._set_goal(action[:6], seen)
            data.ctrl[self._motors] = self._torques(seen).clip(*self._torque_limits)
            grip = self._robot.gripper.format_action(action[6:])
            data.ctrl[self._finger_motors] = self._finger_bias + self._finger_weight * grip
            mujoco.mj_step2(model, data)
            if observe is not None and substep == OBSERVED_SUBSTEP:
                observe()

    def _read(self) -> tuple[np.ndarray, ...]:
        if self._stale is not None:
            seen, self._stale = self._stale, None
            return seen
        data = self._data
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        return (
            data.site_xpos[self._site].copy(),
            data.site_xmat[self._site].reshape(3, 3).copy(),
            self._jacobian @ data.qvel,
            data.qpos[self._qpos],
            data.qvel[self._qvel],
            self._jacobian[:, self._qvel],
            data.qM[self._mass_index],
        )

    def _set_goal(self, delta: np.ndarray, seen: tuple[np.ndarray, ...]) -> None:
        delta = self._robot.controller.scale_action(delta)
        if np.abs(delta[3:]).max() > 0.0:  # otherwise the last rotation goal stays
            turn = transform_utils.quat2mat(transform_utils.axisangle2quat(delta[3:]))
            self._goal_rotation = turn @ seen[1]
        self._goal_position = seen[0] + delta[:3]

    def _torques(self, seen: tuple[np.ndarray, ...]) -> np.ndarray:
        position, rotation, velocity, joints, joint_velocity, jacobian, mass = seen
        turn = self._goal_rotation @ rotation.T
        error = np.empty(6)
        error[:3] = self._goal_position - position
        error[3] = 0.5 * (turn[2, 1] - turn[1, 2])
        error[4] = 0.5 * (turn[0, 2] - turn[2, 0])
        error[5] = 0.5 * (turn[1, 0] - turn[0, 1])
        force = self._kp * error - self._kd * velocity

        weighted = _solve(mass, jacobian.T)  # M^-1 J^T
        inertia = jacobian @ weighted  # J M^-1 J^T; its blocks uncouple position and rotation
        wrench = np.empty(6)
        wrench[:3] = _solve(inertia[:3, :3], force[:3])
        wrench[3:] = _solve(inertia[3:, 3:], force[3:])
        posture = mass @ (_NULLSPACE_KP * (self._rest - joints) - _NULLSPACE_KD * joint_velocity)
        # (I - J^T Jbar^T) posture, with Jbar = M^-1 J^T (J M^-1 J^T)^-1
        wrench -= _solve(inertia, weighted.T @ posture)
        return jacobian.T @ wrench + self._data.qfrc_bias[self._qvel] + posture


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solves a symmetric positive definite system.

    Raises:
        FloatingPointError: If the matrix is not positive definite: the simulation has diverged.
    """
    _, solution, failure = dposv(matrix, right)
    if failure:
        raise FloatingPointError("the arm's inertia is singular: the simulation has diverged.")
    return solution


def _mass_index(model: mujoco.MjModel, dofs: np.ndarray) -> np.ndarray:
    """Where MuJoCo's sparse mass matrix keeps the rows and columns of a serial chain.

    Its row i holds M[i, i], M[i, parent(i)], M[i, parent(parent(i))] and so on.
    """
    index = np.empty((len(dofs), len(dofs)), dtype=int)
    place = {int(dof): i for i, dof in enumerate(dofs)}
    for i, dof in enumerate(dofs):
        address, ancestor = int(model.dof_Madr[dof]), int(dof)
        while ancestor >= 0:
            if ancestor in place:
                index[i, place[ancestor]] = index[place[ancestor], i] = address
            address, ancestor = address + 1, int(model.dof_parentid[ancestor])
    return index
