"""What requests and responses share: received bytes, the search for the end of a head, and bodies.

Received bytes are kept as they came and cut by position. A body that fills a received piece is handed on as that
very object; anything else is copied once.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from tieline.model import Headers
from tieline.wire.http1.fields import CRLF, BadMessage, parse_trailers, refuse_illegal

MAX_CHUNK_LINE: Final = 256
"""The longest line with the size of a chunk, extensions included, in bytes."""
MAX_EXTENSION_BYTES: Final = 16384
"""The most bytes of chunk extensions in one body."""
MAX_TRAILER_BYTES: Final = 8192
"""The longest trailer section, its blank line included."""
MAX_TRAILERS: Final = 64
"""The most trailer fields of one body."""

_HEAD_END: Final = b"\r\n\r\n"
_EVERYTHING: Final = 1 << 63

# States of the chunked decoder beside "so many bytes of this chunk are still to come", which is positive.
_LINE_END_DUE: Final = 0
_SIZE_DUE: Final = -1
_TRAILERS_DUE: Final = -2

_EXTENSION: Final = rb"[ \t]*(?:;[\t -~\x80-\xff]*)?"
_size_line = re.compile(rb"([0-9A-Fa-f]{1,16})" + _EXTENSION).fullmatch
_begun_size_line = re.compile(rb"(?:[0-9A-Fa-f]{1,16}" + _EXTENSION + rb"\r?)?").fullmatch


class Framing(Enum):
    """How the end of a body is told."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


# An enum's member costs three lookups each time: too much for here.
_NONE: Final = Framing.NONE
_LENGTH: Final = Framing.LENGTH
_CHUNKED: Final = Framing.CHUNKED
_CLOSE: Final = Framing.CLOSE


class MessageReader:
    """Received bytes, and the body that stands at their beginning.

    Attributes:
        body_done: Whether the current message is read to its end; also before the first one.
        framing: Of the current message.
        trailers: Trailer fields of the current message; complete once ``body_done``.
    """

    __slots__ = (
        "_at_end", "_buffer", "_chunk_left", "_extension_bytes", "_left", "_max_head", "_pos",
        "body_done", "framing", "trailers",
    )  # fmt: skip

    def __init__(self, *, max_head: int) -> None:
        self._max_head = max_head
        self._buffer = b""
        self._pos = 0
        self._left = 0
        self._chunk_left = _SIZE_DUE
        self._extension_bytes = 0
        self._at_end = False
        self.body_done = True
        self.framing = Framing.NONE
        self.trailers: Headers = []

    @property
    def pending(self) -> int:
        """Bytes received and not read yet."""
        return len(self._buffer) - self._pos

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire.

        What is unread is copied together with them, so read before you receive more.
        """
        if self._pos == len(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._pos :] + data
        self._pos = 0

    def leftover(self) -> bytes:
        """Hand over all unread bytes, for whoever goes on with the connection."""
        rest = self._buffer[self._pos :]
        self._buffer = b""
        self._pos = 0
        return rest

    def take_whole_body(self) -> bytes | None:
        """Return the body at once if its end was received; else ``None``, and nothing is consumed.

        Ask right after the head: afterwards, and for some chunked bodies with extensions, the answer is ``None``.

        Raises:
            BadMessage: The chunked coding is broken.
        """
        if self.body_done:
            return b""
        pos = self._pos
        if self.framing is _LENGTH:
            end = pos + self._left
            if end > len(self._buffer):
                return None
            self._pos = end
            self.body_done = True
            return self._buffer[pos:end]
        if self.framing is _CLOSE:
            if not self._at_end:
                return None
            self.body_done = True
            return self.leftover()
        if self._chunk_left != _SIZE_DUE or self._buffer.find(b"0\r\n", pos) < 0:
            return None
        extension_bytes = self._extension_bytes
        body = self._read_chunked(_EVERYTHING)
        if self.body_done:
            return body
        self._pos = pos
        self._chunk_left = _SIZE_DUE
        self._extension_bytes = extension_bytes
        return None

    def read_body(self, limit: int) -> bytes:
        """Return the next bytes of the body, at most ``limit``; ``b""`` if more must be received, or at the end.

        Raises:
            BadMessage: The chunked coding is broken; its beginning may have been returned before.
        """
        if self.body_done:
            return b""
        if self.framing is _CHUNKED:
            return self._read_chunked(limit)
        pos = self._pos
        piece = self._buffer[pos : pos + min(self._left, limit)]
        self._pos = pos + len(piece)
        self._left -= len(piece)
        if self._left == 0 or (self._at_end and self.framing is _CLOSE and not self.pending):
            self.body_done = True
        return piece

    def _read_head(self) -> list[bytes] | None:
        """Return the lines of the next head, or ``None`` while it is incomplete."""
        if not self.body_done:
            raise RuntimeError("the body of the message before was not read to its end")
        buffer, pos = self._buffer, self._pos
        end = buffer.find(_HEAD_END, pos)
        if end < 0 or end - pos > self._max_head - 4:
            self._refuse_head()
            return None
        self._pos = end + 4
        return buffer[pos:end].split(CRLF)

    def _refuse_head(self) -> None:
        """Raise ``BadMessage`` if the head that begins here is illegal or too long, however it may go on."""
        begun = self._buffer[self._pos : self._pos + self._max_head]
        refuse_illegal(begun)
        if len(begun) >= self._max_head:
            raise too_large()

    def _begin_body(self, framing: Framing, left: int = 0) -> None:
        self.framing = framing
        self._left = left
        self.body_done = framing is _NONE
        if self.trailers:
            self.trailers = []
        if framing is _CHUNKED:
            self._chunk_left = _SIZE_DUE
            self._extension_bytes = 0
        elif framing is _CLOSE:
            self._left = _EVERYTHING

    def _read_chunked(self, limit: int) -> bytes:
        """Decode what is there, up to ``limit`` bytes, and join it: many small chunks become one piece."""
        buffer, pos, left = self._buffer, self._pos, self._chunk_left
        pieces: list[bytes] = []
        while True:
            if left > 0:
                piece = buffer[pos : pos + min(left, limit)]
                if not piece:
                    break
                pieces.append(piece)
                pos += len(piece)
                left -= len(piece)
                limit -= len(piece)
                if left:
                    break
            if left == _LINE_END_DUE:
                if not buffer.startswith(CRLF, pos):
                    if not CRLF.startswith(buffer[pos : pos + 2]):
                        raise BadMessage("malformed chunked encoding")
                    break
                pos += 2
                left = _SIZE_DUE
            if left == _SIZE_DUE:
                end = buffer.find(CRLF, pos, pos + MAX_CHUNK_LINE + 2)
                if end < 0:
                    _refuse_size(buffer[pos : pos + MAX_CHUNK_LINE + 2])
                    break
                left = self._parse_size(buffer[pos:end]) or _TRAILERS_DUE
                pos = end + 2
            if left == _TRAILERS_DUE:
                pos = self._read_trailers(pos)
                break
        self._pos = pos
        self._chunk_left = left
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _parse_size(self, line: bytes) -> int:
        match = _size_line(line)
        if match is None:
            raise _bad_size(line)
        digits: bytes = match[1]
        if len(digits) != len(line):
            self._extension_bytes += len(line) - len(digits)
            if self._extension_bytes > MAX_EXTENSION_BYTES:
                raise BadMessage("too many chunk extensions")
        return int(digits, 16)

    def _read_trailers(self, pos: int) -> int:
        """Read the trailer section at ``pos`` and end the body; return where it ends, ``pos`` if incomplete."""
        buffer = self._buffer
        if buffer.startswith(CRLF, pos):
            self.body_done = True
            return pos + 2
        end = buffer.find(_HEAD_END, pos, pos + MAX_TRAILER_BYTES)
        if end < 0:
            begun = buffer[pos : pos + MAX_TRAILER_BYTES]
            refuse_illegal(begun)
            if len(begun) == MAX_TRAILER_BYTES:
                raise BadMessage("the trailers are too long")
            return pos
        self.trailers = parse_trailers(buffer[pos:end], MAX_TRAILERS)
        self.body_done = True
        return end + 4


def too_large() -> BadMessage:
    """Return the refusal of a head over its limit (H-63)."""
    text = "431 Request Header Fields Too Large"
    return BadMessage("the head is longer than allowed, or has too many fields", 431, text)


def _refuse_size(begun: bytes) -> None:
    """Raise ``BadMessage`` if no legal line with a chunk's size begins like this."""
    if len(begun) > MAX_CHUNK_LINE + 1:
        raise BadMessage("chunk header line too long")
    if not _begun_size_line(begun):
        raise _bad_size(begun)


def _bad_size(line: bytes) -> BadMessage:
    """Return the reason, in the words that a client of Dapr may have seen (H-156)."""
    if b"\n" in line:
        return BadMessage("chunked line ends with bare LF")
    if not line:
        return BadMessage("empty hex number for chunk length")
    return BadMessage("invalid byte in chunk length")
