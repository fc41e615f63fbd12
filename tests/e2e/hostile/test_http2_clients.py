"""Clients of the HTTP API that speak HTTP/2 badly, waste it, or leave it half done."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.hostile.raw2 import BEGIN, Raw, block, call, frame
from tests.e2e.hostile.world import WAYS, World, echo, never, request, together
from tests.support.app import Exchange
from tests.support.http2 import data, headers
from tests.support.mesh import until
from tieline.model import Headers
from tieline.wire.http2.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    settings,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = call()
INNER = request("inner", "POST", ["Content-Length: 0"])


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


MALFORMED = {
    "CR LF in a value": call(more=[(b"x", b"a\r\nTransfer-Encoding: chunked")]),
    "LF in a value": call(more=[(b"x", b"a\nb")]),
    "CR in a value": call(more=[(b"x", b"a\rb")]),
    "NUL in a value": call(more=[(b"x", b"a\0b")]),
    "CR LF in a name": call(more=[(b"x\r\ny", b"a")]),
    "colon in a name": call(more=[(b"x:y", b"a")]),
    "blank in a name": call(more=[(b"content length", b"1")]),
    "capitals in a name": call(more=[(b"X-Y", b"a")]),
    "empty name": call(more=[(b"", b"a")]),
    "blank at the end": call(more=[(b"x", b"a ")]),
    "connection": call(more=[(b"connection", b"close")]),
    "keep-alive": call(more=[(b"keep-alive", b"1")]),
    "proxy-connection": call(more=[(b"proxy-connection", b"close")]),
    "upgrade": call(more=[(b"upgrade", b"h2c")]),
    "transfer-encoding": call(more=[(b"transfer-encoding", b"chunked")]),
    "te": call(more=[(b"te", b"gzip")]),
    "two hosts": call(more=[(b"host", b"a"), (b"host", b"b")]),
    "host against authority": call(more=[(b"host", b"b")]),
    "no method": GET[1:],
    "no path": [GET[0], *GET[2:]],
    "no scheme": [*GET[:2], GET[3]],
    "method twice": [GET[0], *GET],
    "pseudo-header at the end": [*GET[:1], (b"x", b"y"), *GET[1:]],
    "unknown pseudo-header": [*GET, (b":x", b"y")],
    "status": [*GET, (b":status", b"200")],
    "protocol without CONNECT": [*GET, (b":protocol", b"websocket")],
    "empty path": call(path=b""),
    "path without slash": call(path=b"v1.0/invoke"),
    "blank in path": call(path=b"/v1.0/invoke/callee/method/x HTTP/1.1"),
    "CR LF in path": call(path=b"/v1.0/invoke/callee/method/x\r\nHost: a"),
    "NUL in path": call(path=b"/v1.0/invoke/callee/method/x\0"),
    "blank in method": [(b":method", b"GET /"), *GET[1:]],
    "bad authority": [*GET[:3], (b":authority", b"a/b")],
    "length of nothing": call(more=[(b"content-length", b"5")]),
    "bad length": call(more=[(b"content-length", b"+0")]),
    "two lengths": call(more=[(b"content-length", b"0"), (b"content-length", b"0")]),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_request_is_reset_and_goes_nowhere(world: World, name: str) -> None:
    raw = await Raw.open(world.callee.port)

    await raw.say(headers(1, MALFORMED[name]))

    await raw.over(1)
    assert raw.reset_code(1) == ErrorCode.PROTOCOL_ERROR
    assert world.targets == []
    assert await raw.is_alive(3)
    raw.close()


LIES = {
    "short": (b"10", [data(1, b"hello", end=True)]),
    "long in one": (b"3", [data(1, b"hello", end=True)]),
    "long in two": (b"7", [data(1, b"hello"), data(1, b"hello", end=True)]),
    "short with trailers": (b"10", [data(1, b"hello"), headers(1, [(b"t", b"1")])]),
    "nothing": (b"5", [data(1, b"", end=True)]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LIES)
async def test_a_length_that_lies_resets_the_stream_and_the_app_has_no_whole_message(
    world: World, name: str, way: str
) -> None:
    whole: list[str] = []

    async def note(exchange: Exchange) -> None:
        body = await exchange.body()
        whole.append(exchange.target)
        exchange.answer(200, body)

    world.handler = note
    length, pieces = LIES[name]
    raw = await Raw.open(world.entry(way).port)

    await raw.say(headers(1, call("x", b"POST", [(b"content-length", length)]), end=False))
    await raw.reached()
    await raw.say(*pieces)

    await raw.over(1)
    assert raw.reset_code(1) == ErrorCode.PROTOCOL_ERROR
    assert await raw.is_alive(3)
    assert whole == ["/fine"]
    raw.close()


BAD_TRAILERS: dict[str, Headers] = {
    "te": [(b"transfer-encoding", b"chunked")],
    "connection": [(b"connection", b"close")],
    "pseudo-header": [(b":path", b"/")],
    "CR LF": [(b"x", b"a\r\n\r\n" + INNER)],
    "capitals": [(b"X", b"a")],
}


@pytest.mark.parametrize("name", BAD_TRAILERS)
async def test_malformed_trailers_reset_the_stream(world: World, name: str) -> None:
    raw = await Raw.open(world.callee.port)

    await raw.say(headers(1, call("x", b"POST"), end=False), data(1, b"hello"), headers(1, BAD_TRAILERS[name]))

    await raw.over(1)
    assert raw.reset_code(1) == ErrorCode.PROTOCOL_ERROR
    assert "/inner" not in world.targets
    raw.close()


@pytest.mark.rule("H-54")
@pytest.mark.parametrize("way", WAYS)
async def test_trailers_that_frame_route_or_authorise_are_left_out_and_the_call_goes_on(world: World, way: str) -> None:
    names = (
        b"content-length content-type content-encoding cache-control authorization cookie set-cookie host expect range "
        b"pragma if-match if-none-match if-modified-since if-range www-authenticate proxy-authenticate max-forwards "
        b"dapr-app-id dapr-api-token dapr-caller-app-id dapr-x x-forwarded-for x-forwarded-proto forwarded trailer "
        b"tieline-invoke tieline-error keep"
    ).split()
    seen: list[set[str]] = []

    async def note(exchange: Exchange) -> None:
        body = await exchange.body()
        seen.append({name for name, _ in exchange.trailers})
        exchange.answer(200, body)

    world.handler = note
    raw = await Raw.open(world.entry(way).port)
    fields = [(name, b"5") for name in names]

    await raw.say(headers(1, call("x", b"POST"), end=False), data(1, b"hello"), headers(1, fields))

    found = await raw.over(1)
    assert [one.payload for one in found if one.kind == DATA] == [b"hello"]
    forbidden = {"content-length", "transfer-encoding", "host", "authorization", "dapr-app-id", "dapr-api-token"}
    assert "keep" in seen[0]
    assert not seen[0] & forbidden
    assert not [name for name in seen[0] if name.startswith("tieline-")]
    raw.close()


FATAL = {
    "garbage": (b"\xde\xad\xbe\xef" * 20 + b"\r\n\r\n", None),
    "frame before SETTINGS": (PREFACE + headers(1, GET), ErrorCode.PROTOCOL_ERROR),
    "garbage after the preface": (PREFACE + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
    "HTTP/1.1 after SETTINGS": (BEGIN + INNER, None),
    "bad HPACK": (BEGIN + frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "index of nothing": (BEGIN + frame(HEADERS, 5, 1, b"\xfe"), ErrorCode.COMPRESSION_ERROR),
    "cut HPACK": (BEGIN + frame(HEADERS, 5, 1, b"\x00\x05ab"), ErrorCode.COMPRESSION_ERROR),
    "bad Huffman": (BEGIN + frame(HEADERS, 5, 1, b"\x00\x84\xff\xff\xff\xff\x00"), ErrorCode.COMPRESSION_ERROR),
    "large table": (BEGIN + frame(HEADERS, 5, 1, b"\x3f\xff\xff\xff\x07"), ErrorCode.COMPRESSION_ERROR),
    "oversized frame": (BEGIN + b"\0\x40\x01" + bytes([DATA, 0]) + u32(1) + b"x" * 16385, ErrorCode.FRAME_SIZE_ERROR),
    "16 MiB frame": (BEGIN + b"\xff\xff\xff" + bytes([HEADERS, 5]) + u32(1), ErrorCode.FRAME_SIZE_ERROR),
    "DATA on stream 0": (BEGIN + data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA on an idle stream": (BEGIN + data(5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on stream 0": (BEGIN + headers(0, GET), ErrorCode.PROTOCOL_ERROR),
    "even stream": (BEGIN + headers(2, GET), ErrorCode.PROTOCOL_ERROR),
    "stream twice": (BEGIN + headers(5, call("fine")) + headers(3, GET), None),
    "RST_STREAM on an idle stream": (BEGIN + frame(RST_STREAM, 0, 1, u32(8)), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM of 3 bytes": (BEGIN + headers(1, GET, end=False) + frame(RST_STREAM, 0, 1, b"abc"), 6),
    "WINDOW_UPDATE of 0": (BEGIN + frame(WINDOW_UPDATE, 0, 0, u32(0)), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE too large": (BEGIN + frame(WINDOW_UPDATE, 0, 0, u32(2**31 - 1)), ErrorCode.FLOW_CONTROL_ERROR),
    "SETTINGS of 5 bytes": (BEGIN + frame(SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (BEGIN + frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "a window of 4 GiB": (BEGIN + frame(SETTINGS, 0, 0, b"\0\4" + u32(2**32 - 1)), ErrorCode.FLOW_CONTROL_ERROR),
    "tiny frames": (BEGIN + frame(SETTINGS, 0, 0, b"\0\5" + u32(1)), ErrorCode.PROTOCOL_ERROR),
    "many settings": (BEGIN + frame(SETTINGS, 0, 0, (b"\0\x99" + u32(1)) * 2000), ErrorCode.ENHANCE_YOUR_CALM),
    "PING of 7 bytes": (BEGIN + frame(PING, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "PUSH_PROMISE": (BEGIN + frame(PUSH_PROMISE, 4, 1, u32(2)), ErrorCode.PROTOCOL_ERROR),
    "lone CONTINUATION": (BEGIN + frame(CONTINUATION, 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "interrupted block": (BEGIN + frame(HEADERS, 0, 1, block(GET)) + frame(PING, 0, 0, b"x" * 8), 1),
    "another's CONTINUATION": (BEGIN + frame(HEADERS, 0, 1, block(GET)) + frame(CONTINUATION, 4, 3, b""), 1),
    "too much padding": (BEGIN + headers(1, GET, end=False) + frame(DATA, PADDED, 1, b"\x09x"), 1),
    "depends on itself": (BEGIN + frame(PRIORITY, 0, 1, u32(1) + b"x"), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION flood": (
        BEGIN + frame(HEADERS, 0, 1, block(GET)) + frame(CONTINUATION, 0, 1, b"") * 1000, ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "CONTINUATION without end": (
        BEGIN + frame(HEADERS, 0, 1, block(GET)) + frame(CONTINUATION, 0, 1, block([(b"x", b"y" * 16000)])) * 40,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "HPACK bomb": (
        BEGIN + frame(HEADERS, 5, 1, block(GET) + b"\x40\x01x\x7f\x81\x1e" + b"y" * 4000 + b"\xbe" * 11000),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "rapid reset": (
        BEGIN + b"".join(headers(n, call("fine")) + frame(RST_STREAM, 0, n, u32(8)) for n in range(1, 8001, 2)), 11,
    ),
    "SETTINGS flood": (BEGIN + settings({}) * 20000, ErrorCode.ENHANCE_YOUR_CALM),
    "PING flood": (BEGIN + frame(PING, 0, 0, b"x" * 8) * 20000, ErrorCode.ENHANCE_YOUR_CALM),
    "PRIORITY flood": (BEGIN + frame(PRIORITY, 0, 1, u32(0) + b"x") * 20000, ErrorCode.ENHANCE_YOUR_CALM),
    "flood of unknown frames": (BEGIN + frame(0x99, 0, 0, b"x") * 20000, ErrorCode.ENHANCE_YOUR_CALM),
    "flood of empty DATA": (
        BEGIN + headers(1, call("x", b"POST"), end=False) + data(1, b"") * 20000, ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "flood of malformed requests": (
        BEGIN + b"".join(headers(n, call(more=[(b"X", b"y")])) for n in range(1, 8001, 2)), 11,
    ),
    "flood of refused streams": (
        BEGIN + b"".join(headers(n, call("x", b"POST"), end=False) for n in range(1, 8001, 2)), 11,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FATAL)
async def test_a_broken_or_wasteful_connection_is_closed(world: World, name: str) -> None:
    said, code = FATAL[name]
    raw = await Raw.open(world.callee.port, said)

    await raw.until_closed(8)

    assert raw.closed
    if raw.goodbye is not None and code is not None:
        assert raw.goodbye == code
    assert "/inner" not in world.targets
    raw.close()


async def test_data_on_a_closed_stream_resets_that_and_no_other(world: World) -> None:
    world.handler = lambda exchange: echo(exchange) if exchange.target == "/fine" else never(exchange)
    raw = await Raw.open(world.callee.port)

    await raw.say(headers(1, call("x")), data(1, b"x") * 5000)

    await raw.over(1)
    assert raw.reset_code(1) == ErrorCode.STREAM_CLOSED
    assert await raw.is_alive(3)
    raw.close()


@pytest.mark.rule("H-63")
async def test_a_head_over_the_limit_is_answered_431_and_the_connection_lives(world: World) -> None:
    raw = await Raw.open(world.callee.port)

    await raw.say(headers(1, call(more=[(b"x", b"y" * 9000)])))

    found = await raw.over(1)
    assert [one.payload for one in found if one.kind == DATA] == [b"431 Request Header Fields Too Large"]
    assert await raw.is_alive(3)
    assert world.targets == []
    raw.close()


@pytest.mark.parametrize("way", WAYS)
async def test_two_hundred_clients_that_vanish_leave_nothing(world: World, way: str) -> None:
    world.handler = lambda exchange: echo(exchange) if exchange.target == "/fine" else never(exchange)
    port = world.entry(way).port

    async def vanish(number: int) -> None:
        raw = await Raw.open(port, BEGIN if number % 5 else PREFACE[:9])
        if number % 5 == 1:
            await raw.say(frame(HEADERS, 0, 1, block(call("x", b"POST"))))
        elif number % 5 == 2:
            await raw.say(headers(1, call("x", b"POST", [(b"content-length", b"99999")]), end=False), data(1, b"x" * 9))
        elif number % 5 == 3:
            await raw.say(headers(1, call("x", b"POST"), end=False), data(1, b"x" * 9000)[:4000])
        elif number % 5 == 4:
            await raw.say(headers(1, call("x")))
        if number % 2:
            raw.reset()
        else:
            raw.close()

    await together(vanish, 200)


@pytest.mark.parametrize("way", WAYS)
async def test_half_open_streams_by_the_hundred_cost_little_and_go_with_their_client(world: World, way: str) -> None:
    entry = world.entry(way)
    before = entry.resident()
    raws = [await Raw.open(entry.port) for _ in range(4)]
    for raw in raws:
        await raw.say(*[headers(n, call("x", b"POST"), end=False) + data(n, b"x" * 100) for n in range(1, 401, 2)])
    await until(lambda: len(world.targets) == 800, 15)

    assert entry.resident() - before < 48 << 20
    for raw in raws:
        raw.reset()


@pytest.mark.parametrize("way", WAYS)
async def test_two_hundred_and_fifty_answers_into_a_window_of_zero_stop_the_app(world: World, way: str) -> None:
    written = 0
    begun = 0

    async def pour(exchange: Exchange) -> None:
        nonlocal written, begun
        if exchange.target == "/fine":
            await echo(exchange)
            return
        await exchange.body()
        begun += 1
        exchange.begin_chunked()
        for _ in range(1000):
            exchange.chunk(b"x" * 65536)
            await exchange.writer.drain()
            written += 65536

    world.handler = pour
    sidecars = (world.callee, world.caller)
    before = [sidecar.resident() for sidecar in sidecars]
    raw = await Raw.open(world.entry(way).port, PREFACE + settings({4: 0}))

    await raw.say(*[headers(n, call("big")) for n in range(1, 501, 2)])
    await until(lambda: begun == 250, 15)
    last = -1
    while last != written:
        last = written
        await asyncio.sleep(0.5)

    grown = [sidecar.resident() - at for sidecar, at in zip(sidecars, before, strict=True)]
    assert max(grown) < 48 << 20, grown
    assert await world.callee.call("callee", "fine")
    raw.reset()


@pytest.mark.parametrize("way", WAYS)
async def test_streams_that_are_reset_at_once_cancel_their_calls(world: World, way: str) -> None:
    world.handler = lambda exchange: echo(exchange) if exchange.target == "/fine" else never(exchange)
    raw = await Raw.open(world.entry(way).port)

    for number in range(1, 401, 2):
        await raw.say(headers(number, call("x", b"POST"), end=False), data(number, b"x"))
        await raw.say(frame(RST_STREAM, 0, number, u32(ErrorCode.CANCEL)))

    assert await raw.is_alive(401)
    raw.close()


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_never_reads_its_answers_costs_no_memory(world: World, way: str) -> None:
    entry = world.entry(way)
    before = entry.resident()
    raw = await Raw.open(entry.port, PREFACE + settings({4: 2**31 - 1}) + frame(WINDOW_UPDATE, 0, 0, u32(2**30)))
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]

    body = b"x" * 16384
    number = 1
    try:
        async with asyncio.timeout(2):
            while number < 60001:
                await raw.say(headers(number, call("x", b"POST"), end=False), data(number, body, end=True))
                number += 2
    except TimeoutError:
        pass

    assert entry.resident() - before < 48 << 20
    raw.reset()


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_within_a_body_stays_a_body(world: World, way: str) -> None:
    raw = await Raw.open(world.entry(way).port)

    await raw.say(headers(1, call("x", b"POST"), end=False), data(1, INNER), data(1, b"0\r\n\r\n" + INNER, end=True))

    found = await raw.over(1)
    assert b"".join(one.payload for one in found if one.kind == DATA) == INNER + b"0\r\n\r\n" + INNER
    assert world.targets == ["/x"]
    raw.close()


async def test_a_goodbye_of_the_client_does_not_end_its_calls(world: World) -> None:
    raw = await Raw.open(world.callee.port)

    await raw.say(headers(1, call("x", b"POST"), end=False), frame(GOAWAY, 0, 0, u32(0) + u32(0) + b"bye"))
    await raw.say(data(1, b"hello", end=True))

    found = await raw.over(1)
    assert [one.payload for one in found if one.kind == DATA] == [b"hello"]
    raw.close()
