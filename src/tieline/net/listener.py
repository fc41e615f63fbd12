"""Bound sockets, and the connections that came in through them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol

from tieline.net.descriptors import ListeningSocket
from tieline.net.loop import serve

BIND_WITHIN_S: Final = 10.0
"""How long a busy address is tried (H-1)."""
BIND_PAUSES_S: Final = (0.1, 0.2, 0.4)
"""First pauses between tries; later ones are ``BIND_PAUSE_MAX_S``."""
BIND_PAUSE_MAX_S: Final = 0.5
BACKLOG: Final = 1024
_MAPPED: Final = "::ffff:"
"""Before an IPv4 address that is written as one of IPv6."""
PROBE_AFTER_S: Final = 15
"""Silence after which the kernel asks whether the other host is still there, and then again."""
PROBES: Final = 9
"""Unanswered ones end the connection: one whose other end was switched off would else be kept for ever."""


class Connection(Protocol):
    """A connection that a listener accepted."""

    @property
    def in_progress(self) -> int:
        """How many calls it has in progress."""
        ...

    def drain(self) -> None:
        """Take no new calls, and close when those in progress are over."""

    def abort(self) -> None:
        """Drop the socket."""


class Members(set[Any]):
    """The open connections of a listener; tells when the last is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.draining = False
        """A connection that comes all the same, having been accepted just before, is drained like the others."""
        self._empty: asyncio.Future[None] | None = None

    def add(self, connection: Any) -> None:
        super().add(connection)
        if self.draining:
            asyncio.get_running_loop().call_soon(connection.drain)

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        if not self and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    async def wait_empty(self) -> None:
        """Return when no connection is open."""
        if self:
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty


class Listener:
    """Some addresses, one kind of connection.

    Attributes:
        port: The port that is bound, once there is one.
        failure: Why the last address that could not be bound could not; ``None`` if all were.
        members: Connections that are open.
    """

    def __init__(self, name: str, log: logging.Logger) -> None:
        self._name = name
        self._log = log
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.AbstractServer] = []
        self._files: list[Path] = []
        self._bound: list[tuple[str, int]] = []
        self.port = 0
        self.failure: Exception | None = None
        self.members = Members()

    @property
    def in_progress(self) -> int:
        """How many calls its connections have in progress."""
        return sum(connection.in_progress for connection in self.members)

    @property
    def where(self) -> str:
        """The Unix domain sockets that are bound."""
        return ", ".join(map(str, self._files))

    def bind_now(self, address: str, port: int) -> None:
        """Bind one address, at once or not at all.

        Raises:
            OSError: It is taken, or none of this host's.
        """
        for family, host in _families(address):
            # The protocol is named, since event loops turn off Nagle's algorithm only where it is.
            sock = ListeningSocket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                _probe_silence(sock)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
                sock.bind((host, port))
                sock.listen(BACKLOG)
                sock.setblocking(False)
            except OSError:
                sock.close()
                if host == "::":
                    continue  # a host without IPv6: all its IPv4 addresses instead
                raise
            self._sockets.append(sock)
            host, self.port = sock.getsockname()[:2]
            self._bound.append((host, self.port))
            return
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    def bind_unix(self, path: Path) -> None:
        """Bind a Unix domain socket; a file that a dead process left there is removed (H-2).

        Raises:
            OSError: Somebody listens there, or the folder cannot be used.
        """
        if path.is_socket() and not _answers(path):
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        self._sockets.append(sock)
        self._files.append(path)

    async def bind(
        self, addresses: Sequence[str], port: int, *, optional: Sequence[str] = (), within_s: float = BIND_WITHIN_S
    ) -> bool:
        """Bind all addresses, trying busy ones for a while; return whether any that is not optional was bound (H-1).

        Args:
            addresses: Hosts; IPv6 in brackets, empty for all interfaces.
            port: 0 for any free one, which then holds for all addresses.
            optional: Those whose failure is not worth a line, and which alone are not worth a start.
            within_s: How long busy ones are tried; once that is over, those that are left are tried once each.
        """
        bound = False
        end = asyncio.get_running_loop().time() + within_s
        for address in addresses:
            try:
                await self._bind_patiently(address, self.port or port, end)
                bound = bound or address not in optional
            except (OSError, OverflowError) as error:
                self.failure = error
                shown = f"{address}:{port}"
                level = logging.DEBUG if address in optional else logging.ERROR
                reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
                self._log.log(
                    level,
                    "Failed to listen for %s server on TCP address %s with error: listen tcp %s: bind: %s",
                    self._name, shown, shown, reason,
                )  # fmt: skip
        return bound

    async def _bind_patiently(self, address: str, port: int, end: float) -> None:
        if not 0 <= port <= 65535:
            raise OverflowError("invalid port")
        loop = asyncio.get_running_loop()
        pauses = iter(BIND_PAUSES_S)
        told = False
        while True:
            try:
                self.bind_now(address, port)
                return
            except OSError as error:
                pause = next(pauses, BIND_PAUSE_MAX_S)
                if error.errno != errno.EADDRINUSE or loop.time() + pause > end:
                    raise
            if not told:
                told = True
                self._log.warning(
                    "%s server: %s:%d is taken by another program; trying again for %.0f s",
                    self._name, address, port, end - loop.time(),
                )  # fmt: skip
            await asyncio.sleep(pause)

    def is_behind(self, sock: socket.socket) -> bool:
        """Whether a connection that this process opened leads here. What reaches us by a detour cannot be told."""
        try:
            host, port = sock.getpeername()[:2]
            own = sock.getsockname()[0].removeprefix(_MAPPED)
        except OSError:
            return False
        host = host.removeprefix(_MAPPED)
        everything = ("::",) if ":" in host else ("0.0.0.0", "::")
        return any(
            port == bound_port
            and (host == bound_host or (bound_host in everything and (host == own or ip_address(host).is_loopback)))
            for bound_host, bound_port in self._bound
        )

    async def accept(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Begin to accept connections."""
        self._servers = [await serve(factory, sock) for sock in self._sockets]
        self._sockets = []

    def stop_accepting(self) -> None:
        """Close the listening sockets; open connections stay."""
        for server in self._servers:
            server.close()
        self._servers = []
        for sock in self._sockets:
            sock.close()
        self._sockets = []
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files = []

    def hand_over(self, handler: object, taker: object = None) -> None:
        """Let others answer what open connections ask from now on; calls in progress go on as they began.

        ``taker``: See ``net.http2_server.Taker``; ``None`` leaves it as it is.
        """
        for connection in self.members:
            connection.handler = handler
            if taker is not None:
                connection.taker = taker

    async def drain(self) -> None:
        """Accept nothing more, and return when all connections are closed, each after its calls in progress."""
        self.stop_accepting()
        self.members.draining = True
        for connection in list(self.members):
            connection.drain()
        await self.members.wait_empty()

    def abort(self) -> None:
        """Drop everything."""
        self.stop_accepting()
        for connection in list(self.members):
            connection.abort()


def _probe_silence(sock: socket.socket) -> None:
    """Have the connections that the socket accepts probed; they inherit it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", PROBE_AFTER_S), ("TCP_KEEPINTVL", PROBE_AFTER_S), ("TCP_KEEPCNT", PROBES)):
        option = getattr(socket, name, None)  # not every system lets them be set
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _families(address: str) -> list[tuple[socket.AddressFamily, str]]:
    if not address:
        return [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]
    host = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    if ":" in host:
        return [(socket.AF_INET6, host)]
    return [(socket.AF_INET, host)]
