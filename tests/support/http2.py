"""Both ends of HTTP/2 in memory: a listener with a ledger, a clock that is set, and frames made and read by hand."""

from __future__ import annotations

from typing import NamedTuple

from tieline.model import Headers, Request
from tieline.wire.http2 import Connection, Limits, Stream, frames
from tieline.wire.http2.hpack import Fields, Repeated

GET: Headers = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]
POST: Headers = [(b":method", b"POST"), *GET[1:]]
OK: Headers = [(b":status", b"200")]


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ledger:
    """A listener that writes down what it hears.

    ``consume``: Give back each piece of a body as soon as it comes.
    """

    def __init__(self, *, consume: bool = True) -> None:
        self.events: list[tuple[object, ...]] = []
        self.streams: dict[int, Stream] = {}
        self.connection: Connection | None = None
        self.consume = consume

    def of(self, kind: str) -> list[tuple[object, ...]]:
        """Return what was heard of one kind."""
        return [event[1:] for event in self.events if event[0] == kind]

    def body(self, number: int) -> bytes:
        """Return what came of the body of a stream."""
        return b"".join(piece for of, piece, _ in self.of("data") if of == number and isinstance(piece, bytes))

    def on_request(self, stream: Stream, request: Request, end: bool) -> None:
        self.streams[stream.id] = stream
        path = request.path if request.query is None else request.path + b"?" + request.query
        self.events.append(("request", stream.id, request.verb, path, request.headers, end))

    def on_response(self, stream: Stream, status: int, headers: Headers, end: bool) -> None:
        self.streams[stream.id] = stream
        self.events.append(("response", stream.id, status, headers, end))

    def on_repeated(self, stream: Stream, known: Repeated, tail: bytes, timeout: bytes, end: bool) -> bool:
        raise AssertionError("nobody left a plan")

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        self.events.append(("data", stream.id, data, end))
        if self.consume and self.connection is not None:
            self.connection.consumed(stream, len(data))

    def on_trailers(self, stream: Stream, headers: Headers) -> None:
        self.events.append(("trailers", stream.id, headers))

    def on_reset(self, stream: Stream, code: int, *, local: bool, unprocessed: bool) -> None:
        self.events.append(("reset", stream.id, code, local, unprocessed))

    def on_head_too_large(self, stream: Stream) -> None:
        self.streams[stream.id] = stream
        self.events.append(("too large", stream.id))

    def on_writable(self, stream: Stream) -> None:
        self.events.append(("writable", stream.id))

    def on_settings(self) -> None:
        self.events.append(("settings",))

    def on_capacity(self) -> None:
        self.events.append(("capacity",))

    def on_goaway(self, code: int, text: bytes) -> None:
        self.events.append(("goaway", code, text))

    def on_ping_ack(self, data: bytes) -> None:
        self.events.append(("ping ack", data))


class End(NamedTuple):
    """One end of a connection with all that belongs to it."""

    h2: Connection
    ledger: Ledger
    clock: Clock

    def hear(self, *pieces: bytes) -> list[Frame]:
        """Let bytes arrive; return the frames that it answers with."""
        self.h2.receive(b"".join(pieces))
        return self.said()

    def said(self) -> list[Frame]:
        """Take the frames that are to be written, as the owner does."""
        data = b""
        while self.h2.out:
            data += self.h2.take()
            self.h2.pump()
        return read_frames(data)


class Frame(NamedTuple):
    """One frame as it went over the line."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def an_end(
    *, client: bool, limits: Limits | None = None, native: bool = False, consume: bool = True, greeted: bool = True
) -> End:
    """Make one end; ``greeted``: the other's preface and empty SETTINGS have been heard."""
    clock = Clock()
    ledger = Ledger(consume=consume)
    h2 = Connection(ledger, client=client, limits=limits or Limits(), clock=clock, native=native)
    ledger.connection = h2
    end = End(h2, ledger, clock)
    if greeted:
        end.hear(b"" if client else frames.PREFACE, frames.settings({}))
        assert h2.fault is None
        ledger.events.clear()
    return end


def exchange(one: End, other: End) -> None:
    """Carry bytes between two ends until nobody has anything to say."""
    while one.h2.out or other.h2.out:
        data = one.h2.take()
        one.h2.pump()
        other.h2.receive(data)
        data = other.h2.take()
        other.h2.pump()
        one.h2.receive(data)


def read_frames(data: bytes) -> list[Frame]:
    """Take bytes apart, which must be whole frames; a client's preface is skipped."""
    data = data.removeprefix(frames.PREFACE)
    found = []
    while data:
        high, low, kind, flags, number = frames.HEADER.unpack_from(data)
        size = frames.HEADER_SIZE + (high << 8 | low)
        assert len(data) >= size
        found.append(Frame(kind, flags, number, data[frames.HEADER_SIZE : size]))
        data = data[size:]
    return found


def block(fields: Headers) -> bytes:
    """Return a header block of plain literals, which leaves all tables alone."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    size -= 127
    length = bytearray([127])
    while size >= 128:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes(length) + bytes([size]) + text


def headers(number: int, fields: Headers, *, end: bool = True) -> bytes:
    """Return a HEADERS frame, with CONTINUATION frames if it is long."""
    data = block(fields)
    size = frames.DEFAULT_MAX_FRAME
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    out = b""
    for place, piece in enumerate(pieces):
        last = frames.END_HEADERS if place == len(pieces) - 1 else 0
        if place:
            out += frames.frame(frames.CONTINUATION, last, number, piece)
        else:
            out += frames.frame(frames.HEADERS, last | (frames.END_STREAM if end else 0), number, piece)
    return out


def data(number: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    """Return a DATA frame."""
    return frames.frame(frames.DATA, frames.END_STREAM if end else 0, number, payload)


def plain(fields: Headers) -> Fields:
    """Return fields as ``Connection.send_request`` takes them."""
    return [(name, value, False) for name, value in fields]
