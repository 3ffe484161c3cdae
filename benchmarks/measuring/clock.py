"""Where a simulator process spends its time. Imported by simulator processes: no torch here."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Seconds by part; what is drawn during a part counts as `render` alone.

    Seconds are wall time, so they include the time a part had to wait for a core.
    """

    def __init__(self) -> None:
        self._seconds = {"reset": 0.0, "step": 0.0, "render": 0.0}
        self._steps = 0

    @contextmanager
    def part(self, name: str, steps: int = 0) -> Iterator[None]:
        """Measures a part, `reset` or `step`, in which `steps` control steps are executed."""
        started, drawn = time.perf_counter(), self._seconds["render"]
        yield
        elapsed = time.perf_counter() - started
        self._seconds[name] += elapsed - (self._seconds["render"] - drawn)
        self._steps += steps

    def count(self, steps: int) -> None:
        """Adds executed control steps."""
        self._steps += steps

    def read(self) -> dict[str, float]:
        """Seconds by part and control steps so far."""
        return {**self._seconds, "executed_steps": self._steps}

    def time_renders(self) -> None:
        """Measures every picture this process draws, whoever draws it.

        Call it once robosuite may be imported: after LIBERO and the graphics are configured.
        """
        from robosuite.utils.binding_utils import MjSim

        MjSim.render = self._timed(MjSim.render)

    def _timed(self, render: Callable) -> Callable:
        @functools.wraps(render)
        def timed(*arguments: Any, **settings: Any) -> Any:
            started = time.perf_counter()
            try:
                return render(*arguments, **settings)
            finally:
                self._seconds["render"] += time.perf_counter() - started

        return timed
