"""Which event loop and which transports: uvloop and aiofastnet where they exist, plain asyncio elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

log = logging.getLogger("dapr.runtime")

T = TypeVar("T")

READ_BUFFER: Final = 65536
"""Bytes taken from a socket at once. One buffer serves all connections: what arrives is copied out at once."""
LONG_READ_BUFFER: Final = 4 * READ_BUFFER
"""The same for connections whose windows bound what a peer may send, once ``keep_freed_memory`` has made it pay."""
WRITE_HIGH_WATER: Final = 65536
"""Unsent bytes of one connection above which its writer must wait."""
MMAP_THRESHOLD: Final = 4 << 20
TRIM_THRESHOLD: Final = 8 << 20
"""Blocks up to the one are taken from the heap, and at most the other is kept of it when it is free. It is what glibc
would come to by itself after the first body of 4 MiB."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_buffer = memoryview(bytearray(LONG_READ_BUFFER))
_view = _buffer[:READ_BUFFER]
_long_view = _view


class Buffered(asyncio.BufferedProtocol):
    """A protocol that reads into the shared buffer.

    A fresh buffer for each read costs a fifth of a proxy's time (measured: ``mmap`` and ``munmap`` a read).
    """

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _view

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take what arrived."""
        raise NotImplementedError


class BufferedLong(Buffered):
    """The same for a protocol that bounds by itself what its peer may send: it reads more at once."""

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _long_view


class Paced(Buffered):
    """A protocol whose writer waits while the socket takes no more: ``if self._paused: await self._paused``."""

    _loop: asyncio.AbstractEventLoop
    _paused: asyncio.Future[None] | None = None

    def pause_writing(self) -> None:
        if self._paused is None:
            self._paused = self._loop.create_future()

    def resume_writing(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what is taken next, and so read more at once; tell if it can.

    For a process that is ours alone. Without it, glibc gives the memory of every long read back to the system and asks
    for it afresh with the next one: hundreds of page faults for a MiB that passes.
    """
    global _long_view
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError, TypeError):  # macOS, Windows, musl
        return False
    if not (mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)):
        return False
    _long_view = _buffer
    return True


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` on the best event loop there is."""
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        make_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.get_loop().set_exception_handler(report_uncaught)
        return runner.run(main)


def report_uncaught(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop or a transport caught: a line, and the stack only for who looks closely.

    A connection that failed is no news: whoever uses it was told. aiofastnet gives the kind of an error in place of
    one at times.
    """
    text = str(context.get("message", "error in the event loop"))
    error = context.get("exception")
    kind = error if isinstance(error, type) else type(error)
    if error is not None:
        text += f": {kind.__name__}: {error}"
    if issubclass(kind, OSError):
        log.debug("%s", text)
        return
    log.error("%s", text)
    if isinstance(error, BaseException):
        log.debug("%s", text, exc_info=error)


async def connect(
    factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
) -> asyncio.BaseProtocol:
    """Open a connection and return its protocol.

    Raises:
        OSError: Nobody listens there, the name is unknown, or TLS failed (``ssl.SSLError`` is one).
    """
    loop = asyncio.get_running_loop()
    arguments: dict[str, Any] = {}
    if tls is not None:
        arguments = {"ssl": tls, "server_hostname": server_hostname or host}
    try:
        import aiofastnet
    except ImportError:
        _, protocol = await loop.create_connection(factory, host, port, **arguments)
    else:
        _, protocol = await aiofastnet.create_connection(loop, factory, host, port, **arguments)
    return protocol


async def connect_on(
    factory: Callable[[], asyncio.BaseProtocol],
    sock: socket.socket,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    handshake_timeout_s: float | None = None,
) -> asyncio.BaseProtocol:
    """Begin to speak on a socket that is connected, and return the protocol. Closes the socket when it fails.

    Raises:
        OSError: TLS failed (``ssl.SSLError``), was broken off, or took too long (``ConnectionAbortedError``).
    """
    loop = asyncio.get_running_loop()
    arguments: dict[str, Any] = {"sock": sock}
    if tls is not None:
        arguments |= {"ssl": tls, "server_hostname": server_hostname, "ssl_handshake_timeout": handshake_timeout_s}
    try:
        try:
            import aiofastnet
        except ImportError:
            _, protocol = await loop.create_connection(factory, **arguments)
        else:
            _, protocol = await aiofastnet.create_connection(loop, factory, **arguments)
    except BaseException:
        sock.close()
        raise
    return protocol


async def serve(factory: Callable[[], asyncio.BaseProtocol], sock: socket.socket) -> asyncio.AbstractServer:
    """Accept connections on a bound socket."""
    loop = asyncio.get_running_loop()
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return await loop.create_unix_server(factory, sock=sock, backlog=1024)
    # Connections inherit it; aiofastnet sets it only on those that it opens. Without it, what follows the head of an
    # answer may wait for the client's delayed acknowledgement: 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        import aiofastnet
    except ImportError:
        return await loop.create_server(factory, sock=sock, backlog=1024)
    return await aiofastnet.create_server(loop, factory, sock=sock, backlog=1024)
