"""What a user's environment says to other programs, and must not say to this one."""

from __future__ import annotations

import io
import logging
import os
import sys

from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def settle() -> None:
    """Changes the variables of this process and of those that it starts.

    - Pictures go to files, whatever a notebook draws with.
    - Where the locale has only ASCII, other letters are shown as question marks.
    - Ranks without the address of their first process are left over from another program; believing
      them, this one would write nothing, or wait for processes that nobody started.
    - In the shell of a SLURM allocation a command that is typed without `srun` is one process.
      Lightning would take it for a task of the job, and fail to find its number.
    """
    os.environ["MPLBACKEND"] = "Agg"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    left_over = [name for name in _RANKS if name in os.environ]
    if left_over and "MASTER_ADDR" not in os.environ:
        for name in left_over:
            del os.environ[name]
        rank_zero_only.rank = _get_rank() or 0  # type: ignore[attr-defined]
        log.warning(
            "%s without MASTER_ADDR: left over from another program, and ignored.",
            ", ".join(left_over),
        )
    if "SLURM_NTASKS" in os.environ and "SLURM_PROCID" not in os.environ:
        del os.environ["SLURM_NTASKS"]
        log.info("Inside a SLURM allocation, but not started by srun: running on this machine.")
