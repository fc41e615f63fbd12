"""The load generator: HTTP/1.1 on kept-alive connections, cheap enough to share two cores with what it measures.

``ClosedLoop`` keeps N calls in flight until a number of calls is done: for cost a call. ``OpenLoop`` sends at fixed
times, whatever the answers do, and counts latency from the time a call *should* have left: for latency as users feel
it. Callbacks only, no task a call; the request is one prepared ``bytes``. An answer with another status or length than
asked for is an error with a text, never a success.
"""

import asyncio
import ctypes
import gc
import os
import re
import struct
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

from bench.errors import BenchError

NS_A_SECOND = 1_000_000_000
# Far beyond the slowest call of a healthy pair; a hung sidecar ends the run.
STALL_TIMEOUT_S = 30.0
MAX_HEAD_BYTES = 64 << 10
MAX_OPEN_LOOP_CONNECTIONS = 64

# One read buffer for all connections: each read is used up before the next one starts.
READ_BUFFER = memoryview(bytearray(256 << 10))
CHUNKED = re.compile(rb"\r\n[Tt]ransfer-[Ee]ncoding:[ \t]*chunked[ \t]*\r\n")
CONTENT_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength:[ \t]*(\d+)[ \t]*\r\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is asked of 127.0.0.1, and what a right answer is: status 200 and exactly ``answer_bytes`` of body."""

    port: int
    path: str
    answer_bytes: int

    def request(self) -> bytes:
        """Return the request as it goes over the wire, time after time."""
        return f"GET {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\nuser-agent: bench\r\n\r\n".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages(Work):
    """WebSocket messages that come back, each a call; ``answer_bytes`` is the length of one, 126..65535."""

    def request(self) -> bytes:
        # The mask is zero, so that the app need not unmask: whoever looks at frames works the same for any mask.
        return b"\x82" + (0x80 | 126).to_bytes(1, "big") + self.answer_bytes.to_bytes(2, "big") + bytes(4) + self.text()

    def answer(self) -> bytes:
        """Return what has to come back."""
        return b"\x82\x7e" + self.answer_bytes.to_bytes(2, "big") + self.text()

    def text(self) -> bytes:
        """Return the payload."""
        return b"m" * self.answer_bytes

    def handshake(self) -> bytes:
        """Return the request that opens the WebSocket."""
        lines = [
            f"GET {self.path} HTTP/1.1",
            f"host: 127.0.0.1:{self.port}",
            "upgrade: websocket",
            "connection: upgrade",
            "sec-websocket-version: 13",
            "sec-websocket-key: YmVuY2ggYmVuY2ggYmVuYw==",
        ]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(slots=True)
class Outcome:
    """What a run did: calls answered as asked, errors by text, seconds it took."""

    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def count(self, problem: str | None) -> None:
        """Count one finished call."""
        if problem is None:
            self.right += 1
        else:
            self.errors[problem] += 1


def judge(data: bytes, answer_bytes: int) -> tuple[bool, str | None]:
    """Say whether an answer is complete and, if so, what is wrong with it (``None``: nothing).

    Raises:
        BenchError: The end of the answer cannot be found, so the connection is of no more use.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise BenchError(f"no end of the answer's head within {MAX_HEAD_BYTES} bytes")
        return False, None
    declared = CONTENT_LENGTH.search(data, 0, end + 2)
    if declared is not None:
        length = int(declared[1])
        missing = end + 4 + length - len(data)
    elif CHUNKED.search(data, 0, end + 2):
        # A body that came to the sidecar after its head, as it does when everything is busy.
        length, missing = _measure_chunks(data, end + 4)
        if length > answer_bytes:
            raise BenchError(f"an answer of more than {answer_bytes} bytes: {_first_line(data)}")
    else:
        raise BenchError(f"an answer without length: {_first_line(data)}")
    if missing > 0:
        return False, None
    if missing < 0:
        raise BenchError(f"{-missing} bytes after the end of an answer: {_first_line(data)}")
    if not data.startswith(b"HTTP/1.1 200 "):
        return True, f"wrong status: {_first_line(data)}"
    if length != answer_bytes:
        return True, f"wrong length: {length} bytes instead of {answer_bytes}"
    return True, None


def _measure_chunks(data: bytes, at: int) -> tuple[int, int]:
    """Return the length of a chunked body, and how many bytes of it are missing at least."""
    length = 0
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return length, 1
        size = int(data[at:line_end], 16)
        at = line_end + 2 + size + 2
        length += size
        if size == 0 or at > len(data):
            return length, at - len(data)


def _first_line(data: bytes) -> str:
    return data[:80].split(b"\r\n", 1)[0].decode("latin-1")


class Listener(Protocol):
    """Is told by its connections how calls end; ``on_broken`` means that the whole run is void."""

    def on_answer(self, connection: "Caller", problem: str | None) -> None: ...
    def on_broken(self, error: BenchError) -> None: ...


class Caller(Protocol):
    """Makes one call at a time.

    Attributes:
        intended_ns: When the call in progress should have left.
    """

    intended_ns: int

    def send(self) -> None: ...
    def close(self) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """One kept-alive connection with at most one call in flight."""

    def __init__(self, work: Work, listener: Listener) -> None:
        self.request = work.request()
        self.answer_bytes = work.answer_bytes
        self.listener = listener
        self.transport: asyncio.Transport
        self.partial = b""
        self.intended_ns = 0
        self.is_closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, but do the same.
        self.transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Send one call; only after the one before was answered."""
        self.transport.write(self.request)

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        data = self.partial + READ_BUFFER[:nbytes]
        try:
            is_complete, problem = judge(data, self.answer_bytes)
        except BenchError as error:
            self.listener.on_broken(error)
            return
        if not is_complete:
            self.partial = data
            return
        self.partial = b""
        self.listener.on_answer(self, problem)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_closing:
            self.listener.on_broken(BenchError(f"a connection was closed on us: {exc or 'end of stream'}"))

    def close(self) -> None:
        """Close, and stay silent about it."""
        self.is_closing = True
        self.transport.close()


class WebSocket(Connection):
    """A connection whose calls are messages.

    Attributes:
        opened: Done when the handshake has succeeded.
    """

    def __init__(self, work: Messages, listener: Listener) -> None:
        super().__init__(work, listener)
        self.handshake = work.handshake()
        self.answer = work.answer()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self.handshake)

    def buffer_updated(self, nbytes: int) -> None:
        data = self.partial + READ_BUFFER[:nbytes]
        self.partial = b""
        if not self.opened.done():
            if not data.endswith(b"\r\n\r\n"):
                self.partial = data
            elif data.startswith(b"HTTP/1.1 101 "):
                self.opened.set_result(None)
            else:
                self.opened.set_exception(BenchError(f"no WebSocket: {_first_line(data)}"))
        elif len(data) < len(self.answer):
            self.partial = data
        else:
            self.listener.on_answer(self, None if data == self.answer else "another message came back")


async def connect(work: Work, listener: Listener, count: int) -> list[Connection]:
    """Open connections before anything is measured."""
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return WebSocket(work, listener) if isinstance(work, Messages) else Connection(work, listener)

    try:
        pairs = [await loop.create_connection(make, "127.0.0.1", work.port) for _ in range(count)]
    except OSError as error:
        raise BenchError(f"no connection to 127.0.0.1:{work.port}: {error.strerror}") from error
    connections = [connection for _, connection in pairs]
    for connection in connections:
        if isinstance(connection, WebSocket):
            await _finish(connection.opened, STALL_TIMEOUT_S)
    return connections


class ClosedLoop:
    """A fixed number of connections, each sending its next call as soon as the last one is answered.

    Life: ``open``, any number of ``run``, ``close``.
    """

    def __init__(self) -> None:
        self.connections: Sequence[Caller] = []
        self.outcome = Outcome()
        self.to_send = 0
        self.in_flight = 0
        self.broken: BenchError | None = None
        self.finished: asyncio.Future[None] | None = None

    async def open(self, work: Work, connections: int) -> None:
        """Open the connections."""
        self.use(await connect(work, self, connections))

    def use(self, connections: Sequence[Caller]) -> None:
        """Call by these, which must tell this loop."""
        self.connections = connections

    async def run(self, calls: int) -> Outcome:
        """Make so many calls and return when the last one is answered."""
        if self.broken is not None:
            raise self.broken
        self.outcome = Outcome()
        self.finished = asyncio.get_running_loop().create_future()
        self.to_send = calls
        started = time.monotonic()
        for connection in self.connections[:calls]:
            self._next(connection)
        await _finish(self.finished, _stall_limit(calls))
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def on_answer(self, connection: Caller, problem: str | None) -> None:
        self.outcome.count(problem)
        self.in_flight -= 1
        if self.to_send:
            self._next(connection)
        elif not self.in_flight:
            _succeed(self.finished)

    def on_broken(self, error: BenchError) -> None:
        self.broken = self.broken or error
        _fail(self.finished, error)

    def close(self) -> None:
        """Close the connections."""
        for connection in self.connections:
            connection.close()

    def _next(self, connection: Caller) -> None:
        self.to_send -= 1
        self.in_flight += 1
        connection.send()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When calls leave: evenly, ``rate`` a second, for ``seconds``, the first ``warm_up_s`` of them not measured."""

    rate: int
    seconds: float
    warm_up_s: float

    @property
    def interval_ns(self) -> int:
        return NS_A_SECOND // self.rate

    @property
    def unmeasured(self) -> int:
        return int(self.rate * self.warm_up_s)

    @property
    def total(self) -> int:
        return self.unmeasured + int(self.rate * self.seconds)


class OpenLoop:
    """Calls at fixed times on a pool of connections; one that finds all of them busy waits, and its clock runs.

    Life: ``open``, one ``run``, ``close``.
    """

    def __init__(self, schedule: Schedule, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.schedule = schedule
        self.now_ns = now_ns
        self.connections: Sequence[Caller] = []
        self.idle: deque[Caller] = deque()
        # At most schedule.total entries: the calls that are due and could not leave yet.
        self.waiting: deque[int] = deque()
        self.latencies_ns = array("q")
        self.outcome = Outcome()
        self.start_ns = 0
        self.due = 0
        self.answered = 0
        self.measured_from_ns = 0
        self.broken: BenchError | None = None
        self.finished: asyncio.Future[None] | None = None

    async def open(self, work: Work) -> None:
        """Open the connections."""
        self.use(await connect(work, self, MAX_OPEN_LOOP_CONNECTIONS))

    def use(self, connections: Sequence[Caller]) -> None:
        """Take open connections into the pool."""
        self.connections = connections
        self.idle.extend(connections)

    async def run(self) -> Outcome:
        """Send all calls at their times and return when the last one is answered; see ``latencies_ns``."""
        if self.broken is not None:
            raise self.broken
        loop = asyncio.get_running_loop()
        self.finished = loop.create_future()
        self.start(self.now_ns() + 10_000_000)
        timer = open_timer(self.start_ns, self.schedule.interval_ns)
        loop.add_reader(timer, self._on_timer, timer)
        try:
            await _finish(self.finished, self.schedule.total / self.schedule.rate + STALL_TIMEOUT_S)
        finally:
            loop.remove_reader(timer)
            os.close(timer)
        self.outcome.seconds = (self.now_ns() - self.start_ns) / NS_A_SECOND
        return self.outcome

    def start(self, start_ns: int) -> None:
        """Fix the intended time of the first call, and with it of all others."""
        self.start_ns = start_ns
        self.measured_from_ns = start_ns + self.schedule.unmeasured * self.schedule.interval_ns

    def on_tick(self) -> None:
        """Send what is due by now."""
        now_ns = self.now_ns()
        schedule = self.schedule
        while self.due < schedule.total:
            intended_ns = self.start_ns + self.due * schedule.interval_ns
            if intended_ns > now_ns:
                break
            self.due += 1
            self.waiting.append(intended_ns)
        self._dispatch()

    def on_answer(self, connection: Caller, problem: str | None) -> None:
        if connection.intended_ns >= self.measured_from_ns:
            self.latencies_ns.append(self.now_ns() - connection.intended_ns)
        self.outcome.count(problem)
        self.answered += 1
        self.idle.append(connection)
        if self.waiting:
            self._dispatch()
        elif self.answered == self.schedule.total:
            _succeed(self.finished)

    def on_broken(self, error: BenchError) -> None:
        self.broken = self.broken or error
        _fail(self.finished, error)

    def close(self) -> None:
        """Close the connections."""
        for connection in self.connections:
            connection.close()

    def _dispatch(self) -> None:
        while self.waiting and self.idle:
            connection = self.idle.popleft()
            connection.intended_ns = self.waiting.popleft()
            connection.send()

    def _on_timer(self, timer: int) -> None:
        os.read(timer, 8)
        self.on_tick()


def open_timer(first_ns: int, interval_ns: int) -> int:
    """Return a file descriptor that is readable at ``first_ns`` (monotonic clock) and then every ``interval_ns``.

    Event-loop timers tick in whole milliseconds, as long as the latencies that are to be measured.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    timer: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        raise BenchError(f"no timerfd: {os.strerror(ctypes.get_errno())}")
    spec = struct.pack("@llll", *divmod(interval_ns, NS_A_SECOND), *divmod(first_ns, NS_A_SECOND))
    absolute = 1
    if libc.timerfd_settime(timer, absolute, spec, None) < 0:
        raise BenchError(f"no timerfd: {os.strerror(ctypes.get_errno())}")
    return timer


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep pauses of the generator itself out of the figures."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _stall_limit(calls: int) -> float:
    # 200 calls a second is an order of magnitude below the slowest pair known.
    return STALL_TIMEOUT_S + calls / 200


async def _finish(finished: "asyncio.Future[None]", timeout_s: float) -> None:
    try:
        await asyncio.wait_for(finished, timeout_s)
    except TimeoutError:
        raise BenchError(f"calls are still unanswered after {timeout_s:.0f} s") from None


def _succeed(finished: "asyncio.Future[None] | None") -> None:
    if finished is not None and not finished.done():
        finished.set_result(None)


def _fail(finished: "asyncio.Future[None] | None", error: BenchError) -> None:
    if finished is not None and not finished.done():
        finished.set_exception(error)
