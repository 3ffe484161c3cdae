"""SIGTERM, by which schedulers end a job: where several processes run, each stops by itself."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)


_heard = False  # by a trainer


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Ends the process with status 1 where no trainer hears SIGTERM yet, or any more.

    The default action would look like a kill from outside, after which schedulers try again.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: Any) -> None:
        if not _heard:
            sys.exit("Stopped by SIGTERM.")

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_sigterm(trainer: L.Trainer) -> None:
    """Stops at once instead of at the end of the epoch, when Lightning would look.

    Raises:
        SIGTERMException: This process was told to end.
    """
    if trainer.received_sigterm:
        raise SIGTERMException


def take_sigterm(trainer: L.Trainer) -> None:
    """Replaces what a trainer does when it is told to end.

    Lightning's handler broadcasts from inside the signal handler. It hangs if only one rank gets
    the signal, and clashes with any collective already running. When SLURM announces the time
    limit, it saves in the middle of an iteration.

    Args:
        trainer: Its processes have been started, and it has not yet run anything.
    """
    connector: Any = trainer._signal_connector

    def handle(number: int, frame: Any) -> None:
        global _heard
        _heard = True
        if connector.received_sigterm:
            return
        connector.received_sigterm = True
        log.info("Rank %d: received SIGTERM.", trainer.global_rank)
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)  # tells the processes that it has started

    def queue_again(number: int, frame: Any) -> None:
        if trainer.is_global_zero:
            log.info("Queueing again: the job's time is nearly over.")
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        handle(number, frame)

    # Registered before it runs anything; the second under SLURM alone.
    connector._sigterm_notifier_fn = handle
    connector._slurm_sigusr_handler_fn = queue_again
