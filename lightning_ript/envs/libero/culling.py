"""Which geometry a camera's picture depends on.

A software renderer spends its time on the meshes' triangles. Those outside the picture are not
handed to OpenGL. A mirror in view draws everything a second time; here only what it can show is
drawn twice. No pixel changes.
"""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np

_MARGIN = 1e-3  # m; OpenGL computes with fewer digits.
_PRIMITIVE = 1000  # triangles, about what MuJoCo makes of a sphere
_EVERYTHING = (slice(None), slice(None))


class View(NamedTuple):
    """One drawing of the scene, or of a part of the picture.

    Attributes:
        visible: The geoms to draw, (ngeom,) bool.
        reflections: Whether to draw reflections.
        pixels: Rows and columns for which it is right; the first row is the bottom one.
    """

    visible: np.ndarray
    reflections: bool
    pixels: tuple[slice, slice] = _EVERYTHING


class Culling:
    """Finds what a camera may see, by the boxes around geoms and their mirror images.

    MuJoCo mirrors the scene in planes and in the upper faces (+z) of boxes whose material reflects.
    It cannot be used where lights cast shadows: geometry out of view may cast one into it.

    Args:
        model: The model.
        groups: Which groups of geoms are drawn, (6,) bool.
        reflections: Whether reflections are drawn.
    """

    def __init__(self, model: mujoco.MjModel, groups: np.ndarray, reflections: bool = True) -> None:
        self._model = model
        self._center, self._half = model.geom_aabb[:, :3].copy(), model.geom_aabb[:, 3:].copy()
        plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE  # its box is the half-space below
        self._center[plane] = 0.0
        self._half[plane, :2], self._half[plane, 2] = model.geom_size[plane, :2], 0.0
        self._half[plane & (model.geom_size[:, :2] <= 0).any(axis=1), :2] = np.inf
        mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
        self._triangles = np.full(model.ngeom, _PRIMITIVE)
        self._triangles[mesh] = model.mesh_facenum[model.geom_dataid[mesh]]
        drawn = np.asarray(groups, dtype=bool)[model.geom_group]
        self._triangles[~drawn] = 0
        self._mirrors = np.flatnonzero(drawn & _reflects(model) & reflections)

    def views(self, data: mujoco.MjData, camera: int, size: int) -> list[View]:
        """What to draw for a camera's square picture, `size` pixels high, one over the other."""
        axes = data.geom_xmat.reshape(-1, 3, 3).transpose(0, 2, 1)  # (ngeom, axis, xyz)
        centers = data.geom_xpos - data.cam_xpos[camera]  # as seen from the eye, in world axes
        boxes = centers + np.einsum("ga,gax->gx", self._center, axes)
        sight = data.cam_xmat[camera].reshape(3, 3)  # columns: right, up, back
        slope = np.tan(np.radians(self._model.cam_fovy[camera]) / 2)
        pyramid = _pyramid(np.array([-1.0, 1.0]) * slope, np.array([-1.0, 1.0]) * slope) @ sight.T
        seen = self._inside(pyramid, boxes, axes)
        mirrors = self._mirrors[seen[self._mirrors]]
        if not len(mirrors):
            return [View(seen, reflections=False)]
        mirrored = np.zeros_like(seen)
        mirrored[self._mirrors] = True  # with one of several left out, MuJoCo draws others anew
        for mirror in mirrors:
            up = axes[mirror, 2]
            top = centers[mirror] + up * self._height(mirror)
            images = boxes - 2 * np.outer((boxes - top) @ up, up)
            turned = axes - 2 * np.einsum("ga,x->gax", axes @ up, up)
            frame = _frame(top, axes[mirror, :2], self._half[mirror, :2])
            mirrored |= self._inside(np.concatenate([pyramid, frame]), images, turned)
        whole = View(seen | mirrored, reflections=True)
        bounds = self._bounds(mirrors, boxes, axes=axes, sight=sight, slope=slope, size=size)
        if bounds is None:
            return [whole]
        (left, right), (bottom, above) = bounds
        edges = (np.array([[left, right], [bottom, above]]) / size * 2 - 1) * slope
        patch = self._inside(_pyramid(*edges) @ sight.T, boxes, axes) | mirrored
        pixels = slice(bottom, above), slice(left, right)
        parts = [View(seen, reflections=False), View(patch, reflections=True, pixels=pixels)]
        return min([whole], parts, key=self._cost)

    def _cost(self, views: list[View]) -> int:
        return sum((1 + v.reflections) * int(self._triangles[v.visible].sum()) for v in views)

    def _height(self, mirror: int) -> float:
        box = self._model.geom_type[mirror] == mujoco.mjtGeom.mjGEOM_BOX
        return float(self._model.geom_size[mirror, 2]) if box else 0.0

    def _inside(self, normals: np.ndarray, centers: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """Whether a box touches the half-spaces of all (n, 3) normals, as seen from the eye."""
        # An infinite side (of a plane) reaches everywhere, though 0 * inf is not a number.
        with np.errstate(invalid="ignore"):
            reach = np.abs(np.einsum("nx,gax->gna", normals, axes)) * self._half[:, None, :]
        reach = np.nan_to_num(reach, nan=np.inf, posinf=np.inf).sum(axis=-1)
        return (centers @ normals.T + reach >= -_MARGIN).all(axis=1)

    def _bounds(
        self,
        geoms: np.ndarray,
        boxes: np.ndarray,
        axes: np.ndarray,
        sight: np.ndarray,
        slope: float,
        size: int,
    ) -> np.ndarray | None:
        """Columns and rows from and to which the geoms reach, (2, 2); None if in doubt."""
        signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
        corners = np.einsum("ka,gax->gkx", signs, axes[geoms] * self._half[geoms][:, :, None])
        right, up, back = np.moveaxis((boxes[geoms][:, None] + corners) @ sight, -1, 0)
        if not np.isfinite(back).all() or (back > -_MARGIN).any():
            return None  # endless, or not wholly before the camera
        places = (np.stack([right, up]) / -back / slope + 1) / 2 * size
        low = np.floor(places.min(axis=(1, 2))) - 1
        high = np.ceil(places.max(axis=(1, 2))) + 1
        return np.stack([low, high], axis=1).clip(0, size).astype(int)


def _pyramid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Inward normals (5, 3) of a pyramid from the eye, in the camera's axes right, up, back.

    Args:
        x: Slopes of its left and right side, (2,).
        y: Slopes of its lower and upper side, (2,).
    """
    normals = np.array(
        [[1, 0, x[0]], [-1, 0, -x[1]], [0, 1, y[0]], [0, -1, -y[1]], [0, 0, -1]], dtype=float
    )
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _frame(center: np.ndarray, sides: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Inward normals of what is seen from the origin through a rectangle, (4, 3), or none (0, 3).

    Args:
        center: Its centre (3,).
        sides: Directions of its sides, (2, 3).
        half: Half of their lengths, (2,); without end, it frames nothing.
    """
    if np.isinf(half).any():
        return np.empty((0, 3))
    x, y = sides * half[:, None]
    corners = center + np.array([x + y, x - y, -x - y, y - x])
    normals = np.cross(corners, np.roll(corners, -1, axis=0))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    # Seen from its edge, a rectangle frames nothing either.
    normals = np.divide(normals, length, out=np.zeros_like(normals), where=length > 1e-9)
    return normals * np.sign(normals @ center)[:, None]


def casts_shadows(model: mujoco.MjModel) -> bool:
    """Whether any light that is on casts shadows."""
    return bool((model.light_castshadow.astype(bool) & model.light_active.astype(bool)).any())


def _reflects(model: mujoco.MjModel) -> np.ndarray:
    flat = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
    material = model.geom_matid
    return flat & (material >= 0) & (model.mat_reflectance[material] > 0)
