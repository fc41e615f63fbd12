"""How an RPC of the API ends: the one place where results and failures become answers on the wire."""

from __future__ import annotations

from typing import Final

from tieline.api.http.errors import explanation
from tieline.errors import GrpcCode, TielineError
from tieline.model import Cause, Headers, Hop, Reply, RpcStatus
from tieline.wire.errors_text import explained
from tieline.wire.grpc.codes import with_error_info
from tieline.wire.grpc.messages import frame
from tieline.wire.grpc.status import CONTENT_TYPE, render_status

_OK: Final = [(b"grpc-status", b"0"), (b"grpc-message", b"")]
"""As daprd has it, whose clients may count on both."""
NOT_BUILT: Final = "this API is currently not implemented"


class RpcAnswer(Reply):
    """The end of a unary RPC. Its content type is put in front when it leaves.

    Attributes:
        code: gRPC code.
        sent: Bytes of the message; 0 without one.
        reason: Of the ``ErrorInfo`` among the details, by which errors are counted (O-28); empty without one.
    """

    __slots__ = ("code", "reason", "sent")

    def __init__(
        self,
        code: int,
        headers: Headers,
        body: bytes = b"",
        trailers: Headers | None = None,
        *,
        sent: int = 0,
        reason: str = "",
        status: int = 200,
    ) -> None:
        super().__init__(status, headers, body, trailers)
        self.code = code
        self.sent = sent
        self.reason = reason


def succeeded(message: bytes, headers: Headers, trailers: Headers | None = None) -> RpcAnswer:
    """Return the answer that brings a message."""
    ends = _OK if trailers is None else _OK + trailers
    return RpcAnswer(GrpcCode.OK, headers, frame(message), ends, sent=len(message))


def ended(
    status: RpcStatus, headers: Headers | None = None, trailers: Headers | None = None, *, reason: str = ""
) -> RpcAnswer:
    """Return an answer without a message. Without metadata in front of the trailers it is one block of headers."""
    ends = render_status(status)
    if trailers:
        ends += trailers
    if not headers:
        return RpcAnswer(status.code, ends, reason=reason)
    return RpcAnswer(status.code, headers, b"", ends, reason=reason)


def failed(code: int, text: str, cause: Cause = Cause.BAD_REQUEST, hint: str = "") -> RpcAnswer:
    """Return a failure that is the client's to mend."""
    return ended(RpcStatus(code, text), trailers=explained(cause, Hop.CALLER, hint))


def failed_by(error: TielineError) -> RpcAnswer:
    """Return the failure of a step, with the code that it has itself."""
    code = GrpcCode.UNKNOWN if error.grpc_code is None else error.grpc_code
    return ended(RpcStatus(code, error.text), trailers=explanation(error))


def invocation_failed(error: TielineError, addressed: str) -> RpcAnswer:
    """Return the answer to an invocation that failed in a sidecar (G-17).

    It is ``Internal`` whatever happened, but for few endings that clients are to tell apart.
    """
    if error.cause is Cause.TIMEOUT and error.grpc_code == GrpcCode.DEADLINE_EXCEEDED:
        status = RpcStatus(GrpcCode.DEADLINE_EXCEEDED, "context deadline exceeded")
    elif error.cause is Cause.BREAKER_OPEN:
        status = RpcStatus(GrpcCode.UNKNOWN, "circuit breaker is open")
    elif error.cause is Cause.TOO_LARGE and error.grpc_code == GrpcCode.RESOURCE_EXHAUSTED:
        status = RpcStatus(GrpcCode.RESOURCE_EXHAUSTED, error.text)  # as gRPC's own servers say it (G-2)
    elif error.cause is Cause.CANCELLED:
        status = RpcStatus(GrpcCode.CANCELED, error.text)
    else:
        status = RpcStatus(GrpcCode.INTERNAL, f"failed to invoke, id: {addressed}, err: {error.detail}")
    return ended(status, trailers=explanation(error))


def refused(code: GrpcCode, message: str, http_code: int, http_message: str, hint: str) -> RpcAnswer:
    """Return a refusal as HTTP would word it, with the same among the details (G-110, G-112)."""
    metadata = {"http.code": str(http_code), "http.error_message": http_message}
    status = with_error_info(code, message, message, metadata)
    return ended(status, trailers=explained(Cause.DENIED, Hop.CALLER, hint), reason=message)


def no_rpc(http_status: int, code: GrpcCode, text: str) -> RpcAnswer:
    """Return the answer to a request that is no RPC (G-125): the status as HTTP has it, and as gRPC has it."""
    headers = [(b"content-type", CONTENT_TYPE), *render_status(RpcStatus(code, text))]
    return RpcAnswer(code, headers + explained(Cause.BAD_REQUEST, Hop.CALLER, ""), status=http_status)
