"""RPCs to a handler of the gRPC API without a socket, and what comes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from tieline.model import Headers, Reply, Request, RpcStatus, Shape
from tieline.wire.grpc.messages import frame, only_message
from tieline.wire.grpc.status import read_status, without_status

INVOKE = "/dapr.proto.runtime.v1.Dapr/InvokeService"
GET_METADATA = "/dapr.proto.runtime.v1.Dapr/GetMetadata"


class Got(NamedTuple):
    """How an RPC ended.

    Attributes:
        initial, trailers: Metadata in front of the message and behind it, as they stand on the wire.
    """

    http_status: int
    status: RpcStatus
    initial: Headers
    message: bytes | None
    trailers: Headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first value in front of the message."""
        return next((value for known, value in self.initial if known == name), None)

    def trailer(self, name: bytes) -> bytes | None:
        """Return the first value behind the message."""
        return next((value for known, value in self.trailers if known == name), None)


async def call_rpc(
    handle: Callable[[Request], Awaitable[Reply]],
    path: str,
    message: bytes | None,
    *metadata: tuple[bytes, bytes],
    verb: bytes = b"POST",
    content_type: bytes = b"application/grpc",
    body: bytes | None = None,
    shape: Shape | None = None,
) -> Got:
    """Call a unary RPC; ``body`` stands for a framed message where that is given."""
    headers: Headers = [(b"content-type", content_type), (b"te", b"trailers"), *metadata]
    sent = body if body is not None else b"" if message is None else frame(message)
    reply = await handle(Request(verb, path.encode(), None, headers, sent, None, b"localhost", shape=shape))
    assert isinstance(reply.body, bytes)
    only_one = reply.trailers is None
    ends = reply.headers if only_one else reply.trailers
    status = read_status(ends or [])
    assert status is not None
    return Got(
        reply.status,
        status,
        [field for field in reply.headers if field[0].startswith(b"content-type")] if only_one else reply.headers,
        only_message(reply.body, None) if reply.body else None,
        [field for field in without_status(ends or []) if field[0] != b"content-type"],
    )


def error_info(status: RpcStatus) -> dict[str, Any]:
    """Return the ``ErrorInfo`` among the details of a status."""
    from tieline._generated.google.rpc.error_details_pb2 import ErrorInfo
    from tieline._generated.google.rpc.status_pb2 import Status

    details = Status.FromString(status.details)
    assert (details.code, details.message) == (status.code, status.message)
    (packed,) = details.details
    info = ErrorInfo()
    assert packed.Unpack(info)
    return {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)}
