"""The arm's controller, compiled: it runs 500 times per simulated second.

Operational space control (Khatib 1987) with position and rotation uncoupled, fixed impedance and a
posture in the null space: robosuite's OSC_POSE, with its compiled functions and otherwise in its
order of operations and its memory layouts, so that every bit of the torques is the same. Layouts
decide which BLAS kernel computes a product, and so how it is rounded.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error


@njit(cache=True)
def read_arm(
    position: np.ndarray,
    rotation: np.ndarray,
    moves: np.ndarray,
    turns: np.ndarray,
    qpos: np.ndarray,
    qvel: np.ndarray,
    inertia: np.ndarray,
    positions: np.ndarray,
    velocities: np.ndarray,
    inertia_index: np.ndarray,
) -> tuple:
    """What the controller looks at, from MuJoCo's arrays after `mj_step1`.

    Args:
        position: The hand's site (3,), m.
        rotation: Its rotation matrix, row by row (9,).
        moves: Jacobian of its position (3, nv).
        turns: Jacobian of its rotation (3, nv).
        qpos: All positions (nq,).
        qvel: All velocities (nv,).
        inertia: MuJoCo's sparse mass matrix (nM,).
        positions: Places of the arm's joints in `qpos`, from base to hand (n,) int; n is 7 for a
            Panda.
        velocities: Their places in `qvel` (n,) int.
        inertia_index: Where `inertia` keeps the arm's rows and columns (n, n) int.

    Returns:
        The hand's position (3,), rotation (3, 3), velocity (3,) and angular velocity (3,), joint
        positions (n,) and velocities (n,); column by column the Jacobians of both (6, n), of
        position (3, n) and of rotation (3, n), and the mass matrix (n, n).
    """
    n = len(positions)
    both, linear, angular = np.empty((n, 6)).T, np.empty((n, 3)).T, np.empty((n, 3)).T
    mass = np.empty((n, n)).T
    angles, speeds = np.empty(n), np.empty(n)
    for i in range(n):
        angles[i], speeds[i] = qpos[positions[i]], qvel[velocities[i]]
        for j in range(3):
            both[j, i] = linear[j, i] = moves[j, velocities[i]]
            both[3 + j, i] = angular[j, i] = turns[j, velocities[i]]
        for j in range(n):
            mass[i, j] = inertia[inertia_index[i, j]]
    turned = rotation.copy().reshape(3, 3)
    velocity, spin = np.dot(moves, qvel), np.dot(turns, qvel)
    return position.copy(), turned, velocity, spin, angles, speeds, both, linear, angular, mass


@njit(cache=True)
def arm_torques(
    seen: tuple,
    goal_position: np.ndarray,
    goal_rotation: np.ndarray,
    posture: np.ndarray,
    kp: np.ndarray,
    kd: np.ndarray,
    bias: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """Joint torques (n,) in N m that pull the hand to its goal.

    Args:
        seen: What `read_arm` returns.
        goal_position: (3,), m.
        goal_rotation: (3, 3).
        posture: Joint angles to prefer (n,), rad.
        kp: Stiffness (6,).
        kd: Damping (6,).
        bias: Gravity, Coriolis and centrifugal forces on the joints (n,), N m.
        low: Least torques (n,).
        high: Largest torques (n,).
    """
    position, rotation, velocity, spin, angles, speeds, both, linear, angular, mass = seen
    force = (goal_position - position) * kp[:3] + -velocity * kd[:3]
    moment = orientation_error(goal_rotation, rotation) * kp[3:] + -spin * kd[3:]
    _, inertia, rotational_inertia, free = opspace_matrices(mass, both, linear, angular)
    wrench = np.concatenate((np.dot(inertia, force), np.dot(rotational_inertia, moment)))
    torques = np.dot(both.T, wrench) + bias
    torques += nullspace_torques(mass, free, posture, angles, speeds)
    return np.minimum(np.maximum(torques, low), high)


@njit(cache=True)
def present_torques(arm: tuple, aims: tuple, bias: np.ndarray, limits: tuple) -> np.ndarray:
    """`arm_torques` of what `read_arm` sees, in one call.

    Args:
        arm: The arguments of `read_arm`.
        aims: Those of `arm_torques` from `goal_position` to `kd`.
        bias: As there, of all joints (nv,).
        limits: `low` and `high`.
    """
    own = bias[arm[8]]
    return arm_torques(read_arm(*arm), *aims, own, *limits)
