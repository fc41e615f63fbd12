"""Connections to other sidecars: those that nobody uses, and answers that break off."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.support.mesh import until
from tieline.errors import AppBroken
from tieline.model import Headers, Reply, Request
from tieline.net import http2_client, http2_pool
from tieline.net.http2 import Upkeep
from tieline.net.http2_client import Http2Client
from tieline.net.http2_pool import Http2Pool
from tieline.net.http2_server import Handler, Http2Server
from tieline.net.listener import Listener
from tieline.wire.http2 import Limits
from tieline.wire.http2.connection import request_fields


async def answer(request: Request) -> Reply:
    return Reply(204, [])


@pytest.mark.rule("H-150")
async def test_an_idle_connection_is_closed_and_tools_can_see_it(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    members = listener.members
    await listener.accept(lambda: Http2Server(answer, limits=Limits(), native=True, members=members))
    pool = Http2Pool(native=True, upkeep=Upkeep(idle_s=0.0, look_every_s=0.01))

    with caplog.at_level(logging.DEBUG, logger="dapr.runtime"):
        http2_client.log.addHandler(caplog.handler)
        await pool.connection("127.0.0.1", listener.port)
        await asyncio.wait_for(members.wait_empty(), 5)
        http2_client.log.removeHandler(caplog.handler)

    assert "expired gRPC connection(s) to ('127.0.0.1', " in caplog.text
    assert pool.ready(("127.0.0.1", listener.port)) is None
    listener.abort()


class Held:
    """Answers when it is told to, and notes how many requests each connection had in progress at most."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.running = 0
        self.most = 0

    async def __call__(self, request: Request) -> Reply:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.go_on.wait()
        self.running -= 1
        return Reply(204, [])


async def a_server(handler: Handler, streams: int) -> Listener:
    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    await listener.accept(
        lambda: Http2Server(handler, limits=Limits(streams=streams), native=False, members=listener.members)
    )
    return listener


async def ask(pool: Http2Pool, port: int) -> Reply:
    connection = await pool.connection("127.0.0.1", port)
    return await connection.request(request_fields(b"GET", b"/", b"app", []), b"")


async def end(pool: Http2Pool, listener: Listener) -> None:
    pool.close()
    await asyncio.wait_for(listener.members.wait_empty(), 5)
    listener.abort()


@pytest.mark.rule("G-6")
async def test_fewer_streams_than_calls_are_waited_for_or_got_round_as_the_pool_is_told() -> None:
    for more_when_full, most in ((False, 4), (True, 12)):
        held = Held()
        listener = await a_server(held, streams=4)
        pool = Http2Pool(native=False, more_when_full=more_when_full)
        calls = [asyncio.create_task(ask(pool, listener.port)) for _ in range(4)]
        await until(lambda: held.running == 4)  # noqa: B023 - called before the loop goes on
        calls += [asyncio.create_task(ask(pool, listener.port)) for _ in range(4)]
        await until(lambda: held.running == min(most, 8))  # noqa: B023
        calls += [asyncio.create_task(ask(pool, listener.port)) for _ in range(4)]

        await until(lambda: held.running == most)  # noqa: B023 - called before the loop goes on
        held.go_on.set()
        replies = await asyncio.wait_for(asyncio.gather(*calls), 10)

        assert [reply.status for reply in replies] == [204] * 12
        assert held.most == most
        await end(pool, listener)


@pytest.mark.rule("G-6")
async def test_another_connection_is_opened_for_the_calls_beyond_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when all of them wait for the first connection to open."""
    monkeypatch.setattr(http2_pool, "CALLS_A_CONNECTION", 8)
    held = Held()
    listener = await a_server(held, streams=4)
    pool = Http2Pool(native=False, more_when_full=False)
    calls = [asyncio.create_task(ask(pool, listener.port)) for _ in range(9)]

    await until(lambda: held.running == 5)
    sizes = pool.size
    held.go_on.set()
    await asyncio.wait_for(asyncio.gather(*calls), 10)

    assert sizes == 2
    assert held.most == 5
    await end(pool, listener)


@pytest.mark.rule("G-6", "G-30")
async def test_the_last_connection_is_kept_however_idle_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_pool, "CALLS_A_CONNECTION", 1)
    looks = 0
    is_spare = Http2Client.is_spare

    def counted(connection: Http2Client, now: float, upkeep: Upkeep) -> bool:
        nonlocal looks
        looks += 1
        return is_spare(connection, now, upkeep)

    monkeypatch.setattr(Http2Client, "is_spare", counted)
    held = Held()
    listener = await a_server(held, streams=4)
    care = Upkeep(ping_after_s=None, idle_s=0.05, look_every_s=0.01)
    pool = Http2Pool(native=False, upkeep=care, more_when_full=False, keeps_last=True)
    calls = [asyncio.create_task(ask(pool, listener.port)) for _ in range(3)]
    await until(lambda: held.running == 3)
    held.go_on.set()
    await asyncio.gather(*calls)

    await until(lambda: pool.size == 1)
    seen = looks
    await until(lambda: looks >= seen + 5)  # the last one is looked at as often, and stays

    assert pool.size == 1
    await end(pool, listener)


class Torn:
    """A body that breaks off at its first byte."""

    def __init__(self) -> None:
        self.trailers: Headers = []

    async def read(self) -> bytes:
        raise AppBroken("unexpected EOF")

    def abandon(self) -> None:
        pass


async def test_an_answer_that_breaks_off_in_the_read_of_its_head_is_the_apps_fault() -> None:
    async def torn(request: Request) -> Reply:
        return Reply(200, [], Torn())

    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    members = listener.members
    await listener.accept(lambda: Http2Server(torn, limits=Limits(), native=True, members=members))
    pool = Http2Pool(native=True)
    connection = await pool.connection("127.0.0.1", listener.port)

    with pytest.raises(AppBroken, match="the answer broke off"):
        await asyncio.wait_for(connection.request(request_fields(b"GET", b"/", b"cart", []), b""), 5)

    pool.close()
    listener.abort()
