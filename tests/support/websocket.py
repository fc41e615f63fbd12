"""WebSockets byte by byte, for what a library would not send; and an app of the ``websockets`` library."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.support.app import Exchange
from tests.support.http1 import Answer, Broken, Client

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = [
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "WebSocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", KEY),
]
CLOSE = 8
BINARY = 2


def accept_of(key: str) -> str:
    """Return the accept that answers a key."""
    return base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()


def frame(opcode: int, payload: bytes, *, mask: bytes | None = b"\0\0\0\0") -> bytes:
    """Return a final frame; a mask of zeros leaves the payload as it is."""
    masked = 0x80 if mask is not None else 0
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, masked | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, masked | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, masked | 127, size)
    return head + (mask or b"") + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one frame and return opcode and unmasked payload. Raises ``Broken``."""
    try:
        first, second = await reader.readexactly(2)
        size = second & 127
        if size == 126:
            (size,) = struct.unpack("!H", await reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await reader.readexactly(8))
        mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
        payload = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Broken from error
    if mask != bytes(4):
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return first & 15, payload


class RawWebSocket:
    """A client that has its socket in its own hands."""

    def __init__(self, client: Client, answer: Answer) -> None:
        self.client = client
        self.answer = answer
        self.reader = client.reader
        self.writer = client.writer

    @classmethod
    async def open(
        cls, port: int, path: str, headers: Sequence[tuple[str, str]] = (), early: bytes = b""
    ) -> RawWebSocket:
        """Send a handshake, with ``early`` bytes right behind, and read the head of what answers it."""
        client = await Client.open(port)
        client.send("GET", path, [*HANDSHAKE, *headers])
        if early:
            client.writer.write(early)
        return cls(client, await asyncio.wait_for(client.head(), 10))

    async def frame(self) -> tuple[int, bytes]:
        """Read a frame."""
        return await asyncio.wait_for(read_frame(self.reader), 10)

    async def ended(self) -> bytes:
        """Return what still comes until the connection ends in good order."""
        return await asyncio.wait_for(self.reader.read(), 10)


def accepting(then: Callable[[Exchange], Awaitable[None]], early: bytes = b"") -> Callable[[Exchange], Awaitable[None]]:
    """Return an app that opens a WebSocket and has the rest of the connection handled by ``then``."""

    async def handle(exchange: Exchange) -> None:
        key = exchange.header("sec-websocket-key")
        assert key is not None
        fields = [("Connection", "upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept_of(key))]
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        exchange.writer.write(f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode() + early)
        await then(exchange)
        exchange.writer.close()

    return handle


async def echo(socket: ServerConnection) -> None:
    """Send every message back until the WebSocket is closed, well or not."""
    with contextlib.suppress(ConnectionClosed):
        async for message in socket:
            await socket.send(message)


async def main() -> None:
    """Be an app of its own on the port given: echo until killed."""
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=None) as server:
        print("listening", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
