"""The ranks of a run watch each other, so that none waits for one that has ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_ript.distributed.exchange import gather_objects, wait_for_all
from lightning_ript.distributed.sigterm import check_sigterm, take_sigterm
from lightning_ript.storage.files import replacing
from lightning_ript.storage.run_lock import SILENCE, RunLock, machine, started

POLL = 0.5  # seconds between looks at the others
SIGN = 30.0  # seconds between signs of life
GRACE = 15.0  # seconds that a process has to end by itself once another has
ENDS_TOO = "This rank ends with it; the same command goes on from the last checkpoint."
EVIDENCE = 5.0  # seconds to wait for word of why a connection broke
_BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "recvValue")


class RankWatch(Callback):
    """Ends every rank soon after one has ended, with a sentence that says which and why.

    Each rank keeps a file in the run directory while it runs. One that fails writes there why; of
    one that is killed the process is gone, or on another machine the file is no longer touched.
    Otherwise the others would find out in their next collective, after minutes, and say so in the
    words of the communication library. Where machines do not share the run directory, each watches
    its own ranks.

    Args:
        run_dir: The run directory.
    """

    lost: ClassVar[str | None] = None
    """What has become of another rank, once this process knows."""
    said: ClassVar[bool] = False
    """Whether that has been said."""

    def __init__(self, run_dir: str | Path) -> None:
        self._folder = Path(run_dir, ".ranks")
        self._start: str | None = None  # names this start of the run, None while not watching
        self._over = threading.Event()
        self._trusting = 0.0  # until then, silence means nothing

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Starts to watch, if there is anybody else."""
        RankWatch.lost, RankWatch.said = None, False
        take_sigterm(trainer)
        if trainer.world_size == 1 or self._start is not None:
            return
        self._rank, self._ranks = trainer.global_rank, trainer.world_size
        if trainer.is_global_zero:
            shutil.rmtree(self._folder, ignore_errors=True)  # of an earlier start
        self._start = gather_objects(uuid.uuid4().hex)[0]
        self._over.clear()
        self._write()
        threading.Thread(target=self._watch, daemon=True).start()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Waits for ranks whose episodes take longer."""
        if not trainer.sanity_checking:
            wait_for_all(lambda: check_sigterm(trainer))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stops watching: a rank without a file has ended well, or with another."""
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leaves word of why this rank ends, or finds out which one has."""
        if self._start is None:
            return
        if RankWatch.lost is None and is_broken_connection(exception):
            RankWatch.lost = self._evidence()
        if RankWatch.lost is not None:
            self._stop()
            return
        self._over.set()
        with suppress(OSError):  # a full disk may be the reason
            self._write(_reason(exception))
        self._linger()
        self._start = None

    def _linger(self) -> None:
        """Lets the others end by themselves.

        A scheduler that sees this process fail kills them, and would report that instead.
        """
        until = time.monotonic() + EVIDENCE
        others = [self._path(rank) for rank in range(self._ranks) if rank != self._rank]
        while any(path.exists() for path in others) and time.monotonic() < until:
            time.sleep(POLL / 5)

    def _stop(self) -> None:
        if self._start is not None:
            self._over.set()
            self._start = None
            with suppress(OSError):
                self._path(self._rank).unlink(missing_ok=True)
                self._folder.rmdir()  # unless others still have files there

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.json"

    def _write(self, reason: str | None = None) -> None:
        sign = {
            "start": self._start,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "process_started": started(os.getpid()),
            "reason": reason,
        }
        with replacing(self._path(self._rank)) as draft:
            draft.write_text(json.dumps(sign))

    def _watch(self) -> None:
        touched = looked = time.monotonic()
        while not self._over.wait(POLL):
            now = time.monotonic()
            if now - looked > SIGN:  # this machine was asleep, and the others perhaps as well
                self._trusting = now + 2 * SIGN
            looked = now
            if now - touched > SIGN:
                touched = now
                with suppress(OSError):
                    os.utime(self._path(self._rank))
            for sentence in self._ended():
                self._end(sentence)
                return

    def _end(self, sentence: str) -> None:
        """Asks this process to end, as a scheduler would; then makes it."""
        if self._over.is_set():
            return
        RankWatch.lost, RankWatch.said = sentence, True
        sys.stderr.write(f"lightning-ript: error: {sentence} {ENDS_TOO}\n")
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._over.wait(GRACE):  # it hangs in a collective
            self._path(self._rank).unlink(missing_ok=True)
            RunLock.release_all()
            os._exit(1)

    def _evidence(self) -> str | None:
        """Why a connection broke; the rank that has ended may still be about to write it."""
        until = time.monotonic() + EVIDENCE
        while True:
            for sentence in self._ended():
                return sentence
            if time.monotonic() > until:
                return None
            time.sleep(POLL / 5)

    def _ended(self) -> Iterator[str]:
        """A sentence on each rank that has ended otherwise than well."""
        for rank in range(self._ranks):
            path = self._path(rank)
            if rank == self._rank:
                continue
            try:
                sign: dict[str, Any] = json.loads(path.read_text())
                # By the clock of the file system, which all ranks share.
                age = self._path(self._rank).stat().st_mtime - path.stat().st_mtime
            except (OSError, ValueError):
                continue  # not yet begun, or ended well
            if sign["start"] != self._start:
                continue
            who = f"Rank {rank} (process {sign['pid']} on {sign['host']})"
            if sign["reason"] is not None:
                yield f"{who} has ended: {sign['reason']}"
            elif sign["machine"] == machine():
                gone = started(sign["pid"]) != sign["process_started"]
                if gone and path.exists():  # a process that ends well removes it first
                    yield (
                        f"{who} has died without a word. It was killed, as the kernel does where "
                        "memory is short, or it crashed."
                    )
            elif age > SILENCE and time.monotonic() > self._trusting:
                yield f"{who} has given no sign of life for {SILENCE / 60:.0f} minutes."


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error says no more than that another rank does not answer."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(word in str(error) for word in _BROKEN)
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, SIGTERMException):
        return "it was stopped by SIGTERM."
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted."
    first = next(iter(str(error).splitlines()), "")
    return f"{first or 'no message'} ({type(error).__name__})"
