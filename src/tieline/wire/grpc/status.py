"""How an RPC ended, and how that is written into trailers and read from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from tieline.errors import GrpcCode
from tieline.model import Headers, RpcStatus
from tieline.wire.errors_text import quote
from tieline.wire.grpc.metadata import BINARY_SUFFIX, decode_binary, encode_binary, is_base64

CONTENT_TYPE: Final = b"application/grpc"
MAX_MESSAGE_BYTES: Final = 8192
"""Longest ``grpc-message`` that is written, in bytes before they are percent-encoded."""
# Nor may a value begin or end with a blank (RFC 9113 §8.2.1): some clients give up the connection.
_UNPRINTABLE: Final = re.compile(rb"[^\x20-\x24\x26-\x7e]|\A\x20|\x20\Z")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_is_code: Final = re.compile(rb"0|[1-9][0-9]{0,8}").fullmatch
_STATUS: Final = b"grpc-status"
_MESSAGE: Final = b"grpc-message"
_DETAILS: Final = b"grpc-status-details-bin"


OK: Final = RpcStatus(0)

# gRPC's own mapping for answers that no gRPC server wrote.
_OF_HTTP: Final = {
    400: GrpcCode.INTERNAL,
    401: GrpcCode.UNAUTHENTICATED,
    403: GrpcCode.PERMISSION_DENIED,
    404: GrpcCode.UNIMPLEMENTED,
    429: GrpcCode.UNAVAILABLE,
    502: GrpcCode.UNAVAILABLE,
    503: GrpcCode.UNAVAILABLE,
    504: GrpcCode.UNAVAILABLE,
}
# ... and for streams that were reset.
_OF_RESET: Final = {
    0x0: GrpcCode.INTERNAL,  # NO_ERROR, but no status either
    0x7: GrpcCode.UNAVAILABLE,  # REFUSED_STREAM
    0x8: GrpcCode.CANCELED,
    0xB: GrpcCode.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    0xC: GrpcCode.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}


def render_status(status: RpcStatus) -> Headers:
    """Return the trailers that tell a status."""
    trailers: Headers = [(_STATUS, b"%d" % status.code)]
    if status.message:
        trailers.append((_MESSAGE, encode_message(status.message)))
    if status.details:
        trailers.append((_DETAILS, encode_binary(status.details)))
    return trailers


def read_status(trailers: Sequence[tuple[bytes, bytes]]) -> RpcStatus | None:
    """Return the status in trailers, or in the head of an answer without any; ``None`` if there is none.

    A code that is no number counts as ``UNKNOWN``, broken details as none.
    """
    code: int | None = None
    message = ""
    details = b""
    for name, value in trailers:
        if name == _STATUS:
            code = int(value) if value.isdigit() and len(value) < 10 else GrpcCode.UNKNOWN
        elif name == _MESSAGE:
            message = decode_message(value)
        elif name == _DETAILS:
            details = (decode_binary(value) or [b""])[0]
    return None if code is None else RpcStatus(code, message, details)


def why_malformed(fields: Sequence[tuple[bytes, bytes]]) -> str:
    """Return what makes fields of an answer none of gRPC's, in the words that its clients know; empty if nothing does.

    Some clients could read no later answer on their connection, whoever gave it: they remember the broken value under
    its name.
    """
    for name, value in fields:
        if name[-4:] == BINARY_SUFFIX:
            if not is_base64(value):
                return f"malformed {name.decode('latin-1')}: illegal base64 data"
        elif name == _STATUS and not _is_code(value):
            return f"malformed grpc-status: parsing {quote(value)}: invalid syntax"
    return ""


def without_status(trailers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Return the metadata among trailers."""
    return [field for field in trailers if field[0] not in (_STATUS, _MESSAGE, _DETAILS)]


def status_of_http(status: int, content_type: bytes) -> RpcStatus:
    """Return what an HTTP answer without a gRPC status means: a proxy or a server of another kind gave it."""
    code = _OF_HTTP.get(status, GrpcCode.UNKNOWN)
    try:
        phrase = f" ({HTTPStatus(status).phrase})"
    except ValueError:
        phrase = " ()"
    problem = "malformed header: missing HTTP content-type"
    if content_type:
        shown = content_type.decode("latin-1")
        problem = f'transport: received unexpected content-type "{shown}"'
        if is_grpc(content_type):
            return RpcStatus(code, f"unexpected HTTP status code received from server: {status}{phrase}")
    return RpcStatus(code, f"unexpected HTTP status code received from server: {status}{phrase}; {problem}")


def is_grpc(content_type: bytes) -> bool:
    """Say whether a content type is gRPC's, whatever its subtype (G-8, G-125)."""
    return content_type == CONTENT_TYPE or content_type.startswith((b"application/grpc+", b"application/grpc;"))


def status_of_reset(code: int) -> GrpcCode:
    """Return what an RST_STREAM of the server means."""
    return _OF_RESET.get(code, GrpcCode.INTERNAL)


def encode_message(text: str) -> bytes:
    """Return a message as ``grpc-message`` holds it: UTF-8, what is not printable ASCII percent-encoded."""
    raw = text.encode("utf-8", "surrogateescape")[:MAX_MESSAGE_BYTES]
    return _UNPRINTABLE.sub(lambda match: b"%%%02X" % match[0][0], raw)


def decode_message(value: bytes) -> str:
    """Return the text of a ``grpc-message``. Broken escapes stay as they are: a broken message is better than none."""
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), value).decode("utf-8", "replace")
