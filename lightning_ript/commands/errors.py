"""What the command line says about bad input: one sentence instead of a traceback."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

_DEBUG = "LIGHTNING_RIPT_DEBUG"
_EXPECTED = (
    ValueError,
    TypeError,
    OSError,
    FloatingPointError,
    ModuleNotFoundError,
    MisconfigurationException,
)
# Packages whose messages of these kinds are meant for the user.
_SPEAKERS = {"lightning_ript", "jsonargparse", "lightning"}
# Wherever they are raised, the user can do something about them and we cannot.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EMFILE)
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value type:",
    "Given value: NestedArg",
    "Given value: Namespace",
)


class CommandParser(ArgumentParser):
    """A parser whose errors are the error alone, without pages of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says what is wrong and ends the program.

        Raises:
            SystemExit: Always, with status 2.
        """
        if os.environ.get(_DEBUG) or not self.exit_on_error:  # parsers of parts raise instead
            super().error(message, ex)
        _say(message)
        raise SystemExit(2) from ex


class LightningCommandParser(CommandParser, LightningArgumentParser):
    """The same for LightningCLI."""


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turns errors of our own checks into one sentence and status 2.

    An error from anywhere else is a bug and keeps its traceback; so does everything when
    LIGHTNING_RIPT_DEBUG is set.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("Interrupted; the same command goes on from where it was.") from None
    except Exception as error:
        cause = _origin(error)
        said = _sentence(cause)
        if os.environ.get(_DEBUG) or said is None:
            raise
        _say(said)
        raise SystemExit(2) from None


def _origin(error: BaseException) -> BaseException:
    """Jsonargparse wraps what the constructor of a configured class raises."""
    while error.__cause__ is not None and _raised_in(error) == "jsonargparse":
        error = error.__cause__
    return error


def _sentence(error: BaseException) -> str | None:
    """What an error says to the user; None if it is a bug of ours."""
    if str(error).startswith("Error(s) in loading state_dict"):
        return str(error)  # a checkpoint of another model
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"(?:GLOBAL|global) [`']?([\w.]+)", str(error))
        return (
            f"A file of weights holds more than data ({named[1] if named else 'other objects'}), "
            "which would be executed. If it is a checkpoint of a run that you trust, add "
            "--weights_only false."
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename or 'A file'}: {error.strerror}."
    if isinstance(error, _EXPECTED) and _raised_in(error) in _SPEAKERS:
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("lightning_ript"):
        return f"{str(error).rstrip('.')}: a setting needs this package; install it."
    return None


def _raised_in(error: BaseException) -> str:
    """The top-level package whose code raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name: str = trace.tb_frame.f_globals["__name__"] if trace is not None else ""
    return name.partition(".")[0]


def _say(message: str) -> None:
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not line.startswith(_NOISE)]
    more = f" (and {len(kept) - 6} more)" if len(kept) > 6 else ""
    sys.stderr.write(f"lightning-ript: error: {' '.join(kept[:6])}{more}\n")
    logging.getLogger(__name__).debug("%s=1 shows where this comes from.", _DEBUG)
