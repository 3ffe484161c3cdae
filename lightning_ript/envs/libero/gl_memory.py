"""What OpenGL need not hold, and what need not be held twice once OpenGL has its copy."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import mujoco
import numpy as np

_COPIED = ("tex_data", "mesh_normal", "mesh_facenormal", "mesh_texcoord", "mesh_facetexcoord")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@contextmanager
def unused_textures_left_out(model: mujoco.MjModel, geomgroup: np.ndarray) -> Iterator[None]:
    """Makes textures that nothing wears a single texel while a rendering context is built.

    LIBERO's arenas bring textures of tables that are not there, with mipmaps 100 MB of them.

    Args:
        model: The model.
        geomgroup: Which groups of geoms are drawn.
    """
    drawn = geomgroup[model.geom_group] != 0
    worn = np.concatenate([model.geom_matid[drawn], model.site_matid, model.skin_matid])
    textures = model.mat_texid[worn[worn >= 0]]
    unused = np.setdiff1d(np.arange(model.ntex), textures)
    unused = unused[model.tex_type[unused] != mujoco.mjtTexture.mjTEXTURE_SKYBOX]
    height, width = model.tex_height.copy(), model.tex_width.copy()
    model.tex_height[unused] = model.tex_width[unused] = 1
    try:
        yield
    finally:
        model.tex_height[:], model.tex_width[:] = height, width


def release_copied(model: mujoco.MjModel) -> None:
    """Gives back what the model holds of pictures and shading: its rendering context has a copy.

    No other context can be built from the model afterwards.
    """
    for name in _COPIED:
        _release(getattr(model, name))
    if trim := getattr(_libc, "malloc_trim", None):  # of glibc
        trim(0)  # what building the simulator has left


def _release(array: np.ndarray) -> None:
    page = mmap.PAGESIZE
    start = -(-array.ctypes.data // page) * page
    length = (array.ctypes.data + array.nbytes - start) // page * page
    if length > 0 and _libc.madvise(start, length, mmap.MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), "memory of textures could not be given back")
