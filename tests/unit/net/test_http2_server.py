"""What the serving end of HTTP/2 leaves behind of a call."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
from pathlib import Path
from typing import Any, cast

import aiofastnet
import pytest

from tests.support.mesh import until
from tests.support.tls import Authority, server_context
from tieline.model import Headers, Reply, Request
from tieline.net.dial import Dialler
from tieline.net.http2_client import Http2Client
from tieline.net.http2_pool import Http2Pool
from tieline.net.http2_server import Http2Server
from tieline.net.listener import Listener
from tieline.wire.http2 import Limits
from tieline.wire.http2.connection import request_fields

SIZE = 30_000


class Pieces:
    """A body of some pieces, of which the first comes when the head has arrived."""

    def __init__(self, count: int, arrived: asyncio.Event) -> None:
        self._left = count
        self._arrived = arrived
        self.trailers: Headers = []

    async def read(self) -> bytes:
        await self._arrived.wait()
        self._left -= 1
        return bytes(SIZE // 3) if self._left >= 0 else b""

    def abandon(self) -> None:
        """Nothing is lost."""


async def test_a_whole_body_that_nobody_read_counts_against_no_other_call() -> None:
    """Else, after enough calls that were refused unread, the connection would take no bodies any more."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def refuse(request: Request) -> Reply:
        arrived.set()
        await go_on.wait()
        return Reply(204, [])

    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    await listener.accept(lambda: Http2Server(refuse, limits=Limits(), native=True, members=listener.members))
    client: Http2Client = await Http2Pool(native=True).connection("127.0.0.1", listener.port)
    server = cast("Http2Server", next(iter(listener.members)))

    call = client.begin_request(request_fields(b"POST", b"/x", b"a", []), Pieces(3, arrived))
    await until(lambda: any(stream.closed & 2 for stream in server.h2.streams.values()))
    assert server.h2.unread == SIZE
    go_on.set()
    reply = await call.answer

    assert reply.status == 204
    await until(lambda: not server.h2.streams)
    assert server.h2.unread == 0
    client.abort()
    listener.abort()


@pytest.mark.parametrize("body", [b"", b"whole"])
async def test_a_call_leaves_no_work_to_the_garbage_collector(body: bytes) -> None:
    """Cycles pile up until the collector stops everything for milliseconds to find them."""

    async def answer(request: Request) -> Reply:
        return Reply(200, [(b"x", b"y")], body)

    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    await listener.accept(lambda: Http2Server(answer, limits=Limits(), native=True, members=listener.members))
    client: Http2Client = await Http2Pool(native=True).connection("127.0.0.1", listener.port)
    call = request_fields(b"POST", b"/x", b"a", [(b"x", b"y")])
    await client.request(call, body)

    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            await client.request(call, body)
        left = gc.collect()
    finally:
        gc.enable()

    assert left < 50
    client.abort()
    listener.abort()


async def test_over_tls_a_client_that_reads_late_loses_nothing(tmp_path: Path) -> None:
    """The server reads nothing more meanwhile, though TLS may have read ahead; then it must go on where it was."""
    authority = Authority()
    calls, size = 300, 16_000
    stopped = asyncio.Event()
    members: set[Any] = set()

    class Server(Http2Server):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            super().connection_made(transport)

        def _stop_reading(self) -> None:
            super()._stop_reading()
            if not self._reading:
                stopped.set()

    async def answer(request: Request) -> Reply:
        # Heads of their own, since bodies wait elsewhere.
        return Reply(200, [(b"x-long", request.path * 1000)], bytes(size))

    limits = Limits(streams=calls)
    listening = await aiofastnet.create_server(
        asyncio.get_running_loop(),
        lambda: Server(answer, limits=limits, native=False, members=members),
        "127.0.0.1",
        0,
        ssl=server_context(tmp_path, authority.issue("127.0.0.1"), alpn=["h2"]),
    )
    trust = ssl.create_default_context(cadata=authority.pem)
    trust.set_alpn_protocols(["h2"])
    dialler = Dialler("127.0.0.1", listening.sockets[0].getsockname()[1], tls=trust, connect_timeout_s=5)
    client = await dialler.connect(lambda: Http2Client(limits=Limits(), native=False))
    assert isinstance(client, Http2Client)
    await client.ready

    client._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client._transport.pause_reading()
    begun = [
        client.begin_request(request_fields(b"POST", b"/%d" % number, b"a", []), bytes(4000)) for number in range(calls)
    ]
    async with asyncio.timeout(10):
        await stopped.wait()
    client._transport.resume_reading()
    async with asyncio.timeout(20):
        replies = [await one.answer for one in begun]

    assert {reply.status for reply in replies} == {200}
    client.abort()
    listening.close()
