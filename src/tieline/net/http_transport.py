"""Requests to one server, whatever protocol its connections speak: what the app's channel and endpoints share."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tieline.errors import AppBroken, PeerRefused
from tieline.model import AnyBody, Headers, Reply
from tieline.net.dial import Dialler
from tieline.net.http1_client import Http1Client, Http1Pool, Unanswered
from tieline.net.http2_client import ClientExchange, Http2Client
from tieline.net.http2_pool import Http2Pool
from tieline.net.tunnel import Flow
from tieline.resiliency.again import IDEMPOTENT
from tieline.wire.http1.writer import BODYLESS_VERBS
from tieline.wire.http2.connection import connect_fields, request_fields


class Exchange(Protocol):
    """A request that is on its way."""

    answer: asyncio.Future[Reply]

    def cancel(self) -> None:
        """Whoever awaited the answer is gone."""


class Transport(Protocol):
    """Connections to one server, of one protocol. A request whose body is a ``Flow`` is a WebSocket handshake."""

    def begin(self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None) -> Exchange | None:
        """Send a request on a connection that is there; ``None`` if one must be opened first.

        Raises:
            ValueError: The request cannot be written safely; nothing was sent.
        """
        ...

    async def open(
        self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None, *, urgent: bool = False
    ) -> Exchange:
        """Open a connection, or wait for one, and send the request; an ``urgent`` one waits for no other to end.

        Raises:
            AppUnreachable, PeerUnreachable: There is none to be had.
            ValueError: As ``begin``.
        """
        ...

    def close(self) -> None:
        """Let go of idle connections."""
        ...


def may_go_again(error: Unanswered | PeerRefused, verb: bytes, body: AnyBody) -> bool:
    """Whether a request was certainly not processed, or was lost with a reused connection and does no harm twice."""
    if not isinstance(body, (bytes, Flow)):  # nothing of a tunnel has been read
        return False
    return isinstance(error, PeerRefused) or (error.again and verb in IDEMPOTENT)


class Http1Transport:
    """HTTP/1.1, with or without TLS."""

    def __init__(self, dialler: Dialler, *, host: bytes, max_head: int) -> None:
        self._dialler = dialler
        self._pool = Http1Pool(dialler.connect, host=host, max_head=max_head, secure=dialler.secure)

    def begin(
        self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None
    ) -> Http1Client | None:
        """See ``Transport``."""
        checked = verb not in IDEMPOTENT or not isinstance(body, bytes)
        connection = self._pool.idle(checked=checked)
        if connection is not None:
            self._send(connection, verb, target, headers, body, length)
        return connection

    async def open(
        self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None, *, urgent: bool = False
    ) -> Http1Client:
        """See ``Transport``."""
        try:
            connection = await self._pool.open(urgent=urgent)
        except OSError as error:
            raise self._dialler.explain(error) from error
        self._send(connection, verb, target, headers, body, length)
        return connection

    def _send(
        self, connection: Http1Client, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None
    ) -> None:
        try:
            connection.send(verb, target, headers, body, length)
        except ValueError:
            self._pool.give_back(connection, reusable=True)
            raise

    def close(self) -> None:
        """See ``Transport``."""
        self._pool.close()


class ProxiedTransport(Http1Transport):
    """HTTP/1.1 without TLS through a proxy, which is told the whole URL (RFC 9112 §3.2.2).

    The connections of ``dialler`` lead to the proxy, ``host`` is the server that is meant.
    """

    def __init__(self, dialler: Dialler, *, host: bytes, max_head: int) -> None:
        super().__init__(dialler, host=host, max_head=max_head)
        self._prefix = b"http://" + host
        authorization = dialler.proxy.authorization if dialler.proxy is not None else b""
        self._added: Headers = [(b"proxy-authorization", authorization)] if authorization else []

    def begin(
        self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None
    ) -> Http1Client | None:
        """See ``Transport``."""
        return super().begin(verb, self._prefix + target, headers + self._added, body, length)

    async def open(
        self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None, *, urgent: bool = False
    ) -> Http1Client:
        """See ``Transport``."""
        return await super().open(verb, self._prefix + target, headers + self._added, body, length, urgent=urgent)


class Http2Transport:
    """HTTP/2 with prior knowledge."""

    def __init__(self, address: str, port: int, authority: bytes) -> None:
        self._pool = Http2Pool(native=False)
        self._address = (address, port)
        self._authority = authority

    def _begin(
        self, connection: Http2Client, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None
    ) -> ClientExchange:
        if isinstance(body, Flow):
            if not connection.h2.peer_connect_protocol:
                raise _no_websocket()
            return connection.begin_request(connect_fields(target, self._authority, headers), body)
        if length or (length == 0 and verb not in BODYLESS_VERBS):
            headers = [*headers, (b"content-length", b"%d" % length)]
        return connection.begin_request(request_fields(verb, target, self._authority, headers), body)

    def begin(
        self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None
    ) -> ClientExchange | None:
        """See ``Transport``."""
        connection = self._pool.ready(self._address)
        if connection is None:
            return None
        return self._begin(connection, verb, target, headers, body, length)

    async def open(
        self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None, *, urgent: bool = False
    ) -> ClientExchange:
        """See ``Transport``."""
        connection = await self._pool.connection(*self._address)
        await connection.wait_turn()
        return self._begin(connection, verb, target, headers, body, length)

    def close(self) -> None:
        """See ``Transport``."""
        self._pool.close()


def http1_transport(dialler: Dialler, *, host: bytes, max_head: int) -> Http1Transport:
    """Return the transport for HTTP/1.1 over what ``dialler`` opens; ``host`` is the value of ``Host``."""
    kind = ProxiedTransport if dialler.proxy is not None and not dialler.secure else Http1Transport
    return kind(dialler, host=host, max_head=max_head)


def _no_websocket() -> AppBroken:
    error = AppBroken(
        "the app speaks HTTP/2, and does not say that it takes WebSockets over it (RFC 8441)",
        hint="let the app announce SETTINGS_ENABLE_CONNECT_PROTOCOL, or speak HTTP/1.1: --app-protocol http",
    )
    error.http_status = 501
    return error
