"""The arm's controller, compiled: it runs 500 times per simulated second.

Operational space control (Khatib 1987) with position and rotation uncoupled, fixed impedance and a
posture in the null space: the arithmetic of robosuite's OSC_POSE.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_POSTURE_KP = 10.0
_POSTURE_KD = 2 * np.sqrt(_POSTURE_KP)


@njit(cache=True)
def read_arm(
    position: np.ndarray,
    rotation: np.ndarray,
    axes: np.ndarray,
    anchors: np.ndarray,
    qpos: np.ndarray,
    qvel: np.ndarray,
    inertia: np.ndarray,
    joints: np.ndarray,
    positions: np.ndarray,
    velocities: np.ndarray,
    inertia_index: np.ndarray,
) -> tuple:
    """What the controller looks at, from MuJoCo's arrays after `mj_step1`.

    Args:
        position: The hand's site (3,), m.
        rotation: Its rotation matrix, row by row (9,).
        axes: All joints' axes in the world (njnt, 3).
        anchors: All joints' anchors in the world (njnt, 3), m.
        qpos: All positions (nq,).
        qvel: All velocities (nv,).
        inertia: MuJoCo's sparse mass matrix (nM,).
        joints: The arm's hinges, from base to hand (n,) int; n is 7 for a Panda.
        positions: Their places in `qpos` (n,) int.
        velocities: Their places in `qvel` (n,) int.
        inertia_index: Where `inertia` keeps the arm's rows and columns (n, n) int.

    Returns:
        The hand's position (3,), rotation (3, 3) and twist (6,), joint positions (n,) and
        velocities (n,), Jacobian (6, n), mass matrix (n, n).
    """
    n = len(joints)
    jacobian, mass = np.empty((6, n)), np.empty((n, n))
    angles, speeds = np.empty(n), np.empty(n)
    for i in range(n):
        angles[i], speeds[i] = qpos[positions[i]], qvel[velocities[i]]
        axis, lever = axes[joints[i]], position - anchors[joints[i]]
        jacobian[0, i] = axis[1] * lever[2] - axis[2] * lever[1]
        jacobian[1, i] = axis[2] * lever[0] - axis[0] * lever[2]
        jacobian[2, i] = axis[0] * lever[1] - axis[1] * lever[0]
        jacobian[3:, i] = axis
        for j in range(n):
            mass[i, j] = inertia[inertia_index[i, j]]
    turned = rotation.copy().reshape(3, 3)
    return position.copy(), turned, jacobian @ speeds, angles, speeds, jacobian, mass


@njit(cache=True)
def arm_torques(
    position: np.ndarray,
    rotation: np.ndarray,
    twist: np.ndarray,
    angles: np.ndarray,
    speeds: np.ndarray,
    jacobian: np.ndarray,
    mass: np.ndarray,
    goal_position: np.ndarray,
    goal_rotation: np.ndarray,
    posture: np.ndarray,
    kp: np.ndarray,
    kd: np.ndarray,
) -> np.ndarray:
    """Joint torques (n,) in N m that pull the hand to its goal, without the bias forces.

    Args:
        position: See `read_arm`, as all up to `mass`.
        rotation: See `read_arm`.
        twist: See `read_arm`.
        angles: See `read_arm`.
        speeds: See `read_arm`.
        jacobian: See `read_arm`.
        mass: See `read_arm`.
        goal_position: (3,), m.
        goal_rotation: (3, 3).
        posture: Joint angles to prefer (n,), rad.
        kp: Stiffness (6,).
        kd: Damping (6,).
    """
    turn = goal_rotation @ rotation.T
    error = np.empty(6)
    error[:3] = goal_position - position
    error[3] = 0.5 * (turn[2, 1] - turn[1, 2])
    error[4] = 0.5 * (turn[0, 2] - turn[2, 0])
    error[5] = 0.5 * (turn[1, 0] - turn[0, 1])
    force = kp * error - kd * twist

    weighted = np.linalg.solve(mass, jacobian.T.copy())  # M^-1 J^T
    inertia = jacobian @ weighted  # J M^-1 J^T; its blocks uncouple position and rotation
    wrench = np.empty(6)
    wrench[:3] = np.linalg.solve(inertia[:3, :3].copy(), force[:3])
    wrench[3:] = np.linalg.solve(inertia[3:, 3:].copy(), force[3:])
    rest = mass @ (_POSTURE_KP * (posture - angles) - _POSTURE_KD * speeds)
    # (I - J^T Jbar^T) rest, with Jbar = M^-1 J^T (J M^-1 J^T)^-1
    wrench -= np.linalg.solve(inertia, weighted.T.copy() @ rest)
    return jacobian.T @ wrench + rest
