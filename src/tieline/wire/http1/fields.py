"""Header lines to fields: checked once, remembered, and looked up ever after.

Most lines of a head are the same in every message of a connection (``Host``, ``User-Agent``, ``Accept``), so a
line that was parsed is kept with its field, and meeting it again costs one lookup and no check. The memory is
bounded, emptied when full, and never holds values that are secret or new every time.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

from tieline.model import Headers

CRLF: Final = b"\r\n"
MAX_FIELDS: Final = 256
"""The most header lines of one message."""
MAX_REMEMBERED: Final = 1024
"""The most entries of each memory of lines or names."""
MAX_REMEMBERED_BYTES: Final = 256
"""The longest line or name that is remembered."""
MAX_REPEATED_BYTES: Final = 2048
"""The longest fields of a message that a connection keeps to know them again in the next one."""
MAX_LENGTH_DIGITS: Final = 18
"""The most digits of a ``Content-Length``: more is no length that anybody means."""

TOKEN_CHARS: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
LEGAL_IN_VALUE: Final = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
"""What a value may hold: all but control characters; the tab is no control character here (RFC 9110 §5.5)."""

_is_token = re.compile(TOKEN_CHARS + rb"+").fullmatch
# The bytes of Go's ValidHostHeader, which is what daprd goes by (H-155); an empty value passes.
_is_host = re.compile(rb"[!$%&'()*+,\-.:;=\[\]_~0-9A-Za-z]*").fullmatch
# Values that are secret, or that no second message will repeat.
_is_unrepeatable = re.compile(
    rb"auth|cookie|token|secret|key|password|session|trace|etag|request-id|correlation"
).search
# A head that need not be whole yet: control characters, bare CR, bare LF, blank first line, folded line.
_find_illegal = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n|\A\r\n|\A[ \t]|\n[ \t]").search

# Fields that frame, route or authorise a message: in a trailer, one reader takes them for real and the next does not.
# What else has no business there (RFC 9110 §6.5.1), and what is Tieline's own, ``wire.headers.clean_trailers`` drops.
_NEVER_TRAILERS: Final = frozenset(
    b"authorization connection content-length dapr-api-token dapr-app-id host http2-settings keep-alive "
    b"proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)


class BadMessage(Exception):
    """The other end sent what is no HTTP/1.1, or what could be read in two ways.

    Attributes:
        detail: What is wrong, in one line without the sender's bytes.
        status: Status to answer a request with before closing: 400, 417, 431, 501 or 505. For an app's
            answer it says nothing.
        text: Body of that answer (H-64).
    """

    def __init__(self, detail: str, status: int = 400, text: str = "400 Bad Request") -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.text = text


_V = TypeVar("_V")


class Memory(dict[bytes, _V]):
    """What bytes were found to mean. A subclass finds it out, and raises if they mean nothing, in ``__missing__``.

    Shared by all connections; used from one thread.
    """

    def remember(self, key: bytes, value: _V) -> None:
        """Keep a finding, and forget all others when there are too many."""
        if len(key) <= MAX_REMEMBERED_BYTES:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[key] = value


class _Names(Memory[tuple[bytes, bool]]):
    """Name as sent to (lower-case name, whether its lines may be remembered)."""

    def __missing__(self, raw: bytes) -> tuple[bytes, bool]:
        if not _is_token(raw):
            raise BadMessage("invalid header name", text="400 Bad Request: invalid header name")
        name = raw.lower()
        entry = (name, not _is_unrepeatable(name))
        self.remember(raw, entry)
        return entry


class _Lines(Memory[tuple[bytes, bytes]]):
    """Header line as sent, without its end, to the field."""

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        raw, colon, value = line.partition(b":")
        if not colon:
            raise BadMessage("a header line without colon")
        name, repeatable = _NAMES[raw]
        value = value.strip(b" \t")
        if value.translate(None, LEGAL_IN_VALUE):
            raise BadMessage(f"a control character in the value of {name.decode('ascii')}")
        field = (name, value)
        if repeatable:
            self.remember(line, field)
        return field


class _Hosts(Memory[bytes]):
    """Value of a request's ``Host``, to itself."""

    def __missing__(self, value: bytes) -> bytes:
        if not _is_host(value):
            raise BadMessage("malformed Host header", text="400 Bad Request: malformed Host header")
        self.remember(value, value)
        return value


_NAMES: Final = _Names()
_LINES: Final = _Lines()

parse_field: Final = _LINES.__getitem__
"""Turn one line into a field; raise ``BadMessage``. A bound C method, so that ``map`` stays out of Python."""


check_host: Final = _Hosts().__getitem__
"""Return the value of a request's ``Host``; raise ``BadMessage``."""


def refuse_illegal(part: bytes) -> None:
    """Raise ``BadMessage`` if a head or trailer section that begins like ``part`` can't be legal."""
    if _find_illegal(part):
        raise BadMessage("a bare CR or LF, a folded line, a blank first line or a control character in the head")


def parse_length(value: bytes) -> int:
    """Return the number of a ``Content-Length``: digits only, no sign, no list; raise ``BadMessage``."""
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise BadMessage("malformed Content-Length")
    return int(value)


def check_coding(coding: bytes, minor: int, length: int | None) -> None:
    """Raise ``BadMessage`` unless a ``Transfer-Encoding`` is one ``chunked``, and nothing contradicts it."""
    if coding.lower() != b"chunked":
        raise BadMessage("unsupported transfer encoding", 501, "Unsupported transfer encoding")
    if length is not None:
        raise BadMessage("both Transfer-Encoding and Content-Length")
    if not minor:
        raise BadMessage("Transfer-Encoding in HTTP/1.0")


def connection_options(value: bytes) -> list[bytes]:
    """Return the lower-case members of a ``Connection`` value; of several lines joined by commas, too."""
    return [option.strip(b" \t") for option in value.lower().split(b",")]


def keeps_alive(minor: int, connection: bytes) -> bool:
    """Tell whether the sender of this ``Connection`` value, ``b""`` if none, will go on after the message."""
    if not connection:
        return minor >= 1
    if connection == b"keep-alive":
        return True
    options = connection_options(connection)
    return b"close" not in options and (minor >= 1 or b"keep-alive" in options)


def is_trailer_name(name: bytes) -> bool:
    """Tell whether a field of this lower-case name may come after the body."""
    return name not in _NEVER_TRAILERS


def parse_trailers(section: bytes, max_fields: int) -> Headers:
    """Return the fields of a trailer section without its blank line; raise ``BadMessage``."""
    lines = section.split(CRLF)
    if len(lines) > max_fields:
        raise BadMessage("too many trailer fields")
    trailers = list(map(parse_field, lines))
    for name, _ in trailers:
        if not is_trailer_name(name):
            raise BadMessage(f"{name.decode('ascii')} is not allowed in trailers")
    return trailers
