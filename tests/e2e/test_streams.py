"""Bodies that come piece by piece: passed on at once, no faster than they are read, and broken off as such."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.support.app import Exchange
from tests.support.h2peer import H2Client
from tests.support.http1 import Answer, Broken, Client
from tests.support.mesh import Mesh, Sidecar, invoke_path, start_pair, until

PATH = invoke_path("callee", "work")
CHUNKED = [("Transfer-Encoding", "chunked")]
EVENTS = [("Accept", "text/event-stream")]
WAYS = pytest.mark.parametrize("way", ["self", "remote"])
PIECE = b"p" * 65536
STALLED_S = 0.4
"""Without progress for so long, whoever sends is held back."""


# ── pieces pass at once ───────────────────────────────────────────────────────────────────────────


class Held:
    """An app that sends one piece, and the next when it is told."""

    def __init__(self, media_type: str) -> None:
        self.go_on = asyncio.Event()
        self._media_type = media_type

    async def __call__(self, exchange: Exchange) -> None:
        exchange.begin_chunked(headers=[("Content-Type", self._media_type)])
        exchange.chunk(b"data: 1\n\n")
        await exchange.writer.drain()
        await self.go_on.wait()
        exchange.chunk(b"data: 2\n\n")
        exchange.end_chunks()


@WAYS
@pytest.mark.rule("H-71", "H-76", "H-77")
@pytest.mark.parametrize("media_type", ["text/event-stream", "application/octet-stream"])
async def test_a_first_piece_is_there_before_the_second_is_made(mesh: Mesh, way: str, media_type: str) -> None:
    app = Held(media_type)
    pair = await start_pair(mesh, app)
    headers = EVENTS if media_type == "text/event-stream" else []

    client = await Client.open(pair.entry(way).port)
    client.send("GET", PATH, headers)
    async with asyncio.timeout(5):
        head = await client.head()
        first = await client.chunk_in()
    app.go_on.set()
    second = await client.chunk_in()

    assert (head.status, head.header("content-type"), first, second) == (
        200,
        media_type,
        b"data: 1\n\n",
        b"data: 2\n\n",
    )
    assert await client.chunk_in() == b""
    client.close()

    # and over HTTP/2
    app.go_on.clear()
    h2 = await H2Client.open(pair.entry(way).port)
    stream = await h2.request("GET", PATH, [(name.lower(), value) for name, value in headers])
    await stream.until(lambda: bytes(stream.data) == b"data: 1\n\n", 5)
    app.go_on.set()
    await stream.whole()
    assert stream.ended
    assert bytes(stream.data) == b"data: 1\n\ndata: 2\n\n"
    h2.close()


async def echo_pieces(exchange: Exchange) -> None:
    """Answer each piece at once with itself."""
    exchange.begin_chunked()
    async for piece in exchange.pieces():
        exchange.chunk(piece)
        await exchange.writer.drain()
    exchange.end_chunks()


@WAYS
@pytest.mark.rule("H-59", "H-94")
async def test_an_answer_flows_while_the_request_still_comes(mesh: Mesh, way: str) -> None:
    """Each piece is sent only after the one before it came back."""
    pair = await start_pair(mesh, echo_pieces)

    client = await Client.open(pair.entry(way).port)
    client.send("POST", PATH, CHUNKED)
    client.chunk(b"one")
    async with asyncio.timeout(5):
        assert (await client.head()).status == 200
        assert await client.chunk_in() == b"one"
        client.chunk(b"two")
        assert await client.chunk_in() == b"two"
        client.end_chunks()
        assert await client.chunk_in() == b""
    client.close()

    h2 = await H2Client.open(pair.entry(way).port)
    stream = await h2.request("POST", PATH, end=False)
    await stream.send(b"one")
    await stream.until(lambda: bytes(stream.data) == b"one", 5)
    await stream.send(b"two", end=True)
    await stream.whole()
    assert stream.ended
    assert bytes(stream.data) == b"onetwo"
    assert len(pair.app.seen) == 2
    h2.close()


# ── no faster than it is read ─────────────────────────────────────────────────────────────────────


class Counter:
    """Counts what moved, and tells when it moves no more."""

    def __init__(self) -> None:
        self.bytes = 0

    async def stalled(self) -> int:
        """Return the count once it has not changed for a while."""
        while True:
            before = self.bytes
            await asyncio.sleep(STALLED_S)
            if self.bytes == before:
                return before


KERNEL = 24 << 20
"""What socket buffers of three hops may hold, at the most."""
LARGE = 256 << 20
GROWTH = 6 << 20


def residents(*sidecars: Sidecar) -> list[int]:
    return [sidecar.resident() for sidecar in sidecars]


@WAYS
@pytest.mark.rule("H-58", "H-71")
@pytest.mark.parametrize("version", [1, 2])
async def test_an_app_that_stops_reading_stops_the_client(mesh: Mesh, way: str, version: int) -> None:
    read_on = asyncio.Event()
    received = Counter()

    async def handler(exchange: Exchange) -> None:
        if exchange.verb == "GET":
            exchange.answer(200, b"warm")
            return
        await read_on.wait()
        async for piece in exchange.pieces():
            received.bytes += len(piece)
        exchange.answer(200, str(received.bytes).encode())

    size = ["--max-body-size", "512Mi"]
    pair = await start_pair(mesh, handler, *size, caller_flags=size)
    entry = pair.entry(way)
    await entry.call("callee", "warm")
    before = residents(pair.caller, pair.callee)
    sent = Counter()

    async def send_1(client: Client) -> Answer:
        client.send("POST", PATH, CHUNKED)
        while not read_on.is_set() and sent.bytes < LARGE:
            client.chunk(PIECE)
            sent.bytes += len(PIECE)
            await client.writer.drain()
        client.end_chunks()
        answer = await client.answer()
        client.close()
        return answer

    async def send_2(h2: H2Client) -> Answer:
        stream = await h2.request("POST", PATH, end=False)
        while not read_on.is_set() and sent.bytes < LARGE:
            await stream.send(PIECE)
            sent.bytes += len(PIECE)
        await stream.send(b"", end=True)
        await stream.whole()
        h2.close()
        return Answer(stream.status, [], bytes(stream.data))

    if version == 1:
        sending = asyncio.create_task(send_1(await Client.open(entry.port)))
    else:
        sending = asyncio.create_task(send_2(await H2Client.open(entry.port)))
    stalled_at = await sent.stalled()
    grown = [now - then for now, then in zip(residents(pair.caller, pair.callee), before, strict=True)]
    read_on.set()
    answer = await asyncio.wait_for(sending, 20)

    assert 0 < stalled_at < KERNEL
    assert max(grown) < GROWTH
    assert answer.status == 200
    assert int(answer.body) == sent.bytes == received.bytes


@pytest.mark.rule("H-62", "H-71")
@pytest.mark.parametrize(
    ("way", "version", "events"), [("self", 1, False), ("self", 2, True), ("remote", 1, True), ("remote", 2, False)]
)
async def test_a_client_that_stops_reading_stops_the_app(mesh: Mesh, way: str, version: int, events: bool) -> None:
    made = Counter()
    enough = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/warm":
            exchange.answer(200, b"warm")
            return
        exchange.begin_chunked(headers=[("Content-Type", "text/event-stream" if events else "text/plain")])
        while not enough.is_set() and made.bytes < LARGE:
            exchange.chunk(PIECE)
            made.bytes += len(PIECE)
            await exchange.writer.drain()
        exchange.end_chunks()

    pair = await start_pair(mesh, handler)
    entry = pair.entry(way)
    await entry.call("callee", "warm")
    before = residents(pair.caller, pair.callee)

    async def read_1() -> tuple[int, bool]:
        client = await Client.open(entry.port)
        client.send("GET", PATH, EVENTS if events else [])
        await enough.wait()
        answer = await client.answer()
        client.close()
        return len(answer.body), answer.whole

    async def read_2() -> tuple[int, bool]:
        h2 = await H2Client.open(entry.port, reads=False)
        stream = await h2.request("GET", PATH, [("accept", "text/event-stream")] if events else [])
        await enough.wait()
        await h2.grant(stream, LARGE)
        await stream.whole()
        h2.close()
        return len(stream.data), stream.ended

    reading = asyncio.create_task(read_1() if version == 1 else read_2())
    await until(lambda: made.bytes > 0)
    stalled_at = await made.stalled()
    grown = [now - then for now, then in zip(residents(pair.caller, pair.callee), before, strict=True)]
    enough.set()
    got, whole = await reading

    assert 0 < stalled_at < KERNEL
    assert max(grown) < GROWTH
    assert whole
    assert got == made.bytes


@pytest.mark.rule("H-58", "H-62")
@pytest.mark.parametrize("http", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_large_body_leaves_memory_as_it_was(mesh: Mesh, http: str, direction: str) -> None:
    pieces = 64 << 20 >> 16
    received = Counter()

    async def handler(exchange: Exchange) -> None:
        async for piece in exchange.pieces():
            received.bytes += len(piece)
        if exchange.target == "/down":
            exchange.begin_chunked()
            for _ in range(pieces):
                exchange.chunk(PIECE)
                await exchange.writer.drain()
            exchange.end_chunks()
        else:
            exchange.answer(200, b"done")

    size = ["--max-body-size", "512Mi"]
    pair = await start_pair(mesh, handler, *size, caller_flags=size)
    await pair.caller.call("callee", "warm")
    before = residents(pair.caller, pair.callee)
    url = f"http://127.0.0.1:{pair.caller.port}{invoke_path('callee', direction)}"
    command = ["curl", "-sS", http, "-o", "/dev/null", "-w", "%{http_code} %{size_download}", url]
    if direction == "up":
        command += ["-X", "POST", "-T", "-", "-H", "Transfer-Encoding: chunked", "-H", "Expect:"]

    curl = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert curl.stdin is not None
    peak = [0, 0]
    if direction == "up":
        for _ in range(pieces):
            curl.stdin.write(PIECE)
            await curl.stdin.drain()
            peak = list(map(max, peak, residents(pair.caller, pair.callee)))
    curl.stdin.close()
    out, error = await curl.communicate()
    peak = list(map(max, peak, residents(pair.caller, pair.callee)))

    assert error == b""
    assert out.decode() == ("200 4" if direction == "up" else f"200 {pieces << 16}")
    assert received.bytes == (pieces << 16 if direction == "up" else 0)
    assert max(now - then for now, then in zip(peak, before, strict=True)) < 16 << 20


# ── what breaks off is seen to break off ──────────────────────────────────────────────────────────


class BreaksOff:
    """An app that begins an answer, and breaks it off in the way of its target when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        exchange.begin_chunked(headers=[("Content-Type", "text/plain")])
        exchange.chunk(b"begun")
        await self.go_on.wait()
        if exchange.target == "/reset":
            exchange.reset()
            return
        if exchange.target == "/in-chunk":
            exchange.writer.write(b"100\r\nonly this")
        elif exchange.target == "/garbage":
            exchange.writer.write(b"no chunk\r\n")
        exchange.close()


@WAYS
@pytest.mark.rule("H-74")
@pytest.mark.parametrize("ending", ["close", "reset", "in-chunk", "garbage"])
async def test_an_answer_that_the_app_breaks_off_is_seen_to_break_off(mesh: Mesh, way: str, ending: str) -> None:
    app = BreaksOff()
    pair = await start_pair(mesh, app)
    entry = pair.entry(way)
    path = invoke_path("callee", ending)
    client = await Client.open(entry.port)
    client.send("GET", path)
    head = await client.head()
    assert (head.status, await client.chunk_in()) == (200, b"begun")
    h2 = await H2Client.open(entry.port)
    stream = await h2.request("GET", path)
    await stream.until(lambda: bytes(stream.data) == b"begun")

    app.go_on.set()

    with pytest.raises(Broken):
        await asyncio.wait_for(client.rest(), 5)
    await stream.whole()
    assert stream.reset_code is not None
    assert not stream.ended
    client.close()
    h2.close()


@WAYS
@pytest.mark.rule("H-70")
async def test_an_app_that_declares_more_than_it_sends_does_not_fail_the_call(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.answer(200, b"short", length=100)
        await exchange.writer.drain()
        exchange.close()

    pair = await start_pair(mesh, handler)

    answer = await pair.entry(way).call("callee", "work")

    assert (answer.status, answer.body, answer.whole) == (200, b"short", True)
    assert answer.header("content-length") in (None, "5")


async def begin_and_wait(exchange: Exchange) -> None:
    """Send a piece, then nothing until the sidecar goes away."""
    exchange.begin_chunked()
    exchange.chunk(b"begun")
    await exchange.writer.drain()
    await exchange.gone()


@pytest.mark.rule("H-74")
@pytest.mark.parametrize("killed", ["callee", "caller"])
async def test_a_sidecar_killed_within_an_answer_breaks_it_off(mesh: Mesh, killed: str) -> None:
    pair = await start_pair(mesh, begin_and_wait)
    client = await Client.open(pair.caller.port)
    client.send("GET", PATH)
    await client.head()
    await client.chunk_in()
    h2 = await H2Client.open(pair.caller.port)
    stream = await h2.request("GET", PATH)
    await stream.until(lambda: bytes(stream.data) == b"begun")

    getattr(pair, killed).kill()

    with pytest.raises(Broken):
        await asyncio.wait_for(client.chunk_in(), 5)
    await stream.whole()
    assert not stream.ended
    assert stream.lost if killed == "caller" else stream.reset_code is not None
    client.close()
    h2.close()


# ── a client that goes away ───────────────────────────────────────────────────────────────────────


@WAYS
@pytest.mark.rule("H-95")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_goes_away_cancels_the_call_at_the_app(
    mesh: Mesh, way: str, version: int, begun: bool
) -> None:
    arrived, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if begun:
            exchange.begin_chunked()
            exchange.chunk(b"begun")
        arrived.set()
        await exchange.gone()
        cancelled.set()

    pair = await start_pair(mesh, handler)
    entry = pair.entry(way)

    if version == 1:
        client = await Client.open(entry.port)
        client.send("POST", PATH, (), b"x")
        await arrived.wait()
        if begun:
            await client.head()
        client.close()
    else:
        h2 = await H2Client.open(entry.port)
        stream = await h2.request("POST", PATH, body=b"x")
        await arrived.wait()
        if begun:
            await stream.until(lambda: bytes(stream.data) == b"begun")
        await stream.cancel()
        # The connection lives on.
        assert (await (await h2.request("GET", "/v1.0/healthz")).whole()).status == 204
        h2.close()

    await asyncio.wait_for(cancelled.wait(), 5)
    assert len(pair.app.seen) == 1


@WAYS
@pytest.mark.rule("H-95")
@pytest.mark.parametrize("version", [1, 2])
async def test_an_upload_that_breaks_off_never_looks_whole_to_the_app(mesh: Mesh, way: str, version: int) -> None:
    ended = asyncio.Event()
    whole = []

    async def handler(exchange: Exchange) -> None:
        with contextlib.suppress(Broken):
            whole.append(await exchange.body())
        ended.set()
        exchange.close()

    pair = await start_pair(mesh, handler)
    entry = pair.entry(way)

    if version == 1:
        client = await Client.open(entry.port)
        client.send("POST", PATH, CHUNKED)
        client.chunk(b"begun")
        await until(lambda: len(pair.app.seen) == 1)
        client.close()
    else:
        h2 = await H2Client.open(entry.port)
        stream = await h2.request("POST", PATH, end=False)
        await stream.send(b"begun")
        await until(lambda: len(pair.app.seen) == 1)
        h2.close()
    await asyncio.wait_for(ended.wait(), 5)

    assert whole == []
