"""What the internal port makes of a call before it is served."""

from __future__ import annotations

import pytest

from tieline.inbound.server import InboundServer
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Cause, Headers, Invocation, Reply, Request

SAID: Headers = [
    (b"dapr-caller-app-id", b"shop"),
    (b"dapr-caller-namespace", b"default"),
    (b"tieline-invoke", b"1"),
]


class Upload:
    """A body of which nothing may be read."""

    def __init__(self) -> None:
        self.trailers: Headers = []
        self.abandoned = False

    async def read(self) -> bytes:
        raise AssertionError("read")

    def abandon(self) -> None:
        self.abandoned = True


async def never(call: Invocation) -> Reply:
    raise AssertionError(f"served: {call.method!r}")


@pytest.mark.parametrize(
    ("verb", "path", "authority", "cause"),
    [
        (b"POST", b"/work", b"other", Cause.NAME_UNKNOWN),
        (b"POST", b"/a%zz", b"cart", Cause.BAD_REQUEST),
        (b"NO-VERB", b"/work", b"cart", Cause.BAD_REQUEST),
    ],
)
async def test_a_call_refused_at_the_door_is_recorded_once_and_its_body_dropped(
    verb: bytes, path: bytes, authority: bytes, cause: Cause
) -> None:
    records: list[CallRecord] = []
    server = InboundServer(never, Observe(records.append), app_id="cart", namespace="default")
    upload = Upload()

    reply = await server(Request(verb, path, None, SAID, upload, None, authority, native=1))

    assert (reply.status, dict(reply.headers)[b"tieline-cause"]) == (500, cause.encode())
    assert [(record.cause, record.caller, record.inbound) for record in records] == [(cause, "shop", True)]
    assert upload.abandoned
