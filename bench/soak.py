"""``python -m bench.soak``: a long life in some minutes; nothing may grow, and idle connections may cost little.

Counted, not timed: memory by its slope once it is warm, descriptors and tasks before and after.
"""

import argparse
import asyncio
import os
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvloop

from bench import load, peers
from bench.errors import BenchError
from bench.growth import MIB, Finding, Sample, Watched, findings, render
from bench.load import Caller, Connection, OpenLoop, Schedule, Work, no_garbage_collection
from bench.measure import QUIET_CPUS, Bystanders, bystander_note
from bench.processes import START_TIMEOUT_S, House, Ours, Pair, wait_for_call
from bench.report import percentile
from tieline.net.descriptors import FOR_CALLERS

ROOT = Path(__file__).parents[1]
STEPS = 20
WARM_STEPS = 5
"""Of ``STEPS``: until then memory that is used once for all has been used."""
MOST_GROWTH = 2 * MIB
"""Of one process over a whole measurement, less its warm-up."""
IDLE_BYTES = 15_000
"""Of memory for a connection that does nothing: 2,000 are to cost less than 30 MiB."""
IDLE_CYCLES = 3
LIVE_RATE = 1000
LIVE_S = 8.0
SLOWER_AT_MOST = 1.2
"""The 99th percentile of live calls beside idle connections, over that without."""
SLOWER_MS_AT_MOST = 0.5
"""Where both are so fast that a ratio says nothing."""
SHORT_AT_ONCE = 32
SPARE_DESCRIPTORS = 300
NAMES = 40
KEPT_NAMES = 10
"""Of them are there at a time."""
SOURCES = [f"127.0.0.{number}" for number in range(2, 34)]
"""Where short connections come from, so that no address runs out of ports that the kernel still keeps closed."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Our pair, of sidecars that tell how many tasks they have."""

    name: str = "ours"

    def command(self, role: str, ports: Mapping[str, int], run_dir: Path, *, long_bodies: bool) -> list[str]:
        launcher = shlex.join(
            [sys.executable, "-m", "tests.support.counted", "sidecar", "--log-level", "error", "--no-mdns"]
        )
        return Ours(launcher, {}).command(role, ports, run_dir, long_bodies=long_bodies)

    def environment(self, run_dir: Path) -> dict[str, str]:
        # The sidecars are those of this checkout.
        path = os.pathsep.join(map(str, (ROOT, ROOT / "src")))
        return {"XDG_STATE_HOME": str(run_dir), "TIELINE_TASKS": str(tasks_file(run_dir)), "PYTHONPATH": path}


def tasks_file(run_dir: Path) -> Path:
    """Return where a sidecar writes how many tasks it has; one is asked at a time."""
    return run_dir / "tasks"


class Soak:
    """One measurement: a fresh pair, and what is known about it."""

    def __init__(self, house: House, options: argparse.Namespace) -> None:
        self.house = house
        self.options = options
        self.pair: Pair = house.start_pair(Counted())
        self.folder = house.run_dir / str(house.folders)
        self.caller = Watched("caller", self.pair.caller, tasks_file(self.folder))
        self.callee = Watched("callee", self.pair.callee, tasks_file(self.folder))

    async def grow(
        self, work: str, some: Callable[[range], Awaitable[None]], total: int, watched: Sequence[Watched]
    ) -> list[Finding]:
        """Do ``some`` of the work step by step, and judge what it left behind in those watched."""
        before = [await one.sample() for one in watched]
        running: list[list[Sample]] = [[] for _ in watched]
        for number, step in enumerate(steps(total)):
            say(f"{work}: {step.stop} of {total}")
            await some(step)
            if number >= WARM_STEPS:
                for one, samples in zip(watched, running, strict=True):
                    samples.append(await one.sample())
        rows: list[Finding] = []
        for one, first, samples in zip(watched, before, running, strict=True):
            after = await one.settled(first)
            rows += findings(work, one.name, first, samples, after, most_bytes=MOST_GROWTH)
        return rows


def steps(total: int) -> Iterator[range]:
    """Cut so much work into ``STEPS`` parts."""
    for number in range(STEPS):
        yield range(total * number // STEPS, total * (number + 1) // STEPS)


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


# ── idle connections ──


class Crowd:
    """Connections that made one call each and are kept."""

    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._answered: asyncio.Future[None] | None = None
        self._awaited = 0

    async def open(self, work: Work, count: int) -> None:
        """Open so many more, some at a time."""
        while count > 0:
            some = await load.connect(work, self, min(count, 100))
            self._connections += some
            self._awaited = len(some)
            self._answered = asyncio.get_running_loop().create_future()
            for connection in some:
                connection.send()
            await asyncio.wait_for(self._answered, load.STALL_TIMEOUT_S)
            count -= len(some)

    def on_answer(self, connection: Caller, problem: str | None) -> None:
        if problem is not None:
            self.on_broken(BenchError(problem))
        self._awaited -= 1
        if not self._awaited and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def on_broken(self, error: BenchError) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

    def close(self) -> None:
        """Close all of them."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()


async def live_p99_ms(work: Work) -> float:
    """Return the 99th percentile of calls at a fixed rate."""
    live = OpenLoop(Schedule(rate=LIVE_RATE, seconds=LIVE_S, warm_up_s=1.0))
    try:
        await live.open(work)
        with no_garbage_collection():
            outcome = await live.run()
    finally:
        live.close()
    if outcome.errors:
        raise BenchError(f"live calls failed: {dict(outcome.errors)}")
    return percentile(sorted(live.latencies_ns), 0.99) / 1e6


async def idle(soak: Soak) -> list[Finding]:
    """Open thousands of connections that then do nothing, close them, and once more; live calls go on beside them."""
    count = soak.options.idle
    crowd = Crowd()
    with_ms: list[float] = []
    without_ms: list[float] = []
    held: list[int] = []
    rows: list[Finding] = []
    bystanders = Bystanders(soak.house)
    await live_p99_ms(soak.pair.work)  # warm-up
    before = [await one.sample() for one in (soak.caller, soak.callee)]
    for number in range(IDLE_CYCLES):
        say(f"idle: {count} connections, time {number + 1} of {IDLE_CYCLES}")
        without_ms.append(await live_p99_ms(soak.pair.work))
        await crowd.open(soak.pair.work, count)
        held.append((await soak.caller.sample()).resident)
        with_ms.append(await live_p99_ms(soak.pair.work))
        crowd.close()
        await soak.caller.settled(before[0])
    a_connection = (held[0] - before[0].resident) / count
    rows.append(
        Finding(work=f"idle: {count} connections, memory for one", figure=a_connection, unit="bytes", limit=IDLE_BYTES)
    )
    # The best of several: other programs only ever make it slower.
    slower = min(with_ms) / min(without_ms)
    judged = min(with_ms) - min(without_ms) > SLOWER_MS_AT_MOST
    if (busy := bystanders.cpus()) > QUIET_CPUS:
        say(f"idle: latency is told and not judged: {bystander_note(busy)}")
        judged = False
    rows.append(
        Finding(
            work=f"idle: p99 of {LIVE_RATE} calls/s beside them ({min(with_ms):.2f} ms), over that without",
            figure=slower, unit="times", limit=SLOWER_AT_MOST if judged else None,
        )
    )  # fmt: skip
    more = (held[-1] - held[0]) / MIB
    rows.append(
        Finding(
            work="idle: memory the last time, over the first", figure=more, unit="MiB more", limit=MOST_GROWTH / MIB
        )
    )
    for one, first in zip((soak.caller, soak.callee), before, strict=True):
        after = await one.settled(first)
        for what in ("descriptors", "tasks"):
            left = getattr(after, what) - getattr(first, what)
            rows.append(Finding(work=f"idle: {what}, {one.name}", figure=left, unit="more", limit=0))
    return rows


# ── short connections ──


class Short(asyncio.Protocol):
    """A connection that ends in one of several ways, with or without an answer."""

    def __init__(self, work: Work, number: int, done: asyncio.Future[None]) -> None:
        self._way = number % 8
        self._done = done
        request = work.request()
        # Said by the client: the sidecar closes. Else the client does, sometimes before its request is whole.
        self._request = request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") if self._way < 2 else request
        self._answer_bytes = work.answer_bytes
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, but do the same.
        self._transport = cast(asyncio.Transport, transport)
        if self._way == 6:
            self._transport.close()
        elif self._way == 7:
            self._transport.write(self._request[:-2])
            self._transport.abort()
        else:
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            whole, problem = load.judge(self._data, self._answer_bytes)
        except BenchError as error:
            whole, problem = True, str(error)
        if problem is not None and not self._done.done():
            self._done.set_exception(BenchError(problem))
        if whole and self._way in (2, 3):
            self._transport.close()
        elif whole and self._way > 3:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done.done():
            return
        if self._way < 6 and not self._data:
            self._done.set_exception(BenchError(f"a connection was closed without an answer: {exc or 'end of stream'}"))
        else:
            self._done.set_result(None)


async def short(soak: Soak) -> list[Finding]:
    """Open connections for one call each, or less."""
    loop = asyncio.get_running_loop()
    work = soak.pair.work

    async def some(numbers: range) -> None:
        left = iter(numbers)

        async def worker() -> None:
            for number in left:
                done = loop.create_future()
                source = (SOURCES[number % len(SOURCES)], 0)
                await loop.create_connection(
                    lambda number=number, done=done: Short(work, number, done),  # type: ignore[misc]
                    "127.0.0.1", work.port, local_addr=source,
                )  # fmt: skip
                await done

        await asyncio.gather(*(worker() for _ in range(SHORT_AT_ONCE)))

    return await soak.grow("short connections", some, soak.options.short, [soak.caller, soak.callee])


# ── peers and names that come and go ──


async def restarts(soak: Soak) -> list[Finding]:
    """Let a callee leave and come back at another port, by turns with a goodbye and without."""

    async def some(numbers: range) -> None:
        for number in numbers:
            peer = peers.Peer("peer", soak.folder)
            await peer.start()
            await expect(soak, "peer", 200, peers.ANSWER)
            await peer.stop(gently=number % 2 == 0)

    return await soak.grow("restarts of a peer", some, soak.options.restarts, [soak.caller])


async def real(soak: Soak) -> list[Finding]:
    """Kill or stop the callee's process and start another in its place, with the same command."""
    current = soak.pair.callee
    command = list(map(str, current.popen.args)) if isinstance(current.popen.args, list) else []
    environment = Counted().environment(soak.folder)

    async def some(numbers: range) -> None:
        nonlocal current
        for number in numbers:
            current.popen.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
            current.popen.wait()
            current = soak.house.start("the callee of ours", command, soak.folder, environment)
            await asyncio.to_thread(wait_for_call, soak.pair.caller, soak.pair.work, START_TIMEOUT_S)

    return await soak.grow("restarts of a process", some, soak.options.real, [soak.caller])


async def names(soak: Soak) -> list[Finding]:
    """Let apps come, be called, and go, some at a time; call those that are gone, and names that never were."""
    living: list[peers.Peer] = []

    async def some(numbers: range) -> None:
        for number in numbers:
            peer = peers.Peer(name(number), soak.folder)
            await peer.start()
            living.append(peer)
            await expect(soak, name(number), 200, peers.ANSWER)
            await expect(soak, f"never-{number % NAMES}", 500, None)
            if len(living) > KEPT_NAMES:
                await living.pop(0).stop(gently=True)
                if number % 50 == 0:  # seldom, since a name that was known just now is asked for some seconds long
                    await expect(soak, name(number - KEPT_NAMES), 500, None)
        if numbers.stop == soak.options.names:
            for peer in living:
                await peer.stop(gently=True)

    return await soak.grow("apps that come and go", some, soak.options.names, [soak.caller])


def name(number: int) -> str:
    """Return an app ID; the same ones come back."""
    return f"app-{number % NAMES}"


async def strangers(soak: Soak) -> list[Finding]:
    """Call apps that nobody ever heard of, each once: more of them than anything may remember."""

    async def some(numbers: range) -> None:
        for number in numbers:
            await expect(soak, f"stranger-{number}", 500, None)

    return await soak.grow("strange names", some, soak.options.strangers, [soak.caller])


async def expect(soak: Soak, app_id: str, status: int, body: bytes | None) -> None:
    """Make a call that must be answered so."""
    got, text = await peers.call(soak.pair.work.port, app_id)
    if got != status or (body is not None and text != body):
        raise BenchError(f"a call to {app_id} was answered {got} {text[:200]!r}")


PHASES: dict[str, Callable[[Soak], Coroutine[Any, Any, list[Finding]]]] = {
    "idle": idle,
    "short": short,
    "restarts": restarts,
    "real": real,
    "names": names,
    "strangers": strangers,
}
COUNTS = {"idle": 10_000, "short": 200_000, "restarts": 2000, "real": 60, "names": 500, "strangers": 8000}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; ends the process with a usage text on bad ones."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    for name, phase in PHASES.items():
        text = f"{(phase.__doc__ or '').strip()} (default {COUNTS[name]})"
        parser.add_argument(f"--{name}", type=int, default=COUNTS[name], metavar="COUNT", help=text)
    parser.add_argument("--only", default=",".join(PHASES), metavar="NAME,...", help="which of these")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only.split(",")) - set(PHASES)):
        parser.error(f"--only: there is no {', '.join(unknown)}; there are: {', '.join(PHASES)}")
    for name in PHASES:
        if getattr(options, name) < STEPS:
            parser.error(f"--{name}: fewer than {STEPS} say nothing")
    return options


def raise_descriptor_limit(wanted: int) -> None:
    """Let this process and those that it starts open so many files.

    Raises:
        BenchError: The system does not allow that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchError(f"{wanted} open files are needed, and {hard} allowed (`ulimit -Hn`): give a smaller --idle")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def run(options: argparse.Namespace) -> int:
    """Soak and report; return the exit code: 0, or 1 if something grew or a call got a wrong answer."""
    if "idle" in options.only.split(","):
        raise_descriptor_limit(int((options.idle + SPARE_DESCRIPTORS) / FOR_CALLERS))
    started = time.monotonic()
    rows: list[Finding] = []
    errors: list[str] = []
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="tieline-soak-") as folder:
            house = House(Path(folder))
            try:
                house.start_app()
                rows += uvloop.run(PHASES[name](Soak(house, options)))
            except BenchError as error:
                errors.append(f"{name}: {error}")
            finally:
                house.close()
    print(render(rows))
    print(f"\n{time.monotonic() - started:.0f} s on {os.cpu_count()} CPUs")
    for problem in errors:
        print(f"FAILED: {problem}")
    return 1 if errors or any(row.verdict == "over" for row in rows) else 0


def main() -> int:
    """Run with the process's own arguments; no traceback for what a user can put right."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or what was started would stay
    try:
        return run(parse_arguments(sys.argv[1:]))
    except BenchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
