"""What makes a decoded header list a request or a response (RFC 9113 §8.2, §8.3), and what must be refused.

The list may travel on over HTTP/1.1, so nothing passes here that means something else there.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tieline.model import Headers, Request
from tieline.wire.headers import are_safe, check_h2_fields

Fields = list[tuple[bytes, bytes, bool]]

_COLON: Final = 58
_QUESTION: Final = 63
_is_token: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_path: Final = re.compile(rb"/[!-~\x80-\xff]*|\*").fullmatch
_is_scheme: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*").fullmatch
# As for HTTP/1.1's Host: no user, path, blank or control character.
_is_authority: Final = re.compile(rb"[!$%&'()*+,\-.:;=\[\]_~0-9A-Za-z]*").fullmatch
_is_digits: Final = re.compile(rb"[0-9]{1,18}").fullmatch


_PSEUDO: Final = (b":method", b":path", b":scheme", b":authority")
_USUAL_VERBS: Final = frozenset([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE"])
_USUAL_SCHEMES: Final = frozenset([b"http", b"https"])


MAX_SHAPES: Final = 1024
"""How many sequences of names are remembered as good; then the memory starts afresh."""
MAX_GOOD_BYTES: Final = 256
"""Longer paths and authorities are checked anew each time."""
_good_paths: Final[set[bytes]] = set()
_good_authorities: Final[set[bytes]] = set()
MAX_SHAPE_FIELDS: Final = 64
MAX_SHAPE_NAME: Final = 64
_TRAILERS: Final = b"trailers"


class _Shape(NamedTuple):
    """Where in a good message stands what decides something; 0 for what it does not have."""

    method: int
    path: int
    scheme: int
    authority: int
    length: int
    te: int


_REQUEST_SHAPES: Final[dict[tuple[bytes, ...], _Shape]] = {}
"""Names of a good request, in their order, to what was found out about them; so for responses."""
_RESPONSE_SHAPES: Final[dict[tuple[bytes, ...], _Shape]] = {}


class Malformed(Exception):
    """A message that RFC 9113 §8.1.1 calls malformed. It ends its stream, not the connection."""


def read_request(fields: Fields) -> Request:
    """Check a request's header list and take it apart.

    ``headers`` are the ordinary fields, ``host`` left out; ``authority`` is ``:authority``, else ``host``; ``path`` is
    empty for a plain CONNECT. The body is still to come.

    Raises:
        Malformed: With the reason, for logs.
    """
    shape = _REQUEST_SHAPES.get(tuple([field[0] for field in fields]))
    if shape is not None:
        method_at, path_at, scheme_at, authority_at, length_at, te_at = shape
        verb, path, scheme = fields[method_at][1], fields[path_at][1], fields[scheme_at][1]
        authority = fields[authority_at][1]
        headers = [(name, value) for name, value, _ in fields[4:]]
        if (
            verb in _USUAL_VERBS
            and scheme in _USUAL_SCHEMES
            and (path in _good_paths or _is_good_path(path))
            and (authority in _good_authorities or _is_good_authority(authority))
            and are_safe([value for _, value in headers])
            and (not te_at or fields[te_at][1] == _TRAILERS)
        ):
            length = _length(fields[length_at][1], None) if length_at else None
            query = None
            if _QUESTION in path:
                path, _, query = path.partition(b"?")
            return Request(verb, path, query, headers, b"", length, authority)
    head = _read_unusual_request(fields)
    _remember(_REQUEST_SHAPES, fields, _PSEUDO)
    return head


def _is_good_path(path: bytes) -> bool:
    if not _is_path(path) or path == b"*":
        return False
    _keep(_good_paths, path)
    return True


def _is_good_authority(authority: bytes) -> bool:
    if not _is_authority(authority):
        return False
    _keep(_good_authorities, authority)
    return True


def _keep(good: set[bytes], value: bytes) -> None:
    """Remember a value that was found good, within bounds."""
    if len(value) <= MAX_GOOD_BYTES:
        if len(good) >= MAX_SHAPES:
            good.clear()
        good.add(value)


def _read_unusual_request(fields: Fields) -> Request:
    """The whole check, for whatever names there are in whatever order."""
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
    elif (
        not _is_path(path) or not _is_scheme(scheme) or (protocol and not (verb == b"CONNECT" and _is_token(protocol)))
    ):
        raise Malformed("bad :path, :scheme or :protocol")
    elif path == b"*" and verb != b"OPTIONS":
        raise Malformed("path * is for OPTIONS")
    length = None
    host = None
    for name, value in headers:
        if name == b"content-length":
            length = _length(value, length)
        elif name == b"host":
            contradicts = host is not None or (authority is not None and value.lower() != authority.lower())
            if contradicts and (authority is None or not _is_rpc(headers)):
                raise Malformed("host contradicts :authority")
            host = value
    if authority is None:
        authority = host or b""
    if not _is_authority(authority):
        raise Malformed("bad :authority")
    if host is not None:
        headers = [field for field in headers if field[0] != b"host"]
    path, question, query = path.partition(b"?")
    return Request(verb, path, query if question else None, headers, b"", length, authority, protocol)


def _is_rpc(headers: Headers) -> bool:
    """Whether this is an RPC: then ``host`` is metadata like any other, and goes no further than here."""
    return any(name == b"content-type" and value.startswith(b"application/grpc") for name, value in headers)


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
    shape = _RESPONSE_SHAPES.get(tuple([field[0] for field in fields]))
    if shape is not None and are_safe([value for _, value in headers]):
        return int(text), headers, _length(fields[shape.length][1], None) if shape.length else None
    _check(headers)
    length = None
    for name, value in headers:
        if name == b"content-length":
            length = _length(value, length)
    _remember(_RESPONSE_SHAPES, fields, (b":status",))
    return int(text), headers, length


def _remember(shapes: dict[tuple[bytes, ...], _Shape], fields: Fields, pseudo: tuple[bytes, ...]) -> None:
    """Remember the names of a good message, if no name decides anything but those of which the place is known.

    Then the next message with the same names in the same order needs a look at its values only.
    """
    names = tuple([field[0] for field in fields])
    count = len(pseudo)
    ordinary = names[count:]
    if len(names) > MAX_SHAPE_FIELDS or set(names[:count]) != set(pseudo):
        return
    if ordinary.count(b"content-length") > 1 or ordinary.count(b"te") > 1 or (b"te" in ordinary and count == 1):
        return
    if any(name == b"host" or len(name) > MAX_SHAPE_NAME or name[0] == _COLON for name in ordinary):
        return
    if len(shapes) >= MAX_SHAPES:
        shapes.clear()
    places = [names.index(name) if name in names else 0 for name in (*_PSEUDO, b"content-length", b"te")]
    shapes[names] = _Shape(*places)


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
