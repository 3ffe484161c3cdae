"""Drawing the cameras."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from lightning_ript.envs.libero.decimation import decimated_meshes
from lightning_ript.envs.libero.graphics import CAMERAS, Render

_HIDDEN_GROUP = mujoco.mjNGROUP - 1  # not drawn by default, and used by nothing in LIBERO


class Cameras:
    """Draws a simulation's cameras at one size.

    In software the time goes into the meshes' triangles, most of which lie outside the picture. So
    geometry outside a camera's pyramid of view is not handed to OpenGL, which changes no pixel.

    Args:
        sim: robosuite's simulation, with its off-screen context.
        size: Height and width in pixels.
        render: `full` draws LIBERO's meshes; `light` draws them with fewer triangles and without
            shadows and reflections.
    """

    def __init__(self, sim: Any, size: int, render: Render = "full") -> None:
        self._sim = sim
        self._size = size
        self._model = model = sim.model._model
        self._data = sim.data._data
        self._context = context = sim._render_context_offscreen
        context.gl_ctx.make_current()
        if render == "light":
            context.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            quality = model.vis.quality
            quality.numslices, quality.numstacks, quality.numquads = 12, 6, 1
            with decimated_meshes(model, size):  # the context copies the triangles when it is built
                self._resize()
        else:
            self._resize()
        self._group = model.geom_group.copy()
        self._radius = _bounding_radius(model)
        # What is out of view may still be reflected or throw a shadow into it.
        self._cull = render == "light" or not (_has_mirror(model) or _casts_shadows(model))

    def draw(self, key: str) -> np.ndarray:
        """The image (H, W, 3) uint8 as OpenGL gives it: the first row is the bottom one."""
        self._context.gl_ctx.make_current()  # another task's may be
        camera = CAMERAS[key]
        if not self._cull:
            return self._sim.render(self._size, self._size, camera_name=camera)
        self._model.geom_group[~self._in_view(camera)] = _HIDDEN_GROUP
        try:
            return self._sim.render(self._size, self._size, camera_name=camera)
        finally:
            self._model.geom_group[:] = self._group

    def close(self) -> None:
        """Frees the GL context now: later, its numbers would free another task's objects."""
        self._context.gl_ctx.make_current()
        self._context.con.free()
        self._context.gl_ctx.free()

    def _resize(self) -> None:
        self._context.update_offscreen_size(self._size, self._size)

    def _in_view(self, camera: str) -> np.ndarray:
        """Whether a geom's bounding sphere touches the camera's pyramid of view, (ngeom,) bool."""
        index = self._sim.model.camera_name2id(camera)
        rotation = self._data.cam_xmat[index].reshape(3, 3)
        right, up, back = ((self._data.geom_xpos - self._data.cam_xpos[index]) @ rotation).T
        half = np.radians(self._model.cam_fovy[index]) / 2
        inward, sideward = -back * np.sin(half), np.cos(half)
        outside = np.maximum(np.abs(right), np.abs(up)) * sideward - inward
        return (outside <= self._radius) & (-back >= -self._radius)


def _bounding_radius(model: mujoco.MjModel) -> np.ndarray:
    """Radius (m) of each geom's bounding sphere, (ngeom,); infinite planes have an infinite one."""
    radius = model.geom_rbound.copy()
    plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    finite = plane & (model.geom_size[:, :2] > 0).all(axis=1)
    radius[plane] = np.inf
    radius[finite] = np.linalg.norm(model.geom_size[finite, :2], axis=1)
    return radius


def _has_mirror(model: mujoco.MjModel) -> bool:
    flat = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
    material = model.geom_matid[flat]
    return bool((model.mat_reflectance[material[material >= 0]] > 0).any())


def _casts_shadows(model: mujoco.MjModel) -> bool:
    return bool((model.light_castshadow.astype(bool) & model.light_active.astype(bool)).any())
