"""Ports that are held for a child."""

from __future__ import annotations

import socket
import sys

import pytest

from tieline.cli.ports import HeldPort, is_free


def test_a_held_port_is_nobody_elses() -> None:
    """Another program that wants the port is refused until it is released."""
    held = HeldPort()

    with socket.socket() as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", held.number))
        held.release()
        held.release()
        other.bind(("127.0.0.1", held.number))


@pytest.mark.skipif(sys.platform != "linux", reason="ports can be held for a child only on Linux")
@pytest.mark.parametrize("host", ["127.0.0.1", "", "::"])
def test_the_child_can_listen_on_a_held_port(host: str) -> None:
    """As servers do: with address reuse allowed."""
    held = HeldPort()
    is_v6 = ":" in host
    family = socket.AF_INET6 if is_v6 else socket.AF_INET

    held.before_start()
    with socket.create_server((host, held.number), family=family, dualstack_ipv6=is_v6):
        free_while_used = is_free(held.number)
    held.release()

    assert not free_while_used
    assert is_free(held.number)


@pytest.mark.parametrize("number", [-1, 65536])
def test_an_impossible_port_is_an_os_error(number: int) -> None:
    """Like any port that cannot be had."""
    with pytest.raises(OSError, match="port"):
        HeldPort(number)
