"""The limits that clients of Dapr know, wherever each has its place."""

from __future__ import annotations

import pytest

from tieline.app import http_channel
from tieline.app.rpc_route import APP_LIMITS
from tieline.config.settings import DEFAULT_MAX_BODY, DEFAULT_READ_BUFFER, LARGEST_READ_BUFFER
from tieline.net import http1_client, http1_server
from tieline.net.http2_pool import CALLS_A_CONNECTION
from tieline.outbound.peer import PEER_LIMITS
from tieline.resiliency import again
from tieline.sidecar.listeners import HEAD_SLACK, INTERNAL_LIMITS
from tieline.wire.http2 import Limits


@pytest.mark.parametrize(
    ("limits", "streams"),
    [
        (Limits(), Limits().streams),
        (INTERNAL_LIMITS, INTERNAL_LIMITS.streams),
        (PEER_LIMITS, CALLS_A_CONNECTION),
        (APP_LIMITS, CALLS_A_CONNECTION),
    ],
)
def test_readers_that_stop_cannot_hold_up_a_connection(limits: Limits, streams: int) -> None:
    assert streams * limits.stream_window + limits.grown <= limits.unread


@pytest.mark.rule("H-149")
def test_limits_are_those_that_clients_know() -> None:
    mebibyte = 1 << 20

    assert (4 * mebibyte, 8192, mebibyte) == (DEFAULT_MAX_BODY, DEFAULT_READ_BUFFER + HEAD_SLACK, LARGEST_READ_BUFFER)
    assert (http1_client.CONNECTIONS_MAX, http_channel.CONNECT_TIMEOUT_S) == (1024, 30)
    assert http1_server.HEAD_WITHIN_S == 10
    assert (again.MAX_RETRIES, again.PAUSE_S) == (3, 1)
