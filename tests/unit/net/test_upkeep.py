"""Connections that are quiet, and PINGs that come too often."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.http2 import POST, an_end, data, headers
from tests.support.mesh import until
from tieline.app.grpc_channel import CONNECT_WITHIN_S
from tieline.config.settings import DEFAULT_MAX_BODY, DEFAULT_PEER_IDLE_S, DEFAULT_PEER_SWEEP_S
from tieline.model import Reply, Request
from tieline.net.http2 import PING_DATA, Upkeep
from tieline.net.http2_pool import CALLS_A_CONNECTION, Http2Pool
from tieline.net.http2_server import Http2Server
from tieline.net.loop import serve
from tieline.outbound.peer import PEER_UPKEEP
from tieline.resiliency.again import MAX_RETRIES, PAUSE_S
from tieline.sidecar.listeners import INTERNAL_LIMITS, RPC_UPKEEP
from tieline.wire.grpc.internal import PAYLOAD_BYTES
from tieline.wire.http2 import ErrorCode, Limits, frames

QUICK = Upkeep(ping_after_s=0.05, ping_within_s=0.05, idle_s=5.0, look_every_s=1.0)


@asynccontextmanager
async def heard(*, answers: bool) -> AsyncIterator[tuple[int, list[bytes], asyncio.Event]]:
    """Serve HTTP/2 by hand: the frames that came, and whether the connection is over."""
    came: list[bytes] = []
    over = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.settings({}))
        await reader.readexactly(len(frames.PREFACE))
        try:
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                came.append(head[3:4] + payload)
                if head[3] == frames.PING and answers:
                    writer.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        except (asyncio.IncompleteReadError, ConnectionError):
            over.set()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], came, over
    finally:
        server.close()


def pings(came: list[bytes]) -> int:
    return came.count(bytes([frames.PING]) + PING_DATA)


@pytest.mark.rule("G-5")
async def test_a_quiet_server_is_asked_again_and_again_and_kept() -> None:
    pool = Http2Pool(native=False, upkeep=QUICK)
    async with heard(answers=True) as (port, came, over), asyncio.timeout(5):
        connection = await pool.connection("127.0.0.1", port)
        await until(lambda: pings(came) >= 3)

        assert not over.is_set()
        assert connection.usable
        pool.close()
        await over.wait()


@pytest.mark.rule("G-5")
async def test_a_server_that_does_not_answer_is_left_with_a_word() -> None:
    pool = Http2Pool(native=False, upkeep=QUICK)
    async with heard(answers=False) as (port, came, over), asyncio.timeout(5):
        connection = await pool.connection("127.0.0.1", port)
        await over.wait()

        assert pings(came) == 1
        assert came[-1][0] == frames.GOAWAY
        assert not connection.usable
        assert pool.size == 0


async def never(request: Request) -> Reply:
    raise AssertionError("served")


@pytest.mark.rule("G-4")
async def test_a_server_asks_quiet_clients_and_drops_those_that_are_gone() -> None:
    members: set[Any] = set()
    listening = await _listen(members, QUICK)
    port = listening.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        writer.write(frames.PREFACE + frames.settings({}))
        got = await reader.read()  # to the end: it is never answered

    assert frames.frame(frames.PING, 0, 0, PING_DATA) in got
    assert members == set()
    writer.close()
    listening.close()


@pytest.mark.rule("G-4")
async def test_a_server_says_goodbye_to_clients_without_calls() -> None:
    members: set[Any] = set()
    listening = await _listen(members, Upkeep(ping_after_s=None, idle_s=0.05, look_every_s=0.02))
    port = listening.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        writer.write(frames.PREFACE + frames.settings({}))
        got = await reader.read()

    assert got.endswith(b"shutting down")
    writer.close()
    listening.close()


async def _listen(members: set[Any], upkeep: Upkeep) -> Any:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    return await serve(lambda: Http2Server(never, limits=Limits(), native=False, members=members, upkeep=upkeep), sock)


PING = frames.frame(frames.PING, 0, 0, b"\0" * 8)


@pytest.mark.rule("G-4")
def test_a_client_that_asks_too_often_is_hung_up_on() -> None:
    end = an_end(client=False, limits=Limits(ping_interval_s=8.0))
    for _ in range(3):
        end.clock.now += 7.9
        end.hear(PING)
        assert end.h2.fault is None

    end.clock.now += 7.9
    end.hear(PING)

    assert end.h2.fault is not None
    assert (end.h2.fault.code, end.h2.fault.text) == (ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")


@pytest.mark.rule("G-4", "G-127")
def test_pings_in_time_and_those_that_measure_the_line_are_answered() -> None:
    end = an_end(client=False, limits=Limits(ping_interval_s=8.0))
    for _ in range(20):
        end.clock.now += 8.0
        end.hear(PING)
    for number in range(1, 41, 2):
        end.hear(headers(number, POST, end=False), data(number, b"x", end=True))
        end.h2.send_response(end.ledger.streams[number], 200, [], end=False)
        end.h2.send_data(end.ledger.streams[number], b"y", end=True)
        end.hear(PING)

    assert end.h2.fault is None


@pytest.mark.rule("G-123")
def test_limits_are_those_that_daprd_keeps_and_expects() -> None:
    assert (PEER_UPKEEP.ping_after_s, PEER_UPKEEP.ping_within_s) == (10.0, 5.0)
    assert (RPC_UPKEEP.ping_after_s, RPC_UPKEEP.ping_within_s, RPC_UPKEEP.idle_s) == (10.0, 5.0, 180.0)
    assert (INTERNAL_LIMITS.ping_interval_s, INTERNAL_LIMITS.streams) == (8.0, 2048)
    assert (DEFAULT_PEER_IDLE_S, DEFAULT_PEER_SWEEP_S, DEFAULT_MAX_BODY) == (180.0, 45.0, 4 << 20)
    assert (PAYLOAD_BYTES, CALLS_A_CONNECTION, MAX_RETRIES, PAUSE_S) == (2048, 2048, 3, 1.0)
    assert CONNECT_WITHIN_S >= 20
