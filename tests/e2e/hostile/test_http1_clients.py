"""Clients of the HTTP API that speak HTTP/1.1 badly, slowly, without end, or with a second meaning."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.e2e.hostile.world import WAYS, World, echo, never, request, say, together
from tests.support.app import Exchange
from tests.support.http1 import Client
from tests.support.mesh import invoke_path, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL = invoke_path("callee", "x").encode()
INNER = request("inner", "POST", ["Content-Length: 0"])
"""A request that stands where a body is, or behind a message whose end somebody might see too early."""


def raw(*lines: bytes, body: bytes = b"", verb: bytes = b"POST") -> bytes:
    return b"\r\n".join([verb + b" " + CALL + b" HTTP/1.1", b"Host: a", *lines, b"", body])


BAD_HEADS = {
    "no version": (b"GET " + CALL + b"\r\nHost: a\r\n\r\n", 400),
    "odd version": (b"GET " + CALL + b" HTTP/x.y\r\nHost: a\r\n\r\n", 400),
    "version 3": (b"GET " + CALL + b" HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    "blank first line": (b"\r\n" + raw(), 400),
    "two blanks": (b"GET  " + CALL + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "tab": (b"GET\t" + CALL + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "blank in target": (b"GET " + CALL + b" x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "NUL in target": (b"GET " + CALL + b"\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bad escape": (b"GET " + CALL + b"%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "cut escape": (b"GET " + CALL + b"%2 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no path": (b"GET callee HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no host": (b"GET " + CALL + b" HTTP/1.1\r\n\r\n", 400),
    "two hosts": (raw(b"Host: b"), 400),
    "bad host": (b"GET " + CALL + b" HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "no colon": (raw(b"nonsense"), 400),
    "blank before colon": (raw(b"Content-Length : 5"), 400),
    "blank in name": (raw(b"Content Length: 5"), 400),
    "empty name": (raw(b": x"), 400),
    "non-ASCII name": (raw(b"X\xff: x"), 400),
    "NUL in value": (raw(b"X: a\0b"), 400),
    "CR in value": (raw(b"X: a\rb"), 400),
    "bare LF in value": (raw(b"X: a\nTransfer-Encoding: chunked"), 400),
    "bare LF everywhere": (b"GET " + CALL + b" HTTP/1.1\nHost: a\n\n", 400),
    "folded": (raw(b"X: a", b" b"), 400),
    "folded framing": (raw(b"Transfer-Encoding:", b" chunked"), 400),
    "expectation": (raw(b"Expect: the-unexpected"), 417),
    "two lengths": (raw(b"Content-Length: 5", b"Content-Length: 6", body=b"hello" + INNER), 400),
    "a length twice": (raw(b"Content-Length: 5", b"Content-Length: 5", body=b"hello" + INNER), 400),
    "a list of lengths": (raw(b"Content-Length: 5, 5", body=b"hello" + INNER), 400),
    "signed length": (raw(b"Content-Length: +5", body=b"hello" + INNER), 400),
    "hexadecimal length": (raw(b"Content-Length: 0x5", body=b"hello" + INNER), 400),
    "empty length": (raw(b"Content-Length:", body=b"hello" + INNER), 400),
    "huge length": (raw(b"Content-Length: 99999999999999999999", body=b"hello" + INNER), 400),
    "length and chunked": (raw(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + INNER), 400),
    "chunked and length": (raw(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + INNER), 400),
    "xchunked": (raw(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + INNER), 501),
    "chunked, identity": (raw(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + INNER), 501),
    "identity, chunked": (raw(b"Transfer-Encoding: identity, chunked", body=b"0\r\n\r\n" + INNER), 501),
    "chunked twice": (raw(*[b"Transfer-Encoding: chunked"] * 2, body=b"0\r\n\r\n" + INNER), 501),
    "VT chunked": (raw(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + INNER), 400),
    "FF chunked": (raw(b"Transfer-Encoding: chunked\x0c", body=b"0\r\n\r\n" + INNER), 400),
    "NBSP chunked": (raw(b"Transfer-Encoding: \xa0chunked", body=b"0\r\n\r\n" + INNER), 501),
    "quoted chunked": (raw(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n" + INNER), 501),
    "empty coding": (raw(b"Transfer-Encoding:", body=b"0\r\n\r\n" + INNER), 501),
    "coding in HTTP/1.0": (
        b"POST " + CALL + b" HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER, 400,
    ),
    "9 KiB head": (raw(b"X: " + b"x" * 9000), 431),
    "9 KiB target": (b"GET " + CALL + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    "endless line": (b"GET /" + b"x" * 20000, 431),
    "many fields": (raw(*[b"a:"] * 300), 431),
}  # fmt: skip


@pytest.mark.rule("H-63", "H-64", "H-155")
@pytest.mark.parametrize("name", BAD_HEADS)
async def test_a_bad_head_is_refused_and_nothing_behind_it_is_a_request(world: World, name: str) -> None:
    head, status = BAD_HEADS[name]

    heard = await say(world.callee.port, head)

    assert heard.startswith(b"HTTP/1.1 %d " % status)
    assert heard.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in heard
    assert world.targets == []


@pytest.mark.rule("H-63")
@pytest.mark.parametrize("way", WAYS)
async def test_a_head_of_almost_8_kib_passes(world: World, way: str) -> None:
    answer = await world.entry(way).call("callee", "x", headers=[("X", "x" * 7900)])

    assert answer.status == 200


ODD_PATHS = {
    "a%2Fb": (200, ["/a/b"]),
    "a%252Fb": (200, ["/a%252Fb"]),
    "a//b": (200, ["/a/b"]),
    "a/../b": (200, ["/b"]),
    "../../../b": (200, ["/b"]),
    "%2E%2E/%2e%2e/b": (200, ["/b"]),
    "a;b=c": (200, ["/a;b=c"]),
    "%E2%82%AC": (200, ["/%E2%82%AC"]),
    "%ff%fe": (200, ["/%FF%FE"]),
    "a%00": (500, []),
    "a%1Fb": (500, []),
    "a%0d%0aX:%20y": (500, []),
    "a%3Fb": (500, []),
    "a%23b": (500, []),
    "a#b": (500, []),
    "a%7F": (500, []),
    "a%25zz": (500, []),
    "x" * 7000: (200, ["/" + "x" * 7000]),
    "/".join(["..", "a"] * 1000): (200, ["/a"]),
    "a?b=%zz&c=%00": (200, ["/a?b=%zz&c=%00"]),
    "a?b#c": (200, ["/a?b#c"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", ODD_PATHS, ids=lambda path: path[:20])
async def test_an_odd_path_has_one_meaning_or_none(world: World, way: str, path: str) -> None:
    status, targets = ODD_PATHS[path]
    client = await Client.open(world.entry(way).port)

    client.send("GET", invoke_path("callee", path))
    answer = await client.answer()

    assert (answer.status, world.targets) == (status, targets)
    client.send("GET", invoke_path("callee", "fine"))
    assert (await client.answer()).status == 200
    client.close()


BAD_CHUNKS = {
    "no size": b"\r\n\r\n",
    "hexadecimal prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "negative": b"-1\r\n",
    "blank in front": b" 5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n",
    "17 digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "LF after size": b"5\nhello\r\n0\r\n\r\n",
    "longer than said": b"5\r\nhello world\r\n0\r\n\r\n",
    "CR in extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "LF in extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "long extension": b"5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n",
    "many extensions": b"1;%s\r\nx\r\n" % (b"x" * 200) * 100 + b"0\r\n\r\n",
    "Content-Length in trailers": b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "Transfer-Encoding in trailers": b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "Host in trailers": b"5\r\nhello\r\n0\r\nHost: a\r\n\r\n",
    "bad trailer name": b"5\r\nhello\r\n0\r\nX : a\r\n\r\n",
    "folded trailer": b"5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n",
    "endless trailers": b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 3000,
    "many trailers": b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 100 + b"\r\n",
}


@pytest.mark.rule("H-156")
@pytest.mark.parametrize("pace", ["at once", "late"])
@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_a_broken_chunked_body_fails_the_call_and_closes(world: World, name: str, pace: str) -> None:
    whole = BAD_CHUNKS[name] + INNER
    head = request("x", "POST", ["Transfer-Encoding: chunked"])
    bodies: list[bytes] = []

    async def note(exchange: Exchange) -> None:
        if exchange.target == "/x":
            bodies.append(await exchange.body())
            exchange.answer()
        else:
            await echo(exchange)

    world.handler = note
    if pace == "at once":
        heard = await say(world.callee.port, head + whole)
    else:
        client = await Client.open(world.callee.port)
        client.writer.write(head)
        await until(lambda: world.targets == ["/x"])
        client.writer.write(whole)
        heard = await client.reader.read(65536)
        assert await client.reader.read() == b""
        client.close()

    assert heard.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 500 "))
    assert heard.count(b"HTTP/1.1 ") == 1
    assert bodies == []
    assert "/inner" not in world.targets


@pytest.mark.rule("H-156")
async def test_a_chunked_body_that_breaks_after_its_answer_closes_the_connection(world: World) -> None:
    async def early(exchange: Exchange) -> None:
        if exchange.target == "/early":
            exchange.answer(200, b"early")
        else:
            await echo(exchange)

    world.handler = early
    client = await Client.open(world.callee.port)
    client.send("POST", "/v1.0/nothing", [("Transfer-Encoding", "chunked")])
    answer = await client.answer()
    assert answer.status == 404

    client.writer.write(b"no chunk\r\n" + INNER)

    async with asyncio.timeout(3):
        assert await client.reader.read() == b""
    assert world.targets == []
    client.close()


async def test_chunks_of_one_byte_and_chunks_with_small_extensions_arrive(world: World) -> None:
    client = await Client.open(world.callee.port)

    client.send("POST", invoke_path("callee", "x"), [("Transfer-Encoding", "chunked")])
    client.writer.write(b"1;a=b\r\nx\r\n" * 2000 + b"0\r\n\r\n")
    answer = await client.answer()

    assert answer.body == b"x" * 2000
    client.close()


@pytest.mark.rule("H-60", "H-153")
@pytest.mark.parametrize("more", [1, 2000])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("way", WAYS)
async def test_a_body_over_the_limit_never_reaches_the_app_as_a_whole(
    world: World, way: str, chunked: bool, more: int
) -> None:
    whole: list[int] = []

    async def note(exchange: Exchange) -> None:
        size = len(await exchange.body())
        whole.append(size)
        exchange.answer(200, b"ping" if exchange.target == "/fine" else b"")

    world.handler = note
    size = (4 << 20) + more
    client = await Client.open(world.entry(way).port)
    if chunked:
        client.send("POST", invoke_path("callee", "x"), [("Transfer-Encoding", "chunked")])
        for at in range(0, size, 1 << 18):
            client.chunk(b"x" * min(1 << 18, size - at))
        client.end_chunks()
    else:
        client.send("POST", invoke_path("callee", "x"), (), b"x" * size)
    answer = await client.answer()
    client.close()

    assert answer.status == 500
    assert b"stream too large" in answer.body
    assert whole == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_within_a_body_stays_a_body(world: World, way: str) -> None:
    client = await Client.open(world.entry(way).port)

    client.send("POST", invoke_path("callee", "x"), (), INNER)
    declared = await client.answer()
    client.send("POST", invoke_path("callee", "y"), [("Transfer-Encoding", "chunked")])
    client.chunk(INNER[:10])
    client.chunk(INNER[10:])
    client.end_chunks()
    chunked = await client.answer()
    client.close()

    assert declared.body == chunked.body == INNER
    assert world.targets == ["/x", "/y"]


@pytest.mark.rule("H-4")
async def test_heads_that_do_not_come_in_time_are_given_up(world: World) -> None:
    """A 400 if not even the request line came, else nothing at all; all at once, since it takes ten seconds."""
    port = world.callee.port

    async def dribble(begun: bytes) -> tuple[bytes, float]:
        client = await Client.open(port)
        began = time.monotonic()
        for byte in begun:
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        heard = await client.reader.read()
        client.close()
        return heard, time.monotonic() - began

    async def second() -> tuple[bytes, float]:
        client = await Client.open(port)
        client.send("GET", invoke_path("callee", "fine"))
        assert (await client.answer()).status == 200
        client.writer.write(b"GET / HTTP/1.1\r\nHo")
        began = time.monotonic()
        heard = await client.reader.read()
        client.close()
        return heard, time.monotonic() - began

    async def quiet() -> tuple[bytes, float]:
        client = await Client.open(port)
        client.send("GET", invoke_path("callee", "fine"))
        assert (await client.answer()).status == 200
        await asyncio.sleep(10.5)
        client.send("GET", invoke_path("callee", "fine"))
        answer = await client.answer()
        client.close()
        return b"kept" if answer.status == 200 else b"", 10.0

    async def settings(begun: bytes) -> tuple[bytes, float]:
        client = await Client.open(port)
        began = time.monotonic()
        client.writer.write(begun)
        await client.reader.read()
        client.close()
        return b"", time.monotonic() - began

    async with asyncio.timeout(14):
        nothing, line, half, preface, late, kept, no_settings = await asyncio.gather(
            dribble(b""),
            dribble(b"GET / HTTP/1.1\r\nHost: "),
            dribble(b"GET / HT"),
            dribble(b"PRI * HTTP/2.0\r"),
            second(),
            quiet(),
            settings(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        )

    assert (nothing[0], line[0], late[0], kept[0]) == (b"", b"", b"", b"kept")
    assert half[0].startswith(b"HTTP/1.1 400 ")
    assert preface[0].startswith(b"HTTP/1.1 400 ")
    assert all(9.5 < took < 12 for _, took in (nothing, line, half, preface, late, kept))
    assert 1.5 < no_settings[1] < 4


@pytest.mark.parametrize("way", WAYS)
async def test_two_hundred_clients_that_vanish_leave_nothing(world: World, way: str) -> None:
    port = world.entry(way).port

    async def vanish(number: int) -> None:
        client = await Client.open(port)
        if number % 4 == 0:
            client.writer.write(b"POST " + CALL + b" HTTP/1.1\r\nHo")
        elif number % 4 == 1:
            client.send("POST", invoke_path("callee", "x"), [("Content-Length", "100000")])
            client.writer.write(b"x" * 5000)
        elif number % 4 == 2:
            client.send("POST", invoke_path("callee", "x"), [("Transfer-Encoding", "chunked")])
            client.chunk(b"x" * 5000)
        else:
            client.send("POST", invoke_path("callee", "x"), [("Expect", "100-continue"), ("Content-Length", "5")])
        await client.writer.drain()
        if number % 8 < 4:
            client.reset()
        else:
            client.close()

    await together(vanish, 200)


@pytest.mark.rule("H-161")
@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_closes_its_side_has_its_call_cancelled(world: World, way: str) -> None:
    left = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        if exchange.target == "/fine":
            await echo(exchange)
            return
        await exchange.gone()
        left.set()

    world.handler = wait
    client = await Client.open(world.entry(way).port)
    client.send("GET", invoke_path("callee", "x"))
    await until(lambda: world.targets == ["/x"])

    client.writer.write_eof()

    async with asyncio.timeout(5):
        await left.wait()
        await client.reader.read()
    client.close()


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_pipelines_and_never_reads_costs_no_memory(world: World, way: str) -> None:
    entry = world.entry(way)
    before = entry.resident()
    asked = request("x", headers=["X-Filler: " + "x" * 400])
    block = asked * 100
    client = await Client.open(entry.port)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]

    sent = 0
    try:
        async with asyncio.timeout(2):
            while sent < 64 << 20:
                client.writer.write(block)
                sent += len(block)
                await client.writer.drain()
    except TimeoutError:
        pass

    assert entry.resident() - before < 8 << 20
    client.reset()


async def test_pipelined_requests_are_held_back_while_the_app_is_slow(world: World) -> None:
    """Each answer takes one request out of what waits: it must not let in a whole buffer of further ones."""
    answered = 0

    async def slow(exchange: Exchange) -> None:
        nonlocal answered
        answered += 1
        await asyncio.sleep(0.002)
        await echo(exchange)

    world.handler = slow
    before = world.callee.resident()
    client = await Client.open(world.callee.port)

    async def swallow() -> None:
        while await client.reader.read(65536):
            pass

    reading = asyncio.create_task(swallow())
    try:
        async with asyncio.timeout(3):
            while True:
                client.writer.write(request("x", headers=["X-Filler: " + "x" * 400]) * 100)
                await client.writer.drain()
    except TimeoutError:
        pass
    reading.cancel()

    assert answered > 100
    assert world.callee.resident() - before < 8 << 20
    client.reset()


@pytest.mark.rule("H-53")
async def test_nothing_but_a_wanted_body_is_asked_for_with_100(world: World) -> None:
    """An answer without the body ends the connection: what comes next could be the body, or a request."""
    client = await Client.open(world.callee.port)

    client.send("POST", "/v1.0/nothing", [("Expect", "100-continue"), ("Content-Length", str(len(INNER)))])
    answer = await client.head()
    client.writer.write(INNER)

    assert answer.status == 404
    assert answer.header("connection") == "close"
    assert b"HTTP/1.1" not in await client.reader.read()
    assert world.targets == []
    client.close()


UPGRADE = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"]
SETTINGS = "AAMAAABkAAQAoAAAAAIAAAAA"
BAD_UPGRADES = {
    "no settings": [],
    "bad settings": ["HTTP2-Settings: ==%%"],
    "settings that are none": ["HTTP2-Settings: AAAA"],
    "impossible settings": ["HTTP2-Settings: AAT_____"],
    "half a byte": ["HTTP2-Settings: A"],
    "two settings": [f"HTTP2-Settings: {SETTINGS}", f"HTTP2-Settings: {SETTINGS}"],
}


@pytest.mark.rule("H-54")
@pytest.mark.parametrize("name", BAD_UPGRADES)
async def test_an_upgrade_that_is_wrong_is_an_ordinary_request(world: World, name: str) -> None:
    asked = request("x", "POST", [*UPGRADE, *BAD_UPGRADES[name], "Content-Length: 2"], b"hi")

    heard = await say(world.callee.port, asked + request("y", headers=["Connection: close"]))

    assert heard.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert world.targets == ["/x", "/y"]


@pytest.mark.parametrize("framing", ["large", "chunked", "large chunked"])
async def test_an_upgrade_with_a_body_takes_nothing_of_it_for_frames_or_requests(world: World, framing: str) -> None:
    body = (INNER + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") * (600 if "large" in framing else 1)
    fields = [*UPGRADE, f"HTTP2-Settings: {SETTINGS}"]
    if "chunked" in framing:
        asked = request("x", "POST", [*fields, "Transfer-Encoding: chunked"])
        asked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        asked = request("x", "POST", [*fields, f"Content-Length: {len(body)}"], body)
    client = await Client.open(world.callee.port)

    client.writer.write(asked)
    answer = await client.head()

    # Small ones may be upgraded: whatever comes behind is HTTP/2 then, and a request in HTTP/1.1 is none.
    assert answer.status == (200 if "large" in framing else 101)
    client.writer.write(request("y", headers=["Connection: close"]))
    await client.reader.read()
    assert world.targets == (["/x", "/y"] if "large" in framing else ["/x"])
    client.close()


async def test_a_call_whose_app_never_answers_ends_with_its_client(world: World) -> None:
    world.handler = lambda exchange: echo(exchange) if exchange.target == "/fine" else never(exchange)
    clients = [await Client.open(world.entry(way).port) for way in WAYS for _ in range(20)]
    for client in clients:
        client.send("GET", invoke_path("callee", "x"))
    await until(lambda: len(world.targets) == len(clients))

    for client in clients:
        client.reset()
