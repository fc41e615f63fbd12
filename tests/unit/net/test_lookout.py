"""A reset that arrives together with data is seen, on every event loop, and with all the data before it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import weakref
from collections.abc import Callable

import pytest

from tests.support.mesh import until
from tieline.net.lookout import LOOK_EVERY_S, forget, watch
from tieline.net.loop import Buffered, serve

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
with contextlib.suppress(ImportError):
    import uvloop

    LOOPS.append(uvloop.new_event_loop)


class Reader(Buffered):
    """Notes what comes, and the end."""

    def __init__(self) -> None:
        self.size = 0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        watch(asyncio.get_running_loop(), transport)

    def data_received(self, data: bytes) -> None:
        self.size += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        forget(asyncio.get_running_loop(), self.transport)
        self.lost.set_result(None)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset may drop the data before it")
@pytest.mark.parametrize("size", [4000, 100_000])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__module__)
def test_a_reset_behind_data_ends_the_connection(loop: Callable[[], asyncio.AbstractEventLoop], size: int) -> None:
    readers: list[Reader] = []

    def accepted() -> Reader:
        readers.append(Reader())
        return readers[-1]

    async def run() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            address = sock.getsockname()
            server = await serve(accepted, sock)
            client = socket.create_connection(address)
            await until(lambda: len(readers) == 1)
            # Both within one turn of the loop, so that the server finds both at once.
            client.sendall(b"x" * size)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

            async with asyncio.timeout(LOOK_EVERY_S * 3):
                await readers[0].lost
            server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())

    assert readers[0].size == size


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__module__)
def test_a_connection_that_is_gone_is_let_go_at_once(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> bool:
        transport = Transport()
        gone = weakref.ref(transport)
        watch(asyncio.get_running_loop(), transport)
        forget(asyncio.get_running_loop(), transport)
        del transport
        return gone() is None

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(run())


@pytest.mark.skipif(len(LOOPS) < 2, reason="plain asyncio needs no lookout")
def test_who_gets_the_number_of_a_closed_socket_is_watched_in_its_place() -> None:
    async def run() -> int:
        loop = asyncio.get_running_loop()
        first, first_peer = socket.socketpair()
        number = first.fileno()
        old = Transport(first)
        watch(loop, old)
        await until(lambda: old.asked > 0)
        first.close()
        second, second_peer = socket.socketpair()
        assert second.fileno() == number
        new = Transport(second)
        watch(loop, new)
        await until(lambda: new.asked > 0)
        forget(loop, old)  # told late
        second_peer.close()
        await until(lambda: new.told > 0)
        forget(loop, new)
        for sock in (second, first_peer):
            sock.close()
        return old.told

    with asyncio.Runner(loop_factory=LOOPS[1]) as runner:
        assert runner.run(run()) == 0


class Transport:
    """Counts how often it was asked for its socket, and told that something is the matter."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._sock = sock
        self.asked = 0
        self.told = 0

    def get_extra_info(self, name: str) -> socket.socket | None:
        self.asked += 1
        return self._sock

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        self.told += 1
        return False
