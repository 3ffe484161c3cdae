"""Textures no larger than small pictures can show."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from PIL import Image, PngImagePlugin

from lightning_ript.storage.files import cache_folder, replacing

log = logging.getLogger(__name__)

_TEXTURE = re.compile(r'(<texture\b[^>]*\bfile=")([^"]+\.png)(")')
_TEXELS = 4  # on a pixel's edge, for an object that fills the picture and wraps around itself


def with_small_textures(xml: str, image_size: int) -> str:
    """Replaces a scene's texture files by smaller copies in the project's cache.

    A texture is halved, by the mean of each 2 x 2 texels, as OpenGL does for its mipmaps, while it
    has more than 4 texels per pixel of the picture's edge.

    Args:
        xml: The scene.
        image_size: Height and width of the pictures.
    """
    most = _TEXELS * image_size
    return _TEXTURE.sub(lambda match: match[1] + _small(match[2], most) + match[3], xml)


def _small(file: str, most: int) -> str:
    with Image.open(file) as image:
        factor = 1
        while max(image.size) // factor > most:
            factor *= 2
        if factor == 1:
            return file
        seen = os.stat(file)
        what = f"{file} {seen.st_size} {seen.st_mtime_ns} {factor}"
        digest = hashlib.sha256(what.encode()).hexdigest()[:32]
        path: Path = cache_folder() / "textures" / f"{digest}.png"
        if not path.is_file():
            said = PngImagePlugin.PngInfo()
            if "srgb" in image.info:  # MuJoCo asks
                said.add(b"sRGB", bytes([image.info["srgb"]]))
            with replacing(path) as draft:
                # Colours of a palette have no mean; LIBERO's textures are opaque.
                plain = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
                plain.reduce(factor).save(draft, pnginfo=said)
    return str(path)
