"""Calls to an app that speaks HTTP/1.1, HTTPS or cleartext HTTP/2."""

from __future__ import annotations

import asyncio
import ssl
from time import perf_counter
from typing import Final, Protocol

from tieline.app.gunzip import unpack_unasked
from tieline.app.slots import HeldBody, Slots
from tieline.errors import (
    AppBroken,
    AppUnreachable,
    BadRequest,
    PeerLost,
    PeerUnreachable,
    TooLarge,
)
from tieline.model import AnyBody, Headers, Invocation, Reply
from tieline.net.dial import dial_text
from tieline.net.http1_client import Http1Pool, Unanswered
from tieline.net.http2_pool import Http2Pool
from tieline.resiliency.again import IDEMPOTENT
from tieline.wire import headers as fields
from tieline.wire.http2.connection import pseudo_request
from tieline.wire.method_path import app_path, check_percent

MAX_ANSWER_HEAD: Final = 65536
"""Longest head of an answer, in bytes; more if the read buffer is larger (H-113)."""
CONNECT_TIMEOUT_S: Final = 30.0
TLS_CONNECT_TIMEOUT_S: Final = 40.0
"""Connect (30 s) and handshake (10 s) together."""


class Transport(Protocol):
    """Sends one request to the app. Raises as ``AppChannel.call`` does, with texts that need ``Post "url": ``."""

    async def send(self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None) -> Reply: ...
    def close(self) -> None: ...


class HttpChannel:
    """The app behind one address."""

    def __init__(
        self,
        *,
        protocol: str,
        host: str,
        port: int,
        max_concurrency: int,
        read_buffer: int,
        token: str | None,
    ) -> None:
        scheme = "https" if protocol == "https" else "http"
        self._base = f"{scheme}://{host}:{port}"
        self._token = (token or "").encode()
        self._slots = Slots(max_concurrency) if max_concurrency > 0 else None
        address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        authority = f"{host}:{port}".encode()
        self._transport: Transport
        if protocol == "h2c":
            self._transport = _Http2Transport(address, port, authority)
        else:
            self._transport = _Http1Transport(
                Http1Pool(
                    address,
                    port,
                    host=authority,
                    max_head=max(MAX_ANSWER_HEAD, read_buffer),
                    tls=_trusting_context() if protocol == "https" else None,
                    connect_timeout_s=TLS_CONNECT_TIMEOUT_S if protocol == "https" else CONNECT_TIMEOUT_S,
                ),
                f"{address}:{port}" if ":" not in address else f"[{address}]:{port}",
            )

    async def call(self, call: Invocation, identity: Headers) -> Reply:
        """See ``AppChannel``."""
        problem = check_percent(call.method, self._base, call.query)
        if problem is not None:
            raise BadRequest(problem, hint="write a literal percent sign in a path as %25 followed by two hex digits")
        target = app_path(call.method)
        if call.query:
            target += b"?" + call.query
        headers = fields.to_app(call.headers, identity, app_token=self._token)
        record = call.record
        slots = self._slots
        if slots is not None:
            waited_from = perf_counter()
            await slots.acquire()
            record.waited_s = perf_counter() - waited_from
        began = perf_counter()
        try:
            reply = await self._transport.send(call.verb, target, headers, call.body, call.length)
        except BaseException as error:
            if slots is not None:
                slots.release()
            if isinstance(error, (AppUnreachable, AppBroken, TooLarge)):
                error.text = self._explain(call.verb, target, error.text)
            raise
        record.app_s = perf_counter() - began
        reply.headers = fields.from_app(reply.headers)
        unpack_unasked(reply, call.verb, call.headers)
        if slots is not None:
            if isinstance(reply.body, bytes):
                slots.release()
            else:
                reply.body = HeldBody(reply.body, slots)
        return reply

    def _explain(self, verb: bytes, target: bytes, text: str) -> str:
        """Say it as Go's HTTP client does, which users and their tests know (H-85)."""
        return f'{verb.decode("latin-1").capitalize()} "{self._base}{target.decode("latin-1")}": {text}'

    async def aclose(self) -> None:
        """See ``AppChannel``."""
        self._transport.close()


class _Http1Transport:
    """HTTP/1.1, with or without TLS."""

    def __init__(self, pool: Http1Pool, shown: str) -> None:
        self._pool = pool
        self._shown = shown

    async def send(self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None) -> Reply:
        again = verb in IDEMPOTENT and isinstance(body, bytes)
        while True:
            connection = self._pool.idle(checked=not again)
            if connection is None:
                try:
                    connection = await self._pool.open()
                except OSError as error:
                    raise _unreachable(error, self._shown) from error
            try:
                answer = connection.send(verb, target, headers, body, length)
            except ValueError as error:
                self._pool.give_back(connection, reusable=True)
                raise BadRequest(f"a header cannot be sent to the app: {error}") from error
            try:
                return await answer
            except Unanswered as error:
                if again and error.again:
                    again = False
                    continue
                raise AppBroken(error.text, hint=_CLOSED_HINT) from error
            except asyncio.CancelledError:
                connection.cancel()
                raise

    def close(self) -> None:
        self._pool.close()


_CLOSED_HINT: Final = "the app closed the connection without an answer: look into its log"


class _Http2Transport:
    """HTTP/2 with prior knowledge."""

    def __init__(self, address: str, port: int, authority: bytes) -> None:
        self._pool = Http2Pool(native=False)
        self._address = (address, port)
        self._authority = authority

    async def send(self, verb: bytes, target: bytes, headers: Headers, body: AnyBody, length: int | None) -> Reply:
        try:
            connection = await self._pool.connection(*self._address)
            if length or (length == 0 and verb not in (b"GET", b"HEAD", b"DELETE", b"OPTIONS")):
                headers = [*headers, (b"content-length", b"%d" % length)]
            reply = await connection.request(pseudo_request(verb, target, self._authority), headers, body)
        except PeerUnreachable as error:
            raise AppUnreachable(error.text, hint=error.hint) from error
        except PeerLost as error:
            raise AppBroken(error.text, hint=_CLOSED_HINT) from error
        return reply

    def close(self) -> None:
        self._pool.close()


def _unreachable(error: OSError, shown: str) -> AppUnreachable:
    hint = "start the app, or check --app-port and --app-channel-address"
    return AppUnreachable(f"dial tcp {shown}: {dial_text(error)}", hint=hint)


def _trusting_context() -> ssl.SSLContext:
    """An app behind ``https`` is our own: its certificate is not checked (H-111)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
