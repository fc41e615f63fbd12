"""Whoever connects to the port for other sidecars: other protocols, and callers that lie."""

from __future__ import annotations

import asyncio
import json
import os
import ssl

import pytest

from tests.e2e.hostile.raw2 import Raw, call, frame
from tests.e2e.hostile.world import World, echo, never, together
from tests.support.app import Exchange
from tests.support.http2 import data, headers
from tests.support.mesh import until
from tieline.wire.http2.frames import DATA, HEADERS, NATIVE_SETTING, PREFACE, RST_STREAM, ErrorCode, settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = PREFACE + settings({NATIVE_SETTING: 1})
FOREIGN = PREFACE + settings({})


def native(path: bytes, more: list[tuple[bytes, bytes]] | None = None, *, verb: bytes = b"POST", to: bytes = b"callee"
           ) -> list[tuple[bytes, bytes]]:  # fmt: skip
    pseudo = [(b":method", verb), (b":path", path), (b":scheme", b"http"), (b":authority", to)]
    return [*pseudo, (b"tieline-invoke", b"1"), *(more or [])]


async def told(exchange: Exchange) -> None:
    """Answer with what reached the app."""
    body = await exchange.body()
    if exchange.target == "/fine":
        exchange.answer(200, body)
    else:
        exchange.answer(200, json.dumps([exchange.target, exchange.headers]).encode())


async def answer_of(raw: Raw, number: int) -> tuple[int, bytes]:
    """Return status and body, read without a table since our own answers to a new connection use only literals."""
    found = await raw.over(number)
    text = b"".join(one.payload for one in found if one.kind == HEADERS)
    status = 200 if text[:1] == b"\x88" else 500 if text[:1] == b"\x8e" else 404 if text[:1] == b"\x8d" else 0
    return status, b"".join(one.payload for one in found if one.kind == DATA)


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    handshake = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("what", ["random", "HTTP/1.1", "TLS", "zeros", "preface and random"])
async def test_another_protocol_is_closed(world: World, what: str) -> None:
    said = {
        "random": b"\xf0" + os.urandom(4096),
        "HTTP/1.1": b"POST /x HTTP/1.1\r\nHost: callee\r\ntieline-invoke: 1\r\nContent-Length: 0\r\n\r\n",
        "TLS": _client_hello(),
        "zeros": b"\0" * 4096,
        "preface and random": PREFACE + b"\xf0" * 4096,
    }[what]
    raw = await Raw.open(world.callee.internal, said)

    await raw.until_closed()

    assert raw.goodbye in (None, ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR)
    assert world.targets == []
    raw.close()


@pytest.mark.rule("H-4")
async def test_a_caller_that_says_nothing_after_the_preface_is_closed(world: World) -> None:
    raws = [await Raw.open(world.callee.internal, said) for said in (PREFACE, PREFACE[:7])]

    for raw in raws:
        await raw.until_closed(4)
        assert raw.goodbye in (ErrorCode.SETTINGS_TIMEOUT, None)
        raw.close()


async def test_without_the_private_setting_there_are_no_calls(world: World) -> None:
    raw = await Raw.open(world.callee.internal, FOREIGN)

    await raw.say(headers(1, native(b"/x"), end=True))

    assert (await answer_of(raw, 1))[0] == 404
    assert world.targets == []
    raw.close()


async def test_a_setting_that_comes_late_makes_no_tieline(world: World) -> None:
    raw = await Raw.open(world.callee.internal, FOREIGN + settings({NATIVE_SETTING: 1}))

    await raw.say(headers(1, native(b"/x")))

    assert (await answer_of(raw, 1))[0] == 404
    assert world.targets == []
    raw.close()


async def test_at_the_api_port_the_private_form_is_an_ordinary_request(world: World) -> None:
    """There the target is in the path; neither setting nor mark gives anybody an identity."""
    world.handler = told
    raw = await Raw.open(world.callee.port, NATIVE)

    await raw.say(headers(1, native(b"/x")))
    bare = await answer_of(raw, 1)
    forged = [(b"tieline-invoke", b"1"), (b"dapr-caller-app-id", b"boss"), (b"dapr-caller-namespace", b"root")]
    await raw.say(headers(3, call("x", more=forged)))
    _, body = await answer_of(raw, 3)

    assert bare[0] == 404
    seen = dict(json.loads(body)[1])
    assert seen["dapr-caller-app-id"] == "callee"
    assert "tieline-invoke" not in seen
    raw.close()


REFUSED = {
    "no mark": (native(b"/x")[:4], 404),
    "another mark": ([*native(b"/x")[:4], (b"tieline-invoke", b"2")], 404),
    "wrong callee": (native(b"/x", to=b"other"), 500),
    "wrong namespace": (native(b"/x", to=b"callee.other"), 500),
    "no callee": (native(b"/x", to=b""), 500),
    "broken escape": (native(b"/a%zz"), 500),
    "cut escape": (native(b"/a%2"), 500),
    "NUL": (native(b"/a%00b"), 500),
    "unit separator": (native(b"/a%1Fb"), 500),
    "CR LF": (native(b"/a%0d%0aX:%20y"), 500),
    "DEL": (native(b"/a%7F"), 500),
    "question mark": (native(b"/a%3Fb"), 500),
    "hash": (native(b"/a%23b"), 500),
    "CONNECT": (native(b"/x", [], verb=b"BREW"), 500),
    "tunnel": ([(b":method", b"CONNECT"), (b":protocol", b"websocket"), *native(b"/x")[1:]], 500),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_a_call_that_may_not_be_is_refused_and_the_connection_lives(world: World, name: str) -> None:
    fields, status = REFUSED[name]
    raw = await Raw.open(world.callee.internal, NATIVE)

    await raw.say(headers(1, fields))

    assert (await answer_of(raw, 1))[0] == status
    assert world.targets == []
    await raw.say(headers(3, native(b"/fine")))
    assert (await answer_of(raw, 3))[0] == 200
    raw.close()


async def test_a_path_is_decoded_once(world: World) -> None:
    world.handler = told
    raw = await Raw.open(world.callee.internal, NATIVE)
    paths = {
        b"/a%252Fb": "/a%252Fb",
        b"/a%2Fb": "/a/b",
        b"/a/..%2f..%2fb": "/b",
        b"/%2e%2e/b": "/b",
        b"//a///b/": "/a/b",
        b"/" + b"x" * 10_000: "/" + "x" * 10_000,
        b"/a?b=%00&c": "/a?b=%00&c",
    }

    for number, (path, target) in enumerate(paths.items()):
        await raw.say(headers(2 * number + 1, native(path)))
        status, body = await answer_of(raw, 2 * number + 1)
        assert (status, json.loads(body)[0]) == (200, target)
    raw.close()


async def test_forged_identities_are_one_each_and_give_no_more_than_a_claim(world: World) -> None:
    world.handler = told
    raw = await Raw.open(world.callee.internal, NATIVE)
    forged = [
        (b"dapr-caller-app-id", b"first"), (b"dapr-caller-app-id", b"last\xff"),
        (b"dapr-caller-namespace", b"a"), (b"dapr-caller-namespace", b"b"),
        (b"dapr-callee-app-id", b"boss"), (b"dapr-app-id", b"other"), (b"tieline-verified", b"1"),
        (b"connection-x", b"kept"),
    ]  # fmt: skip

    await raw.say(headers(1, native(b"/x", forged)))

    _, body = await answer_of(raw, 1)
    seen = [(name, value) for name, value in json.loads(body)[1] if name.startswith(("dapr-", "tieline-"))]
    assert len(seen) == len({name for name, _ in seen})
    assert dict(seen)["dapr-callee-app-id"] == "callee"
    assert not {"dapr-app-id", "tieline-verified", "tieline-invoke"} & set(dict(seen))
    raw.close()


@pytest.mark.parametrize("fields", [[(b"transfer-encoding", b"chunked")], [(b"connection", b"close")]], ids=["te", "c"])
async def test_a_caller_gets_no_framing_across(world: World, fields: list[tuple[bytes, bytes]]) -> None:
    raw = await Raw.open(world.callee.internal, NATIVE)

    await raw.say(headers(1, native(b"/x", fields)))

    await raw.over(1)
    assert raw.reset_code(1) == ErrorCode.PROTOCOL_ERROR
    assert world.targets == []
    raw.close()


async def test_two_hundred_callers_that_vanish_leave_nothing(world: World) -> None:
    world.handler = lambda exchange: echo(exchange) if exchange.target == "/fine" else never(exchange)

    async def vanish(number: int) -> None:
        raw = await Raw.open(world.callee.internal, NATIVE)
        begun = headers(1, native(b"/x", [(b"content-length", b"1000")]), end=False)
        await raw.say((begun + data(1, b"x" * 100))[: 20 + number])
        if number % 2:
            raw.reset()
        else:
            raw.close()

    await together(vanish, 200)


async def test_a_reset_reaches_the_app(world: World) -> None:
    left = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        if exchange.target == "/fine":
            await echo(exchange)
            return
        await exchange.gone()
        left.set()

    world.handler = wait
    raw = await Raw.open(world.callee.internal, NATIVE)
    await raw.say(headers(1, native(b"/x")))
    await until(lambda: world.targets == ["/x"])

    await raw.say(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))

    async with asyncio.timeout(5):
        await left.wait()
    raw.close()
