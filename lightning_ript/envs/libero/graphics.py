"""What is drawn and by which OpenGL, for processes that must load neither MuJoCo nor OpenGL."""

from __future__ import annotations

import ctypes.util
import logging
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

CAMERAS = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "robot0_eye_in_hand"}
"""Observation key -> name of the camera in LIBERO's models."""

Render = Literal["full", "light"]
Textures = Literal["linear", "srgb"]

_DEVICE = "MUJOCO_EGL_DEVICE_ID"
_LIBRARIES = {"osmesa": ("OSMesa", "libosmesa6"), "egl": ("EGL", "libegl1")}


def choose_backend() -> str:
    """The value MUJOCO_GL has, or should have: EGL on a visible NVIDIA GPU, else software."""
    if chosen := os.environ.get("MUJOCO_GL", "").lower().strip():
        return chosen
    return "egl" if _gpus() else "osmesa"


def check_backend() -> None:
    """Refuses a machine that cannot draw.

    Raises:
        ValueError: If MUJOCO_GL names something that cannot draw off screen.
        OSError: If the OpenGL library is missing.
    """
    device_variables(0)
    backend = choose_backend()
    if backend not in _LIBRARIES:
        raise ValueError(
            f"MUJOCO_GL is {backend!r}, but LIBERO's cameras are drawn off screen: "
            "set it to egl (GPU) or osmesa (software), or leave it unset."
        )
    library, package = _LIBRARIES[backend]
    if ctypes.util.find_library(library) is None:
        raise OSError(
            f"lib{library} is missing, which MuJoCo needs to draw with MUJOCO_GL={backend}: "
            f"`apt-get install {package}` (Debian, Ubuntu)."
        )


@lru_cache
def renderer() -> str:
    """Who draws, as OpenGL says it: vendor, renderer and version.

    Asks in a process of its own, because OpenGL must stay out of one that holds torch.
    """
    code = (
        "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); "
        "from OpenGL import GL; "
        "print(*(GL.glGetString(n).decode() for n in (GL.GL_VENDOR, GL.GL_RENDERER, "
        "GL.GL_VERSION)), sep=', ')"
    )
    environment = {**os.environ, **drawing_variables(0)}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:  # a result or a checkpoint is about to be written
        log.warning("OpenGL does not say who draws within two minutes.")
        return "unknown"
    said = asked.stdout.strip().splitlines()
    if asked.returncode or not said:
        log.warning("OpenGL does not say who draws: %s", asked.stderr.strip()[-300:])
        return "unknown"
    return said[-1]


def use_backend() -> None:
    """Settles MUJOCO_GL for this process, before MuJoCo is imported."""
    check_backend()
    backend = choose_backend()
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = backend
        log.info("MUJOCO_GL was not set; drawing with %s.", backend)


def drawing_variables(device: int) -> dict[str, str]:
    """What a worker has to find in its environment, whatever is set there for other programs.

    Args:
        device: As for `device_variables`.

    Raises:
        ValueError: As `device_variables`.
    """
    backend = choose_backend()
    # MuJoCo refuses to draw where the second names another platform than the first.
    return {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend, **device_variables(device)}


def device_variables(device: int) -> dict[str, str]:
    """What tells a worker to draw on its rank's GPU; nothing where software draws.

    Args:
        device: Number of the GPU among those that CUDA_VISIBLE_DEVICES lists. More numbers than
            GPUs begin again at the first.

    Raises:
        ValueError: If the GPU has no number that EGL knows it by.
    """
    if choose_backend() != "egl":
        return {}
    gpus = _gpus() or ["0"]  # Mesa's EGL, in software
    given = os.environ.get(_DEVICE)
    chosen = gpus[device % len(gpus)] if given is None else given.strip()
    if not chosen.isdigit():
        raise ValueError(
            f"{'CUDA_VISIBLE_DEVICES' if given is None else _DEVICE} names a GPU {chosen!r}, but "
            f"EGL knows GPUs by number only: set {_DEVICE} to the number of the one to draw on, or "
            "MUJOCO_GL=osmesa."
        )
    # robosuite wants the one among the other; workers use CUDA for nothing else.
    return {_DEVICE: chosen, "CUDA_VISIBLE_DEVICES": chosen}


def _gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    return [name for each in visible.split(",") if (name := each.strip()) not in ("", "-1")]
