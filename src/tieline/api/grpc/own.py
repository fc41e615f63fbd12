"""The sidecar's own RPCs: metadata and shutdown (G-21 to G-23)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from tieline.api.grpc.answers import RpcAnswer, failed_by, succeeded
from tieline.api.grpc.calls import RpcCall, unreadable
from tieline.api.metadata import Metadata
from tieline.errors import GrpcCode, TielineError

FORCE: Final = b"dapr-force-shutdown"


class OwnRpcs:
    """What the API tells of the sidecar, and does to it.

    Args:
        shutdown: Begins the shutdown, ``True`` means at once.
    """

    def __init__(self, *, metadata: Metadata, shutdown: Callable[[bool], None]) -> None:
        self._metadata = metadata
        self._shutdown = shutdown

    async def get_metadata(self, rpc: RpcCall, message: bytes) -> RpcAnswer:
        """``GetMetadata``: what ``/v1.0/metadata`` tells."""
        messages = _messages()
        _read(messages.get_request, message)
        # There, if empty, since daprd always has it (G-21).
        document = {**self._metadata.document(), "workflows": {}}
        answer = messages.parse(document, messages.get_response())
        return succeeded(answer.SerializeToString(), [])

    async def set_metadata(self, rpc: RpcCall, message: bytes) -> RpcAnswer:
        """``SetMetadata``; an empty key is passed over (G-22)."""
        asked = _read(_messages().set_request, message)
        if asked.key:
            try:
                self._metadata.set_attribute(asked.key, asked.value, size=len(message))
            except TielineError as error:
                error.grpc_code = GrpcCode.RESOURCE_EXHAUSTED
                return failed_by(error)
        return succeeded(b"", [])

    async def shutdown(self, rpc: RpcCall, message: bytes) -> RpcAnswer:
        """``Shutdown``: answered first, then done (G-23)."""
        _read(_messages().shutdown_request, message)
        forced = next((value for name, value in rpc.headers if name == FORCE), b"")
        self._shutdown(forced.lower() == b"true")
        return succeeded(b"", [])


def _read(kind: Any, message: bytes) -> Any:
    """Parse a request.

    Raises:
        BadMessages: It is none.
    """
    try:
        return kind.FromString(message)
    except _messages().error as error:
        raise unreadable(error) from error


class _Messages(NamedTuple):
    """What protobuf is needed for, imported at the first call."""

    get_request: Any
    get_response: Any
    set_request: Any
    shutdown_request: Any
    error: type[Exception]
    parse: Callable[[Any, Any], Any]


@cache
def _messages() -> _Messages:
    from google.protobuf.json_format import ParseDict
    from google.protobuf.message import DecodeError

    from tieline._generated.dapr.proto.runtime.v1 import dapr_pb2 as dapr

    return _Messages(
        dapr.GetMetadataRequest,
        dapr.GetMetadataResponse,
        dapr.SetMetadataRequest,
        dapr.ShutdownRequest,
        DecodeError,
        ParseDict,
    )
