"""Messages to bytes. Names get their canonical spelling; nothing that could end a line early is ever written.

The framing of a message is the writer's business alone: it is given as a ready line (``CHUNKED``, ``declared(5)``,
``b""`` for none), and ``content-length`` or ``transfer-encoding`` among the fields is a caller's bug and raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from tieline.model import Headers
from tieline.wire.http1.fields import (
    LEGAL_IN_VALUE,
    TOKEN_CHARS,
    Memory,
    is_trailer_name,
)

CHUNKED: Final = b"\r\nTransfer-Encoding: chunked"
"""Framing of a body whose length is not known."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The interim response that asks for the body (H-53)."""
LAST_CHUNK: Final = b"0\r\n\r\n"
"""The end of a chunked body without trailers."""

_is_token = re.compile(TOKEN_CHARS + rb"+").fullmatch
# Verbs that reach the app without any framing when they have no body (H-57).
BODYLESS_VERBS: Final = frozenset([b"GET", b"HEAD", b"DELETE", b"OPTIONS"])


class _LineStarts(Memory[bytes]):
    """Field name to what stands before its value: the end of the line before, the canonical name, the colon."""

    def __init__(self, refused: Iterable[bytes]) -> None:
        super().__init__()
        self._refused = frozenset(refused)

    def __missing__(self, name: bytes) -> bytes:
        if not _is_token(name) or name.lower() in self._refused:
            raise ValueError(f"not a header name to be written here: {name!r}")
        start = b"\r\n" + b"-".join(map(bytes.capitalize, name.split(b"-"))) + b": "
        self.remember(name, start)
        return start


class _StatusLines(dict[int, bytes]):
    """Status to status line; bounded, since there are 900 of them."""

    def __missing__(self, status: int) -> bytes:
        if not 100 <= status <= 999:
            raise ValueError(f"not an HTTP status: {status}")
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = f"status code {status}"
        line = self[status] = b"HTTP/1.1 %d %b" % (status, reason.encode("ascii"))
        return line


_REQUEST_FIELDS: Final = _LineStarts([b"content-length", b"transfer-encoding", b"host"])
_RESPONSE_FIELDS: Final = _LineStarts([b"content-length", b"transfer-encoding"])
_STATUS_LINES: Final = _StatusLines()


def declared(length: int) -> bytes:
    """Return the framing of a body of ``length`` bytes."""
    return b"\r\nContent-Length: %d" % length


def request_framing(verb: bytes, length: int | None) -> bytes:
    """Return the framing of a request as the app is to get it (H-57); ``length`` as in ``RequestHead``."""
    if length is None:
        return CHUNKED
    return b"" if not length and verb in BODYLESS_VERBS else declared(length)


def request_head(verb: bytes, target: bytes, host: bytes, headers: Headers, framing: bytes) -> bytes:
    """Return the head of a request.

    Args:
        verb: A token.
        target: Percent-encoded path with query.
        host: Value of ``Host``.
        headers: Lower-case names, without ``host`` and framing fields.
        framing: ``CHUNKED``, ``declared(n)`` or ``b""``; see ``request_framing``.

    Raises:
        ValueError: Something in it would break the head; nothing of it must be sent.
    """
    if b" " in target or b" " in verb:
        raise ValueError("a blank in the request line")
    starts = _REQUEST_FIELDS
    return _join(
        [verb, b" ", target, b" HTTP/1.1\r\nHost: ", host, *[starts[name] + value for name, value in headers], framing],
        len(headers) + (2 if framing else 1),
    )


def response_head(
    status: int, headers: Headers, framing: bytes, *, keep_alive: bool = True, version_minor: int = 1
) -> bytes:
    """Return the head of a response.

    Args:
        status: 200…999, or 101 with the fields of the upgrade.
        headers: Lower-case names, without framing fields.
        framing: ``CHUNKED``, ``declared(n)`` or ``b""``: no body, or one that lasts until the close.
        keep_alive: Whether the connection stays open; false says so to the client.
        version_minor: Of the request, so that an HTTP/1.0 client gets what it understands.

    Raises:
        ValueError: Something in it would break the head; nothing of it must be sent.
    """
    starts = _RESPONSE_FIELDS
    line = _STATUS_LINES[status]
    lines = len(headers) + (1 if framing else 0)
    connection = b""
    if not version_minor:
        line = b"HTTP/1.0" + line[8:]
    if keep_alive != bool(version_minor):
        connection = b"\r\nConnection: keep-alive" if keep_alive else b"\r\nConnection: close"
        lines += 1
    return _join([line, *[starts[name] + value for name, value in headers], framing, connection], lines)


def chunk(data: bytes) -> tuple[bytes, ...]:
    """Return the pieces of one chunk, uncopied, to be joined or written together; none for no data."""
    return (b"%x\r\n" % len(data), data, b"\r\n") if data else ()


def last_chunk(trailers: Headers) -> bytes:
    """Return the end of a chunked body.

    Raises:
        ValueError: A field must not be in trailers, or would break them.
    """
    if not trailers:
        return LAST_CHUNK
    for name, _ in trailers:
        if not is_trailer_name(name.lower()):
            raise ValueError(f"not allowed in trailers: {name!r}")
    starts = _RESPONSE_FIELDS
    return _join([b"0", *[starts[name] + value for name, value in trailers]], len(trailers))


def _join(pieces: list[bytes], lines: int) -> bytes:
    """Join a head and end it; raise ``ValueError`` unless it has exactly ``lines`` lines after the first."""
    pieces.append(b"\r\n\r\n")
    head = b"".join(pieces)
    # What is left without the legal bytes must be our own line ends: one pass that no CR, LF or NUL survives.
    if head.translate(None, LEGAL_IN_VALUE) != b"\r\n" * (lines + 2):
        raise ValueError("a control character in the head")
    return head
