"""Drawing the cameras."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import mujoco
import numpy as np
from robosuite.utils.binding_utils import MjRenderContextOffscreen

from lightning_ript.envs.libero.culling import Culling, View, casts_shadows
from lightning_ript.envs.libero.decimation import decimated_meshes
from lightning_ript.envs.libero.gl_memory import release_copied, unused_textures_left_out
from lightning_ript.envs.libero.graphics import CAMERAS, Render, Textures

_HIDDEN_GROUP = mujoco.mjNGROUP - 1  # not drawn by default, and used by nothing in LIBERO
_REFLECTION = mujoco.mjtRndFlag.mjRND_REFLECTION


class Cameras:
    """Draws a simulation's cameras at one size.

    What a camera cannot see is not handed to OpenGL, which changes no pixel; see `culling`.

    Args:
        sim: robosuite's simulation, without an off-screen context.
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
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if textures == "linear":
            model.tex_colorspace[:] = mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR
        quality = model.vis.quality
        if not casts_shadows(model) or render == "light":
            quality.shadowsize = 0  # else the context holds a map of 64 MB for them
        groups = mujoco.MjvOption().geomgroup
        groups[0] = 0  # what only collides is not drawn
        with ExitStack() as changed:  # the context copies textures and triangles when it is built
            changed.enter_context(unused_textures_left_out(model, groups))
            if render == "light":
                quality.numslices, quality.numstacks, quality.numquads = 12, 6, 1
                changed.enter_context(decimated_meshes(model, size))
            self._context = context = MjRenderContextOffscreen(sim, device_id=-1)
        release_copied(model)
        context.vopt.geomgroup[:] = groups
        if render == "light":
            context.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            context.scn.flags[_REFLECTION] = 0
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
