"""MuJoCo models compiled once per machine and loaded by every simulator after that.

MuJoCo decodes a scene's textures and works through its meshes whenever it compiles the scene. That
takes seconds, and leaves over a gigabyte with the process. Here a process of its own compiles, the
result goes to the project's cache, and loading it gives the same model bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mujoco
from filelock import FileLock

from lightning_ript.storage.files import cache_folder, replacing

log = logging.getLogger(__name__)

KEPT_BYTES = 16 * 2**30
"""What the cache may grow to; LIBERO's 130 tasks share about forty scenes of 0.12 to 0.27 GB."""

_FILES = re.compile(r'file="([^"]+)"')


def compiled_model(xml: str) -> mujoco.MjModel:
    """The model that MuJoCo compiles from XML, from the cache where it is there.

    Args:
        xml: The scene; files that it names count by path, size and time of their last change.

    Raises:
        ValueError: If MuJoCo cannot compile it.
    """
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("Compiled scenes could not be kept, every simulator makes its own: %s", error)
        return mujoco.MjModel.from_xml_string(xml)
    path = folder / f"{_fingerprint(xml)}.mjb"
    if (model := _load(path)) is not None:
        return model
    try:
        with FileLock(path.with_suffix(".lock")):  # others that want it wait instead of compiling
            if (model := _load(path)) is not None:
                return model
            _compile_elsewhere(xml, path)
            _forget_oldest(folder, keep=path)
    except OSError as error:
        log.warning("A compiled scene could not be kept in %s: %s", folder, error)
    return _load(path) or mujoco.MjModel.from_xml_string(xml)


@contextmanager
def models_from_cache(
    edited: Callable[[str], str] = lambda xml: xml,
) -> Iterator[None]:
    """Lets robosuite take its models from the cache.

    Args:
        edited: Changes the XML before it is compiled.
    """
    from robosuite.utils.binding_utils import MjSim

    before = vars(MjSim)["from_xml_string"]
    last: list[tuple[str, mujoco.MjModel]] = []

    def from_xml_string(cls: type, xml: str) -> Any:
        # LIBERO compiles a scene when it is built and again when it is reset.
        if last and last[0][0] == xml:
            return cls(last.pop()[1])
        model = compiled_model(edited(xml))
        last[:] = [(xml, copy.copy(model))]
        return cls(model)

    MjSim.from_xml_string = classmethod(from_xml_string)
    try:
        yield
    finally:
        MjSim.from_xml_string = before


def _fingerprint(xml: str) -> str:
    digest = hashlib.sha256(f"{mujoco.__version__}\n{xml}".encode())
    for name in sorted(set(_FILES.findall(xml))):
        if os.path.isfile(name):
            seen = os.stat(name)
            digest.update(f"{name} {seen.st_size} {seen.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _load(path: Path) -> mujoco.MjModel | None:
    if not path.is_file():
        return None
    # Without a handler MuJoCo writes its warnings to a file in the current folder.
    before = mujoco.get_mju_user_warning()
    reasons: list[str] = []
    mujoco.set_mju_user_warning(reasons.append)
    try:
        model = mujoco.MjModel.from_binary_path(str(path))
        os.utime(path)  # what was used last stays longest
    except (ValueError, OSError) as error:
        reason = "; ".join([str(error), *reasons])
        log.warning("%s is no compiled scene and is made anew: %s", path, reason)
        return None
    finally:
        mujoco.set_mju_user_warning(before)
    return model


def _compile_elsewhere(xml: str, path: Path) -> None:
    with replacing(path) as draft:
        asked = subprocess.run(
            [sys.executable, "-c", _COMPILE, str(draft)],
            input=xml,
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode:
            raise ValueError(f"MuJoCo cannot compile the scene: {asked.stderr.strip()[-500:]}")


_COMPILE = (
    "import sys, mujoco; "
    "mujoco.mj_saveModel(mujoco.MjModel.from_xml_string(sys.stdin.read()), sys.argv[1], None)"
)


def _forget_oldest(folder: Path, keep: Path) -> None:
    found = []
    for file in folder.glob("*.mjb"):  # drafts, too: of processes that were killed
        with suppress(FileNotFoundError):  # another process has renamed or forgotten it
            seen = file.stat()
            found.append((seen.st_mtime, seen.st_size, file))
    size = 0
    for _, bytes_of_file, file in sorted(found, reverse=True):
        size += bytes_of_file
        if size > KEPT_BYTES and file != keep:
            file.unlink(missing_ok=True)
            file.with_suffix(".lock").unlink(missing_ok=True)
