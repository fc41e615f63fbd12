"""WebSockets through real sidecars: opened, refused, both ways at once, and ended by each of those who take part."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.typing import Origin, Subprotocol

from tests.e2e.test_metrics import scrape
from tests.support.app import Exchange
from tests.support.daprd import register
from tests.support.h2peer import H2Client, H2Server
from tests.support.http1 import Broken
from tests.support.mesh import Mesh, Sidecar, free_port, invoke_path, start_pair, until
from tests.support.tls import self_signed
from tests.support.websocket import BINARY, CLOSE, RawWebSocket, accepting, echo, frame, read_frame

WAYS = pytest.mark.parametrize("way", ["self", "remote"])
PATH = invoke_path("callee", "ws/room")
RESET = b"\x01\0\0\0\0\0\0\0"

AppHandler = Callable[[ServerConnection], Awaitable[None]]


def url(sidecar: Sidecar, method: str = "ws/room") -> str:
    return f"ws://127.0.0.1:{sidecar.port}{invoke_path('callee', method)}"


class Ends:
    """The sidecars of a callee and a caller."""

    def __init__(self, callee: Sidecar, caller: Sidecar) -> None:
        self.callee = callee
        self.caller = caller

    def entry(self, way: str) -> Sidecar:
        return self.callee if way == "self" else self.caller


@contextlib.asynccontextmanager
async def ends(mesh: Mesh, handler: AppHandler, *flags: str, caller_flags: tuple[str, ...] = ()) -> AsyncIterator[Ends]:
    """Run an app of the ``websockets`` library behind a sidecar, and a sidecar that calls it."""
    async with serve(handler, "127.0.0.1", 0, max_size=None, subprotocols=None) as server:
        port = server.sockets[0].getsockname()[1]
        callee, caller = await asyncio.gather(
            mesh.sidecar("callee", port, *flags), mesh.sidecar("caller", None, *caller_flags)
        )
        yield Ends(callee, caller)


# ── open ──


@WAYS
async def test_messages_of_all_kinds_pass_both_ways(mesh: Mesh, way: str) -> None:
    async with ends(mesh, echo) as both, connect(url(both.entry(way)), max_size=None) as client:
        for message in ("text", b"binary", "", b"\0" * 125, b"\1" * 126, "é" * 70_000, b"\xff" * 3_000_000):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["in ", "three ", "pieces"])
        assert await client.recv() == "in three pieces"
        await asyncio.wait_for(await client.ping(b"are you there?"), 5)
        for number in range(2_000):
            await client.send(str(number))
        assert [await client.recv() for _ in range(2_000)] == [str(number) for number in range(2_000)]

    assert client.close_code == 1000


@WAYS
@pytest.mark.rule("H-48", "H-54")
async def test_what_the_app_is_asked_and_what_the_client_is_told(mesh: Mesh, way: str) -> None:
    seen: list[ServerConnection] = []

    async def app(socket: ServerConnection) -> None:
        seen.append(socket)
        await socket.send("hello")

    async with ends(mesh, app, "--app-max-concurrency", "9") as both:
        target = f"ws://127.0.0.1:{both.entry(way).port}/a%20b/../room?q=1"
        headers = {"dapr-app-id": "callee", "dapr-caller-app-id": "forged", "tieline-hop": "forged", "X-Mine": "yes"}
        async with connect(target, additional_headers=headers, origin=Origin("http://localhost:5173")) as client:
            assert await client.recv() == "hello"
            answer = client.response
        assert answer is not None
        request = seen[0].request
        assert request is not None

    assert request.path == "/room?q=1"
    told = request.headers
    assert told["x-mine"] == "yes"
    assert told["origin"] == "http://localhost:5173"
    assert told.get_all("dapr-caller-app-id") == ["callee" if way == "self" else "caller"]
    assert told["dapr-callee-app-id"] == "callee"
    assert not [name for name in (*told, *answer.headers) if name.lower().startswith("tieline-")]
    assert "dapr-app-id" not in told
    assert ("forwarded" in told) is (way == "remote")
    assert answer.headers.get_all("upgrade") == ["websocket"]
    assert len(answer.headers.get_all("sec-websocket-accept")) == 1


@WAYS
async def test_subprotocol_and_compression_are_agreed_end_to_end(mesh: Mesh, way: str) -> None:
    chosen: list[str | None] = []

    async def app(socket: ServerConnection) -> None:
        chosen.append(socket.subprotocol)
        await echo(socket)

    async with serve(app, "127.0.0.1", 0, subprotocols=[Subprotocol("soap"), Subprotocol("chat")]) as server:
        port = server.sockets[0].getsockname()[1]
        callee, caller = await asyncio.gather(mesh.sidecar("callee", port), mesh.sidecar("caller"))
        entry = callee if way == "self" else caller
        async with connect(url(entry), subprotocols=[Subprotocol("other"), Subprotocol("chat")]) as client:
            await client.send("x" * 100_000)
            assert await client.recv() == "x" * 100_000
            assert client.subprotocol == "chat"
            assert [type(one).__name__ for one in client.protocol.extensions] == ["PerMessageDeflate"]

    assert chosen == ["chat"]


@WAYS
async def test_the_sidecar_makes_a_key_of_its_own(mesh: Mesh, way: str) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.gone()

    pair = await start_pair(mesh, accepting(app))

    first = await RawWebSocket.open(pair.entry(way).port, PATH)
    second = await RawWebSocket.open(pair.entry(way).port, PATH)

    assert (first.answer.status, second.answer.status) == (101, 101)
    assert first.answer.header("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    keys = [exchange.header("sec-websocket-key") for exchange in pair.app.seen]
    assert len({*keys, "dGhlIHNhbXBsZSBub25jZQ=="}) == 3
    for exchange in pair.app.seen:
        assert (exchange.verb, exchange.target) == ("GET", "/ws/room")
        assert exchange.header("sec-websocket-version") == "13"
        assert len([name for name, _ in exchange.headers if name == "sec-websocket-version"]) == 1
        assert exchange.header("content-length") is None
        assert exchange.header("transfer-encoding") is None
    first.client.close()
    second.client.close()


@WAYS
async def test_what_either_end_says_at_once_is_not_lost(mesh: Mesh, way: str) -> None:
    """Frames in one packet with the handshake or with the 101."""

    async def app(exchange: Exchange) -> None:
        exchange.writer.write(await exchange.reader.readexactly(len(frame(BINARY, b"early"))))
        await exchange.gone()

    pair = await start_pair(mesh, accepting(app, early=frame(BINARY, b"welcome", mask=None)))

    client = await RawWebSocket.open(pair.entry(way).port, PATH, early=frame(BINARY, b"early"))

    assert await client.frame() == (BINARY, b"welcome")
    assert await client.frame() == (BINARY, b"early")
    client.client.close()


@WAYS
async def test_bytes_flow_only_after_the_app_has_agreed(mesh: Mesh, way: str) -> None:
    came: list[bytes] = []

    async def app(exchange: Exchange) -> None:
        with contextlib.suppress(TimeoutError):
            came.append(await asyncio.wait_for(exchange.reader.read(100), 0.3))
        exchange.answer(403, b"not you")

    pair = await start_pair(mesh, app)

    client = await RawWebSocket.open(pair.entry(way).port, PATH, early=frame(BINARY, b"early"))

    assert client.answer.status == 403
    assert came == []
    # Frames or a request, who knows: nothing behind the handshake is read as a request.
    assert await client.ended() == b"not you"
    assert len(pair.app.seen) == 1
    client.client.close()


@WAYS
@pytest.mark.parametrize("status", [200, 204, 302, 401, 404, 426, 500])
async def test_another_answer_of_the_app_is_the_answer(mesh: Mesh, way: str, status: int) -> None:
    async def app(exchange: Exchange) -> None:
        if exchange.target == "/ws/room":
            exchange.answer(status, b"" if status == 204 else b"the app's own", [("X-App", "yes")], length=None)
        else:
            exchange.answer(200, b"next")

    pair = await start_pair(mesh, app)

    client = await RawWebSocket.open(pair.entry(way).port, PATH)
    head = client.answer
    body = b""
    if status != 204:
        body = await client.reader.readexactly(int(head.header("content-length") or 0))
    client.client.send("GET", invoke_path("callee", "next"))
    following = await client.client.answer()

    assert (head.status, head.header("x-app"), body) == (status, "yes", b"" if status == 204 else b"the app's own")
    assert head.header("tieline-cause") is None
    assert head.header("tieline-declined") is None
    assert (following.status, following.body) == (200, b"next")
    assert pair.app.accepted <= 2
    client.client.close()


@WAYS
@pytest.mark.rule("H-71")
async def test_a_long_refusal_is_streamed(mesh: Mesh, way: str) -> None:
    async def app(exchange: Exchange) -> None:
        exchange.begin_chunked(200)
        for _ in range(50):
            exchange.chunk(b"x" * 10_000)
            await exchange.writer.drain()
        exchange.end_chunks()

    pair = await start_pair(mesh, app)

    client = await RawWebSocket.open(pair.entry(way).port, PATH)

    assert client.answer.status == 200
    assert len(await client.client.rest()) == 500_000
    client.client.close()


WRONG = {
    "another key's accept": f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {'A' * 27}=",
    "no accept": "Connection: Upgrade\r\nUpgrade: websocket",
    "another protocol": "Connection: Upgrade\r\nUpgrade: h2c",
    "no upgrade": "X: y",
}


@WAYS
@pytest.mark.rule("H-157")
@pytest.mark.parametrize("name", WRONG)
async def test_an_app_that_switches_wrongly_is_broken(mesh: Mesh, way: str, name: str) -> None:
    async def app(exchange: Exchange) -> None:
        exchange.writer.write(f"HTTP/1.1 101 Switching Protocols\r\n{WRONG[name]}\r\n\r\npoison".encode())
        await exchange.gone()

    pair = await start_pair(mesh, app)

    client = await RawWebSocket.open(pair.entry(way).port, PATH)

    assert client.answer.status == 500
    assert client.answer.header("tieline-cause") == "app-broken"
    assert b"poison" not in await client.reader.readexactly(int(client.answer.header("content-length") or 0))
    client.client.close()


@WAYS
@pytest.mark.rule("H-54")
async def test_other_upgrades_are_dropped(mesh: Mesh, way: str) -> None:
    async def app(exchange: Exchange) -> None:
        exchange.answer(200, b"plain")

    pair = await start_pair(mesh, app)

    answer = await pair.entry(way).call("callee", "x", headers=[("Connection", "Upgrade"), ("Upgrade", "foo/1")])

    assert (answer.status, answer.body) == (200, b"plain")
    assert not [name for name, _ in pair.app.seen[0].headers if name in ("upgrade", "connection")]


async def test_web_pages_from_elsewhere_are_kept_out_unless_they_are_allowed(mesh: Mesh) -> None:
    """No browser asks before it opens a WebSocket, and its page may read everything."""

    async def app(exchange: Exchange) -> None:
        return

    pair = await start_pair(mesh, accepting(app), caller_flags=["--allowed-origins", "https://*.friend.example"])

    async def status(sidecar: Sidecar, origin: str) -> int:
        client = await RawWebSocket.open(sidecar.port, PATH, [("Origin", origin)])
        client.client.close()
        return client.answer.status

    for sidecar in (pair.caller, pair.callee):
        for origin in ("http://127.0.0.1:8080", "http://LocalHost", "https://app.localhost", "http://[::1]:1"):
            assert await status(sidecar, origin) == 101
        for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.evil:80", ""):
            assert await status(sidecar, origin) == 403
    assert await status(pair.callee, "https://my.friend.example") == 403
    assert await status(pair.caller, "https://my.friend.example") == 101
    opened = len(pair.app.seen)
    client = await H2Client.open(pair.callee.port)
    assert (await (await client.connect(PATH, [("origin", "https://evil.example")])).whole()).status == 403
    assert len(pair.app.seen) == opened
    client.close()


@WAYS
async def test_a_token_is_asked_for_and_the_api_log_tells(mesh: Mesh, way: str) -> None:
    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        guarded = {"DAPR_API_TOKEN": "secret"}
        callee, caller = await asyncio.gather(
            mesh.sidecar("callee", port, "--enable-api-logging", environ=guarded),
            mesh.sidecar("caller", None, "--enable-api-logging", environ=guarded),
        )
        entry = callee if way == "self" else caller
        refused = await RawWebSocket.open(entry.port, PATH)
        async with connect(url(entry), additional_headers={"dapr-api-token": "secret"}) as client:
            await client.send("x")
            assert await client.recv() == "x"

        assert refused.answer.status == 401
        await entry.says("code=101")
        refused.client.close()


async def test_a_name_that_nobody_has_is_told_as_for_any_call(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("caller")

    client = await RawWebSocket.open(sidecar.port, invoke_path("nobody", "ws"))

    assert client.answer.status == 500
    assert client.answer.header("tieline-cause") == "name-unknown"
    client.client.close()


async def test_a_peer_that_is_no_tieline_takes_no_websocket(mesh: Mesh) -> None:
    peer = H2Server()
    await peer.start()
    caller = await mesh.sidecar("caller")
    register(mesh, "daprd", peer.port)

    client = await RawWebSocket.open(caller.port, invoke_path("daprd", "ws"))
    body = await client.reader.readexactly(int(client.answer.header("content-length") or 0))

    assert client.answer.status == 501
    assert b"takes no WebSocket" in body
    assert client.answer.header("tieline-cause") == "peer-protocol"
    assert peer.requests == []
    client.client.close()
    await peer.aclose()


async def test_a_peer_without_an_app_says_so(mesh: Mesh) -> None:
    await mesh.sidecar("callee")
    caller = await mesh.sidecar("caller")

    client = await RawWebSocket.open(caller.port, PATH)

    assert client.answer.status == 500
    assert client.answer.header("tieline-cause") == "app-missing"
    client.client.close()


@WAYS
async def test_an_app_behind_tls(mesh: Mesh, tmp_path: Path, way: str) -> None:
    async with serve(echo, "127.0.0.1", 0, ssl=self_signed(tmp_path, "app.example"), max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        callee, caller = await asyncio.gather(
            mesh.sidecar("callee", port, "--app-protocol", "https"), mesh.sidecar("caller")
        )
        async with connect(url(callee if way == "self" else caller), max_size=None) as client:
            for message in ("secret", b"x" * 3_000_000, "again"):
                await client.send(message)
                assert await client.recv() == message
        assert client.close_code == 1000
        for sidecar in (callee, caller):
            assert "call failed" not in sidecar.log()


# ── HTTP/2 ──


@WAYS
async def test_a_client_that_speaks_http2(mesh: Mesh, way: str) -> None:
    """RFC 8441 at the API port."""
    async with ends(mesh, echo) as both:
        client = await H2Client.open(both.entry(way).port)
        extended = [("sec-websocket-version", "13"), ("sec-websocket-protocol", "chat")]
        stream = await client.connect(PATH, extended)
        await stream.until(lambda: bool(stream.headers))
        await stream.send(frame(BINARY, b"x" * 1000), end=False)
        await until(lambda: len(stream.data) == 1004)
        await stream.send(frame(CLOSE, b"\x03\xe8"), end=False)
        await until(lambda: stream.ended)

        assert stream.status == 200
        assert stream.data.endswith(b"\x88\x02\x03\xe8")
        assert stream.header("sec-websocket-accept") is None
        client.close()


async def test_http2_clients_are_refused_in_their_own_way(mesh: Mesh) -> None:
    async def app(exchange: Exchange) -> None:
        exchange.answer(200, b"no WebSocket here")

    pair = await start_pair(mesh, app)
    client = await H2Client.open(pair.caller.port)

    not_opened = await (await client.connect(PATH)).whole()
    old = await (await client.connect(PATH, [("sec-websocket-version", "8")])).whole()
    other = await (await client.connect(PATH, protocol="connect-udp")).whole()

    assert not_opened.status == 502
    assert b"opened no WebSocket" in not_opened.data
    assert (old.status, old.header("sec-websocket-version")) == (400, "13")
    assert other.status == 500
    assert len(pair.app.seen) == 1
    client.close()


@WAYS
async def test_an_http2_app_that_takes_no_websockets(mesh: Mesh, way: str) -> None:
    app = H2Server()
    await app.start()
    callee, caller = await asyncio.gather(
        mesh.sidecar("callee", app.port, "--app-protocol", "h2c"), mesh.sidecar("caller")
    )

    client = await RawWebSocket.open((callee if way == "self" else caller).port, PATH)

    assert client.answer.status == (501 if way == "self" else 500)
    assert client.answer.header("tieline-cause") == "app-broken"
    assert "RFC 8441" in str(await client.reader.readexactly(int(client.answer.header("content-length") or 0)))
    client.client.close()
    await app.aclose()


@WAYS
async def test_an_http2_app_that_takes_websockets(mesh: Mesh, way: str) -> None:
    """Another sidecar's API port is such an app."""
    async with ends(mesh, echo) as both:
        outer = await mesh.sidecar("outer", both.callee.port, "--app-protocol", "h2c")
        entry = outer if way == "self" else both.caller
        target = f"ws://127.0.0.1:{entry.port}/v1.0/invoke/outer/method{PATH}"
        async with connect(target, max_size=None) as client:
            await client.send(b"y" * 500_000)
            assert await client.recv() == b"y" * 500_000

    assert client.close_code == 1000


# ── ended ──


@WAYS
async def test_close_codes_and_reasons_pass_both_ways(mesh: Mesh, way: str) -> None:
    heard: list[tuple[int | None, str | None]] = []

    async def app(socket: ServerConnection) -> None:
        if await socket.recv() == "close":
            await socket.close(4001, "said the app")
        await socket.wait_closed()
        heard.append((socket.close_code, socket.close_reason))

    async with ends(mesh, app) as both:
        async with connect(url(both.entry(way))) as client:
            await client.send("close")
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert (client.close_code, client.close_reason) == (4001, "said the app")
        async with connect(url(both.entry(way))) as client:
            await client.send("wait")
            await client.close(4002, "said the client")
        await until(lambda: len(heard) == 2)
        for sidecar in (both.callee, both.caller):
            assert "call failed" not in sidecar.log()

    assert heard[1] == (4002, "said the client")


@WAYS
async def test_half_a_goodbye_leaves_the_other_half_open(mesh: Mesh, way: str) -> None:
    async def app(exchange: Exchange) -> None:
        heard = await exchange.reader.read()
        for _ in range(3):
            exchange.writer.write(heard)
            await asyncio.sleep(0.05)

    pair = await start_pair(mesh, accepting(app))
    client = await RawWebSocket.open(pair.entry(way).port, PATH)

    client.writer.write(b"until the end")
    client.writer.write_eof()

    assert await client.ended() == b"until the end" * 3
    client.client.close()


@WAYS
async def test_an_app_that_closes_its_side_hears_the_rest(mesh: Mesh, way: str) -> None:
    heard: list[bytes] = []

    async def app(exchange: Exchange) -> None:
        exchange.writer.write_eof()
        heard.append(await exchange.reader.read())

    pair = await start_pair(mesh, accepting(app))
    client = await RawWebSocket.open(pair.entry(way).port, PATH)

    assert await client.ended() == b""
    client.writer.write(b"one last thing")
    client.client.close()

    await until(lambda: heard == [b"one last thing"])


@WAYS
async def test_a_reset_by_the_app_reaches_the_client(mesh: Mesh, way: str) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.reader.readexactly(1)
        exchange.reset()

    pair = await start_pair(mesh, accepting(app))
    client = await RawWebSocket.open(pair.entry(way).port, PATH)

    client.writer.write(b"x")

    with pytest.raises(ConnectionResetError):
        await client.ended()
    await pair.callee.says("call failed")
    assert "cause=app-broken" in pair.callee.log()


@WAYS
async def test_a_reset_by_the_client_reaches_the_app(mesh: Mesh, way: str) -> None:
    ended: list[str] = []

    async def app(exchange: Exchange) -> None:
        exchange.writer.write(b"y")
        try:
            await exchange.reader.read()
            ended.append("end")
        except ConnectionResetError:
            ended.append("reset")

    pair = await start_pair(mesh, accepting(app))
    client = await RawWebSocket.open(pair.entry(way).port, PATH)
    await client.reader.readexactly(1)

    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.client.reset()

    await until(lambda: ended == ["reset"])


@WAYS
async def test_a_client_that_is_killed_is_noticed_by_the_app(mesh: Mesh, way: str) -> None:
    closed: list[int | None] = []

    async def app(server: ServerConnection) -> None:
        await echo(server)
        closed.append(server.close_code)

    async with ends(mesh, app) as both:
        code = f"""
import asyncio
from websockets.asyncio.client import connect
async def main():
    async with connect({url(both.entry(way))!r}) as client:
        await client.send("x")
        print(await client.recv(), flush=True)
        await client.recv()
asyncio.run(main())
"""
        process = mesh.process("client", [sys.executable, "-c", code])
        await process.says("x")
        process.kill()

        await until(lambda: closed == [1006])


@WAYS
async def test_an_app_that_is_killed_is_noticed_by_the_client(mesh: Mesh, way: str) -> None:
    port = free_port()
    app = mesh.process("app", [sys.executable, "-m", "tests.support.websocket", str(port)])
    await app.says("listening")
    callee, caller = await asyncio.gather(mesh.sidecar("callee", port), mesh.sidecar("caller"))
    async with connect(url(callee if way == "self" else caller)) as client:
        await client.send("x")
        assert await client.recv() == "x"

        app.kill()

        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(client.recv(), 5)
        assert client.close_code == 1006


async def test_a_peer_that_is_killed_is_noticed_by_both_ends(mesh: Mesh) -> None:
    closed: list[int | None] = []

    async def app(server: ServerConnection) -> None:
        await echo(server)
        closed.append(server.close_code)

    async with ends(mesh, app) as both:
        async with connect(url(both.caller)) as client:
            await client.send("x")
            assert await client.recv() == "x"

            both.callee.kill()

            with pytest.raises(ConnectionClosedError):
                await asyncio.wait_for(client.recv(), 5)
        await both.caller.says("cause=peer-lost")
        await until(lambda: closed == [1006])


async def test_a_caller_that_is_killed_is_noticed_by_the_app(mesh: Mesh) -> None:
    closed: list[int | None] = []

    async def app(server: ServerConnection) -> None:
        await echo(server)
        closed.append(server.close_code)

    async with ends(mesh, app) as both, connect(url(both.caller)) as client:
        await client.send("x")
        assert await client.recv() == "x"

        both.caller.kill()

        await until(lambda: closed == [1006])
        # The callee goes on with others.
        async with connect(url(both.callee)) as another:
            await another.send("y")
            assert await another.recv() == "y"


# ── limits ──


@WAYS
async def test_a_reader_that_stops_costs_bounded_memory(mesh: Mesh, way: str) -> None:
    """Up and down at the same time: more waits than the kernel holds at every hop, and then it passes whole."""
    size = 64_000_000
    go_on = asyncio.Event()

    async def app(exchange: Exchange) -> None:
        async def send() -> None:
            exchange.writer.write(b"d" * size)
            await exchange.writer.drain()

        sending = asyncio.create_task(send())
        await go_on.wait()
        got = await exchange.reader.readexactly(size)
        assert got == b"u" * size
        await sending

    pair = await start_pair(mesh, accepting(app))
    client = await RawWebSocket.open(pair.entry(way).port, PATH)
    before = {sidecar: sidecar.resident() for sidecar in (pair.caller, pair.callee)}
    client.writer.write(b"u" * size)
    # Until nothing moves any more, since nobody reads.
    await _stands_still(client)

    grown = {sidecar.app_id: sidecar.resident() - memory for sidecar, memory in before.items()}
    go_on.set()
    got = await asyncio.wait_for(client.reader.readexactly(size), 60)
    await asyncio.wait_for(client.writer.drain(), 60)

    assert got == b"d" * size
    assert max(grown.values()) < 3_000_000, grown
    assert await client.ended() == b""
    client.client.close()


async def _stands_still(client: RawWebSocket) -> None:
    """Return when the kernel has taken nothing more of what the client sends for a while."""
    left = -1
    transport = client.writer.transport
    while left != transport.get_write_buffer_size():
        left = transport.get_write_buffer_size()
        await asyncio.sleep(0.3)
    assert left > 0


@pytest.mark.rule("H-115")
async def test_a_websocket_holds_a_slot_of_the_app_until_it_is_over(mesh: Mesh) -> None:
    async with ends(mesh, echo, "--app-max-concurrency", "1") as both:
        first = await connect(url(both.caller))
        waiting = {asyncio.ensure_future(_connected(url(entry))) for entry in (both.caller, both.callee)}
        await first.send("x")
        assert await first.recv() == "x"
        done, waiting = await asyncio.wait(waiting, timeout=0.3)
        assert not done

        await first.close()
        done, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        (second,) = done
        client = second.result()
        await client.send("y")
        assert await client.recv() == "y"
        done, waiting = await asyncio.wait(waiting, timeout=0.3)
        assert not done

        client.transport.abort()
        done, waiting = await asyncio.wait(waiting, timeout=5)
        (third,) = done
        await third.result().close()


async def _connected(address: str) -> ClientConnection:
    return await connect(address, open_timeout=60)


@pytest.mark.rule("H-115")
async def test_whoever_leaves_while_it_waits_for_a_slot_takes_none(mesh: Mesh) -> None:
    async with ends(mesh, echo, "--app-max-concurrency", "1") as both:
        async with connect(url(both.caller)) as first:
            waiting = asyncio.ensure_future(_connected(url(both.caller)))
            await asyncio.wait([waiting], timeout=0.2)
            waiting.cancel()
            await asyncio.wait([waiting])
            await first.send("x")
            assert await first.recv() == "x"
        async with asyncio.timeout(5), connect(url(both.caller)) as next_one:
            await next_one.send("y")
            assert await next_one.recv() == "y"


async def test_many_at_one_time(mesh: Mesh) -> None:
    count = 200
    async with ends(mesh, echo) as both:
        files = {sidecar: sidecar.descriptors() for sidecar in (both.caller, both.callee)}
        clients = await asyncio.gather(*(_connected(url(both.caller)) for _ in range(count)))
        for client in clients:
            await client.send(str(id(client)))
        assert [await client.recv() for client in clients] == [str(id(client)) for client in clients]
        answer = await both.caller.ask("GET", "/v1.0/healthz")
        assert answer.status == 204
        for client in clients[: count // 2]:
            client.transport.abort()
        await asyncio.gather(*(client.close() for client in clients[count // 2 :]))

        async def is_as_before() -> bool:
            # One connection for tunnels is left between the two.
            return all(sidecar.descriptors() <= before + 2 for sidecar, before in files.items())

        await until(is_as_before, 10)


async def test_tunnels_that_nobody_reads_do_not_stop_calls(mesh: Mesh) -> None:
    async def app(exchange: Exchange) -> None:
        if exchange.target == "/work":
            exchange.answer(200, b"done")
            return

        async def flood(exchange: Exchange) -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    exchange.writer.write(b"z" * 65536)
                    await exchange.writer.drain()

        await accepting(flood)(exchange)

    pair = await start_pair(mesh, app)
    clients = [await RawWebSocket.open(pair.caller.port, PATH) for _ in range(40)]
    await until(lambda: len(pair.app.seen) == 40)

    answers = [await pair.caller.call("callee", "work", within_s=5) for _ in range(20)]

    assert [answer.body for answer in answers] == [b"done"] * 20
    for client in clients:
        client.client.reset()


# ── shutdown ──


@pytest.mark.parametrize(("way", "leaving"), [("self", "callee"), ("remote", "callee"), ("remote", "caller")])
async def test_at_shutdown_both_ends_are_told_to_go(mesh: Mesh, way: str, leaving: str) -> None:
    heard: list[int | None] = []

    async def app(server: ServerConnection) -> None:
        await echo(server)
        heard.append(server.close_code)

    async with ends(mesh, app) as both:
        clients = [await connect(url(both.entry(way))) for _ in range(5)]
        for client in clients:
            await client.send("x")
            assert await client.recv() == "x"
        sidecar = both.callee if leaving == "callee" else both.caller

        began = time.monotonic()
        sidecar.signal(signal.SIGTERM)
        for client in clients:
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(client.recv(), 5)
        code = await sidecar.wait()

        assert code == 0
        assert time.monotonic() - began < 2.0
        assert [client.close_code for client in clients] == [1001] * 5
        await until(lambda: heard == [1001] * 5)
        assert "Daprd shutdown gracefully" in sidecar.log()


@pytest.mark.rule("H-144")
@pytest.mark.parametrize(("way", "leaving"), [("self", "callee"), ("remote", "callee"), ("remote", "caller")])
async def test_at_shutdown_ends_that_do_not_answer_are_cut(mesh: Mesh, way: str, leaving: str) -> None:
    """The app is in the middle of a frame, the client says nothing: one close frame, and no long wait."""

    async def app(exchange: Exchange) -> None:
        exchange.writer.write(frame(BINARY, b"x" * 100, mask=None)[:50])
        await exchange.gone()

    pair = await start_pair(mesh, accepting(app))
    sidecar = pair.callee if leaving == "callee" else pair.caller
    client = await RawWebSocket.open(pair.entry(way).port, PATH)
    await client.reader.readexactly(50)

    began = time.monotonic()
    sidecar.signal(signal.SIGTERM)
    rest = b""
    with contextlib.suppress(ConnectionResetError):
        rest = await client.ended()
    code = await sidecar.wait()

    assert rest == b""  # nothing is put into the app's frame
    assert code == 0
    assert 1.5 < time.monotonic() - began < 4.5
    client.client.close()


async def test_at_shutdown_a_frame_in_progress_is_ended_before_the_goodbye(mesh: Mesh) -> None:
    whole = frame(BINARY, b"x" * 100_000, mask=None)

    async def app(exchange: Exchange) -> None:
        exchange.writer.write(whole[:50_000])
        # Nothing stands in the way of the goodbye to the app, so it comes as soon as the sidecar drains.
        assert (await read_frame(exchange.reader))[0] == CLOSE
        exchange.writer.write(whole[50_000:] + frame(BINARY, b"too late", mask=None))
        await exchange.gone()

    pair = await start_pair(mesh, accepting(app))
    client = await RawWebSocket.open(pair.caller.port, PATH)
    await client.reader.readexactly(50_000)

    pair.callee.signal(signal.SIGTERM)

    assert await client.reader.readexactly(len(whole) - 50_000) == whole[50_000:]
    assert await client.frame() == (CLOSE, b"\x03\xe9")
    with pytest.raises(Broken):
        await client.frame()
    client.client.close()
    assert await pair.callee.wait() == 0


# ── the record ──


@WAYS
async def test_a_tunnel_that_breaks_is_logged_as_a_call(mesh: Mesh, way: str) -> None:
    async def app(exchange: Exchange) -> None:
        exchange.reset()

    pair = await start_pair(mesh, accepting(app))
    client = await RawWebSocket.open(pair.entry(way).port, PATH)
    with contextlib.suppress(ConnectionResetError):
        await client.ended()

    await pair.entry(way).says("call failed")
    line = next(line for line in pair.entry(way).log().splitlines() if "outbound call failed" in line)
    assert "status=101" in line
    assert "verb=GET" in line
    assert re.search(r"method=\"?ws/room", line)


async def test_a_websocket_counts_as_one_call_when_it_is_over(mesh: Mesh) -> None:
    async with ends(mesh, echo) as both:
        client = await connect(url(both.caller), compression=None)
        await client.send(b"x" * 1000)
        await client.recv()
        assert ("101",) not in (await scrape(both.caller))["dapr_http_server_request_count"].numbers("status")
        await client.close()

        async def is_counted() -> bool:
            counts = (await scrape(both.caller))["dapr_http_server_request_count"].numbers("method", "status")
            return counts.get(("GET", "101")) == 1

        await until(is_counted)
        (answered,) = (await scrape(both.caller))["dapr_http_server_response_bytes"].distributions.values()
        received = (await scrape(both.callee))["dapr_http_client_completed_count"].numbers("method", "status")

    # The message and the close frame, with their heads, and the answers of health checks.
    assert answered.sum is not None
    assert answered.sum >= 1004 + 4
    assert received == {("GET", "101"): 1}


async def test_over_a_unix_domain_socket(mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        sidecar = await mesh.sidecar("callee", port, "--unix-domain-socket", str(folder), wait=None)
        path = folder / "dapr-callee-http.socket"
        await sidecar.says("dapr initialized", 15)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        async with connect(f"ws://localhost{PATH}", sock=sock, max_size=None) as client:
            await client.send(b"x" * 1_000_000)
            assert await client.recv() == b"x" * 1_000_000
            sidecar.signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(client.recv(), 5)
        assert client.close_code == 1001
        assert await sidecar.wait() == 0


# ── other people's clients ──

NODE = """
const url = process.argv[1];
const socket = new WebSocket(url, ["chat"]);
socket.binaryType = "arraybuffer";
const heard = [];
socket.onopen = () => { socket.send("text"); socket.send(new Uint8Array(200000)); };
socket.onmessage = (event) => {
  heard.push(typeof event.data === "string" ? event.data : event.data.byteLength);
  if (heard.length === 2) socket.close(4003, "done");
};
socket.onerror = (event) => console.log("error", event.message);
socket.onclose = (event) => console.log(JSON.stringify([socket.protocol, heard, event.code, event.wasClean]));
"""


def node_with_websocket() -> list[str]:
    """Return the command of a Node whose WebSocket can be used; skips the test if there is none."""
    for flags in ([], ["--experimental-websocket"]):
        command = ["node", *flags]
        try:
            ran = subprocess.run([*command, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 3)"], timeout=20)
        except FileNotFoundError:
            pytest.skip("node is not installed")
        if ran.returncode == 0:
            return command
    pytest.skip("this node has no WebSocket")


@WAYS
@pytest.mark.rule("A-13")
async def test_the_websocket_of_node(mesh: Mesh, way: str) -> None:
    node = node_with_websocket()
    closed: list[tuple[int | None, str | None]] = []

    async def app(server: ServerConnection) -> None:
        await echo(server)
        closed.append((server.close_code, server.close_reason))

    async with serve(app, "127.0.0.1", 0, subprotocols=[Subprotocol("chat")]) as server:
        port = server.sockets[0].getsockname()[1]
        callee, caller = await asyncio.gather(mesh.sidecar("callee", port), mesh.sidecar("caller"))
        client = mesh.process("node", [*node, "-e", NODE, url(callee if way == "self" else caller)])
        await client.wait(20)

    said = json.loads(client.log().strip().splitlines()[-1])
    assert said == ["chat", ["text", 200000], 4003, True]
    assert closed == [(4003, "done")]
