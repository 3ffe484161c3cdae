"""`lightning-ript watch`: what a run is doing, in the terminal."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from lightning_ript.reports.run_view import read_moment, run_view


def watch(run_dir: str, every: float = 2.0, once: bool = False) -> None:
    """Shows what a run is doing until it ends, without disturbing it.

    It only reads the run directory, so it works from any machine that sees it. Of a run that has
    ended, and where the output is no terminal, the state is shown once.

    Args:
        run_dir: The run directory.
        every: Seconds between two looks.
        once: Show the state once.

    Raises:
        FileNotFoundError: There is no such directory, or no run has left anything in it.
        ValueError: `every` makes no sense, or a file in the directory is damaged.
    """
    if not every > 0:
        raise ValueError(f"every is {every}: set it to more than 0 seconds.")
    console = Console()
    folder = Path(run_dir)
    moment = read_moment(folder)
    if once or moment.holder is None or not console.is_terminal:
        console.print(run_view(moment))
        return
    view = Live(run_view(moment), console=console, auto_refresh=False)
    with suppress(KeyboardInterrupt), view as live:  # which is how one leaves it
        while moment.holder is not None:
            time.sleep(every)
            moment = read_moment(folder)
            live.update(run_view(moment), refresh=True)
