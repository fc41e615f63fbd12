"""Sockets that a listener binds, and those it accepts."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from tieline.net.listener import PROBE_AFTER_S, Listener


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


async def test_the_kernel_looks_after_connections_that_fell_silent() -> None:
    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    accepted: asyncio.Future[asyncio.BaseTransport] = asyncio.get_running_loop().create_future()
    await listener.accept(lambda: Accepted(accepted))

    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    transport = await accepted

    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_KEEPIDLE"):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == PROBE_AFTER_S
    transport.close()
    writer.close()
    listener.abort()


@pytest.mark.parametrize(
    ("bound", "reached", "behind"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.5", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("0.0.0.0", "::ffff:127.0.0.5", True),
        ("127.0.0.5", "127.0.0.1", False),
    ],
)
def test_who_leads_here_is_told_from_another_program_with_the_same_port(bound: str, reached: str, behind: bool) -> None:
    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now(bound, 0)
    other = Listener("other", logging.getLogger("test"))
    if not behind:
        other.bind_now(reached, listener.port)

    with socket.create_connection((reached, listener.port)) as sock:
        assert listener.is_behind(sock) == behind
    with socket.socket() as unconnected:
        assert not listener.is_behind(unconnected)
    listener.abort()
    other.abort()


class Drained:
    """A connection that is told to leave, and leaves."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def drain(self) -> None:
        self._listener.members.discard(self)

    def abort(self) -> None:
        raise AssertionError("nobody is in a hurry")


class Busy(Drained):
    """A connection whose call takes its time."""

    def drain(self) -> None:
        asyncio.get_running_loop().call_later(0.02, self._listener.members.discard, self)


async def test_a_connection_accepted_just_before_a_drain_is_drained_as_well() -> None:
    listener = Listener("test", logging.getLogger("test"))
    listener.members.add(Busy(listener))
    draining = asyncio.create_task(listener.drain())
    await asyncio.sleep(0)

    listener.members.add(Drained(listener))

    await asyncio.wait_for(draining, 5)
    assert not listener.members


@pytest.mark.rule("H-1")
async def test_a_busy_port_is_told_at_once_and_tried_for_one_time_whatever_the_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener, other = Listener("HTTP", logging.getLogger("test")), Listener("other", logging.getLogger("test"))
    other.bind_now("127.0.0.1", 0)
    other.bind_now("127.0.0.2", other.port)
    loop = asyncio.get_running_loop()
    began = loop.time()

    bound = await listener.bind(["127.0.0.1", "127.0.0.2"], other.port, within_s=0.4)

    assert not bound
    assert loop.time() - began < 0.8
    waits = [record.getMessage() for record in caplog.records if "is taken by another program" in record.getMessage()]
    assert waits == [f"HTTP server: 127.0.0.1:{other.port} is taken by another program; trying again for 0 s"]
    other.abort()
