"""What the process itself costs, read from the kernel and the interpreter when somebody asks.

Names are those of Prometheus's own clients. What a platform does not tell is left out.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from tieline.telemetry.families import Reading

Values = Iterable[tuple[tuple[str, ...], float]]

_PROC: Final = Path("/proc/self")
_KIBIBYTE: Final = 1024
_VIRTUAL, _RESIDENT = 0, 1
_STARTED: Final = 19
"""Place of the start time among the fields of ``stat`` that stand behind the command's name."""


def process_readings() -> list[Reading]:
    """Return the families about the process and its Python."""
    return [
        _reading(
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            time.process_time,
        ),
        _reading("process_max_fds", "gauge", "Maximum number of open file descriptors.", _max_descriptors),
        _reading("process_open_fds", "gauge", "Number of open file descriptors.", _open_descriptors),
        _reading("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", lambda: _pages(_RESIDENT)),
        _reading(
            "process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", _start_time
        ),
        _reading("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", lambda: _pages(_VIRTUAL)),
        Reading(
            "python_gc_collections_total",
            "counter",
            "Number of times this generation was collected",
            ("generation",),
            lambda: _collected("collections"),
        ),
        Reading(
            "python_gc_objects_collected_total",
            "counter",
            "Objects collected during gc",
            ("generation",),
            lambda: _collected("collected"),
        ),
        Reading("python_info", "gauge", "Python platform information", ("implementation", "version"), _python),
    ]


def _reading(name: str, kind: str, help_text: str, read: Callable[[], float | None]) -> Reading:
    def values() -> Values:
        number = read()
        return [] if number is None else [((), number)]

    return Reading(name, kind, help_text, (), values)


def _open_descriptors() -> int | None:
    try:
        return sum(1 for _ in (_PROC / "fd").iterdir()) - 1  # less the one that looks
    except OSError:
        return None


def _max_descriptors() -> float:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _pages(which: int) -> int | None:
    try:
        sizes = (_PROC / "statm").read_bytes().split()
    except OSError:
        if which == _RESIDENT:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE
        return None
    return int(sizes[which]) * resource.getpagesize()


def _start_time() -> float | None:
    try:
        fields = (_PROC / "stat").read_bytes().rpartition(b")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return None
    return round(time.time() - since_boot + int(fields[_STARTED]) / ticks, 2)


def _collected(what: str) -> Values:
    return [((str(generation),), stats[what]) for generation, stats in enumerate(gc.get_stats())]


def _python() -> Values:
    return [((platform.python_implementation(), platform.python_version()), 1)]
