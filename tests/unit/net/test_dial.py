"""The way to a server: which address is taken, and how long that may take."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tieline.model import Endpoint
from tieline.net import dial
from tieline.net.dial import open_socket
from tieline.net.dial_text import NameUnknown, dial_text


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Lend a port that answers nothing: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", port))
        yield port


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def closed() -> int:
    with listening() as port:
        return port


def at(*ports: int) -> list[tuple[int, tuple[str, int]]]:
    return [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]


async def test_an_address_that_is_silent_does_not_hold_up_the_next() -> None:
    with silent() as first, listening() as second:
        began = time.monotonic()

        sock = await dial._race(at(first, second))

        with sock:
            assert sock.getpeername()[1] == second
        assert time.monotonic() - began < 5


async def test_an_address_that_refuses_is_passed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "NEXT_ADDRESS_S", 30.0)
    with listening() as second:
        async with asyncio.timeout(5):
            sock = await dial._race(at(closed(), second))

        with sock:
            assert sock.getpeername()[1] == second


async def test_when_all_refuse_the_first_reason_counts() -> None:
    with pytest.raises(ConnectionRefusedError):
        await dial._race(at(closed(), closed()))


async def test_the_time_to_connect_is_bounded() -> None:
    with silent() as port, pytest.raises(TimeoutError) as caught:
        await open_socket(Endpoint("127.0.0.1", port), 0.2)

    assert dial_text(caught.value, Endpoint("127.0.0.1", port)) == f"dial tcp 127.0.0.1:{port}: i/o timeout"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "a..b", ""])
async def test_a_name_without_an_address_is_told(host: str) -> None:
    with pytest.raises(NameUnknown, match="lookup"):
        await open_socket(Endpoint(host or " ", 80), 5)


async def test_the_families_of_a_name_take_turns() -> None:
    addresses = await dial._resolve(Endpoint("localhost", 80))

    assert addresses
    assert len({family for family, _ in addresses[:2]}) == min(2, len({family for family, _ in addresses}))
