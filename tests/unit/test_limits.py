"""The limits that clients of Dapr know, wherever each has its place."""

from __future__ import annotations

import pytest

from tieline.app import http_channel
from tieline.config.settings import DEFAULT_MAX_BODY, DEFAULT_READ_BUFFER, LARGEST_READ_BUFFER
from tieline.net import http1_client, http1_server
from tieline.resiliency import again
from tieline.sidecar.listeners import HEAD_SLACK


@pytest.mark.rule("H-149")
def test_limits_are_those_that_clients_know() -> None:
    mebibyte = 1 << 20

    assert (4 * mebibyte, 8192, mebibyte) == (DEFAULT_MAX_BODY, DEFAULT_READ_BUFFER + HEAD_SLACK, LARGEST_READ_BUFFER)
    assert (http1_client.CONNECTIONS_MAX, http_channel.CONNECT_TIMEOUT_S) == (1024, 30)
    assert http1_server.HEAD_WITHIN_S == 10
    assert (again.MAX_RETRIES, again.PAUSE_S) == (3, 1)
