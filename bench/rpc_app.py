"""The gRPC app behind the sidecars: so cheap that it is never what is measured.  Run as ``python rpc_app.py PORT``.

Whatever the RPC: a message that begins with ``stream N `` is answered by N messages as long as itself, written only as
fast as the windows and the socket take them; one that calls the method ``INVOKED``, as ``AppCallback`` has it, by
``INVOCATION``; any other message comes back. It keeps no header tables: of a request only its message is looked at.
"""

import asyncio
import struct
import sys
from typing import cast

import uvloop

HEADER = struct.Struct(">BHBBL")
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE_BYTES = 24
GREAT_WINDOW = (1 << 31) - 1
STREAM_WORD = b"stream "

INVOKED = b"bench-invoked"
INVOKED_BYTES = 1024


def field(number: int, content: bytes) -> bytes:
    """Return a field of a protobuf message, of bytes, text or a message, shorter than 16 KiB."""
    size = len(content)
    return bytes([number << 3 | 2, *([size] if size < 128 else [size & 127 | 128, size >> 7])]) + content


CONTENT_TYPE = b"application/octet-stream"
DATA_FIELD = field(2, b"d" * INVOKED_BYTES)
INVOCATION = field(1, DATA_FIELD) + field(2, CONTENT_TYPE)
"""An ``InvokeResponse``: data of ``INVOKED_BYTES`` and their type."""
CALLS_INVOKED = field(1, INVOKED)
"""How an ``InvokeRequest`` begins that calls it."""
INVOCATION_ANSWER = b"\0" + len(INVOCATION).to_bytes(4, "big") + INVOCATION

READ_BUFFER = memoryview(bytearray(256 << 10))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return HEADER.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


# Literals that enter no table: status 200 and the content type; then grpc-status 0.
HEAD = b"\x88\x0f\x10\x10application/grpc"
TRAILERS = b"\x00\x0bgrpc-status\x010"
HELLO = frame(SETTINGS, 0, 0, struct.pack(">HLHL", 3, 100_000, 4, GREAT_WINDOW)) + frame(
    WINDOW_UPDATE, 0, 0, struct.pack(">L", GREAT_WINDOW - 65535)
)


class RpcApp(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.partial = b""
        self.to_skip = PREFACE_BYTES
        self.bodies: dict[int, bytes] = {}
        self.out: list[bytes] = []
        # What may be sent: on the connection, on a new stream, on the streams that send many messages.
        self.window = 65535
        self.stream_window = 65535
        self.rows: dict[int, list[int]] = {}
        self.message: dict[int, bytes] = {}
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(HELLO)

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        data = self.partial + READ_BUFFER[:nbytes]
        at, self.to_skip = min(self.to_skip, len(data)), max(self.to_skip - len(data), 0)
        while len(data) - at >= 9:
            high, low, kind, flags, stream = HEADER.unpack_from(data, at)
            end = at + 9 + (high << 16 | low)
            if end > len(data):
                break
            self.take(kind, flags, stream & GREAT_WINDOW, data[at + 9 : end])
            at = end
        self.partial = data[at:]
        if self.rows:
            self.write_rows()
        if self.out:
            self.transport.write(b"".join(self.out))
            self.out.clear()

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Take one frame."""
        if kind == DATA:
            self.bodies[stream] = self.bodies.get(stream, b"") + payload
        if kind in (DATA, HEADERS):
            if flags & END_STREAM:
                self.answer(stream, self.bodies.pop(stream, b""))
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if not stream:
                self.window += more
            elif stream in self.rows:
                self.rows[stream][1] += more
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                key, value = struct.unpack_from(">HL", payload, at)
                if key == 4:
                    self.stream_window = value
            self.out.append(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.out.append(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self.bodies.pop(stream, None)
            self.rows.pop(stream, None)
            self.message.pop(stream, None)

    def answer(self, stream: int, body: bytes) -> None:
        """Begin to answer, with all of it if that is one message."""
        self.out.append(frame(HEADERS, END_HEADERS, stream, HEAD))
        if body[5:].startswith(STREAM_WORD):
            self.rows[stream] = [int(body[5:40].split(b" ", 2)[1]), self.stream_window]
            self.message[stream] = frame(DATA, 0, stream, body)
            return
        if body.startswith(CALLS_INVOKED, 5):
            body = INVOCATION_ANSWER
        self.window -= len(body)
        self.out.append(frame(DATA, 0, stream, body))
        self.out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS))

    def write_rows(self) -> None:
        """Write as many messages as may be sent, and the trailers behind the last."""
        for stream, row in list(self.rows.items()):
            piece = self.message[stream]
            size = len(piece) - 9
            while row[0] and row[1] >= size and self.window >= size and not self.paused:
                count = min(row[0], row[1] // size, self.window // size, 64)
                row[0] -= count
                row[1] -= count * size
                self.window -= count * size
                self.transport.write(b"".join(self.out) + piece * count)
                self.out.clear()
            if not row[0]:
                self.out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS))
                del self.rows[stream], self.message[stream]

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.write_rows()
        if self.out:
            self.transport.write(b"".join(self.out))
            self.out.clear()


async def serve(port: int) -> None:
    """Answer on 127.0.0.1 until the process is ended."""
    server = await asyncio.get_running_loop().create_server(RpcApp, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
