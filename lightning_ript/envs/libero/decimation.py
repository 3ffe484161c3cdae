"""Fewer triangles for drawing, by merging vertices that are closer than a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mujoco
import numpy as np

CELL = 0.006
"""Edge (m) of the cubes whose vertices are merged: about a pixel of a 64-pixel wrist camera at a
grasp."""


@contextmanager
def decimated_meshes(model: mujoco.MjModel, cell: float = CELL) -> Iterator[None]:
    """Simplifies the model's triangles while a rendering context is built from them.

    Vertices in one cube of a grid become one (Rossignac and Borrel 1993), and triangles that
    collapse or coincide are dropped. Afterwards the model is as before: physics never sees it.
    """
    faces, counts = model.mesh_face.copy(), model.mesh_facenum.copy()
    normals, texture = model.mesh_facenormal.copy(), model.mesh_facetexcoord.copy()
    for mesh in range(model.nmesh):
        start, count = model.mesh_faceadr[mesh], counts[mesh]
        first, vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        corners = faces[start : start + count]
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


def _merge(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Merges vertices on a grid.

    Args:
        vertices: (V, 3) metres.
        faces: (F, 3) indices of vertices.
        cell: Edge of the grid's cubes in metres.

    Returns:
        Numbers (K,) of the triangles to keep and their corners (K, 3).
    """
    _, first, cube = np.unique(
        np.floor(vertices / cell).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    corners = first[cube.reshape(-1)][faces]
    proper = np.flatnonzero(
        (corners[:, 0] != corners[:, 1])
        & (corners[:, 1] != corners[:, 2])
        & (corners[:, 2] != corners[:, 0])
    )
    # The same three corners in the same sense are the same triangle, whichever comes first.
    turn = np.argmin(corners[proper], axis=1)[:, None]
    turned = np.take_along_axis(corners[proper], (turn + np.arange(3)) % 3, axis=1)
    _, unique = np.unique(turned, axis=0, return_index=True)
    kept = proper[np.sort(unique)]
    return kept, corners[kept]
