"""What the command line says about bad input: one sentence instead of a traceback."""

from __future__ import annotations

import dis
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_ript.commands.settings_in_words import in_words

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


class CommandParser(ArgumentParser):
    """A parser whose errors are the error alone, without pages of usage."""

    def parse_args(self, args: Any = None, *others: Any, **settings: Any) -> Any:
        """Parses arguments; `null` for a setting of a class is null there, too.

        Jsonargparse hands a class's own parser what it has read, and writes Python's None.
        """
        if not self.exit_on_error and args is not None:
            args = [re.sub("=None$", "=null", each) for each in args]
        return super().parse_args(args, *others, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says what is wrong and ends the program.

        Raises:
            SystemExit: Always, with status 2.
        """
        if os.environ.get(_DEBUG) or not self.exit_on_error:  # parsers of parts raise instead
            super().error(message, ex)
        _say(in_words(message, self))
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
        differences = str(error).partition("\n")[2]
        return f"The checkpoint is not of a module with these settings:\n{differences}"
    if isinstance(error, BrokenPipeError):  # a bug, or for `__main__`: nobody reads our output
        return None
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename or 'A file'}: {error.strerror}."
    if isinstance(error, _EXPECTED) and _raised_in(error) in _SPEAKERS and _is_said(error):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("lightning_ript"):
        return f"{str(error).rstrip('.')}: a setting needs this package; install it."
    return None


def _origin_of(error: BaseException) -> TracebackType:
    """Where it was raised."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _raised_in(error: BaseException) -> str:
    """The top-level package whose code raised it."""
    name: str = _origin_of(error).tb_frame.f_globals["__name__"]
    return name.partition(".")[0]


def _is_said(error: BaseException) -> bool:
    """Whether a `raise` of ours made it; a slip of ours, as `None()`, is a bug.

    What the operating system says of a file is meant for the user as well.
    """
    if isinstance(error, OSError) or _raised_in(error) != "lightning_ript":
        return True
    trace = _origin_of(error)
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _say(message: str) -> None:
    kept = [line.strip() for line in message.splitlines() if line.strip()]
    more = f" (and {len(kept) - 6} more)" if len(kept) > 6 else ""
    sys.stderr.write(f"lightning-ript: error: {' '.join(kept[:6])}{more}\n")
    logging.getLogger(__name__).debug("%s=1 shows where this comes from.", _DEBUG)
