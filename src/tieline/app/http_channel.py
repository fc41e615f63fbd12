"""Calls to an app that speaks HTTP/1.1, HTTPS or cleartext HTTP/2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

from tieline import __version__
from tieline.app.channel import read_out
from tieline.app.from_rpc import as_http
from tieline.app.gunzip import unpack_unasked
from tieline.app.slots import HeldBody, Slots
from tieline.config.outbound_proxy import Proxy
from tieline.errors import (
    AppBroken,
    AppUnreachable,
    BadRequest,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    RequestBroken,
    TielineError,
    TooLarge,
)
from tieline.model import Cause, Headers, Hop, Invocation, Opened, Reply
from tieline.net.client_tls import trusting_context
from tieline.net.dial import Dialler
from tieline.net.http1_client import Unanswered
from tieline.net.http_transport import Exchange, Http2Transport, Transport, http1_transport, may_go_again
from tieline.wire import headers as fields
from tieline.wire.method_path import check_percent

MAX_ANSWER_HEAD: Final = 65536
"""Longest head of an answer, in bytes; more if the read buffer is larger (H-113)."""
_PERCENT: Final = 0x25
CONNECT_TIMEOUT_S: Final = 30.0
HANDSHAKE_TIMEOUT_S: Final = 10.0
_CLOSED_HINT: Final = "the app closed the connection without an answer: look into its log"
_NO_HTTP2_HINT: Final = "the app speaks no HTTP/2: start its sidecar with --app-protocol http"
_UNREACHABLE_HINT: Final = "start the app, or check --app-port and --app-channel-address"
PROBE_HEADERS: Final[Headers] = [(b"user-agent", f"tieline/{__version__}".encode()), (b"accept-encoding", b"identity")]
"""Of a health probe: enough to know it in an app's log."""


class HttpChannel:
    """The app behind one address.

    Attributes:
        unhealthy: Makes the error of a call while the app's health checks fail; ``None`` lets calls through.
    """

    def __init__(
        self,
        *,
        protocol: str,
        host: str,
        port: int,
        max_concurrency: int,
        read_buffer: int,
        token: str | None,
        proxy: Proxy | None = None,
    ) -> None:
        scheme = "https" if protocol == "https" else "http"
        self._base = f"{scheme}://{host}:{port}"
        self._token = (token or "").encode()
        self._slots = Slots(max_concurrency) if max_concurrency > 0 else None
        self.unhealthy: Callable[[], TielineError] | None = None
        address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        authority = f"{host}:{port}".encode()
        self._transport: Transport
        if protocol == "h2c":
            self._transport = Http2Transport(address, port, authority)
        else:
            secure = protocol == "https"
            dialler = Dialler(
                address,
                port,
                tls=trusting_context("http/1.1") if secure else None,
                proxy=proxy,
                connect_timeout_s=CONNECT_TIMEOUT_S,
                handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
            )
            self._transport = http1_transport(dialler, host=authority, max_head=max(MAX_ANSWER_HEAD, read_buffer))

    @property
    def slots(self) -> Slots | None:
        """Who may call now; ``None`` if there is no limit."""
        return self._slots

    @property
    def waiting(self) -> int | None:
        """Calls that wait for a slot; ``None`` if there is no limit (H-115)."""
        return None if self._slots is None else self._slots.waiting

    async def call(self, call: Invocation, identity: Headers) -> Reply:
        """See ``AppChannel``."""
        if self.unhealthy is not None:
            raise self.unhealthy()
        rpc = call.rpc
        if rpc is not None:
            call = as_http(call, rpc)
        encoded = call.encoded
        if _PERCENT in encoded:
            problem = check_percent(call.method, self._base, call.query)
            if problem is not None:
                raise BadRequest(problem, hint="write a literal percent sign as %25 followed by two hex digits")
        target = encoded if encoded.startswith(b"/") else b"/" + encoded
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
        exchange: Exchange | None = None
        try:
            exchange = self._transport.begin(call.verb, target, headers, call.body, call.length)
            if exchange is None:
                exchange = await self._transport.open(call.verb, target, headers, call.body, call.length)
            try:
                reply = await exchange.answer
            except (Unanswered, PeerRefused) as error:
                if not may_go_again(error, call.verb, call.body):
                    raise
                exchange = None
                exchange = await self._transport.open(call.verb, target, headers, call.body, call.length)
                reply = await exchange.answer
        except BaseException as error:
            if exchange is not None and isinstance(error, asyncio.CancelledError):
                exchange.cancel()
            if slots is not None:
                slots.release()
            explained = self._explained(error, call.verb, target)
            if explained is None or explained is error:
                raise
            raise explained from error
        record.app_s = perf_counter() - began
        reply.headers = kept = fields.from_app(reply.headers)
        for name, value in kept:
            if name == b"content-encoding" and value.lower() == b"gzip" and reply.status != 101:
                unpack_unasked(reply, call.verb, call.headers)
                break
        if slots is not None:
            if isinstance(reply.body, bytes):
                slots.release()
            elif isinstance(reply, Opened):
                reply.tunnel.when_over(slots.release)
            else:
                reply.body = HeldBody(reply.body, slots)
        return reply

    async def probe(self, target: bytes, timeout_s: float) -> int:
        """See ``health.Probed``: over the connections of calls, but past slots, token and health (H-118)."""
        status = 0
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._ask(target)
                status = reply.status
                await read_out(reply)
        except TimeoutError:
            if not status:
                text = f'Get "{self._base}{target.decode()}": context deadline exceeded'
                raise TielineError(text, cause=Cause.TIMEOUT, hop=Hop.APP) from None
        return status

    async def _ask(self, target: bytes) -> Reply:
        request = (b"GET", target, PROBE_HEADERS, b"", 0)
        exchange: Exchange | None = None
        try:
            exchange = self._transport.begin(*request)
            if exchange is None:
                exchange = await self._transport.open(*request, urgent=True)
            try:
                return await exchange.answer
            except (Unanswered, PeerRefused) as error:
                # Once more only if the app never saw it: it must not be asked twice, nor count as ill for nothing.
                if isinstance(error, Unanswered) and not error.again:
                    raise
                exchange = None
                exchange = await self._transport.open(*request, urgent=True)
                return await exchange.answer
        except BaseException as error:
            if exchange is not None and isinstance(error, asyncio.CancelledError):
                exchange.cancel()
            explained = self._explained(error, b"GET", target)
            if explained is None or explained is error:
                raise
            raise explained from error

    def _explained(self, error: BaseException, verb: bytes, target: bytes) -> TielineError | None:
        """Return the failure in the words of Go's HTTP client, which users and their tests know (H-85)."""
        if isinstance(error, ValueError):
            return BadRequest(f"a header cannot be sent to the app: {error}")
        if isinstance(error, (Unanswered, PeerLost)):
            failure: TielineError = AppBroken(error.text, hint=_CLOSED_HINT)
        elif isinstance(error, PeerUnreachable):
            hint = _NO_HTTP2_HINT if error.cause is Cause.PEER_PROTOCOL else error.hint
            failure = AppUnreachable(error.text, hint=hint)
        elif isinstance(error, (AppUnreachable, AppBroken, TooLarge, RequestBroken)):
            failure = error
        else:
            return None
        if isinstance(failure, AppUnreachable) and not failure.hint:
            failure.hint = _UNREACHABLE_HINT
        shown = f"{self._base}{target.decode('latin-1')}"
        failure.text = f'{verb.decode("latin-1").capitalize()} "{shown}": {failure.text}'
        return failure

    async def aclose(self) -> None:
        """See ``AppChannel``."""
        self._transport.close()
