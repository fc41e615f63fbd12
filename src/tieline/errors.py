"""Every failure that Tieline can explain: what to say, whose fault it is, and whether to try again.

One base and flat kinds under it. An error is raised where the failure is found and becomes a response in
one place per face (``api/http/errors.py``, ``inbound/server.py``).
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from tieline.model import Cause, Endpoint, Hop


class GrpcCode(IntEnum):
    """gRPC status codes. Their texts in error details are ``name_of``'s."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


def name_of(code: int) -> str:
    """Return a gRPC code as error texts spell it: ``InvalidArgument``, ``Code(42)`` for an unknown one."""
    try:
        name = GrpcCode(code).name
    except ValueError:
        return f"Code({code})"
    return "OK" if code == 0 else name.title().replace("_", "")


class TielineError(Exception):
    """A failure with an explanation.

    Attributes:
        text: What failed, in the words a Dapr client expects.
        grpc_code: Set when the failure is a gRPC status: ``detail`` then carries the code's name.
        cause: Why, from the closed list.
        hop: Where.
        hint: One line on what to do; at most 512 bytes on the wire.
    """

    cause: Cause
    hop: Hop = Hop.CALLER
    grpc_code: GrpcCode | int | None = None
    http_status: int = 500
    code: ClassVar[str] = "ERR_DIRECT_INVOKE"

    def __init__(
        self,
        text: str,
        *,
        hint: str = "",
        cause: Cause | None = None,
        hop: Hop | None = None,
        grpc_code: GrpcCode | int | None = None,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        if cause is not None:
            self.cause = cause
        if hop is not None:
            self.hop = hop
        if grpc_code is not None:
            self.grpc_code = grpc_code
        if self.grpc_code == GrpcCode.PERMISSION_DENIED:
            self.http_status = 403

    @property
    def detail(self) -> str:
        """The text as it stands behind ``err:``; ``rpc error: code = … desc = …`` for a gRPC status."""
        if self.grpc_code is None:
            return self.text
        return f"rpc error: code = {name_of(self.grpc_code)} desc = {self.text}"


def untrace(error: BaseException | None) -> None:
    """Let go of the frames that an error and its causes passed, once it has become an answer.

    They hold what holds the error, such as the future that it came by: left alone, all of a failed call would wait for
    the garbage collector.
    """
    pending = [error]
    while pending:
        error = pending.pop()
        if error is not None and error.__traceback__ is not None:  # else seen already: an error may be its own cause
            error.__traceback__ = None
            pending += (error.__cause__, error.__context__)


class BadRequest(TielineError):
    """The caller asked for something that cannot be: a bad method, verb, target or body."""

    cause = Cause.BAD_REQUEST


class RequestBroken(TielineError):
    """What another sidecar sends as a request's body is none: it broke the protocol."""

    cause = Cause.PEER_PROTOCOL
    hop = Hop.PEER


class UnknownTarget(TielineError):
    """No resolver knows the app ID.

    Attributes:
        lately_known: The name was known less than 5 s ago, so the app may be on its way back.
    """

    cause = Cause.NAME_UNKNOWN
    lately_known: bool = False


class ResolverFailed(TielineError):
    """A resolver could not answer: its file, server or network failed."""

    cause = Cause.RESOLVER_FAILED


class PeerUnreachable(TielineError):
    """No usable connection to the peer could be opened: not one byte of the call left this process."""

    cause = Cause.PEER_UNREACHABLE
    hop = Hop.PEER
    grpc_code = GrpcCode.UNAVAILABLE

    def __init__(self, text: str, endpoint: Endpoint | None = None, *, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.endpoint = endpoint


class PeerRefused(PeerUnreachable):
    """The peer said for certain that it did not process the call (REFUSED_STREAM, GOAWAY): it may be sent again."""


class WrongPeer(PeerRefused):
    """The peer is the sidecar of another app, or of another namespace, and so did not process the call."""

    cause = Cause.NAME_UNKNOWN


class PeerLost(TielineError):
    """The connection to the peer was lost after the call was sent: it may have run.

    Attributes:
        before_answer: The connection went, with nothing of an answer there yet. False when the peer cut just
            this call off: it looked at it.
    """

    cause = Cause.PEER_LOST
    hop = Hop.PEER
    grpc_code = GrpcCode.UNAVAILABLE
    before_answer: bool = True


class PeerProtocol(TielineError):
    """The peer is no Tieline, or broke the protocol."""

    cause = Cause.PEER_PROTOCOL
    hop = Hop.PEER
    grpc_code = GrpcCode.INTERNAL


class PeerFailed(TielineError):
    """The callee's sidecar reports a failure of its own; code, cause, hop and hint are the peer's."""

    cause = Cause.PEER_PROTOCOL
    hop = Hop.PEER
    grpc_code = GrpcCode.INTERNAL


class AppMissing(TielineError):
    """The sidecar has no app."""

    cause = Cause.APP_MISSING
    hop = Hop.APP


class AppUnreachable(TielineError):
    """No connection to the app could be opened."""

    cause = Cause.APP_UNREACHABLE
    hop = Hop.APP


class AppBroken(TielineError):
    """The app closed without an answer, broke off, or answered what is no HTTP."""

    cause = Cause.APP_BROKEN
    hop = Hop.APP


class AppUnhealthy(TielineError):
    """The app's health checks fail, so that it gets no calls."""

    cause = Cause.APP_UNHEALTHY
    hop = Hop.APP
    grpc_code = GrpcCode.INTERNAL


class TooLarge(TielineError):
    """A body or a head is over its limit."""

    cause = Cause.TOO_LARGE


class Cancelled(TielineError):
    """The caller went away before the call was over."""

    cause = Cause.CANCELLED
    grpc_code = GrpcCode.CANCELED


class TimedOut(TielineError):
    """The caller's time is up. gRPC clients get it as it is: the text is gRPC's own."""

    cause = Cause.TIMEOUT
    grpc_code = GrpcCode.DEADLINE_EXCEEDED

    def __init__(self, text: str = "context deadline exceeded") -> None:
        super().__init__(text)


class ShuttingDown(TielineError):
    """This sidecar is draining and takes no new calls."""

    cause = Cause.SHUTTING_DOWN
    grpc_code = GrpcCode.UNAVAILABLE


class StartError(Exception):
    """The sidecar cannot start. The text is one line: what is wrong, where, and what to do."""


class ConfigError(StartError):
    """A Configuration file or an option has a value that cannot be used."""
