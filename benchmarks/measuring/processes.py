"""Memory and processor time of processes, read from Linux's /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

MIB = 1024.0
_TICKS = os.sysconf("SC_CLK_TCK")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_mib(pid: int | str, field: str) -> float:
    """A field of /proc/PID/status in MiB, e.g. `VmRSS` (now) or `VmHWM` (the peak)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / MIB
    raise ValueError(f"/proc/{pid}/status has no field {field}.")


def pss_mib(pid: int | str = "self") -> float:
    """Memory a process has to itself and its share of what it shares (PSS) in MiB; 0 once dead."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (ProcessLookupError, FileNotFoundError):
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / MIB


def restart_peak() -> None:
    """Makes `VmHWM` of this process count from now."""
    Path("/proc/self/clear_refs").write_text("5")


def tree_memory_mib(children: Iterable[int]) -> float:
    """This process's memory plus the children's peaks; shared pages count once per process."""
    return memory_mib("self", "VmRSS") + sum(memory_mib(pid, "VmHWM") for pid in children)


def processor_seconds(children: Iterable[int]) -> tuple[float, float]:
    """Processor time used so far by this process and by its children together."""
    used = 0
    for pid in children:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return time.process_time(), used / _TICKS
