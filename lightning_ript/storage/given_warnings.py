"""The warnings of a run, kept beside its results: in a terminal they scroll away."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lightning_ript.storage.run_directory import warnings_path

MOST = 200  # of one start: a warning that repeats with other numbers does not fill the disk
_FOR_PROGRAMMERS = (DeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


class Given(NamedTuple):
    """A warning.

    Attributes:
        time: When it was given first, in seconds since 1970.
        text: What it says.
    """

    time: float
    text: str


class GivenWarnings(logging.Handler):
    """Appends each warning of this process, once, to a file of the run directory.

    Both kinds count, those of `warnings` and those of `logging`, but of what is deprecated only
    what this project warns of. They are still shown.

    Args:
        run_dir: The run directory.
    """

    kept: ClassVar[list[GivenWarnings]] = []

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__(logging.WARNING)
        self._path = warnings_path(run_dir)
        self._said: set[str] = set()
        self._show: Callable[..., Any] = warnings.showwarning
        warnings.showwarning = self._showwarning  # type: ignore[assignment]
        for logger in self._loggers():
            logger.addHandler(self)
        self.kept.append(self)

    @classmethod
    def end_all(cls) -> None:
        """Restores `warnings` and `logging`."""
        while cls.kept:
            cls.kept.pop()._end()

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps what is logged."""
        self._keep(record.getMessage())

    def _showwarning(
        self, message: Warning | str, category: type[Warning], filename: str, *more: Any
    ) -> None:
        if not issubclass(category, _FOR_PROGRAMMERS) or "lightning_ript" in filename:
            self._keep(str(message))
        self._show(message, category, filename, *more)

    def _keep(self, text: str) -> None:
        text = " ".join(text.split())
        if text in self._said or len(self._said) == MOST:
            return
        self._said.add(text)
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(Given(time.time(), text)) + "\n")

    def _end(self) -> None:
        warnings.showwarning = self._show
        for logger in self._loggers():
            logger.removeHandler(self)

    @staticmethod
    def _loggers() -> list[logging.Logger]:
        lightning = logging.getLogger("lightning")
        return [logging.getLogger()] + ([] if lightning.propagate else [lightning])


def read_warnings(run_dir: str | Path) -> list[Given]:
    """The warnings of all starts of a run, each text once, where it came last; oldest first."""
    try:
        lines = warnings_path(run_dir).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found: dict[str, Given] = {}
    for line in lines:
        with suppress(ValueError):  # a line that a kill or a full disk has cut off
            given = Given(*json.loads(line))
            found.pop(given.text, None)
            found[given.text] = given
    return list(found.values())
