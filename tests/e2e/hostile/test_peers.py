"""A peer that says it is a Tieline, and answers calls badly, late, in part, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.e2e.hostile.raw2 import Raw, frame
from tests.e2e.hostile.world import World
from tests.support.daprd import register
from tests.support.http1 import Answer, Client
from tests.support.http2 import block, data, headers
from tests.support.mesh import invoke_path, until
from tieline.model import Headers
from tieline.wire.http2.frames import (
    CONTINUATION,
    GOAWAY,
    HEADERS,
    NATIVE_SETTING,
    PING,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    settings,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = settings({NATIVE_SETTING: 1})
Script = Callable[[Raw, int], Awaitable[None]]
"""What a peer does with one request: the connection and the stream's number."""


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def status(code: bytes = b"200", more: Sequence[tuple[bytes, bytes]] = ()) -> Headers:
    return [(b":status", code), *more]


class FakePeer:
    """A sidecar of an app of its own name.

    Attributes:
        calls: How many requests came.
        resets: Codes of the RST_STREAM frames that came.
    """

    def __init__(self, script: Script, hello: bytes) -> None:
        self._script = script
        self._hello = hello
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.port = 0
        self.calls = 0
        self.resets: list[int] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        raw = Raw(reader, writer)
        try:
            await raw.say(self._hello)
            await reader.readexactly(24)  # the preface
            looked = 0
            while not raw.closed:
                await raw.until(lambda: len(raw.heard) > looked, 30)  # noqa: B023 - awaited before it changes
                for one in raw.heard[looked:]:
                    if one.kind == HEADERS:
                        self.calls += 1
                        await self._script(raw, one.stream)
                    elif one.kind == RST_STREAM:
                        self.resets.append(int.from_bytes(one.payload, "big"))
                looked = len(raw.heard)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def aclose(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_names = iter(range(1000))


@asynccontextmanager
async def peer(world: World, script: Script, hello: bytes = HELLO) -> AsyncIterator[tuple[str, FakePeer]]:
    """Serve a peer, known to the caller under a new name."""
    made = FakePeer(script, hello)
    await made.start()
    app_id = f"fake{next(_names)}"
    register(world.mesh, app_id, made.port)
    try:
        yield app_id, made
    finally:
        await made.aclose()


def says(*pieces: Callable[[int], bytes], close: bool = False) -> Script:
    """Return a peer that answers with these bytes, and closes or not."""

    async def script(raw: Raw, number: int) -> None:
        await raw.say(*[piece(number) for piece in pieces])
        if close:
            raw.close()

    return script


def head(fields: Headers, *, end: bool = True) -> Script:
    return says(lambda number: headers(number, fields, end=end))


def reset(code: int) -> Callable[[int], bytes]:
    return lambda number: frame(RST_STREAM, 0, number, u32(code))


def begun(number: int) -> bytes:
    return headers(number, status(), end=False)


MALFORMED: dict[str, Script] = {
    "no status": head([(b"x", b"y")]),
    "status abc": head(status(b"abc")),
    "status 099": head(status(b"099")),
    "status 1000": head(status(b"1000")),
    "status twice": head([(b":status", b"200"), (b":status", b"200")]),
    "request": head([(b":method", b"GET"), (b":path", b"/"), (b":scheme", b"http")]),
    "CR LF": head(status(more=[(b"x", b"a\r\n\r\nHTTP/1.1 200 OK\r\n\r\npoison")])),
    "NUL": head(status(more=[(b"x", b"a\0")])),
    "capitals": head(status(more=[(b"X", b"a")])),
    "transfer-encoding": head(status(more=[(b"transfer-encoding", b"chunked")]), end=False),
    "connection": head(status(more=[(b"connection", b"close")])),
    "101": head(status(b"101"), end=False),
    "1xx ends": head(status(b"103")),
    "length of nothing": head(status(more=[(b"content-length", b"5")])),
    "two lengths": head(status(more=[(b"content-length", b"0"), (b"content-length", b"0")])),
    "bad length": head(status(more=[(b"content-length", b"-1")])),
    "DATA first": says(lambda number: data(number, b"hello", end=True)),
    "length too short": says(
        lambda number: headers(number, status(more=[(b"content-length", b"2")]), end=False) + data(number, b"hello")
    ),
    "endless head": says(
        lambda number: frame(HEADERS, 0, number, block(status())),
        *[lambda number: frame(CONTINUATION, 0, number, block([(b"x", b"y" * 16000)]))] * 200,
    ),
    "bad HPACK": says(lambda number: frame(HEADERS, 5, number, b"\xff\xff\xff\xff\xff\xff")),
    "HPACK bomb": says(
        lambda number: frame(
            HEADERS, 5, number, block(status()) + b"\x40\x01x\x7f\x81\x1e" + b"y" * 4000 + b"\xbe" * 9000
        )
    ),
    "another's stream": says(lambda number: headers(number + 100, status())),
    "push": says(lambda number: frame(5, 4, number, u32(2) + block(status()))),
    "oversized frame": says(lambda number: b"\xff\xff\xff\0\0" + u32(number)),
    "garbage": says(lambda number: b"\xde\xad\xbe\xef" * 100),
    "1xx flood": says(lambda number: headers(number, status(b"103"), end=False) * 20000),
    "SETTINGS flood": says(lambda number: frame(SETTINGS, 0, 0) * 20000),
    "PING flood": says(lambda number: frame(PING, 0, 0, b"x" * 8) * 20000),
    "empty DATA flood": says(lambda number: begun(number) + data(number) * 20000),
    "reset": says(reset(ErrorCode.INTERNAL_ERROR)),
    "reset without error": says(reset(ErrorCode.NO_ERROR)),
    "reset of the future": says(reset(0xFFFFFFFF)),
    "refused": says(reset(ErrorCode.REFUSED_STREAM)),
    "goodbye": says(lambda number: frame(GOAWAY, 0, 0, u32(0) + u32(0))),
    "bad goodbye": says(lambda number: frame(GOAWAY, 0, 0, u32(number) + u32(2) + b"\xff\0\n"), close=True),
    "close": says(close=True),
}  # fmt: skip


async def test_a_peer_that_does_not_answer_fails_the_call_with_a_reason(world: World) -> None:
    """All at once, since some calls are tried again after a second, three times."""

    async def one(name: str) -> tuple[str, Answer, int]:
        async with peer(world, MALFORMED[name]) as (app_id, made):
            answer = await world.caller.call(app_id, "x", "POST", body=b"hello", within_s=15)
            return name, answer, made.calls

    outcomes = await asyncio.gather(*map(one, MALFORMED))

    for name, answer, calls in outcomes:
        assert b"poison" not in answer.body
        if name in ("empty DATA flood", "length too short"):
            assert answer.status == 500 or not answer.whole, name
            continue
        assert (name, answer.status) == (name, 500)
        assert b"ERR_DIRECT_INVOKE" in answer.body
        assert answer.header("tieline-cause") in ("peer-lost", "peer-protocol", "app-broken", "peer-unreachable"), name
        # A POST is sent again only if it was certainly not processed.
        assert calls == (4 if name in ("refused", "goodbye") else 1), name


BREAKING_OFF: dict[str, Script] = {
    "reset": says(lambda number: begun(number) + data(number, b"x" * 9000), reset(ErrorCode.INTERNAL_ERROR)),
    "reset without error": says(lambda number: begun(number) + data(number, b"x" * 9000), reset(ErrorCode.NO_ERROR)),
    "refused": says(lambda number: begun(number) + data(number, b"x" * 9000), reset(ErrorCode.REFUSED_STREAM)),
    "close": says(lambda number: begun(number) + data(number, b"x" * 9000), close=True),
    "fault": says(lambda number: begun(number) + data(number, b"x" * 9000), lambda number: b"\xff" * 100),
    "too much": says(
        lambda number: headers(number, status(more=[(b"content-length", b"9005")]), end=False),
        lambda number: data(number, b"x" * 9000),
        lambda number: data(number, b"x" * 9000, end=True),
    ),
    "too little": says(
        lambda number: headers(number, status(more=[(b"content-length", b"90000")]), end=False),
        lambda number: data(number, b"x" * 9000, end=True),
    ),
    "framing in trailers": says(
        lambda number: begun(number) + data(number, b"x" * 9000),
        lambda number: headers(number, [(b"transfer-encoding", b"chunked")]),
    ),
    "status in trailers": says(
        lambda number: begun(number) + data(number, b"x" * 9000), lambda number: headers(number, status())
    ),
    "second head": says(
        lambda number: begun(number) + data(number, b"x" * 9000), lambda number: headers(number, status(), end=False)
    ),
    "goodbye to it": says(
        lambda number: begun(number) + data(number, b"x" * 9000),
        lambda number: frame(GOAWAY, 0, 0, u32(0) + u32(0)),
        close=True,
    ),
}  # fmt: skip


@pytest.mark.rule("H-74")
@pytest.mark.parametrize("pace", [0, 0.05])
async def test_an_answer_that_breaks_off_is_seen_to_and_its_call_ends(world: World, pace: float) -> None:
    async def one(name: str) -> tuple[str, Answer]:
        async def paced(raw: Raw, number: int) -> None:
            await BREAKING_OFF[name](Slow(raw, pace), number)

        async with peer(world, paced) as (app_id, _):
            return name, await world.caller.call(app_id, "x", "POST", body=b"hello", within_s=5)

    outcomes = await asyncio.gather(*map(one, BREAKING_OFF))

    for name, answer in outcomes:
        assert answer.status == 500 or not answer.whole, name


class Slow(Raw):
    """Says one piece after the other."""

    def __init__(self, raw: Raw, pause_s: float) -> None:
        super().__init__(raw._reader, raw.writer)
        self._pause_s = pause_s

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            await super().say(piece)
            await asyncio.sleep(self._pause_s)


async def test_a_goodbye_in_the_middle_lets_the_call_end(world: World) -> None:
    async def script(raw: Raw, number: int) -> None:
        await raw.say(begun(number), data(number, b"hello "), frame(GOAWAY, 0, 0, u32(number) + u32(0)))
        await raw.reached()
        await raw.say(data(number, b"world", end=True))

    async with peer(world, script) as (app_id, made):
        first = await world.caller.call(app_id, "x")
        second = await world.caller.call(app_id, "x")

    assert [first.body, second.body] == [b"hello world"] * 2
    assert made.calls == 2


REPORTS: dict[str, tuple[bytes, Headers]] = {
    "no number": (b"PERMISSION_DENIED", []),
    "negative": (b"-1", []),
    "huge": (b"9" * 400, []),
    "unknown": (b"999", []),
    "empty": (b"", []),
    "not ASCII": (b"\xb2\xff", []),
    "twice": (b"7", [(b"tieline-error", b"x")]),
    "bad cause": (
        b"13",
        [(b"tieline-cause", b"\xff" * 900), (b"tieline-hop", b"\xfe"), (b"tieline-hint", b"%zz%0d%0a\xff")],
    ),
    "long hint": (b"13", [(b"tieline-hint", b"h" * 9000)]),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
async def test_a_failure_reported_in_nonsense_is_a_failure_in_one_line(world: World, name: str) -> None:
    code, more = REPORTS[name]
    fields = status(b"500", [(b"tieline-error", code), *more])
    text = b"<script>\x00\xff\r\n" + b"t" * (1 << 20)

    async def script(raw: Raw, number: int) -> None:
        await raw.say(headers(number, fields, end=False))
        for at in range(0, 60000, 10000):
            await raw.say(data(number, text[at : at + 10000]))

    async with peer(world, script) as (app_id, made):
        answer = await world.caller.call(app_id, "x", within_s=5)
        await until(lambda: made.resets == [ErrorCode.CANCEL])

    assert answer.status in (403, 500)
    assert answer.whole
    assert len(answer.body) < 80_000
    assert b"<script>" not in answer.body
    assert len(answer.header("tieline-hint") or "") <= 512
    assert (answer.header("tieline-hop"), answer.header("content-type")) == ("peer", "application/json")


@pytest.mark.parametrize("begins", [b"", b"head", b"report"])
async def test_a_peer_that_never_ends_is_told_when_the_client_leaves(world: World, begins: bytes) -> None:
    said = asyncio.Event()

    async def script(raw: Raw, number: int) -> None:
        if begins == b"head":
            await raw.say(begun(number), data(number, b"hello"))
        elif begins == b"report":
            await raw.say(headers(number, status(b"500", [(b"tieline-error", b"13")]), end=False), data(number, b"x"))
        await raw.reached()
        said.set()

    async with peer(world, script) as (app_id, made):
        for version in (1, 2):
            said.clear()
            client = await Client.open(world.caller.port)
            client.send("POST", invoke_path(app_id, "x"), [("Content-Length", "5")])
            client.writer.write(b"hello")
            await asyncio.wait_for(said.wait(), 15)
            client.reset()
            await until(lambda version=version: made.resets == [ErrorCode.CANCEL] * version)


async def test_a_peer_that_answers_before_it_read_everything_gets_no_more(world: World) -> None:
    async def script(raw: Raw, number: int) -> None:
        await raw.say(headers(number, status(), end=False), data(number, b"early", end=True))

    hello = settings({NATIVE_SETTING: 1, 4: 0})
    async with peer(world, script, hello) as (app_id, made):
        whole = await world.caller.call(app_id, "x", "POST", body=b"x" * 5000, within_s=5)
        long = await world.caller.call(app_id, "x", "POST", body=b"x" * 500_000, within_s=5)
        await until(lambda: made.resets == [ErrorCode.NO_ERROR] * 2)

    assert (whole.body, long.body) == (b"early", b"early")


async def test_what_frames_or_belongs_to_tieline_does_not_pass_in_an_answer(world: World) -> None:
    fields = status(
        more=[(b"content-length", b"5"), (b"tieline-cause", b"denied"), (b"trailer", b"x"), (b"x-kept", b"1")]
    )
    trailers = [
        (b"content-length", b"7"),
        (b"tieline-x", b"1"),
        (b"set-cookie", b"a"),
        (b"host", b"a"),
        (b"kept", b"1"),
    ]

    async def script(raw: Raw, number: int) -> None:
        await raw.say(headers(number, fields, end=False), data(number, b"hello"), headers(number, trailers))

    async with peer(world, script) as (app_id, _):
        answer = await world.caller.call(app_id, "x")

    assert (answer.status, answer.body, answer.whole) == (200, b"hello", True)
    assert answer.trailers == [("kept", "1")]
    names = {name for name, _ in answer.headers}
    assert "x-kept" in names
    assert not names & {"tieline-cause", "trailer", "content-length"}


async def test_a_peer_that_drowns_its_caller_is_held_back(world: World) -> None:
    """It may send what its windows allow; beyond that, its connection ends."""
    before = world.caller.resident()

    async def script(raw: Raw, number: int) -> None:
        await raw.say(begun(number))
        for _ in range(2000):
            await raw.say(data(number, b"x" * 16384))

    async with peer(world, script) as (app_id, _):
        client = await Client.open(world.caller.port)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send("GET", invoke_path(app_id, "x"))
        await asyncio.sleep(0.5)
        client.reset()

    assert world.caller.resident() - before < 16 << 20
