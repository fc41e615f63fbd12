"""How a callee's sidecar tells the caller's of a failure of its own, in either form of calls."""

from __future__ import annotations

from typing import Final

from tieline.errors import BadRequest, Cancelled, GrpcCode, ShuttingDown, TielineError
from tieline.model import Cause, Headers, Hop, Reply, RpcStatus
from tieline.wire.errors_text import explained
from tieline.wire.grpc.status import render_status

MAX_ERROR_TEXT: Final = 8192


def native_failure(error: TielineError) -> Reply:
    """Return the answer to a call in the native form."""
    code = error.grpc_code if error.grpc_code is not None else GrpcCode.INTERNAL
    headers: Headers = [(b"tieline-error", b"%d" % int(code)), *_explanation(error)]
    return Reply(500, headers, error.text.encode("utf-8", "surrogateescape")[:MAX_ERROR_TEXT])


def rpc_failure(error: TielineError, code: int = GrpcCode.INTERNAL) -> Headers:
    """Return the trailers of an RPC.

    Args:
        error: The failure.
        code: Of one that has no gRPC code itself.
    """
    if error.grpc_code is not None:
        code = error.grpc_code
    return [*render_status(RpcStatus(code, error.text)), *_explanation(error)]


def _explanation(error: TielineError) -> Headers:
    """Say why, where as seen from the app that made the call, and what to do."""
    hop = error.hop if error.hop is not Hop.CALLER or isinstance(error, (BadRequest, Cancelled)) else Hop.PEER
    if isinstance(error, ShuttingDown):
        hop = Hop.PEER
    return explained(error.cause, hop, error.hint)


def not_meant(app_id: str, addressed: str) -> TielineError:
    """Make the failure of a call that means another app: a port may have a new owner."""
    return TielineError(
        f"this is the sidecar of {app_id}, not of {addressed}",
        cause=Cause.NAME_UNKNOWN,
        hop=Hop.PEER,
        grpc_code=GrpcCode.UNAVAILABLE,
    )
