"""The four protocol objects on a transport in memory, under any bytes: an answer, a close, or patience."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.app import App, Exchange
from tests.support.http2 import GET, OK, POST, data, headers
from tieline.errors import TielineError
from tieline.model import Reply, Request
from tieline.net.dial import Dialler
from tieline.net.http1_client import Http1Client, Http1Pool, Unanswered
from tieline.net.http1_server import Http1Server, ServerOptions
from tieline.net.http2_client import Http2Client
from tieline.net.http2_server import Http2Server
from tieline.wire.http2 import Limits
from tieline.wire.http2.connection import request_fields
from tieline.wire.http2.frames import NATIVE_SETTING, PREFACE
from tieline.wire.http2.frames import frame as h2_frame
from tieline.wire.http2.frames import settings as h2_settings

TURNS = 12
"""Turns of the event loop after which everything in memory has had its say."""
BEGIN = PREFACE + h2_settings({NATIVE_SETTING: 1})


class Wire:
    """A transport that takes everything and notes it.

    Attributes:
        written: All that was written.
        closed: Whether the protocol, or the test, has closed it.
    """

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.written = b""
        self.closed = False
        self.reading = True
        protocol.connection_made(self)

    def set_write_buffer_limits(self, high: int) -> None: ...

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def write(self, piece: bytes) -> None:
        if not self.closed:
            self.written += piece

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.write(b"".join(pieces))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    async def hear(self, pieces: list[bytes]) -> None:
        """Let bytes arrive, with some turns of the loop between them; then the other side leaves."""
        for piece in pieces:
            for _ in range(TURNS):
                if self.reading:
                    break
                await asyncio.sleep(0)
            if not self.closed and piece:
                self.protocol.data_received(piece)
            await settle()

    async def leave(self) -> None:
        if not self.closed and not self.protocol.eof_received():
            self.close()
        await settle()
        self.close()
        await settle()


async def settle() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def in_a_loop(test: Callable[[], Awaitable[None]]) -> None:
    """Run one example on a loop of its own; whatever the loop would only have logged fails it."""
    complaints: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await test()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks, tasks

    asyncio.run(run())
    assert not complaints, complaints


class Served:
    """A handler that echoes, with a ledger of the requests whose whole body it read."""

    def __init__(self) -> None:
        self.begun = 0
        self.whole: list[tuple[bytes, bytes, bytes]] = []

    async def __call__(self, request: Request) -> Reply:
        self.begun += 1
        body = request.body
        if not isinstance(body, bytes):
            pieces = []
            try:
                while piece := await body.read():
                    pieces.append(piece)
            except TielineError as error:
                return Reply(500, [], str(error).encode())
            body = b"".join(pieces)
        self.whole.append((request.verb, request.path, body))
        return Reply(200, [(b"x-echo", b"1")], body)


OPTIONS = ServerOptions(max_head=8192, max_body=1 << 20, http2=True, http2_limits=Limits())

HOST = b"Host: a\r\n"
H1_PARTS = [
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD /a?b HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /p HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
    b"POST /q HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PUT /r HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"POST /s HTTP/1.1\r\n" + HOST + b"Content-Length: 35\r\n\r\nGET /inner HTTP/1.1\r\nHost: abcdef\r\n\r\n"[:35],
    b"POST /e HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /u HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABk\r\nContent-Length: 2\r\n\r\nhi",
    b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
]  # fmt: skip
H1_PLAIN = [part for part in H1_PARTS if b"Upgrade" not in part]
NOISE = [
    b"", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\0", b"\x0b", b":", b"0", b"5", b"a", b";", b",", b"\xff",
    b"HTTP/1.1", b"Content-Length: 3\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: x\r\n", b"0\r\n\r\n", b"GET /in HTTP/1.1\r\nHost: a\r\n\r\n",
]  # fmt: skip
H2_PARTS = [
    headers(1, GET),
    headers(3, POST, end=False) + data(3, b"hello", end=True),
    headers(5, [*POST, (b"content-length", b"5")], end=False) + data(5, b"hel") + data(5, b"lo", end=True),
    headers(7, POST, end=False) + data(7, b"x") + headers(7, [(b"t", b"1")]),
    h2_frame(3, 0, 3, b"\0\0\0\x08"),
    h2_frame(6, 0, 0, b"12345678"),
    h2_frame(8, 0, 0, b"\0\0\0\x05"),
    h2_frame(4, 0, 0, b"\0\4\0\0\0\0"),
    h2_frame(7, 0, 0, b"\0\0\0\0\0\0\0\0"),
    h2_frame(9, 4, 1, b""),
]
H1_ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nhello",
    b"HTTP/1.1 204 No\r\n\r\n",
    b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n",
    b"HTTP/1.1 101 Switch\r\n\r\n",
    b"HTTP/1.1 099 Low\r\n\r\n",
]
H2_ANSWERS = [
    headers(1, OK),
    headers(1, OK, end=False) + data(1, b"hello"),
    data(1, b"", end=True),
    headers(1, [(b":status", b"103")], end=False),
    headers(1, [(b"t", b"1")]),
    h2_frame(3, 0, 1, b"\0\0\0\0"),
    h2_frame(3, 0, 1, b"\0\0\0\x07"),
    h2_frame(7, 0, 0, b"\0\0\0\0\0\0\0\0"),
    h2_frame(7, 0, 0, b"\0\0\0\1\0\0\0\2x"),
    h2_frame(4, 0, 0, b"\0\3\0\0\0\0"),
]


@st.composite
def streams(draw: st.DrawFn, parts: list[bytes], begin: bytes = b"") -> list[bytes]:
    """Bytes that are mostly right, with some noise in them, in pieces as they arrive."""
    said = bytearray(begin + b"".join(draw(st.lists(st.sampled_from(parts), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(said)))
        said[at : at + draw(st.integers(0, 3))] = draw(st.sampled_from(NOISE) | st.binary(max_size=4))
    cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=4)))
    return [bytes(said[start:end]) for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]


few = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
anything = st.lists(st.binary(max_size=60), min_size=1, max_size=4)


@few
@given(streams(H1_PARTS) | anything | streams(H2_PARTS, BEGIN))
def test_a_server_of_http1_survives_anything(pieces: list[bytes]) -> None:
    async def test() -> None:
        served = Served()
        members: set[Any] = set()
        wire = Wire(Http1Server(served, OPTIONS, members))

        await wire.hear(pieces)
        await wire.leave()

        assert not members
        assert wire.closed

    in_a_loop(test)


@few
@given(streams(H2_PARTS, BEGIN) | anything)
def test_a_server_of_http2_survives_anything(pieces: list[bytes]) -> None:
    async def test() -> None:
        served = Served()
        members: set[Any] = set()
        server = Http2Server(served, limits=Limits(), native=True, members=members)
        wire = Wire(server)

        await wire.hear(pieces)
        await wire.leave()

        assert not members
        assert not server.h2.streams

    in_a_loop(test)


async def read(reply: Reply) -> bytes:
    body = reply.body
    if isinstance(body, bytes):
        return body
    pieces = []
    while piece := await body.read():
        pieces.append(piece)
    return b"".join(pieces)


async def outcome(answer: asyncio.Future[Reply]) -> bytes | None:
    """Return what an exchange came to; it must come to something once the other side has left."""
    try:
        async with asyncio.timeout(1):
            return await read(await answer)
    except (TielineError, Unanswered):
        return None


@few
@given(streams(H1_ANSWERS) | anything, st.sampled_from([b"GET", b"HEAD", b"POST"]))
def test_a_client_of_http1_survives_anything_and_its_call_ends(pieces: list[bytes], verb: bytes) -> None:
    async def test() -> None:
        pool = Http1Pool(Dialler("127.0.0.1", 1, connect_timeout_s=1).connect, host=b"a", max_head=65536)
        pool._open = 1
        client = Http1Client(pool)
        wire = Wire(client)
        client.send(verb, b"/x", [], b"hello", 5)
        ending = asyncio.ensure_future(outcome(client.answer))

        await wire.hear(pieces)
        await wire.leave()

        await ending
        pool.close()
        assert pool._open == 0

    in_a_loop(test)


@few
@given(streams(H2_ANSWERS, h2_settings({})) | anything, st.booleans())
def test_a_client_of_http2_survives_anything_and_its_call_ends(pieces: list[bytes], native: bool) -> None:
    async def test() -> None:
        client = Http2Client(limits=Limits(), native=native)
        wire = Wire(client)
        client.h2.peer_max_streams = 10
        exchange = client.begin_request(request_fields(b"POST", b"/", b"a", []), b"hello")
        ending = asyncio.ensure_future(outcome(exchange.answer))

        await wire.hear(pieces)
        await wire.leave()

        await ending
        assert not client.h2.streams

    in_a_loop(test)


# A target may have raw bytes beyond ASCII, as with Dapr; h11 takes none. They frame nothing.
_ASCII = bytes([*range(0x80), *b"x" * 0x80])


def strict_requests(said: bytes) -> int:
    """Count the requests that h11 finds whole before it finds anything wrong; as a server that answers each at once."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(said.translate(_ASCII))
    found = 0
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                found += 1
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return found
                connection.start_next_cycle()
            elif event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return found
    except h11.ProtocolError:
        return found


@settings(few, max_examples=400)
@given(streams(H1_PLAIN))
def test_no_more_requests_are_served_than_a_strict_reader_finds(pieces: list[bytes]) -> None:
    served = Served()

    async def test() -> None:
        wire = Wire(Http1Server(served, OPTIONS, set()))
        await wire.hear(pieces)
        await wire.leave()

    in_a_loop(test)

    assert len(served.whole) <= strict_requests(b"".join(pieces))


# ── servers that an app's port may turn out to be ─────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["close", "speak"])
async def test_a_connection_that_ends_before_its_turn_fails_its_call_at_once(how: str) -> None:
    """The port of a mail server, say, or a proxy with nothing behind it: no call waits for ever."""
    pool = Http1Pool(Dialler("127.0.0.1", 1, connect_timeout_s=1).connect, host=b"a", max_head=65536)
    pool._open = 1
    client = Http1Client(pool)
    wire = Wire(client)
    if how == "close":
        client.eof_received()
        wire.close()
    else:
        client.data_received(b"220 mail.example ESMTP\r\n")

    client.send(b"POST", b"/x", [], b"hello", 5)

    with pytest.raises(Unanswered, match="EOF"):
        async with asyncio.timeout(1):
            await client.answer
    assert wire.written == b""
    await settle()
    pool.close()
    assert pool._open == 0


async def test_a_server_that_speaks_first_fails_calls_and_keeps_no_connection() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Http1Pool(Dialler("127.0.0.1", port, connect_timeout_s=1).connect, host=b"a", max_head=65536)

    for _ in range(20):
        connection = await pool.open()
        connection.send(b"GET", b"/", [], b"", 0)
        assert await outcome(connection.answer) is None

    await settle()
    assert pool._open == 0
    pool.close()
    server.close()


async def test_a_connection_that_ends_while_it_is_lent_is_not_used() -> None:
    async def echo(exchange: Exchange) -> None:
        exchange.answer(200, await exchange.body())

    app = App(echo)
    await app.start()
    pool = Http1Pool(Dialler("127.0.0.1", app.port, connect_timeout_s=1).connect, host=b"a", max_head=65536)
    first = await pool.open()
    pool._open = 1024
    waiting = asyncio.ensure_future(pool.open())
    await asyncio.sleep(0)

    pool.give_back(first, reusable=True)
    first.eof_received()
    first.abort()
    second = await waiting

    assert second is not first
    second.send(b"POST", b"/", [], b"hello", 5)
    assert await outcome(second.answer) == b"hello"
    pool.close()
    await settle()
    assert pool._open == 1023
    await app.aclose()
