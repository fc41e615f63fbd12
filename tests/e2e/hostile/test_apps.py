"""Apps that answer garbage, too much, too little, too early, twice, or without end."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.hostile.world import WAYS, World, echo, script
from tests.support.app import Exchange
from tests.support.http1 import Broken, Client
from tests.support.mesh import invoke_path, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

OK = b"HTTP/1.1 200 OK\r\n"
POISON = OK + b"Content-Length: 6\r\n\r\npoison"

NO_ANSWERS = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 4,
    "a line": b"garbage\r\n\r\n",
    "status 099": b"HTTP/1.1 099 Low\r\n\r\n",
    "status 99": b"HTTP/1.1 99 Low\r\n\r\n",
    "status 1000": b"HTTP/1.1 1000 High\r\n\r\n",
    "status abc": b"HTTP/1.1 abc\r\n\r\n",
    "negative status": b"HTTP/1.1 -200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 \r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "blank line in front": b"\r\n" + OK + b"\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "half a head": OK + b"Content-Len",
    "no colon": OK + b"nonsense\r\n\r\n",
    "blank before colon": OK + b"Content-Length : 0\r\n\r\n",
    "folded": OK + b"X: a\r\n b\r\n\r\n",
    "NUL": OK + b"X: a\0b\r\n\r\n",
    "CR": OK + b"X: a\rb\r\n\r\n",
    "bad name": OK + b"X\xff: a\r\n\r\n",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "signed length": OK + b"Content-Length: +2\r\n\r\nxx",
    "list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nxx",
    "gzip coding": OK + b"Transfer-Encoding: gzip\r\n\r\nxx",
    "xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": OK + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "VT chunked": OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + POISON,
    "only 100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "endless 1xx": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 5000,
    "endless head": OK + b"X: y\r\n" * 50000,
    "endless line": OK + b"X: " + b"y" * 400000,
    "endless status": b"HTTP/1.1 200 " + b"y" * 400000,
}  # fmt: skip


@pytest.mark.rule("H-157")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_what_is_no_answer_is_called_broken(world: World, way: str, name: str) -> None:
    calls = 0

    async def handle(exchange: Exchange) -> None:
        nonlocal calls
        calls += 1
        await script(NO_ANSWERS[name])(exchange)

    world.handler = handle

    answer = await world.entry(way).call("callee", "x", "POST", body=b"hello", within_s=10)

    assert answer.status == 500
    assert answer.header("tieline-cause") == "app-broken"
    assert answer.header("tieline-hop") == "app"
    assert b"poison" not in answer.body
    assert calls == 1


BREAKING_OFF = {
    "17 digits of a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\nxx",
    "no chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nhello world",
    "endless chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + b"x" * 100_000,
    "chunk without end": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "bad second chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\nzz\r\n" % (90_000, b"x" * 90_000),
    "bad trailers": OK
    + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nContent-Length: 5\r\n\r\n" % (90_000, b"x" * 90_000),
    "endless trailers": OK
    + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (90_000, b"x" * 90_000)
    + b"X: y\r\n" * 9000,
    "no gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
}


@pytest.mark.rule("H-74")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BREAKING_OFF)
async def test_an_answer_that_breaks_off_is_seen_to(world: World, way: str, name: str) -> None:
    world.handler = script(BREAKING_OFF[name])

    answer = await world.entry(way).call("callee", "x", within_s=10)

    assert answer.status == 500 or not answer.whole


SHORT = {
    "shorter": (OK + b"Content-Length: 10\r\n\r\nhello", b"hello"),
    "longer": (OK + b"Content-Length: 5\r\n\r\nhello world", b"hello"),
    "to the end": (OK + b"\r\nhello", b"hello"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    "chunked and a length": (
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello",
    ),
    "a length twice": (OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "1xx first": (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + OK + b"Content-Length: 5\r\n\r\nhello", b"hello",
    ),
    "no body": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", b""),
    "many bytes beyond": (OK + b"Content-Length: 5\r\n\r\nhello" + b"x" * 300_000, b"hello"),
    "a second answer": (OK + b"Content-Length: 5\r\n\r\nhello" + POISON, b"hello"),
    "an answer behind the last chunk": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + POISON, b"hello",
    ),
    "an answer behind no body": (b"HTTP/1.1 204 No Content\r\n\r\n" + POISON, b""),
}  # fmt: skip


@pytest.mark.rule("H-70")
@pytest.mark.parametrize("then", ["close", "stay"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SHORT)
async def test_an_answer_ends_where_it_says_and_what_follows_answers_nobody(
    world: World, name: str, way: str, then: str
) -> None:
    said, body = SHORT[name]
    stays = then == "stay" and name not in ("shorter", "to the end", "HTTP/1.0")

    async def handle(exchange: Exchange) -> None:
        if exchange.target == "/x":
            await script(said, then="stay" if stays else "close")(exchange)
        else:
            await echo(exchange)

    world.handler = handle
    entry = world.entry(way)

    answer = await entry.call("callee", "x")
    others = [await entry.call("callee", "y", "POST", body=b"%d" % number) for number in range(3)]

    assert (answer.body, answer.whole) == (body, True)
    assert [other.body for other in others] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("verb", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_that_nobody_asked_for_answers_no_later_call(world: World, way: str, verb: str) -> None:
    """It comes once the connection is idle: that ends the connection."""
    answered, ended = asyncio.Event(), asyncio.Event()

    async def handle(exchange: Exchange) -> None:
        if exchange.target != "/x":
            await echo(exchange)
            return
        exchange.answer(200, b"first")
        await answered.wait()
        exchange.writer.write(POISON)
        await exchange.gone()
        ended.set()

    world.handler = handle
    entry = world.entry(way)
    for _ in range(3):
        answered.clear()
        ended.clear()
        await entry.call("callee", "x")
        answered.set()
        await asyncio.wait_for(ended.wait(), 15)

        answer = await entry.call("callee", "y", verb, body=b"second")

        assert answer.header("x-target") == "/y"
        assert answer.body == (b"" if verb == "HEAD" else b"second")


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_after_head_is_no_answer(world: World, way: str) -> None:
    async def handle(exchange: Exchange) -> None:
        if exchange.verb == "HEAD":
            exchange.writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(POISON) + POISON)
        else:
            await echo(exchange)

    world.handler = handle
    entry = world.entry(way)

    head = await entry.call("callee", "x", "HEAD")
    others = [await entry.call("callee", "y", "POST", body=b"%d" % number) for number in range(3)]

    assert (head.status, head.body) == (200, b"")
    assert [other.body for other in others] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("how", ["stay", "close", "reset"])
@pytest.mark.parametrize("way", WAYS)
async def test_an_app_that_answers_before_it_reads_leaves_nothing_of_the_request_behind(
    world: World, way: str, how: str
) -> None:
    """What is left of the body must not be read as a request, by whoever."""

    async def handle(exchange: Exchange) -> None:
        if exchange.target != "/x":
            await echo(exchange)
            return
        exchange.answer(200, b"early")
        await exchange.writer.drain()
        if how == "reset":
            await asyncio.sleep(0.02)
            exchange.reset()
        elif how == "close":
            exchange.close()
        else:
            await exchange.gone()

    world.handler = handle
    inner = b"GET /inner HTTP/1.1\r\nHost: a\r\n\r\n"
    client = await Client.open(world.entry(way).port)

    client.send("POST", invoke_path("callee", "x"), [("Content-Length", str(len(inner) * 20000))])
    await until(lambda: "/x" in world.targets)
    client.writer.write(inner * 20000)
    try:
        answer = await client.answer()
        assert answer.status == 200 or (how != "stay" and answer.status == 500)
    except Broken:
        assert how != "stay"
    client.close()

    assert "/inner" not in world.targets


@pytest.mark.parametrize("way", WAYS)
async def test_an_endless_answer_ends_with_its_client(world: World, way: str) -> None:
    ended = asyncio.Event()

    async def pour(exchange: Exchange) -> None:
        if exchange.target == "/fine":
            await echo(exchange)
            return
        exchange.begin_chunked()
        try:
            while True:
                exchange.chunk(b"x" * 10)
                await exchange.writer.drain()
                await asyncio.sleep(0)
        finally:
            ended.set()

    world.handler = pour
    client = await Client.open(world.entry(way).port)
    client.send("GET", invoke_path("callee", "x"))
    await client.head()
    await client.chunk_in()

    client.reset()

    async with asyncio.timeout(5):
        await ended.wait()


async def test_fields_of_an_answer_that_another_protocol_would_misread_do_not_pass(world: World) -> None:
    """Hop-by-hop fields, and those that Connection names, end at the app's sidecar."""
    world.handler = script(
        OK + b"Connection: close, X-Secret\r\nX-Secret: a\r\nKeep-Alive: 1\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n"
        b"TE: gzip\r\nTrailer: X\r\nX-Kept: yes\r\nContent-Length: 0\r\n\r\n"
    )

    for way in WAYS:
        answer = await world.entry(way).call("callee", "x")

        names = {name for name, _ in answer.headers}
        assert "x-kept" in names
        assert not names & {"x-secret", "keep-alive", "upgrade", "proxy-connection", "te", "trailer"}
