"""Requests over TLS to a server that may speak HTTP/2: it says so in the handshake (ALPN)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from tieline.errors import AppUnreachable, PeerRefused, PeerUnreachable, TielineError
from tieline.model import AnyBody, Headers
from tieline.net.dial import Dialler
from tieline.net.http1_client import Http1Client, Http1Pool
from tieline.net.http2_client import ClientExchange, Http2Client
from tieline.net.http_transport import Exchange
from tieline.net.tasks import spawn
from tieline.resiliency.again import IDEMPOTENT
from tieline.wire.http1.writer import BODYLESS_VERBS
from tieline.wire.http2 import Limits
from tieline.wire.http2.connection import request_fields
from tieline.wire.http2.hpack import Fields

CONNECTIONS_MAX: Final = 16
"""HTTP/2 connections to one server; then calls wait for a stream."""
TRIES: Final = 3
"""Connections opened in vain for one request: each was gone before it could be used."""
# An endpoint's resource may set them, but HTTP/2 has no place for them (RFC 9113 §8.2.2).
_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"http2-settings", b"te"}
)


class SpeaksHttp2(Exception):
    """The server chose HTTP/2; the connection is among the transport's already."""


class _Choice(asyncio.Protocol):
    """Waits for the end of the handshake, and leaves the connection to the protocol that was chosen in it."""

    def __init__(self, http1: Callable[[], asyncio.BaseProtocol], http2: Callable[[], Http2Client]) -> None:
        self._http1 = http1
        self._http2 = http2
        self.chosen: asyncio.BaseProtocol | None = None

    def connection_made(self, transport: Any) -> None:
        said = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        self.chosen = chosen = self._http2() if said == "h2" else self._http1()
        transport.set_protocol(chosen)
        chosen.connection_made(transport)


class HttpsTransport:
    """HTTP/2 if the server offers it, else HTTP/1.1; see ``http_transport.Transport``.

    What it offers is learnt by the first connection: calls that come meanwhile wait for it, since they may all be
    carried by that one.
    """

    def __init__(self, dialler: Dialler, *, host: bytes, max_head: int) -> None:
        self._dialler = dialler
        self._host = host
        self._pool = Http1Pool(self._dial, host=host, max_head=max_head, secure=True)
        self._limits = Limits(header_list=max_head)
        self._connections: list[Http2Client] = []
        self._speaks_http1 = False
        self._learning: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._closed = False

    # ── requests ───────────────────────────────────────────────────────────────────────────────────
    def begin(self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None) -> Exchange | None:
        """See ``Transport``."""
        for connection in self._connections:
            if connection.h2.can_open and not connection.lost:
                return self._send(connection, verb, target, headers, body, length)
        if not self._speaks_http1:
            return None
        idle = self._pool.idle(checked=verb not in IDEMPOTENT or not isinstance(body, bytes))
        return None if idle is None else self._send_http1(idle, verb, target, headers, body, length)

    async def open(
        self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None, *, urgent: bool = False
    ) -> Exchange:
        """See ``Transport``."""
        failed = 0
        while failed < TRIES:
            before = len(self._connections)
            if self._speaks_http1:
                try:
                    connection = await self._pool.open(urgent=urgent)
                except SpeaksHttp2:
                    self._speaks_http1 = False  # it has changed its mind
                except OSError as error:
                    raise self._dialler.explain(error) from error
                else:
                    return self._send_http1(connection, verb, target, headers, body, length)
            elif before >= CONNECTIONS_MAX:
                least = min(self._connections, key=lambda one: one.load)
                try:
                    await least.wait_turn()
                except PeerRefused:
                    pass  # it goes, and another may take the call
                else:
                    return self._send(least, verb, target, headers, body, length)
            else:
                await self._learn()
            exchange = self.begin(verb, target, headers, body, length)
            if exchange is not None:
                return exchange
            # One more connection whose streams others took already is no failure.
            failed += len(self._connections) <= before
        raise AppUnreachable("http2: the server closes each connection before it can be used")

    def _send_http1(
        self, connection: Http1Client, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None
    ) -> Http1Client:
        try:
            connection.send(verb, target, headers, body, length)
        except ValueError:
            self._pool.give_back(connection, reusable=True)
            raise
        return connection

    def _send(
        self, connection: Http2Client, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None
    ) -> ClientExchange:
        exchange = connection.begin_request(self._fields(verb, target, headers, length), body)
        if self._closed:
            connection.leave()
        return exchange

    def _fields(self, verb: bytes, target: bytes, headers: Headers, length: int | None) -> Fields:
        kept = [field for field in headers if field[0] not in _CONNECTION_SPECIFIC]
        if length or (length == 0 and verb not in BODYLESS_VERBS):
            kept.append((b"content-length", b"%d" % length))
        return request_fields(verb, target, self._host, kept, scheme=b"https")

    # ── connections ────────────────────────────────────────────────────────────────────────────────
    async def _dial(self, http1: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseProtocol:
        """Open a connection, whatever it will speak.

        Raises:
            SpeaksHttp2: It is none for the pool.
        """
        choice = await self._dialler.connect(lambda: _Choice(http1, self._new_http2))
        assert isinstance(choice, _Choice)
        chosen = choice.chosen
        assert chosen is not None
        if not isinstance(chosen, Http2Client):
            return chosen
        try:
            await chosen.ready
        except BaseException:
            chosen.abort()
            raise
        if chosen.usable:
            self._connections.append(chosen)
        raise SpeaksHttp2

    def _new_http2(self) -> Http2Client:
        return Http2Client(limits=self._limits, native=False, on_gone=self._gone)

    def _gone(self, connection: Http2Client) -> None:
        if connection in self._connections:
            self._connections.remove(connection)

    async def _learn(self) -> None:
        """Open a connection that all who wait may use; one at a time, and no caller's going away ends it.

        Raises:
            AppUnreachable, PeerUnreachable: It cannot be opened.
        """
        if self._learning is None:
            self._learning = spawn(self._open_first(), name="dial")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    async def _open_first(self) -> None:
        error: TielineError | None = None
        try:
            connection = await self._pool.open()
            self._speaks_http1 = True
            assert isinstance(connection, Http1Client)
            self._pool.give_back(connection, reusable=not connection.gone)
        except SpeaksHttp2:
            pass
        except OSError as failure:
            error = self._dialler.explain(failure)
        except (PeerUnreachable, AppUnreachable) as failure:
            error = failure
        except BaseException:
            error = AppUnreachable("the connection was given up")
            raise
        finally:
            self._learning = None
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    if error is None:
                        waiter.set_result(None)
                    else:
                        waiter.set_exception(error)
            if self._closed:
                # For those who waited, and had their turn by then; for nobody, if they are gone.
                asyncio.get_running_loop().call_soon(self.close)

    def close(self) -> None:
        """Let go of idle connections; those in use close after their last call."""
        self._closed = True
        self._pool.close()
        for connection in list(self._connections):
            connection.leave()
