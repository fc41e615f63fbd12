"""The load generator for gRPC: any number of calls at a time on some HTTP/2 connections.

It looks at every answer: its length, and the ``grpc-status`` of its trailers, for which it keeps the server's header
table as any client does.
"""

import asyncio
import struct
from dataclasses import dataclass
from typing import cast

from bench.errors import BenchError
from bench.load import READ_BUFFER, Listener, Work
from bench.rpc_app import (
    ACK,
    CONTENT_TYPE,
    DATA,
    DATA_FIELD,
    END_HEADERS,
    END_STREAM,
    GREAT_WINDOW,
    HEADER,
    HEADERS,
    INVOCATION,
    INVOKED,
    PING,
    RST_STREAM,
    SETTINGS,
    STREAM_WORD,
    WINDOW_UPDATE,
    field,
    frame,
)
from tieline.wire.http2.hpack import HeaderDecoder, HeaderEncoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CREDIT_BYTES = 1 << 20
"""So much is read before it is given back to the server."""
LANES_A_CONNECTION = 8
"""So many calls at a time share a connection."""
INVOKE_PATH = "/dapr.proto.runtime.v1.Dapr/InvokeService"
_POST = b"\x08\x03"
"""An ``HTTPExtension``: the verb as a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpcs(Work):
    """Calls of one message that comes back, or of one that ``messages`` come back for.

    ``answer_bytes`` is the length of a message of the answer, ``path`` the method.

    Attributes:
        target: App that is named in the metadata; empty for none.
        messages: How many come back.
        message: What is sent; ``None`` for one that is as long as those that come back.
    """

    target: str
    messages: int = 1
    message: bytes | None = None

    def request(self) -> bytes:
        """Return the message with its prefix."""
        message = self.message
        if message is None:
            text = STREAM_WORD + b"%d " % self.messages if self.messages > 1 else b""
            message = text.ljust(self.answer_bytes, b"m")
        return b"\0" + len(message).to_bytes(4, "big") + message


def invocations(port: int, target: str) -> Rpcs:
    """Return calls by ``InvokeService``, of the method that the app answers with data."""
    call = field(1, INVOKED) + field(2, DATA_FIELD) + field(3, CONTENT_TYPE) + field(4, _POST)
    request = field(1, target.encode()) + field(3, call)
    return Rpcs(port=port, path=INVOKE_PATH, answer_bytes=len(INVOCATION), target="", message=request)


class Lane:
    """One call at a time on a connection that others share; see ``bench.load.Connection``."""

    def __init__(self, wire: "Wire", listener: Listener) -> None:
        self.wire = wire
        self.listener = listener
        self.intended_ns = 0

    def send(self) -> None:
        """Send one call."""
        self.wire.send(self)

    def close(self) -> None:
        """Close the connection, and with it all its lanes."""
        self.wire.close()


class Wire(asyncio.BufferedProtocol):
    """One HTTP/2 connection to a server that never waits for credit."""

    def __init__(self, work: Rpcs, listener: Listener) -> None:
        self.listener = listener
        self.body = work.request()
        self.expected = (5 + work.answer_bytes) * work.messages
        self.fields = [
            (b":method", b"POST", False),
            (b":scheme", b"http", False),
            (b":path", work.path.encode(), False),
            (b":authority", f"127.0.0.1:{work.port}".encode(), False),
            (b"content-type", b"application/grpc", False),
            (b"te", b"trailers", False),
            (b"grpc-accept-encoding", b"identity, deflate, gzip", False),
            (b"user-agent", b"bench", False),
        ]
        if work.target:
            self.fields.append((b"dapr-app-id", work.target.encode(), False))
        self.encoder = HeaderEncoder()
        self.decoder = HeaderDecoder(1 << 20)
        self.transport: asyncio.Transport
        self.partial = b""
        self.next_id = 1
        self.calls: dict[int, tuple[Lane, int]] = {}
        self.out: list[bytes] = []
        self.scheduled = False
        self.owed = 0
        self.is_closing = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        settings = struct.pack(">HLHL", 2, 0, 4, GREAT_WINDOW)
        more = struct.pack(">L", GREAT_WINDOW - 65535)
        self.transport.write(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, more))

    def send(self, lane: Lane) -> None:
        """Begin a call; everything of one turn of the loop is written together."""
        number = self.next_id
        self.next_id += 2
        self.calls[number] = (lane, 0)
        self.out.append(frame(HEADERS, END_HEADERS, number, self.encoder.encode(self.fields)))
        self.out.append(frame(DATA, END_STREAM, number, self.body))
        self.flush_soon()

    def flush_soon(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self.scheduled = False
        self.transport.write(b"".join(self.out))
        self.out.clear()

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        data = self.partial + READ_BUFFER[:nbytes]
        at = 0
        while len(data) - at >= 9:
            high, low, kind, flags, number = HEADER.unpack_from(data, at)
            end = at + 9 + (high << 16 | low)
            if end > len(data):
                break
            self.take(kind, flags, number & GREAT_WINDOW, data, at + 9, end)
            at = end
        self.partial = data[at:]
        if self.owed > CREDIT_BYTES:
            self.out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", self.owed)))
            self.owed = 0
            self.flush_soon()

    def take(self, kind: int, flags: int, number: int, data: bytes, start: int, end: int) -> None:
        """Take one frame, which stands between two places."""
        if kind == DATA:
            lane, got = self.calls[number]
            self.calls[number] = (lane, got + end - start)
            self.owed += end - start
            if flags & END_STREAM:
                self.answered(number, "an answer without trailers")
        elif kind == HEADERS:
            fields = self.decoder.decode(data[start:end])
            if flags & END_STREAM:
                status = next((value for name, value, _ in fields if name == b"grpc-status"), b"none")
                self.answered(number, None if status == b"0" else f"grpc-status {status.decode()}: {fields}")
        elif kind == SETTINGS and not flags & ACK:
            self.out.append(frame(SETTINGS, ACK, 0, b""))
            self.flush_soon()
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind == PING and not flags & ACK:
            self.out.append(frame(PING, ACK, 0, data[start:end]))
            self.flush_soon()
        elif kind == RST_STREAM and number in self.calls:
            self.answered(number, "a reset")

    def answered(self, number: int, problem: str | None) -> None:
        """One call is over."""
        lane, got = self.calls.pop(number)
        if problem is None and got != self.expected:
            problem = f"{got} bytes instead of {self.expected}"
        self.listener.on_answer(lane, problem)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_closing:
            self.listener.on_broken(BenchError(f"a connection was closed on us: {exc or 'end of stream'}"))

    def close(self) -> None:
        """Close, and stay silent about it."""
        self.is_closing = True
        self.transport.close()


async def open_lanes(work: Rpcs, listener: Listener, count: int) -> list[Lane]:
    """Return so many lanes, on as few connections as they may share, which they do evenly."""
    connections = -(-count // LANES_A_CONNECTION)
    wires = [await _open(work, listener) for _ in range(connections)]
    return [Lane(wires[number % connections], listener) for number in range(count)]


async def _open(work: Rpcs, listener: Listener) -> Wire:
    try:
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: Wire(work, listener), "127.0.0.1", work.port
        )
    except OSError as error:
        raise BenchError(f"no connection to 127.0.0.1:{work.port}: {error.strerror}") from error
    await asyncio.wait_for(wire.ready, 10.0)
    return wire
