"""HTTP/2 connections to servers: one a peer, another for each 2,048 calls in progress."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Hashable
from typing import Final

from tieline.errors import PeerUnreachable, TielineError
from tieline.model import Cause, Endpoint
from tieline.net.dial_text import reason_text, tls_text
from tieline.net.http2 import Upkeep
from tieline.net.http2_client import UPKEEP, Http2Client
from tieline.net.loop import connect
from tieline.net.tasks import spawn
from tieline.wire.http2 import Limits

CONNECT_WITHIN_S: Final = 5.0
"""For TCP and TLS; the server's SETTINGS have their own time."""
CALLS_A_CONNECTION: Final = 2048
"""Calls in progress on one connection before another is opened."""
CONNECTIONS_A_PEER: Final = 32
"""Then calls wait for a stream."""

Key = Hashable


class _Peer:
    """The connections to one peer."""

    __slots__ = ("connections", "dialling", "waiting")

    def __init__(self) -> None:
        self.connections: list[Http2Client] = []
        self.dialling: asyncio.Task[None] | None = None
        self.waiting: list[asyncio.Future[Http2Client]] = []


class Http2Pool:
    """Connections by peer.

    The key is the address **and** whom one means to reach there, so that a connection never serves two identities.

    Args:
        upkeep: How long connections are waited for, and kept.
        connect_within_s: For TCP and TLS.
        tls: Makes the TLS settings when the first connection is opened; ``None`` for none.
        more_when_full: Whether a server that allows fewer streams than there are calls gets further connections; else
            calls wait for a stream (G-6).
        keeps_last: Whether the only connection to a server stays open however long it is idle.
    """

    def __init__(
        self,
        *,
        native: bool,
        limits: Limits | None = None,
        upkeep: Upkeep = UPKEEP,
        connect_within_s: float = CONNECT_WITHIN_S,
        tls: Callable[[], ssl.SSLContext] | None = None,
        more_when_full: bool = True,
        keeps_last: bool = False,
    ) -> None:
        self._native = native
        self._limits = limits or Limits()
        self._upkeep = upkeep
        self._connect_within_s = connect_within_s
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._more_when_full = more_when_full
        self._keeps_last = keeps_last
        self._peers: dict[Key, _Peer] = {}

    @property
    def size(self) -> int:
        """How many connections are open."""
        return sum(len(peer.connections) for peer in self._peers.values())

    def ready(self, key: Key) -> Http2Client | None:
        """Return a connection that takes a call now, without waiting."""
        peer = self._peers.get(key)
        if peer is not None:
            for connection in peer.connections:
                if connection.h2.can_open and len(connection.h2.streams) < CALLS_A_CONNECTION and not connection.lost:
                    return connection
        return None

    async def connection(self, host: str, port: int, key: Key | None = None) -> Http2Client:
        """Return a connection, opening one if need be.

        Raises:
            PeerUnreachable: There is none to be had; nothing was sent.
        """
        key = key if key is not None else (host, port)
        while True:
            connection = self.ready(key)
            if connection is not None:
                return connection
            peer = self._peers.get(key)
            if peer is None:
                peer = self._peers[key] = _Peer()
            if peer.connections:
                least = min(peer.connections, key=lambda one: one.load)
                if len(peer.connections) >= CONNECTIONS_A_PEER or (
                    not self._more_when_full and least.load < CALLS_A_CONNECTION and least.usable
                ):
                    return least
            if peer.dialling is None:
                peer.dialling = spawn(self._dial(peer, key, host, port), name="dial")
            waiter: asyncio.Future[Http2Client] = asyncio.get_running_loop().create_future()
            peer.waiting.append(waiter)
            try:
                connection = await waiter
            finally:
                del waiter  # with an error it would hold this frame, which holds it
            # Of many that waited for it the first fill it: the rest go on to the next.
            if connection.load < CALLS_A_CONNECTION:
                return connection

    async def _dial(self, peer: _Peer, key: Key, host: str, port: int) -> None:
        def gone(connection: Http2Client) -> None:
            self._gone(key, connection)

        error: TielineError | None = None
        connection: Http2Client | None = None
        try:
            async with asyncio.timeout(self._connect_within_s):
                made = await connect(lambda: self._make(key, gone), host, port, tls=self._tls_settings())
            assert isinstance(made, Http2Client)
            await made.ready
            connection = made
        except PeerUnreachable as failure:
            error = PeerUnreachable(failure.text, Endpoint(host, port), hint=failure.hint)
            error.cause = failure.cause
        except OSError as failure:
            error = _unreachable(failure, Endpoint(host, port))
        except BaseException as failure:
            error = PeerUnreachable(f"connection error: {failure}", Endpoint(host, port))
            raise
        finally:
            peer.dialling = None
            waiting, peer.waiting = peer.waiting, []
            if connection is not None and connection.usable:
                peer.connections.append(connection)
            elif error is None:
                error = PeerUnreachable("the peer is shutting down", Endpoint(host, port))
            if not peer.connections:
                self._peers.pop(key, None)
            for waiter in waiting:
                if not waiter.done():
                    if error is None:
                        assert connection is not None
                        waiter.set_result(connection)
                    else:
                        waiter.set_exception(error)

    def _make(self, key: Key, gone: Callable[[Http2Client], None]) -> Http2Client:
        def is_spare(_: Http2Client) -> bool:
            peer = self._peers.get(key)
            # Those that are closing already do not count.
            return peer is None or sum(one.usable for one in peer.connections) > 1

        return Http2Client(
            limits=self._limits,
            native=self._native,
            on_gone=gone,
            upkeep=self._upkeep,
            is_spare=is_spare if self._keeps_last else None,
            holds_back=not self._more_when_full,
        )

    def _tls_settings(self) -> ssl.SSLContext | None:
        if self._tls is None and self._make_tls is not None:
            self._tls = self._make_tls()
        return self._tls

    def _gone(self, key: Key, connection: Http2Client) -> None:
        peer = self._peers.get(key)
        if peer is not None and connection in peer.connections:
            peer.connections.remove(connection)
            if not peer.connections and peer.dialling is None:
                del self._peers[key]

    def close(self) -> None:
        """Close all connections at once, those in use too: calls in progress are waited for before."""
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            if peer.dialling is not None:
                peer.dialling.cancel()
            for connection in list(peer.connections):
                connection.close()


def _unreachable(error: OSError, endpoint: Endpoint) -> PeerUnreachable:
    """Say in the words of gRPC's client why a connection could not be opened."""
    if isinstance(error, ssl.SSLError):
        failure = PeerUnreachable(
            f'connection error: desc = "transport: authentication handshake failed: {tls_text(error)}"', endpoint
        )
        failure.cause = Cause.PEER_TLS
        return failure
    text = f'connection error: desc = "transport: Error while dialing: dial tcp {endpoint}: {reason_text(error)}"'
    return PeerUnreachable(text, endpoint)
