"""Drawing the cameras."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from lightning_ript.envs.libero.culling import Culling, View, casts_shadows
from lightning_ript.envs.libero.decimation import decimated_meshes
from lightning_ript.envs.libero.graphics import CAMERAS, Render, Textures

_HIDDEN_GROUP = mujoco.mjNGROUP - 1  # not drawn by default, and used by nothing in LIBERO
_REFLECTION = mujoco.mjtRndFlag.mjRND_REFLECTION


class Cameras:
    """Draws a simulation's cameras at one size.

    What a camera cannot see is not handed to OpenGL, which changes no pixel; see `culling`.

    Args:
        sim: robosuite's simulation, with its off-screen context.
        size: Height and width in pixels.
        render: `full` draws LIBERO's meshes; `light` draws them with fewer triangles and without
            shadows and reflections.
        textures: `linear` takes the numbers in texture files as they are, as MuJoCo did up to
            3.3.2; `srgb` converts those of files that say they are sRGB, as it does since.
    """

    def __init__(
        self, sim: Any, size: int, render: Render = "full", textures: Textures = "linear"
    ) -> None:
        self._sim = sim
        self._size = size
        self._model = model = sim.model._model
        self._data = sim.data._data
        self._context = context = sim._render_context_offscreen
        context.gl_ctx.make_current()
        if textures == "linear":  # before the textures are uploaded, which `_resize` does again
            model.tex_colorspace[:] = mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR
        if render == "light":
            context.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            context.scn.flags[_REFLECTION] = 0
            quality = model.vis.quality
            quality.numslices, quality.numstacks, quality.numquads = 12, 6, 1
            with decimated_meshes(model, size):  # the context copies the triangles when it is built
                self._resize()
        else:
            self._resize()
        self._group = model.geom_group.copy()
        light = render == "light"
        self._culling = (
            Culling(model, context.vopt.geomgroup, reflections=not light)
            if light or not casts_shadows(model)
            else None
        )

    def draw(self, key: str) -> np.ndarray:
        """The image (H, W, 3) uint8 as OpenGL gives it: the first row is the bottom one."""
        self._context.gl_ctx.make_current()  # another task's may be
        camera = CAMERAS[key]
        if self._culling is None:
            return self._render(camera)
        flags = self._context.scn.flags
        index = self._sim.model.camera_name2id(camera)
        first, *others = self._culling.views(self._data, index, self._size)
        before = flags[_REFLECTION]
        try:
            picture = self._draw_view(camera, first)
            for view in others:
                picture[view.pixels] = self._draw_view(camera, view)[view.pixels]
        finally:
            self._model.geom_group[:] = self._group
            flags[_REFLECTION] = before
        return picture

    def _draw_view(self, camera: str, view: View) -> np.ndarray:
        self._model.geom_group[:] = np.where(view.visible, self._group, _HIDDEN_GROUP)
        self._context.scn.flags[_REFLECTION] = view.reflections
        return self._render(camera)

    def _render(self, camera: str) -> np.ndarray:
        return self._sim.render(self._size, self._size, camera_name=camera)

    def close(self) -> None:
        """Frees the GL context now: later, its numbers would free another task's objects."""
        self._context.gl_ctx.make_current()
        self._context.con.free()
        self._context.gl_ctx.free()

    def _resize(self) -> None:
        self._context.update_offscreen_size(self._size, self._size)
