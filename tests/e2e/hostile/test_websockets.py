"""Handshakes that lie, and tunnels that are broken off at every step; nothing of them may be left."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
import pytest_asyncio

from tests.e2e.hostile.world import WAYS, World, request, say, together
from tests.support.app import Exchange
from tests.support.mesh import invoke_path
from tests.support.websocket import BINARY, CLOSE, KEY, RawWebSocket, accepting, frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = invoke_path("callee", "ws")
GOOD = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}"]
SMUGGLED = request("smuggled")


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="module")
async def warm(shared_world: World) -> None:
    """Have the two sidecars make the connection that they keep for tunnels."""

    async def app(exchange: Exchange) -> None:
        return

    shared_world.handler = accepting(app)
    client = await RawWebSocket.open(shared_world.caller.port, PATH)
    assert await client.ended() == b""
    client.client.close()
    await shared_world.note()


LIES: dict[str, tuple[bytes, int]] = {
    "POST": (request("ws", "POST", [*GOOD, "Content-Length: 0"]), 400),
    "a body": (request("ws", "GET", [*GOOD, "Content-Length: 5"], b"hello"), 400),
    "chunks": (request("ws", "GET", [*GOOD, "Transfer-Encoding: chunked"], b"0\r\n\r\n"), 400),
    "no version": (request("ws", "GET", [*GOOD[:2], GOOD[3]]), 400),
    "no key": (request("ws", "GET", GOOD[:3]), 400),
    "two keys": (request("ws", "GET", [*GOOD, GOOD[3]]), 400),
    "a short key": (request("ws", "GET", [*GOOD[:3], "Sec-WebSocket-Key: c2hvcnQ="]), 400),
    "no base64": (request("ws", "GET", [*GOOD[:3], "Sec-WebSocket-Key: " + "!" * 24]), 400),
    "version 8": (request("ws", "GET", [*GOOD[:2], "Sec-WebSocket-Version: 8", GOOD[3]]), 426),
    "two versions": (request("ws", "GET", [*GOOD, "Sec-WebSocket-Version: 13"]), 426),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LIES)
async def test_a_handshake_that_lies_is_refused_and_the_connection_closed(world: World, way: str, name: str) -> None:
    asked, status = LIES[name]

    heard = await say(world.entry(way).port, asked + SMUGGLED)

    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body.startswith(b"%d " % status)
    assert b"\r\nConnection: close" in head
    assert (b"Sec-Websocket-Version: 13" in head) is (status == 426)
    assert world.targets == []


ORDINARY: dict[str, bytes] = {
    "not listed in Connection": request("plain", "GET", GOOD[1:]),
    "another protocol": request("plain", "GET", ["Connection: Upgrade", "Upgrade: tls/1.2", *GOOD[2:]]),
    "HTTP/1.0": request("plain", "GET", GOOD, version="1.0"),
}


@pytest.mark.rule("H-54")
@pytest.mark.parametrize("name", ORDINARY)
async def test_what_asks_for_no_websocket_is_an_ordinary_request(world: World, name: str) -> None:
    heard = await say(world.callee.port, ORDINARY[name], request("last", "GET", ["Connection: close"]))

    assert heard.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
    assert world.targets[0] == "/plain"
    assert not [name for name, _ in world.app.seen[0].headers if name in ("upgrade", "connection")]


@pytest.mark.parametrize("way", WAYS)
async def test_no_request_gets_through_a_tunnel(world: World, way: str) -> None:
    """Once open, bytes are bytes: neither sidecar reads a request out of them."""
    heard: list[bytes] = []

    async def app(exchange: Exchange) -> None:
        heard.append(await exchange.reader.readexactly(len(SMUGGLED)))

    world.handler = accepting(app)

    client = await RawWebSocket.open(world.entry(way).port, PATH, early=SMUGGLED)

    assert client.answer.status == 101
    assert await client.ended() == b""
    assert heard == [SMUGGLED]
    assert world.targets == ["/ws"]
    client.client.close()


@pytest.mark.parametrize("way", WAYS)
async def test_bytes_that_are_no_frames_pass_as_they_are(world: World, way: str) -> None:
    noise = random.Random(7).randbytes(300_000)

    async def app(exchange: Exchange) -> None:
        exchange.writer.write(await exchange.reader.readexactly(len(noise)))
        await exchange.gone()

    world.handler = accepting(app)
    client = await RawWebSocket.open(world.entry(way).port, PATH)

    client.writer.write(noise)

    assert await asyncio.wait_for(client.reader.readexactly(len(noise)), 10) == noise
    client.client.close()


@pytest.mark.parametrize("way", WAYS)
async def test_frames_byte_by_byte(world: World, way: str) -> None:
    async def app(exchange: Exchange) -> None:
        for byte in frame(BINARY, b"slow", mask=None):
            exchange.writer.write(bytes([byte]))
            await exchange.writer.drain()
        await exchange.gone()

    world.handler = accepting(app)
    client = await RawWebSocket.open(world.entry(way).port, PATH)

    assert await client.frame() == (BINARY, b"slow")
    client.client.close()


@pytest.mark.parametrize("way", WAYS)
async def test_clients_that_leave_at_any_moment(world: World, way: str) -> None:
    """In the handshake, before it is answered, in the middle of a frame, with a goodbye or without."""
    chance = random.Random(11)

    async def app(exchange: Exchange) -> None:
        if exchange.target != "/ws":
            exchange.answer(200, await exchange.body())
            return
        await asyncio.sleep(chance.random() * 0.02)

        async def talk(exchange: Exchange) -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(chance.randrange(20)):
                    exchange.writer.write(frame(BINARY, b"x" * chance.randrange(50_000), mask=None))
                    await exchange.writer.drain()
                if chance.random() < 0.5:
                    exchange.reset()
                elif chance.random() < 0.5:
                    await exchange.gone()

        await accepting(talk)(exchange)

    world.handler = app

    async def leave(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.entry(way).port)
        with contextlib.suppress(OSError):
            asked = request("ws", "GET", GOOD)
            writer.write(asked[: chance.choice([len(asked), len(asked), chance.randrange(len(asked))])])
            await asyncio.sleep(chance.random() * 0.03)
            for _ in range(chance.randrange(3)):
                writer.write(frame(BINARY, b"y" * chance.randrange(70_000)))
                await asyncio.sleep(chance.random() * 0.01)
            if chance.random() < 0.3:
                writer.write(frame(CLOSE, b"\x03\xe8"))
            if chance.random() < 0.3:
                writer.write_eof()
                async with asyncio.timeout(1):
                    await reader.read(100)
            if chance.random() < 0.5:
                writer.transport.abort()
        writer.close()

    async def try_to_leave(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            await leave(number)

    await together(try_to_leave, 200)


@pytest.mark.parametrize("way", WAYS)
async def test_a_flood_of_handshakes_that_are_refused(world: World, way: str) -> None:
    async def app(exchange: Exchange) -> None:
        exchange.answer(401 if exchange.target == "/ws" else 200, await exchange.body())

    world.handler = app

    async def ask(number: int) -> None:
        client = await RawWebSocket.open(world.entry(way).port, PATH)
        assert client.answer.status == 401
        client.client.close()

    await together(ask, 200)
