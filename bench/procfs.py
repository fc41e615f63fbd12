"""What the kernel knows about another process: CPU time and resident memory.  Linux only."""

import os
import time
from pathlib import Path

from bench.errors import BenchError


def cpu_ns(pid: int) -> int:
    """Return the CPU time in ns that all threads of a process have used, ended threads included.

    This is ``clock_getcpuclockid(3)``. ``/proc/<pid>/schedstat`` is as fine, but covers the first thread only, and
    Envoy works in another; ``/proc/<pid>/stat`` covers all, but counts in steps of 10 ms.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError as error:
        raise BenchError(f"process {pid} has ended: no CPU time to read") from error


def machine_cpu_ns() -> int:
    """Return the CPU time in ns, in steps of 10 ms, that all programs of this machine have used since it started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def children(pid: int) -> list[int]:
    """Return the processes started by the first thread of a process; empty where the kernel does not tell."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def descriptors(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError as error:
        raise BenchError(f"cannot count the open files of process {pid}: {error.strerror}") from error


def resident_bytes(pid: int) -> int:
    """Return VmRSS."""
    return _status_bytes(pid, "VmRSS:")


def peak_bytes(pid: int) -> int:
    """Return VmHWM: the highest VmRSS since the start or the last ``reset_peak``."""
    return _status_bytes(pid, "VmHWM:")


def reset_peak(pid: int) -> None:
    """Let VmHWM start again from the present VmRSS."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError as error:
        raise BenchError(f"cannot reset the memory peak of process {pid}: {error.strerror}") from error


def _status_bytes(pid: int, field: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError as error:
        raise BenchError(f"process {pid} has ended: no memory to read") from error
    raise BenchError(f"process {pid} has ended: no {field} in its status")
