"""Fewer triangles for drawing, by merging vertices that are closer than a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mujoco
import numpy as np

FIELD = 0.384
"""What the wrist camera sees of an object at a grasp, from edge to edge (m)."""

_ARM = "robot0_"  # bodies of the arm without the hand
_ARM_DISTANCE = 2.0  # the arm is never in the wrist camera, and twice as far from the other


@contextmanager
def decimated_meshes(model: mujoco.MjModel, image_size: int) -> Iterator[None]:
    """Simplifies the model's triangles while a rendering context is built from them.

    Vertices in one cube of a grid, about a pixel wide, become one (Rossignac and Borrel 1993), and
    triangles that collapse or coincide are dropped. Afterwards the model is as it was; the physics
    never sees the change.

    Args:
        model: The model.
        image_size: Height and width of the images in pixels.
    """
    arm = _meshes_of_arm(model)
    faces, counts = model.mesh_face.copy(), model.mesh_facenum.copy()
    normals, texture = model.mesh_facenormal.copy(), model.mesh_facetexcoord.copy()
    for mesh in range(model.nmesh):
        start, count = model.mesh_faceadr[mesh], counts[mesh]
        first, vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        corners = faces[start : start + count]
        cell = FIELD / image_size * (_ARM_DISTANCE if mesh in arm else 1.0)
        kept, merged = _merge(model.mesh_vert[first : first + vertices], corners, cell)
        end = start + len(kept)
        model.mesh_face[start:end] = merged
        model.mesh_facenormal[start:end] = normals[start : start + count][kept]
        model.mesh_facetexcoord[start:end] = texture[start : start + count][kept]
        model.mesh_facenum[mesh] = len(kept)
    try:
        yield
    finally:
        model.mesh_face[:], model.mesh_facenum[:] = faces, counts
        model.mesh_facenormal[:], model.mesh_facetexcoord[:] = normals, texture


def _meshes_of_arm(model: mujoco.MjModel) -> set[int]:
    return {
        int(model.geom_dataid[geom])
        for geom in range(model.ngeom)
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
        and model.body(model.geom_bodyid[geom]).name.startswith(_ARM)
    }


def _merge(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Merges vertices on a grid.

    Args:
        vertices: (V, 3) metres.
        faces: (F, 3) indices of vertices.
        cell: Edge of the grid's cubes in metres.

    Returns:
        Numbers (K,) of the triangles to keep and their corners (K, 3).
    """
    places = np.floor(vertices / cell).astype(np.int64)
    _, first, cube = np.unique(_packed(places), return_index=True, return_inverse=True)
    corners = first[cube][faces]
    proper = np.flatnonzero(
        (corners[:, 0] != corners[:, 1])
        & (corners[:, 1] != corners[:, 2])
        & (corners[:, 2] != corners[:, 0])
    )
    # The same three corners in the same sense are the same triangle, whichever comes first.
    turn = np.argmin(corners[proper], axis=1)[:, None]
    turned = np.take_along_axis(corners[proper], (turn + np.arange(3)) % 3, axis=1)
    _, unique = np.unique(_packed(turned), return_index=True)
    kept = proper[np.sort(unique)]
    return kept, corners[kept]


def _packed(rows: np.ndarray) -> np.ndarray:
    """One number for each row (n, 3) of whole numbers, different for different rows.

    Sorting these takes a tenth of the time that sorting rows does.
    """
    if not len(rows):
        return rows[:, 0]
    moved = rows - rows.min(axis=0)
    _, width, depth = (int(most) + 1 for most in moved.max(axis=0))
    return (moved[:, 0] * width + moved[:, 1]) * depth + moved[:, 2]
