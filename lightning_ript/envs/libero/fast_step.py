"""LIBERO's control step with one forward pass per physics substep.

robosuite runs a substep as forward, controller (which runs forward again) and step, and asks every
observable whether it is due. MuJoCo's `mj_step1` computes all that the controller reads, `mj_step2`
the rest, so one pass is enough: since MuJoCo 3.3.6 a forward pass leaves no trace that the next one
would see. With the controller's arithmetic in robosuite's order (`operational_space`) every bit of
the state is the same, which `benchmarks/fast_mode.py` and the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from robosuite.utils import transform_utils

from lightning_ript.envs.libero.operational_space import arm_torques, present_torques

SUBSTEPS = 25
OBSERVED_SUBSTEP = 23
"""robosuite's observables fire once per control step. LIBERO's reset and `set_init_state` look once
each, which puts their clocks two substeps ahead: they fire after the 24th substep of 25."""


class FastStepper:
    """Steps a LIBERO problem; call `restart` when an episode begins.

    Args:
        problem: LIBERO's problem environment, just reset, with one arm under OSC_POSE.
    """

    def __init__(self, problem: Any) -> None:
        self._model = model = problem.sim.model._model
        self._data = data = problem.sim.data._data
        self._robot = robot = problem.robots[0]
        controller = robot.controller
        site = robot.eef_site_id
        dofs = np.array(controller.qvel_index)
        self._site = site
        self._jacobians = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        # Views: MuJoCo writes into them.
        self._arm = (
            data.site_xpos[site],
            data.site_xmat[site],
            *self._jacobians,
            data.qpos,
            data.qvel,
            data.qM,
            np.array(controller.qpos_index),
            dofs,
            _mass_index(model, dofs),
        )
        self._dofs, self._bias, self._ctrl = dofs, data.qfrc_bias, data.ctrl
        self._motors = np.array(robot._ref_joint_actuator_indexes)
        self._finger_motors = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._torque_limits = tuple(np.copy(limit) for limit in robot.torque_limits)
        fingers = model.actuator_ctrlrange[self._finger_motors]
        self._finger_bias, self._finger_weight = fingers.mean(1), np.diff(fingers)[:, 0] / 2
        self._gains = np.array(controller.kp), np.array(controller.kd)

    def restart(self) -> None:
        """Takes the controller over as LIBERO's reset left it.

        LIBERO's first control step still acts on what the controller saw at the reset, before
        the initial state was set: the goal starts from there, and so does the first torque.
        """
        self._observed = OBSERVED_SUBSTEP
        controller = self._robot.controller
        self._goal_position = np.array(controller.goal_pos)
        self._goal_rotation = np.array(controller.goal_ori)
        self._posture = np.array(controller.initial_joint)
        self._stale: tuple[np.ndarray, ...] | None = (
            np.array(controller.ee_pos),
            np.array(controller.ee_ori_mat),
            np.array(controller.ee_pos_vel),
            np.array(controller.ee_ori_vel),
            np.array(controller.joint_pos),
            np.array(controller.joint_vel),
            np.array(controller.J_full),
            np.array(controller.J_pos),
            np.array(controller.J_ori),
            np.array(controller.mass_matrix),
        )

    def moved(self) -> None:
        """Takes over a state that LIBERO has set in the midst of an episode.

        LIBERO then looks once out of turn, after which its observables' clock is a substep ahead.
        """
        self._observed = (self._observed - 1) % SUBSTEPS

    def step(self, action: np.ndarray, observe: Callable[[], None] | None) -> None:
        """Runs one control step.

        Args:
            action: (7,) in [-1, 1].
            observe: Called when LIBERO's observables fire.

        Raises:
            FloatingPointError: If the arm's inertia is singular.
        """
        model, data = self._model, self._data
        fingers = self._fingers(action[6:])
        for substep in range(SUBSTEPS):
            mujoco.mj_step1(model, data)
            if substep == 0:
                self._set_goal(action[:6])
            try:
                torques = self._torques()
            except np.linalg.LinAlgError as error:
                raise FloatingPointError(
                    "the arm's inertia is singular: the simulation has diverged."
                ) from error
            self._ctrl[self._motors] = torques
            self._ctrl[self._finger_motors] = fingers[substep]
            mujoco.mj_step2(model, data)
            if observe is not None and substep == self._observed:
                observe()

    def _fingers(self, action: np.ndarray) -> list[np.ndarray]:
        """The finger motors' controls of all substeps: they close or open at a fixed speed."""
        gripper, controls, before = self._robot.gripper, [], None
        for _ in range(SUBSTEPS):
            now = gripper.format_action(action)
            if before is not None and (now == before).all():  # has arrived, and stays
                return controls + [controls[-1]] * (SUBSTEPS - len(controls))
            controls.append(self._finger_bias + self._finger_weight * now)
            before = now
        return controls

    def _torques(self) -> np.ndarray:
        aims = (self._goal_position, self._goal_rotation, self._posture, *self._gains)
        if self._stale is None:
            mujoco.mj_jacSite(self._model, self._data, *self._jacobians, self._site)
            return present_torques(self._arm, aims, self._bias, self._torque_limits)
        seen, self._stale = self._stale, None
        return arm_torques(seen, *aims, self._bias[self._dofs], *self._torque_limits)

    def _set_goal(self, delta: np.ndarray) -> None:
        position, rotation = self._arm[0], self._arm[1].reshape(3, 3)
        if self._stale is not None:
            position, rotation = self._stale[:2]
        delta = self._robot.controller.scale_action(delta)
        if np.abs(delta[3:]).max() > 0.0:  # otherwise the last rotation goal stays
            turn = transform_utils.quat2mat(transform_utils.axisangle2quat(delta[3:]))
            self._goal_rotation = np.dot(turn, rotation)
        self._goal_position = position + delta[:3]


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
