"""What the serving end of HTTP/2 leaves behind of a call."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import cast

import pytest

from tests.support.mesh import until
from tieline.model import Headers, Reply, Request
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
