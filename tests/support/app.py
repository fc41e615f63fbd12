"""An HTTP/1.1 app whose handler decides every byte; in the test's own process, or a process of its own.

As a process it is the app of the restart tests: ``python -m tests.support.app <descriptor of a listening socket>``
answers, and on SIGTERM drains as good servers do: it accepts no more, ends what it has begun, and closes connections
that are idle.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence

from tests.support.http1 import Broken, Fields, find, read_chunk, read_fields

IDLE_WHILE_DRAINING_S = 1.0


class Exchange:
    """One request, and the means to answer it.

    Attributes:
        target: Path and query as they came.
        headers: Names in lower case.
        trailers: Of the request; there once its body was read.
        last: The app leaves: the answer says that the connection ends with it.
    """

    def __init__(
        self, verb: str, target: str, headers: Fields, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.verb = verb
        self.target = target
        self.headers = headers
        self.trailers: Fields = []
        self.reader = reader
        self.writer = writer
        self.last = False

    def header(self, name: str) -> str | None:
        """Return the first value of a field."""
        return find(self.headers, name)

    def pieces(self) -> AsyncPieces:
        """Return the body piece by piece."""
        return AsyncPieces(self)

    async def body(self) -> bytes:
        """Read the whole body. Raises ``Broken`` if it breaks off."""
        return b"".join([piece async for piece in self.pieces()])

    def answer(
        self,
        status: int = 200,
        body: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
        *,
        length: int | None = None,
    ) -> None:
        """Write a whole answer, at once."""
        fields = [*headers, ("Content-Length", str(len(body) if length is None else length))]
        if self.last:
            fields.append(("Connection", "close"))
        self.writer.write(_head(status, fields) + body)

    def begin(self, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Write the head."""
        self.writer.write(_head(status, headers))

    def begin_chunked(self, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Write the head of a chunked answer."""
        self.begin(status, [*headers, ("Transfer-Encoding", "chunked")])

    def chunk(self, data: bytes) -> None:
        """Write one chunk."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_chunks(self, trailers: Sequence[tuple[str, str]] = ()) -> None:
        """Write the last chunk and the trailers."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
        self.writer.write(b"0\r\n" + lines.encode("latin-1") + b"\r\n")

    def close(self) -> None:
        """Close in good order."""
        self.writer.close()

    def reset(self) -> None:
        """Send what is written, then a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Return when the sidecar has closed the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.writer.close()


def _head(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode("latin-1")


class AsyncPieces:
    """Iterates over a request's body."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._left = int(exchange.header("content-length") or 0)
        self._chunked = exchange.header("transfer-encoding") == "chunked"

    def __aiter__(self) -> AsyncPieces:
        return self

    async def __anext__(self) -> bytes:
        exchange = self._exchange
        if self._chunked:
            if piece := await read_chunk(exchange.reader):
                return piece
            exchange.trailers = await read_fields(exchange.reader)
        elif self._left:
            piece = await exchange.reader.read(min(65536, self._left))
            if not piece:
                raise Broken
            self._left -= len(piece)
            return piece
        raise StopAsyncIteration


Handler = Callable[[Exchange], Awaitable[None]]


class App:
    """A server.

    Attributes:
        seen: The requests that came, in order.
        accepted: How many connections ever came.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._idle: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self.seen: list[Exchange] = []
        self.accepted = 0
        self.port = 0

    async def start(
        self, port: int = 0, *, sock: socket.socket | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Listen on loopback, or on a socket that is bound already."""
        if sock is not None:
            self._server = await asyncio.start_server(self._connected, sock=sock, backlog=1024)
        else:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, backlog=1024, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, Broken, asyncio.CancelledError):
            pass
        finally:
            self._idle.pop(writer, None)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self._idle[writer] = reader
        line = await reader.readline()
        self._idle.pop(writer, None)
        if not line:
            return False
        verb, target, _ = line.decode("latin-1").split()
        exchange = Exchange(verb, target, await read_fields(reader), reader, writer)
        exchange.last = self._draining
        self.seen.append(exchange)
        await self._handler(exchange)
        await writer.drain()
        return not writer.is_closing() and not self._draining

    async def drain(self) -> None:
        """Accept no more, and return when what is in progress is over.

        A connection is closed with its next answer, as its head says; one that stays idle is closed after a while: no
        request can cross that but one that took just as long.
        """
        self._draining = True
        if self._server is not None:
            self._server.close()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=IDLE_WHILE_DRAINING_S)
        for writer, reader in list(self._idle.items()):
            if not reader._buffer:  # type: ignore[attr-defined]  # else a request has come already, and is answered
                writer.close()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def aclose(self) -> None:
        """End at once; idempotent."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(exchange: Exchange) -> None:
    """Answer with what was sent, and which process did it."""
    body = await exchange.body()
    exchange.answer(200, body, [("X-Pid", str(os.getpid()))])


async def main(descriptor: int) -> None:
    """Serve on an inherited socket until SIGTERM, then drain."""
    app = App(echo)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await app.start(sock=socket.socket(fileno=descriptor))
    print("listening", flush=True)
    await stop.wait()
    await app.drain()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
