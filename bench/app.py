"""The app behind the sidecars: so cheap that it is never what is measured.  Run as ``python app.py PORT``.

| request | answer |
|---|---|
| ``GET /bytes/N`` | N bytes (at most 1 MiB) with ``content-length`` |
| ``POST /echo`` | the body it got (at most 4 MiB, else 413) |
| ``POST /sink``, ``PUT /sink`` | the number of body bytes received, in decimal; the body is thrown away |
| ``GET /stream/N`` | N MiB, chunked, written only as fast as the reader takes them |
| ``GET /status/N`` | an empty answer with status N, to prove that the load generator notices |
| ``GET /ws``, a WebSocket handshake | every message, which must be a short frame of 126..65535 bytes, comes back |
"""

import asyncio
import base64
import functools
import hashlib
import sys
from typing import cast

import httptools
import uvloop

MAX_ANSWER_BYTES = 1 << 20
MAX_ECHO_BYTES = 4 << 20
CHUNK_BYTES = 64 << 10
CHUNKS_A_MIB = (1 << 20) // CHUNK_BYTES
CHUNK = b"%x\r\n%b\r\n" % (CHUNK_BYTES, b"s" * CHUNK_BYTES)

# One read buffer for all connections: each read is used up before the next one starts.
READ_BUFFER = memoryview(bytearray(256 << 10))


def render(status: int, body: bytes) -> bytes:
    """Return a whole answer with a declared length."""
    head = b"HTTP/1.1 %d Bench\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


@functools.lru_cache(maxsize=256)
def plain_answer(method: bytes, path: bytes) -> bytes:
    """Return the answer to a request whose body does not matter."""
    kind, _, number = path.strip(b"/").partition(b"/")
    if method != b"GET" or not number.isdigit():
        return render(404, b"no such path\n")
    value = int(number)
    if kind == b"bytes" and value <= MAX_ANSWER_BYTES:
        return render(200, b"x" * value)
    if kind == b"status" and 200 <= value <= 599:
        return render(value, b"")
    return render(404, b"no such path\n")


def render_accept(key: bytes) -> bytes:
    """Return the answer that opens a WebSocket."""
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    lines = [b"HTTP/1.1 101 Bench", b"upgrade: websocket", b"connection: upgrade", b"sec-websocket-accept: " + accept]
    return b"\r\n".join([*lines, b"", b""])


class Echo(asyncio.BufferedProtocol):
    """A connection that became a WebSocket: the frames of a client whose mask is zero go back without it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.partial = b""

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        data = self.partial + READ_BUFFER[:nbytes]
        while len(data) >= 8 and len(data) >= (end := 8 + int.from_bytes(data[2:4], "big")):
            self.transport.write(bytes([data[0], data[1] & 127]) + data[2:4] + data[8:end])
            data = data[end:]
        self.partial = data


class App(asyncio.BufferedProtocol):
    """One kept-alive connection; requests are answered in order, one at a time."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport
        self.path = b""
        self.key = b""
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.chunks_left = 0
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, but do the same.
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self.parser.feed_data(READ_BUFFER[:nbytes])
        except httptools.HttpParserUpgrade:
            self.transport.write(render_accept(self.key))
            self.transport.set_protocol(Echo(self.transport))
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        self.path = url
        self.body.clear()
        self.body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"sec-websocket-key":
            self.key = value

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        if self.path == b"/echo" and self.body_bytes <= MAX_ECHO_BYTES:
            self.body.append(body)

    def on_message_complete(self) -> None:
        path = self.path
        if self.parser.should_upgrade():
            return  # the exception that follows is the answer
        if path == b"/sink":
            self.transport.write(render(200, b"%d" % self.body_bytes))
        elif path == b"/echo":
            fits = self.body_bytes <= MAX_ECHO_BYTES
            self.transport.write(render(200, b"".join(self.body)) if fits else render(413, b""))
        elif path.startswith(b"/stream/") and path[8:].isdigit():
            self.transport.write(b"HTTP/1.1 200 Bench\r\ntransfer-encoding: chunked\r\n\r\n")
            self.chunks_left = int(path[8:]) * CHUNKS_A_MIB
            self.write_chunks()
        else:
            self.transport.write(plain_answer(self.parser.get_method(), path))

    def write_chunks(self) -> None:
        """Write until the transport asks for a pause; ``resume_writing`` goes on from there."""
        while self.chunks_left and not self.paused:
            self.chunks_left -= 1
            self.transport.write(CHUNK)
            if not self.chunks_left:
                self.transport.write(b"0\r\n\r\n")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.write_chunks()

    def connection_lost(self, exc: Exception | None) -> None:
        self.chunks_left = 0


async def serve(port: int) -> None:
    """Answer on 127.0.0.1 until the process is ended."""
    server = await asyncio.get_running_loop().create_server(App, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
