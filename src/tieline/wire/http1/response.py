"""Responses of the app: bytes to heads and bodies, and how a response ended."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from tieline.model import Headers
from tieline.wire.http1.fields import (
    MAX_FIELDS,
    MAX_REPEATED_BYTES,
    BadMessage,
    Memory,
    check_coding,
    keeps_alive,
    parse_field,
    parse_length,
    refuse_illegal,
)
from tieline.wire.http1.reader import Framing, MessageReader, too_large

MAX_RESPONSE_HEAD: Final = 65536
"""The longest head of an app's response in bytes; Dapr allows 4096 (H-113)."""
MAX_INTERIM: Final = 16
"""The most 1xx responses before the final one."""

_START: Final = b"HTTP/1."
_status_line = re.compile(rb"HTTP/1\.([0-9]) ([0-9]{3})(?: [\t -~\x80-\xff]*)?").fullmatch
_DECIDING: Final = frozenset([b"content-length", b"transfer-encoding", b"connection"])


class Ending(Enum):
    """What the end of the connection meant for the response."""

    COMPLETE = "complete"
    SHORT = "short"
    """Fewer bytes than ``Content-Length`` declared. No failure (H-70): what came is the body."""
    TRUNCATED = "truncated"
    """Broken off: within the head, or before the last chunk (H-74)."""
    NOTHING = "nothing"
    """Not one byte of a response came."""


class ResponseHead:
    """A final response without its body.

    Attributes:
        status: 200…999.
        headers: All fields in order, hop-by-hop and framing ones included.
        length: Declared length in bytes, 0 if there is no body, ``None`` if it is chunked or lasts until the close.
        framing: How the end of the body is told.
        keep_alive: Whether the connection may serve another request afterwards.
    """

    __slots__ = ("framing", "headers", "keep_alive", "length", "status")

    def __init__(self, status: int, headers: Headers, length: int | None, framing: Framing, keep_alive: bool) -> None:
        self.status = status
        self.headers = headers
        self.length = length
        self.framing = framing
        self.keep_alive = keep_alive


class ResponseParser(MessageReader):
    """The responses of one connection to an app, each announced by ``expect``.

    Apps repeat themselves: a head that is byte for byte the one before is not parsed again.

    Attributes:
        keep_alive: Of the last head.
    """

    __slots__ = ("_awaiting", "_bodyless", "_interim", "_last", "_last_bytes", "_upgrade", "keep_alive")

    def __init__(self, *, max_head: int = MAX_RESPONSE_HEAD) -> None:
        """Begin a connection; ``max_head`` bounds status line and headers, line ends included."""
        super().__init__(max_head=max_head)
        self._awaiting = False
        self._bodyless = False
        self._upgrade = False
        self._interim = 0
        self._last: ResponseHead | None = None
        self._last_bytes = b""
        self.keep_alive = True

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request: response read, kept alive, and nothing unasked came."""
        return self.body_done and self.keep_alive and not (self._awaiting or self._at_end or self.pending)

    def expect(self, verb: bytes, *, upgrade: bool = False) -> None:
        """Say that a request with this verb is sent, and so which response comes next.

        ``upgrade``: it asks for another protocol, so that 101 is a final head; what follows it is the ``leftover``.
        """
        if self._awaiting or not self.body_done:
            raise RuntimeError("the response before was not read to its end")
        self._awaiting = True
        self._bodyless = verb == b"HEAD"
        self._upgrade = upgrade
        self._interim = 0

    def next_head(self) -> ResponseHead | None:
        """Return the final head, or ``None`` if more bytes are needed. Interim responses are skipped.

        It may be the very object that was returned before: leave it as it is.

        Raises:
            BadMessage: The app did not answer in HTTP/1.x, or unasked with 101 (H-157).
        """
        if not self._awaiting:
            raise RuntimeError("no response is expected")
        last = self._last
        if last is not None and not self._bodyless and self._buffer.startswith(self._last_bytes, self._pos):
            self._pos += len(self._last_bytes)
            self._begin_body(last.framing, last.length or 0)
            self._awaiting = False
            return last
        while True:
            start = self._pos
            lines = self._read_head()
            if lines is None:
                if not _START.startswith(self._buffer[self._pos : self._pos + len(_START)]):
                    # Another protocol, whose server may wait for us now: no end of a head will ever come.
                    raise BadMessage("malformed HTTP status line")
                return None
            try:
                head = self._parse(lines)
            except BadMessage:
                refuse_illegal(self._buffer[start : self._pos - 2])
                raise
            if head is not None:
                if self._bodyless or self._pos - start > MAX_REPEATED_BYTES:
                    self._last = None
                else:
                    self._last, self._last_bytes = head, self._buffer[start : self._pos]
                return head

    def eof(self) -> Ending:
        """Note that nothing more will come, and return what that means.

        Read everything there is first: what is unread of a chunked body or one with a length counts as missing.
        """
        self._at_end = True
        if self._awaiting:
            return Ending.TRUNCATED if self.pending else Ending.NOTHING
        if self.body_done:
            return Ending.COMPLETE
        if self.framing is Framing.CLOSE:
            self.body_done = not self.pending
            return Ending.COMPLETE
        return Ending.SHORT if self.framing is Framing.LENGTH else Ending.TRUNCATED

    def _parse(self, lines: list[bytes]) -> ResponseHead | None:
        minor, status = _STATUS_LINES[lines.pop(0)]
        if len(lines) > MAX_FIELDS:
            raise too_large()
        headers = list(map(parse_field, lines))
        if status < 200:
            if status == 101 and self._upgrade:
                self._awaiting = self.keep_alive = False
                return ResponseHead(status, headers, 0, Framing.NONE, False)
            self._skip(status)
            return None
        length = None
        coding = connection = b""
        for name, value in headers:
            if name in _DECIDING:
                if name == b"content-length":
                    # Equal ones mean one thing only, and apps that send them work with Dapr.
                    if length is not None and length != parse_length(value):
                        raise BadMessage("two Content-Length headers that differ")
                    length = parse_length(value)
                elif name == b"connection":
                    connection = connection + b"," + value if connection else value
                else:
                    coding = coding + b", " + value if coding else value or b"empty"
        if coding:
            # Chunked wins over a length (RFC 9112 §6.3), which is dropped with the connection.
            check_coding(coding, minor, None)
        declared = length
        left, framing = 0, Framing.NONE
        if self._bodyless or status in (204, 304):
            length = 0
        elif coding:
            length, framing = None, Framing.CHUNKED
        elif length is None:
            framing = Framing.CLOSE
        elif length:
            left, framing = length, Framing.LENGTH
        self._begin_body(framing, left)
        self._awaiting = False
        keep_alive = keeps_alive(minor, connection) if connection or not minor else True
        self.keep_alive = keep_alive = (
            keep_alive and framing is not Framing.CLOSE and not (coding and declared is not None)
        )
        return ResponseHead(status, headers, length, framing, keep_alive)

    def _skip(self, status: int) -> None:
        if status == 101:
            raise BadMessage("101 Switching Protocols, which nobody asked for")
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise BadMessage("too many interim responses")


class _StatusLines(Memory[tuple[int, int]]):
    """Status line as sent, without its end, to (minor version, status)."""

    def __missing__(self, line: bytes) -> tuple[int, int]:
        match = _status_line(line)
        if match is None or match[2] < b"100":
            raise BadMessage("malformed HTTP status line")
        parsed = (0 if match[1] == b"0" else 1, int(match[2]))
        self.remember(line, parsed)
        return parsed


_STATUS_LINES: Final = _StatusLines()
