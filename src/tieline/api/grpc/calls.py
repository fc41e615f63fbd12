"""What an RPC brings: its metadata looked through once, its deadline, its message."""

from __future__ import annotations

import asyncio
from typing import Final

from tieline.errors import GrpcCode
from tieline.model import Headers, Request
from tieline.wire.errors_text import quote
from tieline.wire.grpc.mapping import RESERVED
from tieline.wire.grpc.messages import BadMessages, MessageReader, only_message, why_unreadable
from tieline.wire.grpc.metadata import is_base64, is_binary
from tieline.wire.grpc.timeout import BadTimeout, parse_timeout
from tieline.wire.grpc.trace import TRACE_FIELDS
from tieline.wire.headers import IDENTITY, MAX_KNOWN_NAME_BYTES, MAX_KNOWN_NAMES, Noted
from tieline.wire.trace_context import Context

TOKEN: Final = b"dapr-api-token"
APP_ID: Final = b"dapr-app-id"

# What to do with an entry. Keeping is zero, as most are kept: the loop below is on the path of every call.
_KEEP: Final = 0
_DROP: Final = 1
_NOTE: Final = 2
_NOTE_AND_KEEP: Final = 3
_CHECK: Final = 4
_TYPE: Final = 5


class BadMetadata(Exception):
    """Metadata that make a request no RPC; the text is in the words that gRPC clients know (G-125)."""


def _decide(name: bytes) -> int:
    if name == b"content-type":
        return _TYPE
    if name in TRACE_FIELDS or name in IDENTITY or name in (TOKEN, APP_ID, b"grpc-timeout", b"grpc-encoding"):
        return _NOTE
    if name == b"baggage":
        return _NOTE_AND_KEEP
    if name == b"user-agent":
        return _KEEP
    if name in RESERVED or name in (b"content-length", b"destination-app-id") or name.startswith(b"tieline-"):
        return _DROP
    return _CHECK if is_binary(name) else _KEEP


class _Known(dict[bytes, int]):
    """What to do with an entry of a name; worked out when first asked, remembered within bounds."""

    def __missing__(self, name: bytes) -> int:
        action = _decide(name)
        if len(name) <= MAX_KNOWN_NAME_BYTES:
            if len(self) >= MAX_KNOWN_NAMES:
                self.clear()
            self[name] = action
        return action


_ACTIONS: Final = _Known()


def survey(headers: Headers) -> tuple[Headers, bytes, Noted | None]:
    """Look once at each entry: what travels on, and what must be known here.

    Gone are what belongs to this hop, identity (G-50), Tieline's own names, the trace context and the API token, which
    are put back where they are to travel. Binary values stay base64, checked.

    Returns:
        The entries that travel on, in a list of its own; the content type; the values of the others that decide
        something, ``None`` if there are none.

    Raises:
        BadMetadata: A binary value is none.
    """
    kept: Headers = []
    noted: Noted | None = None
    content_type = b""
    actions = _ACTIONS
    for field in headers:
        name, value = field
        action = actions[name]
        if not action:
            kept.append(field)
        elif action is _TYPE:
            content_type = value
        elif action is _DROP:
            continue
        elif action is _CHECK:
            _check_binary(name, value)
            kept.append(field)
        else:
            if action is _NOTE_AND_KEEP:
                kept.append(field)
            if noted is None:
                noted = {}
            noted.setdefault(name, []).append(value)
    return kept, content_type, noted


def _check_binary(name: bytes, value: bytes) -> None:
    """Refuse a value that is no base64, padded or not; a list is none either (G-125)."""
    if not is_base64(value):
        good = next((at for at, byte in enumerate(value) if byte not in _BASE64), len(value) - len(value) % 4)
        raise BadMetadata(
            f"malformed binary metadata {quote(value)} in header {quote(name)}: "
            f"illegal base64 data at input byte {good}"
        )


_BASE64: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


def deadline_of(noted: Noted | None) -> float | None:
    """Return the event-loop time past which nobody waits; ``None`` without a time-out, less than now for one of 0.

    Raises:
        BadMetadata: The time-out is none.
    """
    if noted is None or b"grpc-timeout" not in noted:
        return None
    try:
        timeout_s = parse_timeout(noted[b"grpc-timeout"][0])
    except BadTimeout as error:
        raise BadMetadata(f"malformed grpc-timeout: {error}") from error
    return asyncio.get_running_loop().time() + timeout_s if timeout_s > 0 else 0.0


class RpcCall:
    """One RPC on its way to a handler of the API.

    Attributes:
        request: As it came.
        headers: The metadata that travel on: see ``survey``.
        noted: See ``survey``.
        context: The trace that it belongs to; ``None`` if nobody traces.
        deadline: Event-loop time in seconds past which nobody waits for its end; ``None`` without one.
        began: When it came, by ``time.perf_counter``.
    """

    __slots__ = ("began", "context", "deadline", "headers", "noted", "request")

    def __init__(
        self,
        request: Request,
        headers: Headers,
        noted: Noted | None,
        context: Context | None,
        deadline: float | None,
        began: float,
    ) -> None:
        self.request = request
        self.headers = headers
        self.noted = noted
        self.context = context
        self.deadline = deadline
        self.began = began

    def first(self, name: bytes) -> bytes:
        """Return the first value of an entry that was noted; empty if there is none."""
        values = None if self.noted is None else self.noted.get(name)
        return values[0] if values else b""

    @property
    def encoding(self) -> bytes:
        """How its messages are packed; empty if they are not."""
        return self.first(b"grpc-encoding")


async def read_message(call: RpcCall, limit: int | None) -> bytes:
    """Return the message of a unary call, as soon as it is there; what follows is not waited for (G-124).

    Raises:
        BadMessages: There is none, or it is broken or longer than ``limit``.
        TielineError: The client broke off.
    """
    body = call.request.body
    encoding = call.encoding
    if isinstance(body, bytes) and not encoding:
        return only_message(body, limit)
    reader = MessageReader(limit, encoding)  # an encoding that nobody knows is refused, packed or not (G-125)
    if isinstance(body, bytes):
        return only_message(body, limit, encoding)
    while piece := await body.read():
        reader.feed(piece)
        message = reader.next()
        if message is not None:
            return message
    reader.check_end()
    raise BadMessages(GrpcCode.UNKNOWN, "EOF")


def unreadable(error: Exception) -> BadMessages:
    """Return what a message that is no protobuf is answered (G-124), from the library's own error."""
    return BadMessages(GrpcCode.INTERNAL, f"grpc: error unmarshalling request: {why_unreadable(error)}")
