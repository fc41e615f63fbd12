"""HTTP/2 with frames made by hand, right or wrong, and everything that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tests.support.http2 import Frame, block, headers
from tests.support.mesh import invoke_path
from tieline.model import Headers
from tieline.wire.http2 import frames
from tieline.wire.http2.frames import PREFACE, settings

BEGIN = PREFACE + settings({})


def call(
    method: str = "x", verb: bytes = b"GET", more: Sequence[tuple[bytes, bytes]] = (), *, path: bytes | None = None
) -> Headers:
    """Return the fields of a call of the app at a sidecar's HTTP API."""
    target = invoke_path("callee", method).encode() if path is None else path
    return [(b":method", verb), (b":path", target), (b":scheme", b"http"), (b":authority", b"a"), *more]


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    """Return any frame."""
    return frames.frame(kind, flags, number, payload)


class Raw:
    """A connection that says whatever it is told to.

    Attributes:
        heard: The frames that came.
        closed: The other side has closed.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._unread = b""
        self.heard: list[Frame] = []
        self.closed = False

    @classmethod
    async def open(cls, port: int, *said: bytes) -> Raw:
        """Connect to loopback, and begin; without ``said``, as is usual."""
        raw = cls(*await asyncio.open_connection("127.0.0.1", port))
        await raw.say(*(said or (BEGIN,)))
        return raw

    async def say(self, *pieces: bytes) -> None:
        """Write bytes; a peer that has left is no news."""
        try:
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()
        except ConnectionError:
            pass

    async def until(self, what: Callable[[], bool], within_s: float = 5.0) -> None:
        """Read until ``what`` is true of what was heard, or the other side closes."""
        async with asyncio.timeout(within_s):
            while not what() and not self.closed:
                try:
                    data = await self._reader.read(65536)
                except ConnectionError:
                    data = b""
                self.closed = not data
                self._take(data)

    def _take(self, data: bytes) -> None:
        self._unread += data
        while len(self._unread) >= 9:
            size = 9 + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < size:
                return
            whole, self._unread = self._unread[:size], self._unread[size:]
            self.heard.append(Frame(whole[3], whole[4], int.from_bytes(whole[5:9], "big"), whole[9:]))

    async def until_closed(self, within_s: float = 5.0) -> None:
        """Read until the other side closes."""
        await self.until(lambda: False, within_s)

    async def reached(self) -> None:
        """Return once the other side has taken all that was said: a PING is answered behind it."""
        await self.say(frame(frames.PING, 0, 0, b"reached?"))
        answer = Frame(frames.PING, frames.ACK, 0, b"reached?")
        await self.until(lambda: answer in self.heard)
        self.heard.remove(answer)

    async def over(self, number: int) -> list[Frame]:
        """Return the frames of a stream once it has ended, well or not."""
        await self.until(lambda: any(_ends(frame) for frame in self.of(number)))
        return self.of(number)

    def of(self, number: int) -> list[Frame]:
        """Return what was heard on one stream."""
        return [frame for frame in self.heard if frame.stream == number]

    def reset_code(self, number: int) -> int | None:
        """Return the code of the RST_STREAM for a stream, if there was one."""
        codes = [int.from_bytes(one.payload, "big") for one in self.of(number) if one.kind == frames.RST_STREAM]
        return codes[0] if codes else None

    @property
    def goodbye(self) -> int | None:
        """Code of the last GOAWAY."""
        codes = [int.from_bytes(one.payload[4:8], "big") for one in self.heard if one.kind == frames.GOAWAY]
        return codes[-1] if codes else None

    async def is_alive(self, number: int) -> bool:
        """Ask on a further stream for an ordinary answer."""
        await self.say(headers(number, call("fine")))
        found = await self.over(number)
        return not self.closed and [one.kind for one in found][-1] != frames.RST_STREAM

    def close(self) -> None:
        """Close the socket."""
        self.writer.close()

    def reset(self) -> None:
        """Drop the socket."""
        self.writer.transport.abort()


def _ends(one: Frame) -> bool:
    ending = one.kind in (frames.DATA, frames.HEADERS) and one.flags & frames.END_STREAM
    return bool(ending) or one.kind == frames.RST_STREAM


__all__ = ["BEGIN", "Raw", "block", "call", "frame", "headers"]
