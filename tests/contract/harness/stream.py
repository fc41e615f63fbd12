"""Bytes on a blocking socket: sending what a script says, and reading messages with everything that can be seen."""

from __future__ import annotations

import base64
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Step = dict[str, Any]
"""One step of a script: ``text`` (a character is a byte), ``base64``, ``repeat`` and ``times``, ``wait`` (seconds),
or ``end`` (``half-close``, ``close``, ``reset``)."""

STREAMED_S: Final = 0.25
"""A body whose first and last bytes are so far apart was streamed."""
READ_BYTES: Final = 65536
_HEX: Final = re.compile(rb"[0-9a-fA-F]+")
_H2_STATUSES: Final = {0x88: 200, 0x89: 204, 0x8A: 206, 0x8B: 304, 0x8C: 400, 0x8D: 404, 0x8E: 500}
"""First octet of an answer's header block by the static table of HPACK (RFC 7541, appendix A)."""
_DATA, _HEADERS, _PING, _END_STREAM, _ACK = 0, 1, 6, 1, 1
_PING_FRAME: Final = b"\0\0\x08\x06\0\0\0\0\0tieline?"


@dataclass
class Message:
    """A request or an answer as it came.

    Attributes:
        start: The first line; ``HTTP/2 <status>`` for an answer over HTTP/2, whose headers are not read.
        headers: In order, names in lower case.
        body: Decoded.
        complete: The end of the body was seen, as its framing says it.
        streamed: It came in pieces, ``STREAMED_S`` and more apart.
        trailers: The raw lines.
        at: The app that got it.
    """

    start: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = True
    streamed: bool = False
    trailers: str = ""
    at: str = ""

    @property
    def status(self) -> str:
        return self.start.split(" ")[1] if self.start.startswith("HTTP/") else f"no status: {self.start!r}"

    def values(self) -> dict[str, list[str]]:
        """Return the header values by name, in order."""
        found: dict[str, list[str]] = {}
        for name, value in self.headers:
            found.setdefault(name, []).append(value)
        return found


class Stream:
    """Buffered reading of one socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self.ended: Literal["", "closed", "silent"] = ""
        """Why reading stopped: the peer closed, or sent nothing until the socket's time-out."""

    def _more(self) -> bool:
        try:
            data = self._sock.recv(READ_BYTES)
        except TimeoutError:
            self.ended = "silent"
        except OSError:
            self.ended = "closed"
        else:
            self._buffer += data
            self.ended = "" if data else "closed"
        return not self.ended

    def rest(self) -> bytes:
        """Read until the peer closes or falls silent."""
        while self._more():
            pass
        left, self._buffer = self._buffer, b""
        return left

    def until(self, mark: bytes) -> bytes | None:
        """Read up to and including ``mark``; ``None`` when the peer stopped before it."""
        while mark not in self._buffer:
            if not self._more():
                return None
        head, _, self._buffer = self._buffer.partition(mark)
        return head + mark

    def pieces(self, count: int | None) -> Iterator[bytes]:
        """Yield ``count`` bytes as they arrive, ``None`` for all; fewer if the peer stops."""
        while count is None or count > 0:
            if not self._buffer and not self._more():
                return
            piece = self._buffer[:count]
            self._buffer = self._buffer[len(piece) :]
            count = None if count is None else count - len(piece)
            yield piece

    def exactly(self, count: int) -> bytes:
        """Read ``count`` bytes; fewer if the peer stops."""
        return b"".join(self.pieces(count))


# ── reading ────────────────────────────────────────────────────────────────────────────────────────
def read_head(stream: Stream) -> Message | None:
    """Read one message up to its body; ``None`` when the peer stopped before the end of the head."""
    raw = stream.until(b"\r\n\r\n")
    if raw is None:
        return None
    start, *lines = raw.decode("latin-1")[:-4].split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Message(start, [(name.lower(), value.strip()) for name, _, value in pairs])


def read_body(stream: Stream, message: Message, *, bodiless: bool = False) -> None:
    """Read the body of ``message`` into it; without framing, a request has none and an answer ends with its socket."""
    headers = dict(message.headers)
    body = _Body(stream, message)
    if bodiless:
        return
    if "chunked" in headers.get("transfer-encoding", "").lower():
        message.complete = body.chunked()
    elif "content-length" in headers:
        length = headers["content-length"]
        message.complete = length.isdigit() and body.take(int(length))
    elif message.start.startswith("HTTP/"):
        message.complete = body.take(None)
    message.streamed = body.last - body.first >= STREAMED_S


class _Body:
    """A body as it grows, and when its bytes came."""

    def __init__(self, stream: Stream, message: Message) -> None:
        self._stream = stream
        self._message = message
        self.first = self.last = 0.0

    def take(self, count: int | None) -> bool:
        """Add ``count`` bytes, or all there are; return whether so many came."""
        got = 0
        for piece in self._stream.pieces(count):
            self.last = time.monotonic()
            self.first = self.first or self.last
            self._message.body += piece
            got += len(piece)
        return count is None or got == count

    def chunked(self) -> bool:
        """Add all chunks and the trailers; return whether the end came."""
        while (line := self._stream.until(b"\r\n")) and (size := _HEX.match(line)):
            if int(size[0], 16) == 0:
                return self._trailers()
            if not self.take(int(size[0], 16)) or self._stream.until(b"\r\n") is None:
                return False
        return False

    def _trailers(self) -> bool:
        while (line := self._stream.until(b"\r\n")) not in (None, b"\r\n"):
            assert line is not None
            self._message.trailers += line.decode("latin-1")
        return line is not None


def read_http2_answer(stream: Stream) -> Message | None:
    """Read frames until the answer on stream 1 ends; ``None`` when the peer stopped before it."""
    message = Message("")
    while frame := _read_frame(stream):
        kind, flags, number, payload = frame
        if number != 1:
            continue
        if kind == _HEADERS:
            message.start = f"HTTP/2 {_H2_STATUSES.get(payload[0], 'other')}"
        if kind == _DATA:
            message.body += payload
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            return message
    return None


def answers_ping(sock: socket.socket, stream: Stream) -> bool:
    """Whether the peer of an HTTP/2 connection still answers."""
    sock.sendall(_PING_FRAME)
    while frame := _read_frame(stream):
        kind, flags, _, payload = frame
        if kind == _PING and flags & _ACK:
            return payload == _PING_FRAME[9:]
    return False


def _read_frame(stream: Stream) -> tuple[int, int, int, bytes] | None:
    head = stream.exactly(9)
    if len(head) < 9:
        return None
    payload = stream.exactly(int.from_bytes(head[:3], "big"))
    return head[3], head[4], int.from_bytes(head[5:], "big"), payload


# ── sending ────────────────────────────────────────────────────────────────────────────────────────
def play(sock: socket.socket, steps: Sequence[Step]) -> bool:
    """Send a script; return ``False`` if it ended the connection."""
    for step in steps:
        match step:
            case {"text": str() as text}:
                sock.sendall(text.encode("latin-1"))
            case {"repeat": str() as text, "times": int() as times}:
                sock.sendall(text.encode("latin-1") * times)
            case {"base64": str() as text}:
                sock.sendall(base64.b64decode(text))
            case {"wait": float() | int() as seconds}:
                time.sleep(seconds)
            case {"end": "half-close"}:
                sock.shutdown(socket.SHUT_WR)
            case {"end": "close" | "reset" as how}:
                _end(sock, reset=how == "reset")
                return False
            case {"early": True}:
                pass
            case _:
                raise ValueError(f"no step of a script: {step}")
    return True


def _end(sock: socket.socket, *, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        sock.shutdown(socket.SHUT_RDWR)  # at once, even while another thread reads
    sock.close()
