"""One command at a time in a run directory."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

BEAT = 30.0  # seconds between signs of life
SILENCE = 300.0  # seconds after which a holder on another machine is taken for dead
_NAME = ".lock"
log = logging.getLogger(__name__)


class RunLock:
    """Holds a run directory, by a file that no two processes can create, not even over NFS.

    The file says who holds it. A holder on this machine is alive while its process is; one on
    another, until it has not touched the file for five minutes. A requeued SLURM job takes over
    from itself at once.

    Args:
        run_dir: The directory.
        command: What is done there.

    Raises:
        BlockingIOError: Another command holds it; the sentence says which, where and since when.
    """

    held: ClassVar[list[RunLock]] = []

    def __init__(self, run_dir: str | Path, command: str) -> None:
        self.path = Path(run_dir) / _NAME
        self._mine = json.dumps(
            {
                "host": socket.gethostname(),
                "machine": machine(),
                "pid": os.getpid(),
                "process_started": started(os.getpid()),
                "job": os.environ.get("SLURM_JOB_ID"),
                "restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "command": command,
            }
        )
        while not self._created():
            holder = self._holder()
            if holder is None:
                continue  # it has just gone
            if not self._is_stale(holder):
                raise BlockingIOError(self._refusal(holder))
            self._remove(holder)
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        self.held.append(self)

    @classmethod
    def release_all(cls) -> None:
        """Lets go of what this process holds."""
        while cls.held:
            cls.held.pop()._release()

    def _refusal(self, holder: dict[str, Any]) -> str:
        folder = self.path.parent
        if "pid" not in holder:
            return (
                f"{folder} is in use: {self.path} says so, but not by whom. Delete it if it is old."
            )
        return (
            f"{folder} is in use: `{holder['command']}` has been running there since "
            f"{holder['since']}, as process {holder['pid']} on {holder['host']}. Wait for it, stop "
            "it, or choose another --run_dir. (If that machine has died, the directory is free "
            f"{SILENCE / 60:.0f} minutes later.)"
        )

    def _remove(self, holder: dict[str, Any]) -> None:
        """Removes a stale lock, unless another process has just taken over."""
        taken = self.path.with_name(f"{_NAME}.stale.{socket.gethostname()}.{os.getpid()}")
        try:
            os.rename(self.path, taken)
        except FileNotFoundError:
            return
        if json.loads(taken.read_text() or "{}") != holder:
            with suppress(FileExistsError):
                os.link(taken, self.path)
        taken.unlink(missing_ok=True)

    def _release(self) -> None:
        self._over.set()
        with suppress(OSError):
            if self.path.read_text() == self._mine:
                self.path.unlink()

    def _created(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f"{_NAME}.{socket.gethostname()}.{os.getpid()}")
        draft.write_text(self._mine)
        try:
            os.link(draft, self.path)  # whole at once, and only if there is none
        except FileExistsError:
            return False
        except OSError:  # no links on this file system
            return self._created_without_link()
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _created_without_link(self) -> bool:
        try:
            with self.path.open("x") as file:
                file.write(self._mine)
        except FileExistsError:
            return False
        return True

    def _holder(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _is_stale(self, holder: dict[str, Any]) -> bool:
        if holder.get("machine") == machine():
            began = started(int(holder["pid"]))
            return began is None or began != holder.get("process_started")
        job, restarts = holder.get("job"), os.environ.get("SLURM_RESTART_COUNT", "0")
        if job is not None and job == os.environ.get("SLURM_JOB_ID"):
            return holder.get("restarts") != restarts or self._age() > SILENCE
        return self._age() > SILENCE

    def _age(self) -> float:
        """Seconds since the last sign of life, by the clock of the file system."""
        probe = self.path.with_name(f"{_NAME}.now.{os.getpid()}")
        try:
            probe.write_text("")
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):
                if self.path.read_text() != self._mine:
                    break
                os.utime(self.path)
        else:
            return
        if not self._over.is_set():  # this process was silent for so long that it counted as dead
            log.error("Another command has taken over %s: this one stops.", self.path.parent)
            os.kill(os.getpid(), signal.SIGTERM)


def holder_of(run_dir: str | Path) -> dict[str, Any] | None:
    """Who is at work in a run directory, as far as can be seen without touching it.

    Returns:
        `command`, `pid`, `host`, `since`; None if nobody is.
    """
    path = Path(run_dir) / _NAME
    try:
        holder = json.loads(path.read_text())
        silent = time.time() - path.stat().st_mtime
    except (OSError, ValueError):
        return None
    if holder.get("machine") == machine():
        began = started(int(holder["pid"]))
        return holder if began is not None and began == holder["process_started"] else None
    return holder if silent < SILENCE else None


def machine() -> str:
    """Tells machines and containers apart, whose process numbers mean different processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if there is none of that number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
