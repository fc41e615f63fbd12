"""When the record of a call ends: for a tunnel, when both its directions are over."""

from __future__ import annotations

from collections.abc import Callable

from tieline.errors import AppBroken
from tieline.middleware.attempts import Attempts
from tieline.middleware.chain import chain
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Cause, Hop, Invocation, Opened, Reply, Target


class NoBody:
    """The bytes of a tunnel, of which nobody may read any."""

    def __init__(self) -> None:
        self.trailers: list[tuple[bytes, bytes]] = []

    async def read(self) -> bytes:
        raise AssertionError("a tunnel was read like a body")

    def abandon(self) -> None:
        raise AssertionError("a tunnel was abandoned")


class FakeTunnel:
    """A tunnel that is over when the test says so."""

    def __init__(self) -> None:
        self.bytes_up = self.bytes_down = 0
        self.error: Exception | None = None
        self.callbacks: list[Callable[[], None]] = []

    def when_over(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def end(self, up: int, down: int, error: Exception | None = None) -> None:
        self.bytes_up, self.bytes_down, self.error = up, down, error
        for callback in self.callbacks:
            callback()


def handshake() -> Invocation:
    target = Target("callee", "default", "callee")
    return Invocation(target, b"GET", b"ws", b"ws", b"", [], NoBody(), 0, CallRecord(), b"websocket")


async def test_a_tunnels_record_ends_with_it_and_counts_both_directions() -> None:
    told: list[CallRecord] = []
    tunnel = FakeTunnel()
    body = NoBody()

    async def open_it(call: Invocation) -> Reply:
        return Opened([], body, tunnel)

    call = handshake()
    reply = await chain(Observe(told.append), Attempts(), end=open_it)(call)

    assert reply.body is body
    assert told == []
    tunnel.end(7, 9)
    (record,) = told
    assert (record.status, record.request_bytes, record.response_bytes) == (101, 7, 9)
    assert record.cause is None
    assert record.duration_s > 0


async def test_what_breaks_a_tunnel_is_in_its_record() -> None:
    told: list[CallRecord] = []
    tunnel = FakeTunnel()

    async def open_it(call: Invocation) -> Reply:
        return Opened([], NoBody(), tunnel)

    await chain(Observe(told.append), end=open_it)(handshake())
    tunnel.end(1, 2, AppBroken("EOF"))

    assert (told[0].cause, told[0].hop, told[0].detail) == (Cause.APP_BROKEN, Hop.APP, "EOF")


async def test_the_body_of_a_handshake_is_not_kept() -> None:
    """It would be read piece by piece, and is sent by nobody before the tunnel is open."""
    bodies: list[object] = []

    async def see(call: Invocation) -> Reply:
        bodies.append(call.body)
        return Reply(403, [])

    call = handshake()
    body = call.body
    await chain(Attempts(), end=see)(call)

    assert bodies == [body]
