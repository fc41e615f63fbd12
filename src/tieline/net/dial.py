"""The way to one server: its name, a socket, a proxy, and TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from tieline.config.outbound_proxy import Proxy
from tieline.errors import AppUnreachable
from tieline.model import Endpoint
from tieline.net.dial_text import HandshakeFailed, LeadsBack, NameUnknown, ProxyFailed, dial_text, explain
from tieline.net.loop import connect_on

NEXT_ADDRESS_S: Final = 0.3
"""How long one address of a name may be silent before the next is tried beside it (RFC 8305 §5)."""
MAX_PROXY_HEAD: Final = 16384
"""Longest answer of a proxy to CONNECT, in bytes."""

Factory: TypeAlias = Callable[[], asyncio.BaseProtocol]
LeadsBackCheck: TypeAlias = Callable[[socket.socket], bool]
TlsSource: TypeAlias = Callable[[], Awaitable[ssl.SSLContext]]
"""Gives the TLS settings when they are first needed; raises ``AppUnreachable`` if they cannot be used."""


class Dialler:
    """Opens connections to one server.

    Args:
        host: Name or address, an IPv6 one without brackets.
        tls: TLS settings, or what gives them when they are needed; ``None`` for plain TCP.
        proxy: Asked to connect (TLS, or ``asks_proxy``), or connected to in place of the server (plain).
        leads_back: Whether a socket that we connected leads to ourselves; then it is not used.
        asks_proxy: The proxy must not read what is sent, even though it is plain.
        connect_timeout_s: For names and TCP, and again for the proxy's answer.
        handshake_timeout_s: For TLS.

    Attributes:
        secure: Whether there is TLS.
        proxy: See above.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | TlsSource | None = None,
        proxy: Proxy | None = None,
        leads_back: LeadsBackCheck | None = None,
        asks_proxy: bool = False,
        connect_timeout_s: float,
        handshake_timeout_s: float = 10.0,
    ) -> None:
        self._place = Endpoint(host, port)
        self._tls = tls
        self.proxy = proxy
        self._leads_back = leads_back
        self._connect_timeout_s = connect_timeout_s
        self._handshake_timeout_s = handshake_timeout_s
        self.secure = tls is not None
        self._asks_proxy = asks_proxy or self.secure

    async def connect(self, factory: Factory) -> asyncio.BaseProtocol:
        """Open a connection and return its protocol.

        Raises:
            OSError: It could not be reached, or TLS failed.
            AppUnreachable: The TLS settings cannot be used.
        """
        tls = self._tls
        context = tls if tls is None or isinstance(tls, ssl.SSLContext) else await tls()
        sock = await self._reach()
        if context is None:
            return await connect_on(factory, sock)
        host, limit_s = self._place.host.rstrip("."), self._handshake_timeout_s
        try:
            return await connect_on(factory, sock, tls=context, server_hostname=host, handshake_timeout_s=limit_s)
        except ConnectionAbortedError as error:
            raise HandshakeFailed("net/http: TLS handshake timeout") from error
        except ConnectionResetError as error:
            raise HandshakeFailed("tls: the server closed the connection during the handshake") from error

    async def _reach(self) -> socket.socket:
        """Return a socket that leads to the server."""
        proxy = self.proxy
        if proxy is None:
            sock = await open_socket(self._place, self._connect_timeout_s)
            if self._leads_back is not None and self._leads_back(sock):
                sock.close()
                raise LeadsBack("connect: this is the sidecar's own API")
            return sock
        if proxy.problem:
            raise ProxyFailed(proxy.problem)
        there = Endpoint(proxy.host, proxy.port)
        try:
            sock = await open_socket(there, self._connect_timeout_s)
        except OSError as error:
            raise ProxyFailed(f"proxyconnect tcp: {dial_text(error, there)}") from error
        if self._asks_proxy:
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await _ask_for_tunnel(sock, self._place, proxy.authorization)
            except BaseException as error:
                sock.close()
                if isinstance(error, OSError) and not isinstance(error, ProxyFailed):
                    raise ProxyFailed(f"proxyconnect tcp: {dial_text(error, there)}") from error
                raise
        return sock

    def explain(self, error: OSError) -> AppUnreachable:
        """Say why ``connect`` failed, in words that users know."""
        return explain(error, self._place)


async def open_socket(place: Endpoint, timeout_s: float) -> socket.socket:
    """Connect to the first of a host's addresses that answers.

    Raises:
        NameUnknown: It has none.
        OSError: None of them could be reached; ``TimeoutError`` after ``timeout_s``.
    """
    async with asyncio.timeout(timeout_s):
        addresses = await _resolve(place)
        if len(addresses) == 1:
            return await _try(*addresses[0])
        return await _race(addresses)


async def _resolve(place: Endpoint) -> Sequence[tuple[int, Any]]:
    """Return the families and addresses of a host, those of its two families alternating."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        known = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        reason = "server misbehaving" if known else "no such host"
        raise NameUnknown(f"lookup {place.host}: {reason}") from error
    first = [(family, address) for family, _, _, _, address in found if family == found[0][0]]
    others = [(family, address) for family, _, _, _, address in found if family != found[0][0]]
    both = [pair for two in zip(first, others, strict=False) for pair in two]
    return both + first[len(others) :] + others[len(first) :]


async def _try(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(addresses: Sequence[tuple[int, Any]]) -> socket.socket:
    """Connect to one address after the other, not waiting long for a silent one (RFC 8305)."""
    won: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
    failures: list[OSError] = []

    async def run(family: int, address: Any) -> None:
        try:
            sock = await _try(family, address)
        except OSError as error:
            failures.append(error)
        else:
            if won.done():
                sock.close()
            else:
                won.set_result(sock)

    async def wait(timeout_s: float | None) -> None:
        await asyncio.wait(running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        running.difference_update([runner for runner in running if runner.done()])

    running: set[asyncio.Task[None]] = set()
    try:
        async with asyncio.TaskGroup() as group:
            for family, address in addresses:
                if won.done():
                    break
                running.add(group.create_task(run(family, address)))
                await wait(NEXT_ADDRESS_S)
            while running and not won.done():
                await wait(None)
            for runner in running:
                runner.cancel()
    except BaseException:
        if won.done():
            won.result().close()
        raise
    if won.done():
        return won.result()
    raise failures[0]


async def _ask_for_tunnel(sock: socket.socket, place: Endpoint, authorization: bytes) -> None:
    """Have a proxy connect us to a server (RFC 9110 §9.3.6)."""
    loop = asyncio.get_running_loop()
    authority = str(place).encode("ascii")
    request = b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n"
    if authorization:
        request += b"Proxy-Authorization: " + authorization + b"\r\n"
    await loop.sock_sendall(sock, request + b"\r\n")
    head = b""
    while (end := head.find(b"\r\n\r\n")) < 0:
        piece = await loop.sock_recv(sock, MAX_PROXY_HEAD)
        head += piece
        if not piece or len(head) > MAX_PROXY_HEAD:
            raise ProxyFailed("proxyconnect tcp: the proxy gave no answer that could be read")
    version, _, status = head[: head.find(b"\r\n")].partition(b" ")
    if not version.startswith(b"HTTP/1.") or not status[:3].isdigit():
        raise ProxyFailed("proxyconnect tcp: what answers there is no HTTP proxy")
    if not status.startswith(b"2"):
        shown = status[:80].decode("ascii", "replace")
        raise ProxyFailed(f"proxyconnect tcp: the proxy refused to connect to {place}: {shown}")
    if len(head) > end + 4:
        raise ProxyFailed("proxyconnect tcp: the proxy spoke in the server's place")
