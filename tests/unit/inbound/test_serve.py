"""What the called app is told of its callers."""

from __future__ import annotations

import tracemalloc

from tieline.inbound.serve import ToApp
from tieline.model import CallRecord, Headers, Invocation, Reply, Target

MIB = 1 << 20


class Channel:
    """An app that keeps nothing."""

    def __init__(self) -> None:
        self.callers: list[bytes] = []

    async def call(self, call: Invocation, identity: Headers) -> Reply:
        self.callers.append(dict(identity)[b"dapr-caller-app-id"][:1])
        return Reply(200, [])

    async def aclose(self) -> None:
        return


async def test_callers_with_endless_names_leave_nothing_behind() -> None:
    """Whoever reaches the internal port may claim any name."""
    channel = Channel()
    serve = ToApp(channel, "cart")
    tracemalloc.start()

    for letter in "abcdefghij":
        record = CallRecord()
        record.caller = letter * MIB
        target = Target("cart", "default", "cart")
        await serve(Invocation(target, b"GET", b"x", b"x", b"", [], b"", 0, record))
        del record
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert channel.callers == [letter.encode() for letter in "abcdefghij"]
    assert held < 2 * MIB
