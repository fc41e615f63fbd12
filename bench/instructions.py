"""``python -m bench.instructions``: user instructions a call of our two sidecars, for steps too small for a clock.

``--kind`` chooses the calls: by HTTP; ``rpc``, proxied unary RPCs; ``invoke``, ``InvokeService`` to a gRPC app;
``stream``, a message of a proxied server stream.

Counted by `perf stat` where the processor lets it, else by `valgrind --tool=callgrind`, which slows the sidecars some
fifty times, sees nothing of the kernel, and repeats to a few in a thousand. One call at a time unless told otherwise,
so that how calls happen to bunch does not show.
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import uvloop

from bench.errors import BenchError
from bench.load import ClosedLoop, Work
from bench.processes import House, Maker, Pair, add_ours, ours
from bench.rpc_load import Rpcs, invocations, open_lanes

# Python and all imports under valgrind take their time.
START_TIMEOUT_S = 180.0
CONTROL_TIMEOUT_S = 60
PERF_ATTACH_S = 0.5
PERF_EVENT = "instructions:u"
KINDS = ("http", "rpc", "invoke", "stream")
STREAM_MESSAGES = 1000


class Counter(Protocol):
    """Counts the instructions of running processes between ``begin`` and ``end``."""

    def wrap(self, maker: Maker) -> Maker:
        """Return how the sidecars must be started to be counted."""
        ...

    def begin(self, pids: Mapping[str, int]) -> None:
        """Start counting; process ids by role."""
        ...

    def end(self) -> dict[str, int]:
        """Stop counting; instructions by role."""
        ...


class Perf:
    """The processor's own counters, attached to the running processes."""

    def __init__(self) -> None:
        self.watchers: dict[str, subprocess.Popen[str]] = {}

    def wrap(self, maker: Maker) -> Maker:
        return maker

    def begin(self, pids: Mapping[str, int]) -> None:
        for role, pid in pids.items():
            command = ["perf", "stat", "-x,", "-e", PERF_EVENT, "-p", str(pid)]
            self.watchers[role] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        # It does not say when it is attached.
        time.sleep(PERF_ATTACH_S)

    def end(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for role, watcher in self.watchers.items():
            watcher.send_signal(signal.SIGINT)
            _, report = watcher.communicate(timeout=CONTROL_TIMEOUT_S)
            counts[role] = parse_perf(report)
        return counts


@dataclass(frozen=True, slots=True)
class UnderCallgrind:
    """A pair whose sidecars run inside valgrind; each dumps its counts into ``folder`` when told."""

    maker: Maker
    folder: Path

    @property
    def name(self) -> str:
        return self.maker.name

    def command(self, role: str, ports: Mapping[str, int], run_dir: Path, *, long_bodies: bool) -> list[str]:
        inner = self.maker.command(role, ports, run_dir, long_bodies=long_bodies)
        return ["valgrind", "--tool=callgrind", f"--callgrind-out-file={self.folder}/%p", *inner]

    def environment(self, run_dir: Path) -> dict[str, str]:
        # Else the order of sets and the collisions of dicts differ from run to run.
        return {**self.maker.environment(run_dir), "PYTHONHASHSEED": "0"}


class Callgrind:
    """Simulated instructions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pids: Mapping[str, int] = {}

    def wrap(self, maker: Maker) -> Maker:
        return UnderCallgrind(maker, self.folder)

    def begin(self, pids: Mapping[str, int]) -> None:
        self.pids = pids
        for pid in pids.values():
            _control("--zero", pid)

    def end(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for role, pid in self.pids.items():
            _control("--dump", pid)
            # The first dump on demand; the one at exit has no number.
            counts[role] = parse_callgrind((self.folder / f"{pid}.1").read_text())
        return counts


def _control(order: str, pid: int) -> None:
    done = subprocess.run(["callgrind_control", order, str(pid)], capture_output=True, timeout=CONTROL_TIMEOUT_S)
    if done.returncode != 0:
        raise BenchError(f"callgrind_control {order} failed: {done.stdout.decode().strip()[-200:]}")


def parse_perf(report: str) -> int:
    """Return the count in the CSV of `perf stat -x,`."""
    for line in report.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[2].startswith(PERF_EVENT) and fields[0].isdigit():
            return int(fields[0])
    raise BenchError(f"perf counted nothing: {report.strip()[-200:]}")


def parse_callgrind(dump: str) -> int:
    """Return the instructions in a dump of callgrind."""
    found = re.search(r"^(?:summary|totals): (\d+)", dump, re.MULTILINE)
    if found is None:
        raise BenchError("callgrind's dump holds no total")
    return int(found[1])


def has_perf() -> bool:
    """Say whether `perf` is there and the processor (or the machine it is simulated on) lets it count."""
    if shutil.which("perf") is None:
        return False
    done = subprocess.run(["perf", "stat", "-x,", "-e", PERF_EVENT, "true"], capture_output=True, text=True)
    try:
        return parse_perf(done.stderr) > 0
    except BenchError:
        return False


def choose(folder: Path) -> Counter:
    """Return the better counter that works here."""
    if has_perf():
        return Perf()
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        raise BenchError("instructions need `perf` with hardware counters, or `apt-get install valgrind`")
    return Callgrind(folder)


def work_of(kind: str, pair: Pair) -> Work:
    """Return the calls of one of ``KINDS``."""
    work = pair.work
    if kind == "invoke":
        return invocations(work.port, "callee")
    if kind == "stream":
        assert isinstance(work, Rpcs)
        return replace(work, messages=STREAM_MESSAGES)
    return work


async def count(pair: Pair, counter: Counter, work: Work, calls: int, at_a_time: int) -> dict[str, float]:
    """Return instructions by role, after a warm-up of as many calls: a call, or a message of those that have many."""
    load = ClosedLoop()
    if isinstance(work, Rpcs):
        load.use(await open_lanes(work, load, at_a_time))
    else:
        await load.open(work, at_a_time)
    try:
        await load.run(calls)
        counter.begin({"caller": pair.caller.pid, "callee": pair.callee.pid})
        outcome = await load.run(calls)
        counts = counter.end()
    finally:
        load.close()
    if outcome.errors:
        raise BenchError(f"wrong answers: {dict(outcome.errors)}")
    units = calls * (work.messages if isinstance(work, Rpcs) else 1)
    return {role: number / units for role, number in counts.items()}


def run(options: argparse.Namespace) -> None:
    """Start the pair, count, print a line a sidecar."""
    with tempfile.TemporaryDirectory(prefix="tieline-bench-") as name:
        folder = Path(name)
        house = House(folder, START_TIMEOUT_S)
        counter = choose(folder)
        try:
            house.start_app()
            maker = ours(options)
            if options.kind == "http":
                pair = house.start_pair(counter.wrap(maker))
            else:
                pair = house.start_rpc_pair(maker, counter.wrap)
            work = work_of(options.kind, pair)
            counts = uvloop.run(count(pair, counter, work, options.calls, options.at_a_time))
        finally:
            house.close()
    unit = "message" if options.kind == "stream" else "call"
    print(f"user-space instructions a {unit}, by {type(counter).__name__.lower()}")
    for role, number in {**counts, "pair": sum(counts.values())}.items():
        print(f"{role:8}{number:12,.0f}")


def main() -> int:
    """Run with the process's own arguments."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument("--at-a-time", type=int, default=1, help="calls in progress, eight of gRPC on a connection")
    parser.add_argument("--calls", type=int, default=500, help="calls to count, after as many for warming up")
    add_ours(parser)
    try:
        run(parser.parse_args())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
