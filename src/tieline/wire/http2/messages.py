"""What makes a decoded header list a request or a response (RFC 9113 §8.2, §8.3), and what must be refused.

The list may travel on over HTTP/1.1, so nothing passes here that means something else there.
"""

from __future__ import annotations

import re
from typing import Final

from tieline.model import Headers
from tieline.wire.headers import check_h2_fields

Fields = list[tuple[bytes, bytes, bool]]

_COLON: Final = 58
_is_token: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_path: Final = re.compile(rb"/[!-~\x80-\xff]*|\*").fullmatch
_is_authority: Final = re.compile(rb"[!-.0-9:->@-~]*").fullmatch
_is_digits: Final = re.compile(rb"[0-9]{1,18}").fullmatch


class Malformed(Exception):
    """A message that RFC 9113 §8.1.1 calls malformed. It ends its stream, not the connection."""


class RequestHead:
    """The head of a request.

    Attributes:
        verb: ``:method``.
        path: ``:path`` with its query; empty for a plain CONNECT.
        authority: ``:authority``, else ``host``.
        protocol: ``:protocol`` of an extended CONNECT, else empty.
        headers: The ordinary fields, ``host`` left out.
        length: Declared length of the body, ``None`` if undeclared.
    """

    __slots__ = ("authority", "headers", "length", "path", "protocol", "scheme", "verb")

    def __init__(
        self,
        verb: bytes,
        scheme: bytes,
        path: bytes,
        authority: bytes,
        protocol: bytes,
        headers: Headers,
        length: int | None,
    ) -> None:
        self.verb = verb
        self.scheme = scheme
        self.path = path
        self.authority = authority
        self.protocol = protocol
        self.headers = headers
        self.length = length


def read_request(fields: Fields) -> RequestHead:
    """Check a request's header list and take it apart.

    Raises:
        Malformed: With the reason, for logs.
    """
    pseudo: dict[bytes, bytes] = {}
    count = 0
    for name, value, _ in fields:
        if not name or name[0] != _COLON:
            break
        if name in pseudo:
            raise Malformed(f"repeated {name!r}")
        pseudo[name] = value
        count += 1
    headers = [(name, value) for name, value, _ in fields[count:]]
    _check(headers)
    verb = pseudo.pop(b":method", b"")
    path = pseudo.pop(b":path", b"")
    scheme = pseudo.pop(b":scheme", b"")
    authority = pseudo.pop(b":authority", None)
    protocol = pseudo.pop(b":protocol", b"") if pseudo else b""
    if pseudo:
        raise Malformed("unknown pseudo-header")
    if not _is_token(verb):
        raise Malformed("bad :method")
    if verb == b"CONNECT" and not protocol:
        if path or scheme or not authority:
            raise Malformed("CONNECT takes :authority only")
    elif not scheme or not _is_path(path) or (protocol and verb != b"CONNECT"):
        raise Malformed("bad :path, :scheme or :protocol")
    elif path == b"*" and verb != b"OPTIONS":
        raise Malformed("path * is for OPTIONS")
    length = None
    host = None
    for name, value in headers:
        if name == b"content-length":
            length = _length(value, length)
        elif name == b"host":
            if host is not None or (authority is not None and value.lower() != authority.lower()):
                raise Malformed("host contradicts :authority")
            host = value
    if authority is None:
        authority = host or b""
    if not _is_authority(authority):
        raise Malformed("bad :authority")
    if host is not None:
        headers = [field for field in headers if field[0] != b"host"]
    return RequestHead(verb, scheme, path, authority, protocol, headers, length)


def read_response(fields: Fields) -> tuple[int, Headers, int | None]:
    """Check a response's header list; return status, ordinary fields and declared length.

    Raises:
        Malformed: With the reason, for logs.
    """
    if not fields or fields[0][0] != b":status":
        raise Malformed("no :status")
    text = fields[0][1]
    if len(text) != 3 or not text.isdigit() or text < b"100":
        raise Malformed("bad :status")
    headers = [(name, value) for name, value, _ in fields[1:]]
    _check(headers)
    length = None
    for name, value in headers:
        if name == b"content-length":
            length = _length(value, length)
    return int(text), headers, length


def _check(headers: Headers) -> None:
    try:
        check_h2_fields(headers)
    except ValueError as error:
        raise Malformed(str(error)) from error


def _length(value: bytes, before: int | None) -> int:
    if before is not None or not _is_digits(value):
        raise Malformed("bad or repeated content-length")
    return int(value)


def join_cookies(headers: Headers) -> Headers:
    """Join the crumbs of a cookie to one field, as HTTP/1.1 wants it (RFC 9113 §8.2.3)."""
    crumbs = [value for name, value in headers if name == b"cookie"]
    if len(crumbs) < 2:
        return headers
    rest = [field for field in headers if field[0] != b"cookie"]
    return [*rest, (b"cookie", b"; ".join(crumbs))]
