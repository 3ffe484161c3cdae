"""Files that torch.save wrote: whether one is whole, and reading it as nothing but data."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from lightning_ript.storage.hub import first_line

_ZIP = b"PK"
_BEFORE_2020 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled


def fault(path: Path) -> str | None:
    """What is wrong with a file, in words that follow its name; None where it is whole.

    Raises:
        OSError: It cannot be read at the moment, which says nothing about what is in it.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_BEFORE_2020))
            if start == _BEFORE_2020:
                return _fault_before_2020(path)
            if not start.startswith(_ZIP):
                return "is not a file that torch.save wrote" if start else "is empty"
            with zipfile.ZipFile(file) as archive:
                ours = any(name.endswith("/data.pkl") for name in archive.namelist())
                return None if ours else "is a zip file, but not one that torch.save wrote"
    except zipfile.BadZipFile:
        return "is cut off (its end is missing)"
    except OSError as error:
        raise type(error)(
            f"{path} cannot be read ({error.strerror or error}), though it may be whole: see who "
            "may read it, and whether another program has locked it."
        ) from error


def _fault_before_2020(path: Path) -> str | None:
    """As `fault`, of torch's format before 2020, which only reading it to its end can tell."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # where bytes are missing, the unpickler raises anything at all
        return None if _more_than_data(error) else "is cut off or damaged"
    return None


def read_data(path: Path, trusted: bool = False, way_out: str = "name another file") -> Any:
    """What torch.save wrote, on the CPU, and mapped into memory where the format allows.

    Args:
        path: The file.
        trusted: Whether it may hold objects that code makes when they are read.
        way_out: What to do where it holds more than data.

    Raises:
        OSError: It cannot be read at the moment.
        ImportError: It is trusted, and what it holds cannot be imported.
        ValueError: It is damaged, or holds more than data.
    """
    if wrong := fault(path):
        raise ValueError(f"{path} {wrong}: fetch it again, or name another.")
    try:
        return torch.load(
            path, map_location="cpu", weights_only=not trusted, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        what = _more_than_data(error) or "other objects"
        raise ValueError(
            f"{path} holds more than data ({what}), which would be executed: {way_out}."
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes the unpickler raise anything at all
        if trusted and isinstance(error, ImportError | AttributeError):
            raise
        raise ValueError(f"{path} is damaged ({first_line(error)}): fetch it again.") from error


def _more_than_data(error: Exception) -> str | None:
    """The function or class that a file would call, if that is why it is refused."""
    named = re.search(r"(?:GLOBAL|global) [`']?([\w.]+)", str(error))
    return named[1] if named else None
