"""The one place where a failure becomes an HTTP answer."""

from __future__ import annotations

import json
from time import gmtime, strftime
from typing import Final

from tieline.errors import TielineError
from tieline.model import Cause, Headers, Hop, Reply
from tieline.wire.errors_text import explained

_JSON: Final = (b"content-type", b"application/json")
_TEXT: Final[Headers] = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
# As Go's JSON encoder writes them, so that no browser takes an error for a page (H-84).
_ESCAPED: Final = {
    ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029",
}  # fmt: skip
BAGGAGE_HINT: Final = "send W3C baggage, key=value and commas between, or none"
PERCENT_HINT: Final = "write a literal percent sign as %25"
_quoted = json.encoder.encode_basestring


class ErrorReply(Reply):
    """An answer that carries one of Dapr's error codes."""

    __slots__ = ("code",)

    def __init__(self, status: int, headers: Headers, body: bytes, code: str) -> None:
        super().__init__(status, headers, body)
        self.code = code


def category_of(code: str) -> str:
    """Return the category under which an error code is counted (O-28)."""
    if code.startswith("ERR_HEALTH") or code == "ERR_OUTBOUND_HEALTH_NOT_READY":
        return "health"
    return "service-invocation" if code == TielineError.code else "common"


def invocation_failed(error: TielineError, addressed: str) -> Reply:
    """Return the answer to a call that failed in a sidecar (H-84, H-85)."""
    reply = api_error(error.http_status, error.code, f"failed to invoke, id: {addressed}, err: {error.detail}")
    reply.headers += explanation(error)
    return reply


def explanation(error: TielineError) -> Headers:
    """Return the fields that say why, where, and what to do."""
    return explained(error.cause, error.hop, error.hint)


def dated(now: float | None = None) -> tuple[bytes, bytes]:
    """Return the field that says when an answer of our own was made (RFC 9110 §6.6.1), in seconds since 1970."""
    return (b"date", strftime("%a, %d %b %Y %H:%M:%S GMT", gmtime(now)).encode("ascii"))


def api_error(status: int, code: str, message: str) -> ErrorReply:
    """Return a JSON error in Dapr's shape; no further members, since one of its SDKs refuses them."""
    text = message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    body = f'{{"errorCode":{_quoted(code)},"message":{_quoted(text)}}}'.translate(_ESCAPED)
    return ErrorReply(status, [_JSON, dated()], body.encode(), code)


def text_error(status: int, text: str, cause: Cause, hint: str = "") -> Reply:
    """Return a plain text error of this sidecar's own."""
    headers = [*_TEXT, dated(), *explained(cause, Hop.CALLER, hint)]
    return Reply(status, headers, text.encode("utf-8", "replace") + b"\n")
