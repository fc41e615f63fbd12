"""Sockets that a listener binds, and those it accepts."""

from __future__ import annotations

import asyncio
import logging
import socket

from tieline.net.listener import Listener


class Accepted(asyncio.Protocol):
    """Tells of the transport it was given."""

    def __init__(self, accepted: asyncio.Future[asyncio.BaseTransport]) -> None:
        self._accepted = accepted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._accepted.set_result(transport)


async def test_answers_do_not_wait_for_the_client_to_acknowledge_their_heads() -> None:
    """Nagle's algorithm is off, or an answer in two writes takes 40 ms longer."""
    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    accepted: asyncio.Future[asyncio.BaseTransport] = asyncio.get_running_loop().create_future()
    await listener.accept(lambda: Accepted(accepted))

    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    transport = await accepted

    assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    transport.close()
    writer.close()
    listener.abort()
