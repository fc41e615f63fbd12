"""Connections to other sidecars: those that nobody uses, and answers that break off."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tieline.errors import AppBroken
from tieline.model import Headers, Reply, Request
from tieline.net import http2_client
from tieline.net.http2_pool import Http2Pool
from tieline.net.http2_server import Http2Server
from tieline.net.listener import Listener
from tieline.wire.http2 import Limits
from tieline.wire.http2.connection import request_fields


async def answer(request: Request) -> Reply:
    return Reply(204, [])


@pytest.mark.rule("H-150")
async def test_an_idle_connection_is_closed_and_tools_can_see_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http2_client, "PING_AFTER_S", 0.01)
    monkeypatch.setattr(http2_client, "IDLE_S", 0.0)
    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    members = listener.members
    await listener.accept(lambda: Http2Server(answer, limits=Limits(), native=True, members=members))
    pool = Http2Pool(native=True)

    with caplog.at_level(logging.DEBUG, logger="dapr.runtime"):
        http2_client.log.addHandler(caplog.handler)
        await pool.connection("127.0.0.1", listener.port)
        await asyncio.wait_for(members.wait_empty(), 5)
        http2_client.log.removeHandler(caplog.handler)

    assert "expired gRPC connection(s) to ('127.0.0.1', " in caplog.text
    assert pool.ready(("127.0.0.1", listener.port)) is None
    listener.abort()


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
