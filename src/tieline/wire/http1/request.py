"""Requests: bytes to heads and bodies, refusing whatever two readers could read differently (H-155)."""

from __future__ import annotations

import re
from typing import Final

from tieline.model import Headers, Request
from tieline.wire.http1.fields import (
    CRLF,
    MAX_FIELDS,
    MAX_REPEATED_BYTES,
    TOKEN_CHARS,
    BadMessage,
    Memory,
    check_coding,
    check_host,
    connection_options,
    keeps_alive,
    parse_field,
    parse_length,
    refuse_illegal,
)
from tieline.wire.http1.reader import Framing, MessageReader, too_large

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What an HTTP/2 client sends first (RFC 9113 §3.4)."""

_request_line = re.compile(rb"(" + TOKEN_CHARS + rb"+) ([!-~\x80-\xff]+) HTTP/1\.([0-9])").fullmatch
_later_version = re.compile(rb".* HTTP/[2-9]\.[0-9]", re.DOTALL).fullmatch
_AUTHORITY: Final = rb"(?:[^\[\]/?#@]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^\[\]/?#@:]+)(?::[0-9]*)?"
_absolute_form = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://" + _AUTHORITY + rb"(|[/?].*)").fullmatch
_authority_form = re.compile(_AUTHORITY).fullmatch
_bad_escape = re.compile(rb"%(?![0-9A-Fa-f]{2})").search

# An enum's member costs three lookups each time: too much for here.
_NONE: Final = Framing.NONE
_LENGTH: Final = Framing.LENGTH
_CHUNKED: Final = Framing.CHUNKED

# Fields that decide how the request is read; all others are only passed on.
_DECIDING: Final = frozenset([b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"])

_Line = tuple[bytes, bytes, "bytes | None", int]


class RequestHead(Request):
    """A request as it came over HTTP/1.1; its body is still to be read, and ``body`` empty.

    ``path`` has its percent escapes checked but not decoded. It is ``b"*"`` for ``OPTIONS *`` and the authority as
    given for ``CONNECT``; scheme and authority of an absolute target are dropped. ``authority`` is ``Host``, ``b""`` if
    that is empty, or absent from HTTP/1.0.

    Attributes:
        version_minor: 0 for HTTP/1.0, else 1.
        keep_alive: Whether the client will go on after this request.
        expect_continue: Whether the client waits for a 100 before it sends the body (H-53); never without a body.
        upgrade: Lower-case ``Upgrade`` value if ``Connection`` lists it, else ``b""``.
    """

    __slots__ = ("expect_continue", "keep_alive", "upgrade", "version_minor")

    def __init__(
        self,
        verb: bytes,
        path: bytes,
        query: bytes | None,
        headers: Headers,
        length: int | None,
        version_minor: int,
        keep_alive: bool,
        expect_continue: bool,
        upgrade: bytes,
        host: bytes,
    ) -> None:
        self.verb = verb
        self.path = path
        self.query = query
        self.headers = headers
        self.body = b""
        self.length = length
        self.authority = host
        self.protocol = b""
        self.native = 0
        self.version_minor = version_minor
        self.keep_alive = keep_alive
        self.expect_continue = expect_continue
        self.upgrade = upgrade


class RequestParser(MessageReader):
    """The requests of one connection, one after the other.

    Clients repeat themselves: fields that are byte for byte those of the request before are not parsed again.

    Bound of memory: the connection reads nothing from the wire while a request is in progress, so what is kept is
    at most ``max_head`` bytes, one piece of received data, and ``MAX_REPEATED_BYTES`` of fields.
    """

    __slots__ = ("_last", "_last_fields")

    def __init__(self, *, max_head: int) -> None:
        """Begin a connection; ``max_head`` bounds request line and headers, line ends included (H-63)."""
        super().__init__(max_head=max_head)
        self._last: RequestHead | None = None
        self._last_fields = b""

    @property
    def has_request_line(self) -> bool:
        """Whether the first line of the next request is complete; a late head is answered by that (H-4)."""
        return self._buffer.find(b"\r\n", self._pos) >= 0

    def next_head(self) -> RequestHead | None:
        """Return the next head, or ``None`` if more bytes are needed. The body before must have been read.

        ``headers`` may be the very list of the head before: leave it as it is.

        Raises:
            BadMessage: Answer with its status and text, and close.
        """
        start = self._pos
        if self._last is not None:
            head = self._repeated(self._last, start)
            if head is not None:
                return head
        lines = self._read_head()
        if lines is None:
            return None
        line = lines.pop(0)
        try:
            verb, path, query, minor = _REQUEST_LINES[line]
            head = self._parse(verb, path, query, minor, list(map(parse_field, lines)))
        except BadMessage:
            # A stray byte is the deeper reason, and is what a reader of smaller pieces would have met first.
            refuse_illegal(self._buffer[start : self._pos - 2])
            raise
        begin = start + len(line)
        if minor and not head.upgrade and not head.expect_continue and self._pos - begin <= MAX_REPEATED_BYTES:
            self._last, self._last_fields = head, self._buffer[begin : self._pos]
        else:
            self._last = None
        return head

    def _repeated(self, last: RequestHead, start: int) -> RequestHead | None:
        """Return the head at ``start`` if its fields are those of ``last`` and its line is one that was met before."""
        buffer = self._buffer
        begin = buffer.find(CRLF, start)
        fields = self._last_fields
        end = begin + len(fields)
        if not self.body_done or not buffer.startswith(fields, begin) or end - start > self._max_head:
            return None
        line = _REQUEST_LINES.get(buffer[start:begin])
        if line is None or not line[3]:
            return None
        self._pos = end
        verb, path, query, _ = line
        length = last.length
        self._begin_body(_CHUNKED if length is None else _LENGTH if length else _NONE, length or 0)
        return RequestHead(verb, path, query, last.headers, length, 1, last.keep_alive, False, b"", last.authority)

    def _parse(self, verb: bytes, path: bytes, query: bytes | None, minor: int, headers: Headers) -> RequestHead:
        if len(headers) > MAX_FIELDS:
            raise too_large()
        host = length = None
        coding = connection = upgrade = expect = b""
        for name, value in headers:
            if name in _DECIDING:
                if name == b"host":
                    if host is not None:
                        raise BadMessage("more than one Host header")
                    host = check_host(value)
                elif name == b"content-length":
                    if length is not None:
                        raise BadMessage("more than one Content-Length header")
                    length = parse_length(value)
                elif name == b"connection":
                    connection = connection + b"," + value if connection else value
                elif name == b"upgrade":
                    upgrade = upgrade + b", " + value if upgrade else value
                elif name == b"expect":
                    expect = expect + b", " + value if expect else value
                else:
                    coding = coding + b", " + value if coding else value or b"empty"
        if host is None:
            if minor:
                text = "400 Bad Request: missing required Host header"
                raise BadMessage("missing required Host header", text=text)
            host = b""
        if coding:
            check_coding(coding, minor, length)
            length = None
            self._begin_body(_CHUNKED)
        elif length:
            self._begin_body(_LENGTH, length)
        else:
            length = 0
            self._begin_body(_NONE)
        expect_continue = False
        if expect:
            if expect.lower() != b"100-continue":
                raise BadMessage("an Expect other than 100-continue", 417, "")
            expect_continue = minor == 1 and length != 0
        if upgrade:
            listed = minor and b"upgrade" in connection_options(connection)
            upgrade = upgrade.lower() if listed else b""
        return RequestHead(
            verb,
            path,
            query,
            headers,
            length,
            minor,
            keeps_alive(minor, connection) if connection or not minor else True,
            expect_continue,
            upgrade,
            host,
        )


def looks_like_preface(data: bytes) -> bool | None:
    """Tell whether a connection that begins with ``data`` speaks HTTP/2 by prior knowledge; ``None``: can't tell yet.

    Any first byte but ``P``, and any ``P`` but ``PRI * HTTP/2.0``, is told at once.
    """
    if len(data) < len(PREFACE):
        return None if PREFACE.startswith(data) else False
    return data.startswith(PREFACE)


class _RequestLines(Memory[_Line]):
    """Request line as sent, without its end, to (verb, path, query, minor version).

    Lines with a query are not remembered: they differ from call to call, and may hold secrets.
    """

    def __missing__(self, line: bytes) -> _Line:
        parsed = _parse_request_line(line)
        if parsed[2] is None:
            self.remember(line, parsed)
        return parsed


_REQUEST_LINES: Final = _RequestLines()


def _parse_request_line(line: bytes) -> _Line:
    match = _request_line(line)
    if match is None:
        if _later_version(line):
            text = "505 HTTP Version Not Supported: unsupported protocol version"
            raise BadMessage("unsupported protocol version", 505, text)
        raise BadMessage("malformed request line")
    verb, target, minor = match.groups()
    path, mark, query = _strip_authority(verb, target).partition(b"?")
    if b"%" in path and _bad_escape(path):
        raise BadMessage("a bad percent escape in the path")
    return verb, path, query if mark else None, 0 if minor == b"0" else 1


def _strip_authority(verb: bytes, target: bytes) -> bytes:
    """Return the target in origin form, ``*`` and the authority of a ``CONNECT`` as they are."""
    if target.startswith(b"/"):
        return target
    if verb == b"CONNECT" and _authority_form(target):
        return target
    if verb == b"OPTIONS" and target == b"*":
        return target
    absolute = _absolute_form(target)
    if absolute is None:
        raise BadMessage("a target that is neither a path nor a URL")
    rest: bytes = absolute[1]
    return rest if rest.startswith(b"/") else b"/" + rest
