"""What a run is doing right now, in a file that others may read."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lightning_ript.storage.files import replacing
from lightning_ript.storage.run_directory import status_path

BETWEEN = "between iterations"


@dataclass(frozen=True)
class RunStatus:
    """A moment of a run.

    Attributes:
        doing: `starting`, `collecting`, `learning`, `evaluating`, `between iterations` or `ended`.
        since: When it began to do so, in seconds since 1970.
        iteration: Its number, 1 for the first; 0 where none is counted.
        iterations: How many there will be; None where there is no end.
        done: Episodes, or batches where nothing acts, so far.
        of: How many there will be; None where that is not known.
        successes: Of the episodes, None where nothing acts.
        kept: Groups kept, over all ranks; None where none are.
        wanted: Groups to keep.
        dropped: Groups dropped, over all ranks.
        ranks: Processes; episodes and batches are those of the first.
        unit: What an iteration is called, `iteration` or `epoch`.
        started: When this start of the run was, in seconds since 1970.
        written: When this was written, in seconds since 1970.
    """

    doing: str
    since: float
    iteration: int = 0
    iterations: int | None = None
    done: int = 0
    of: int | None = None
    successes: int | None = None
    kept: int | None = None
    wanted: int | None = None
    dropped: int | None = None
    ranks: int = 1
    unit: str = "iteration"
    started: float = 0.0
    written: float = 0.0

    def write(self, run_dir: str | Path) -> None:
        """Replaces what the file says."""
        with replacing(status_path(run_dir)) as draft:
            draft.write_text(json.dumps({**asdict(self), "written": time.time()}))

    @classmethod
    def read(cls, run_dir: str | Path) -> RunStatus | None:
        """The last that was written, None if nothing was.

        Raises:
            ValueError: The file is damaged.
        """
        path = status_path(run_dir)
        try:
            found = json.loads(path.read_text())
            # Another version may have written it, with fewer fields or more.
            return cls(**{e.name: found[e.name] for e in fields(cls) if e.name in found})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not what a run writes ({error!r}).") from error
