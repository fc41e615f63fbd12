"""WebSockets to what lies outside the mesh: endpoints by name, and URLs; plain, by TLS, and through a proxy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.e2e.test_external import endpoint
from tests.support.app import Exchange
from tests.support.mesh import Mesh, Sidecar, invoke_path, until
from tests.support.tls import Authority, server_context
from tests.support.websocket import RawWebSocket, echo


def url(sidecar: Sidecar, target: str, method: str = "ws") -> str:
    return f"ws://127.0.0.1:{sidecar.port}{invoke_path(target, method)}"


async def check_echo(address: str) -> None:
    async with connect(address, max_size=None, open_timeout=30) as client:
        for message in ("text", b"x" * 1_000_000):
            await client.send(message)
            assert await client.recv() == message
    assert client.close_code == 1000


@contextlib.asynccontextmanager
async def asking_proxy(asked: list[bytes]) -> AsyncIterator[int]:
    """Run a proxy that connects to where it is asked to, on loopback whatever the name, and does nothing else."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b"\r\n")[0])
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        there, out = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(copy(reader, out), copy(there, writer))

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def resources(folder: Path, *texts: str) -> list[str]:
    folder.mkdir()
    (folder / "web.yaml").write_text("".join(texts))
    return ["--resources-path", str(folder)]


async def test_an_endpoint_and_a_url_take_websockets(mesh: Mesh, tmp_path: Path) -> None:
    seen: list[ServerConnection] = []

    async def web(socket: ServerConnection) -> None:
        seen.append(socket)
        await echo(socket)

    async with serve(web, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        flags = resources(tmp_path / "resources", endpoint("web", f"http://127.0.0.1:{port}/base"))
        sidecar = await mesh.sidecar("caller", None, *flags)

        for target in ("web", f"http://127.0.0.1:{port}"):
            await check_echo(url(sidecar, target, "room?q=1"))

    requests = [socket.request for socket in seen]
    assert [request.path for request in requests if request] == ["/base/room?q=1", "/room?q=1"]
    for request in requests:
        assert request is not None
        assert request.headers["host"] == f"127.0.0.1:{port}"
        assert not [name for name in request.headers if name.lower().startswith(("dapr-", "tieline-"))]


async def test_by_tls_it_is_http1_even_where_the_server_speaks_http2(mesh: Mesh, tmp_path: Path) -> None:
    authority = Authority()
    tls = server_context(tmp_path, authority.issue("localhost"), alpn=["h2", "http/1.1"])
    async with serve(echo, "127.0.0.1", 0, ssl=tls, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        text = endpoint("web", f"https://localhost:{port}", rootCA=authority.pem)
        sidecar = await mesh.sidecar("caller", None, *resources(tmp_path / "resources", text))

        await check_echo(url(sidecar, "web"))
        untrusted = await RawWebSocket.open(sidecar.port, invoke_path(f"https://localhost:{port}", "ws"))

        assert untrusted.answer.status == 500
        assert untrusted.answer.header("tieline-cause") == "peer-tls"
        untrusted.client.close()


async def test_a_proxy_is_asked_to_connect_even_without_tls(mesh: Mesh, tmp_path: Path) -> None:
    asked: list[bytes] = []
    async with serve(echo, "127.0.0.1", 0, max_size=None) as server, asking_proxy(asked) as proxy:
        port = server.sockets[0].getsockname()[1]
        text = endpoint("web", f"http://outside.example:{port}")
        flags = resources(tmp_path / "resources", text)
        sidecar = await mesh.sidecar("caller", None, *flags, environ={"HTTP_PROXY": f"http://127.0.0.1:{proxy}"})

        await check_echo(url(sidecar, "web"))

    assert asked == [b"CONNECT outside.example:%d HTTP/1.1" % port]


async def test_another_answer_is_the_answer_and_no_redirect_is_followed(mesh: Mesh, tmp_path: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/moved":
            exchange.answer(302, b"", [("Location", "/elsewhere")])
        else:
            exchange.answer(403, b"not you")

    web = await mesh.app(handler)
    text = endpoint("web", f"http://127.0.0.1:{web.port}")
    sidecar = await mesh.sidecar("caller", None, *resources(tmp_path / "resources", text))

    moved = await RawWebSocket.open(sidecar.port, invoke_path("web", "moved"))
    refused = await RawWebSocket.open(sidecar.port, invoke_path("web", "refused"))

    assert (moved.answer.status, moved.answer.header("location")) == (302, "/elsewhere")
    assert refused.answer.status == 403
    assert await refused.reader.readexactly(7) == b"not you"
    assert [exchange.target for exchange in web.seen] == ["/moved", "/refused"]
    moved.client.close()
    refused.client.close()


@pytest.mark.rule("H-104")
async def test_a_slot_of_the_endpoint_is_held_until_it_is_over(mesh: Mesh, tmp_path: Path) -> None:
    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        flags = resources(tmp_path / "resources", endpoint("web", f"http://127.0.0.1:{port}"))
        sidecar = await mesh.sidecar("caller", None, *flags, "--app-max-concurrency", "1")
        first = await connect(url(sidecar, "web"))
        second = asyncio.ensure_future(check_echo(url(sidecar, "web")))
        await first.send("x")
        assert await first.recv() == "x"
        await asyncio.wait([second], timeout=0.3)
        assert not second.done()

        await first.close()
        await asyncio.wait_for(second, 10)


async def test_a_server_that_breaks_off_is_told_to_the_client(mesh: Mesh, tmp_path: Path) -> None:
    held: list[ServerConnection] = []

    async def web(socket: ServerConnection) -> None:
        held.append(socket)
        await socket.wait_closed()

    async with serve(web, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sidecar = await mesh.sidecar("caller")
        client = await RawWebSocket.open(sidecar.port, invoke_path(f"http://127.0.0.1:{port}", "ws"))
        await until(lambda: len(held) == 1)

        held[0].transport.abort()

        assert await client.ended() == b""
        client.client.close()
