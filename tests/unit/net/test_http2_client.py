"""Connections to other sidecars that nobody uses."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tieline.model import Reply, Request
from tieline.net import http2_client
from tieline.net.http2_pool import Http2Pool
from tieline.net.http2_server import Http2Server
from tieline.net.listener import Listener
from tieline.wire.http2 import Limits


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
