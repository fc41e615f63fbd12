"""Whether a process grows: its memory by the slope, its descriptors and tasks by counting."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from bench import procfs
from bench.errors import BenchError
from bench.processes import Process

MIB = 1 << 20
COUNT_WITHIN_S = 5.0
SETTLE_WITHIN_S = 30.0
"""How long what was open for the work may take to go: idle connections to an app are kept for some seconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds at one time: bytes of memory, files and sockets, tasks that are not done."""

    resident: int
    descriptors: int
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the table.

    Attributes:
        limit: The most that ``figure`` may be; ``None`` if it is told and not judged.
    """

    work: str
    figure: float
    unit: str
    limit: float | None = None

    @property
    def verdict(self) -> str:
        """``ok``, ``over``, or "" where nothing is judged."""
        if self.limit is None:
            return ""
        return "ok" if self.figure <= self.limit else "over"


class Watched:
    """A sidecar started by ``tests.support.counted``, which writes how many tasks it has when it gets SIGUSR1."""

    def __init__(self, name: str, process: Process, tasks_file: Path) -> None:
        self.name = name
        self.process = process
        self._tasks_file = tasks_file

    async def sample(self) -> Sample:
        """Look at it now."""
        pid = self.process.pid
        self.process.check_alive()
        return Sample(procfs.resident_bytes(pid), procfs.descriptors(pid), await self._tasks())

    async def settled(self, before: Sample) -> Sample:
        """Return a sample with no more descriptors and tasks than before, or the last one after a while."""
        end = time.monotonic() + SETTLE_WITHIN_S
        while True:
            now = await self.sample()
            if (now.descriptors <= before.descriptors and now.tasks <= before.tasks) or time.monotonic() > end:
                return now
            await asyncio.sleep(0.5)

    async def _tasks(self) -> int:
        self._tasks_file.unlink(missing_ok=True)
        os.kill(self.process.pid, signal.SIGUSR1)
        end = time.monotonic() + COUNT_WITHIN_S
        while not self._tasks_file.exists():
            if time.monotonic() > end:
                raise BenchError(f"{self.process.name} does not say how many tasks it has")
            await asyncio.sleep(0.01)
        return int(self._tasks_file.read_text().split()[0])


def growth(figures: Sequence[float]) -> float:
    """Return how much a series rises from end to end, by the median slope between any two of its points.

    One outlier, and steps that are taken back, do not move it.
    """
    if len(figures) < 2:
        raise ValueError("no slope without two points")
    slopes = [(later - earlier) / (j - i) for (i, earlier), (j, later) in combinations(enumerate(figures), 2)]
    return statistics.median(slopes) * (len(figures) - 1)


def findings(
    work: str, name: str, before: Sample, running: Sequence[Sample], after: Sample, *, most_bytes: float
) -> list[Finding]:
    """Judge one process by samples from before, during (after the warm-up) and after its work."""
    risen = growth([sample.resident for sample in running])
    kept: list[tuple[str, Callable[[Sample], int]]] = [
        ("descriptors", lambda sample: sample.descriptors),
        ("tasks", lambda sample: sample.tasks),
    ]
    return [
        Finding(work=f"{work}: memory, {name}", figure=risen / MIB, unit="MiB more", limit=most_bytes / MIB),
        *(
            Finding(work=f"{work}: {what}, {name}", figure=count(after) - count(before), unit="more", limit=0)
            for what, count in kept
        ),
    ]


def render(rows: Sequence[Finding]) -> str:
    """Return the table."""
    lines = [("work", "figure", "unit", "limit", "verdict")]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:g}"
        lines.append((row.work, f"{row.figure:.2f}".rstrip("0").rstrip("."), row.unit, limit, row.verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "{:<%d}  {:>%d}  {:<%d}  {:>%d}  {:<%d}" % tuple(widths)  # noqa: UP031 - the braces are for later
    return "\n".join(form.format(*line).rstrip() for line in lines)
