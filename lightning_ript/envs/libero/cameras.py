"""Drawing the cameras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

CAMERAS = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "robot0_eye_in_hand"}
"""Observation key -> name of the camera in LIBERO's models."""


class Cameras:
    """Draws a simulation's cameras at one size.

    Args:
        sim: robosuite's simulation, with its off-screen context.
        keys: Observation keys of the cameras that will be drawn.
        size: Height and width in pixels.
    """

    def __init__(self, sim: Any, keys: Sequence[str], size: int) -> None:
        self._sim = sim
        self._size = size
        self._context = sim._render_context_offscreen
        self._context.gl_ctx.make_current()
        self._context.update_offscreen_size(size, size)

    def draw(self, key: str) -> np.ndarray:
        """The image (H, W, 3) uint8 as OpenGL gives it: the first row is the bottom one."""
        self._context.gl_ctx.make_current()  # another task's may be
        return self._sim.render(self._size, self._size, camera_name=CAMERAS[key])
