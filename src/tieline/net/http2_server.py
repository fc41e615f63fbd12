"""The serving end of HTTP/2: each request becomes a task that answers it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

from tieline.errors import Cancelled, TielineError, untrace
from tieline.model import AnyBody, Cause, Headers, Hop, Opened, Reply, Request, Shape
from tieline.net.http2 import Exchange, Http2Protocol, Upkeep
from tieline.net.tunnel import Flow, drain
from tieline.wire.errors_text import explained
from tieline.wire.grpc.timeout import BadTimeout, Timeout, parse_timeout
from tieline.wire.http2 import ErrorCode, Limits, Stream
from tieline.wire.http2.hpack import Repeated
from tieline.wire.http2.messages import join_cookies
from tieline.wire.websocket import PROTOCOL, VERSION, BadHandshake, check_version, without_handshake

log = logging.getLogger("dapr.runtime.http")

Handler = Callable[[Request], Awaitable[Reply]]
"""Answers a request. Errors become replies inside; only cancellation comes out."""


class Taker(Protocol):
    """Takes requests over. Who does makes itself the stream's handler before it returns, or has answered."""

    def take(self, connection: Http2Server, stream: Stream, request: Request, end: bool) -> bool:
        """Take a request over, or return False to have it answered by a ``Handler``.

        It may leave a plan with ``connection.h2.repeated`` for others that say just so.

        Args:
            connection: The client's.
            stream: The client's.
            request: Without its body.
            end: It has none.
        """
        ...

    def repeat(self, connection: Http2Server, stream: Stream, plan: Any, tail: bytes, timeout: Timeout | None) -> bool:
        """Take over a request that ``take`` left a plan for, or return False to have it brought to ``take``.

        ``tail`` is the trace context that stood behind it (see ``hpack.trace_literals``), empty if there was none;
        ``timeout`` what was not in all such requests alike.
        """
        ...


SETTINGS_WITHIN_S: Final = 2.0
"""How long a peer may take to send its SETTINGS (H-4)."""
UNWANTED_BYTES: Final = 4 << 20
"""What is taken of a request's body, and dropped, after its answer is complete; then the stream is reset."""
UNWANTED_WITHIN_S: Final = 1.0
"""How long that may take."""
DRAIN_NOTICE_S: Final = 0.05
"""Between asking the peer to open no new streams and refusing those it opens all the same."""


class _Untaken(NamedTuple):
    """The plan for requests that a taker did not want: what one of them says, ``headers`` being all but a time-out."""

    taker: Taker | None
    like: Request
    headers: Headers
    shape: Shape


class ServerExchange(Exchange):
    """A request and the task that answers it."""

    task: asyncio.Task[None] | None = None
    answered: bool = False
    """Whether the head of the answer has been written."""
    tunnels: bool = False
    """It became an end of a tunnel."""
    connection: Http2Server
    dropped: int | None = None
    """Bytes that came after the answer was complete; ``None`` before."""

    def __init__(self, connection: Http2Server, stream: Stream, request: Request) -> None:
        self.connection = connection
        self.stream = stream
        self.request = request

    def body_consumed(self, size: int) -> None:
        super().body_consumed(size)
        if self.dropped is not None:
            self.dropped += size
            if self.dropped > UNWANTED_BYTES:
                self.stop()

    def body_abandoned(self) -> None:
        """What still comes is dropped: a reset now would cost the client its answer."""
        if self.tunnels:
            self.connection.drop_rest(self)

    def body_wanted(self) -> None:
        awaited = any(name == b"expect" and value.lower() == b"100-continue" for name, value in self.request.headers)
        if awaited and not self.answered:
            self.connection.h2.send_response(self.stream, 100, [], end=False)
            self.connection.kick()

    def stop(self) -> None:
        """Have the client send no more of a request that was answered (RFC 9113 §8.1)."""
        if self.stream.pending is None and self.stream.closed & 1:
            self.cut(ErrorCode.NO_ERROR)


class Http2Server(Http2Protocol):
    """One connection that a peer or a client opened.

    ``members`` is the listener's set of its connections; this one is in it while its socket is open. ``handler`` and
    ``taker`` may be replaced while it is.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits,
        native: bool,
        members: set[Any],
        max_body: int | None = None,
        taker: Taker | None = None,
        upkeep: Upkeep | None = None,
    ) -> None:
        super().__init__(client=False, limits=limits, native=native, max_body=max_body, upkeep=upkeep)
        self.handler = handler
        self.taker = taker
        self.h2.recognises = taker is not None and not native
        self._members = members
        self._opened = 0
        self._greeted = False
        self._drain_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._members.add(self)
        self._timer = self._loop.call_later(SETTINGS_WITHIN_S, self._no_settings)

    def _no_settings(self) -> None:
        if not self.h2.got_settings:
            self.h2.close(ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS")
            self.kick()

    def on_settings(self) -> None:
        if not self._greeted:
            self._greeted = True
            self.begin_upkeep()

    def is_spare(self, now: float, upkeep: Upkeep) -> bool:
        opened = self.h2.opened
        if self.h2.streams or opened != self._opened:
            self._opened = opened
            self._last_used = now
        return now - self._last_used >= upkeep.idle_s

    def retire(self) -> None:
        self.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self._members.discard(self)
        for timer in (self._timer, self._drain_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        return False

    # ── requests ───────────────────────────────────────────────────────────────────────────────────
    def on_request(self, stream: Stream, request: Request, end: bool) -> None:
        native = self.h2.peer_native
        if native:
            request.native = native
        if self.taker is not None and self.taker.take(self, stream, request, end):
            return
        repeated = self.h2.repeated
        if repeated is not None and not end and request.verb == b"POST" and request.length is None:
            headers = request.headers
            if not repeated.has_timeout:
                headers = [field for field in headers if field[0] != b"grpc-timeout"]
            repeated.plan = _Untaken(self.taker, request, headers, Shape())
        if not native:
            # Between Tielines the fields are an HTTP/1.1 request's, line for line; from others they are HTTP/2's.
            request.headers = join_cookies(request.headers)
        exchange = stream.handler = ServerExchange(self, stream, request)
        if end:
            self.begin(exchange, b"")
        elif request.protocol == PROTOCOL:
            self._begin_handshake(exchange, request)
        else:
            exchange.pieces = []
            self._fresh.append(exchange)

    def on_repeated(self, stream: Stream, known: Repeated, tail: bytes, timeout: bytes, end: bool) -> bool:
        plan = known.plan
        if type(plan) is not _Untaken:
            if self.taker is None:
                return False
            within = None
            if timeout:
                try:
                    within = (timeout, parse_timeout(timeout))
                except BadTimeout:
                    return False
            return self.taker.repeat(self, stream, plan, tail, within)
        if tail or plan.taker is not self.taker:
            return False
        like = plan.like
        headers = plan.headers.copy()
        if timeout:
            headers.append((b"grpc-timeout", timeout))
        request = Request(
            b"POST", like.path, like.query, headers, b"", None, like.authority, like.protocol, like.native,
            None if timeout else plan.shape,
        )  # fmt: skip
        exchange = stream.handler = ServerExchange(self, stream, request)
        exchange.pieces = []
        self._fresh.append(exchange)
        return True

    def _begin_handshake(self, exchange: ServerExchange, request: Request) -> None:
        """Begin the call that may become a tunnel; its body is what the client will send."""
        try:
            check_version(request.headers, needed=False)
        except BadHandshake:
            self.h2.send_response(exchange.stream, 400, [(b"sec-websocket-version", VERSION)], end=True)
            self.h2.reset(exchange.stream, ErrorCode.NO_ERROR)
            return
        request.headers = without_handshake(request.headers)
        request.length = 0
        exchange.body = flow = Flow(exchange)
        self.begin(exchange, flow)

    def serve_upgraded(self, settings_payload: bytes, request: Request) -> None:
        """Answer on stream 1 the request that asked for the upgrade; call before ``connection_made``."""
        stream = self.h2.accept_upgrade(settings_payload)
        exchange = stream.handler = ServerExchange(self, stream, request)
        self.begin(exchange, request.body)

    def begin(self, exchange: ServerExchange, body: AnyBody) -> None:
        exchange.request.body = body
        exchange.task = self._loop.create_task(self._serve(exchange))

    async def _serve(self, exchange: ServerExchange) -> None:
        stream = exchange.stream
        h2 = self.h2
        try:
            reply = await self.handler(exchange.request)
            body = reply.body
            exchange.answered = True
            bodiless = exchange.request.verb == b"HEAD" or reply.status in (204, 304)
            if bodiless and not isinstance(body, bytes):
                body.abandon()
            if bodiless or (isinstance(body, bytes) and not body and not reply.trailers):
                h2.send_response(stream, reply.status, reply.headers, end=True)
                self.kick()
            elif isinstance(body, bytes):
                if reply.trailers:
                    h2.send_answer(stream, reply.status, reply.headers, body, reply.trailers)
                else:
                    h2.send_response(stream, reply.status, reply.headers, end=False)
                    h2.send_data(stream, body, end=True)
                self.kick()
            elif isinstance(reply, Opened):
                self._become_tunnel(exchange, reply)
            else:
                await self._stream_reply(exchange, reply)
        except asyncio.CancelledError:
            exchange.cut(ErrorCode.CANCEL)
            raise
        except Exception:
            log.exception("a handler failed")
            exchange.cut(ErrorCode.INTERNAL_ERROR)
        finally:
            exchange.task = None  # a task that was cancelled holds its frames, and they the exchange
            if exchange.tunnels:
                pass
            elif not stream.closed & 2:
                self.drop_rest(exchange)
            else:
                if exchange.body is not None:
                    # All of it came; what of it was not read would count against the other calls for good.
                    exchange.body.abandon()
                if stream.closed == 3:
                    stream.handler = None  # as in ``end``

    async def _stream_reply(self, exchange: ServerExchange, reply: Reply) -> None:
        body = reply.body
        assert not isinstance(body, bytes)
        try:
            self.h2.send_response(exchange.stream, reply.status, reply.headers, end=False)
            self.kick()
            await exchange.send_body(body)
        except TielineError as error:
            # The answer broke off after its head: the only honest sign left is a reset.
            untrace(error)
            exchange.cut(ErrorCode.INTERNAL_ERROR)
        finally:
            body.abandon()

    def _become_tunnel(self, exchange: ServerExchange, reply: Opened) -> None:
        """Let the flows run: from here on the stream is an end of a tunnel."""
        down = reply.body
        assert isinstance(down, Flow)
        exchange.tunnels = True
        self.h2.send_response(exchange.stream, 200, reply.headers, end=False)
        self.kick()
        if exchange.stream.closed & 1:
            down.abandon()
            return
        down.pipe(exchange)
        if self._drain_timer is not None:
            drain(down)

    def drop_rest(self, exchange: ServerExchange) -> None:
        """Take what still comes of a request whose answer is complete, within bounds.

        Some clients (the JDK's, httpx) look at the answer only after they have sent all: cut off at once, they would
        wait for leave to send until they time out.
        """
        exchange.dropped = 0
        if exchange.body is not None:
            exchange.body.abandon()
        self._loop.call_later(UNWANTED_WITHIN_S, exchange.stop)

    def on_reset(self, stream: Stream, code: int, *, local: bool, unprocessed: bool) -> None:
        handler = stream.handler
        if handler is not None and handler.relays:
            handler.on_reset(code, local=local, unprocessed=unprocessed)
        elif handler is not None:
            self.cut_off(handler, Cancelled("context canceled"))
        if self.h2.draining:
            self.kick()

    def cut_off(self, exchange: ServerExchange, error: TielineError) -> None:
        super().cut_off(exchange, Cancelled("context canceled"))
        if exchange.task is not None and not exchange.task.done():
            exchange.task.cancel()

    def on_writable(self, stream: Stream) -> None:
        super().on_writable(stream)
        exchange = stream.handler
        if stream.closed == 3 and exchange is not None and not exchange.relays:
            stream.handler = None  # as in ``end``

    def on_head_too_large(self, stream: Stream) -> None:
        why = explained(Cause.TOO_LARGE, Hop.CALLER, "send less, or start the sidecar with --read-buffer-size")
        self.h2.send_response(stream, 431, [(b"content-type", b"text/plain; charset=utf-8"), *why], end=False)
        self.h2.send_data(stream, b"431 Request Header Fields Too Large", end=True)
        self.h2.reset(stream, ErrorCode.NO_ERROR)

    def on_response(self, stream: Stream, status: int, headers: object, end: bool) -> None:
        raise AssertionError("a server hears no responses")

    # ── leaving ────────────────────────────────────────────────────────────────────────────────────
    @property
    def busy(self) -> bool:
        """Whether a call is still in progress."""
        return bool(self.h2.streams)

    @property
    def in_progress(self) -> int:
        """How many calls are."""
        return len(self.h2.streams)

    def drain(self) -> None:
        """Take no new calls; the connection closes when those in progress are over."""
        if self._drain_timer is None and not self.lost:
            self.h2.announce_drain()
            self.kick()
            self._drain_timer = self._loop.call_later(DRAIN_NOTICE_S, self._refuse)
            for stream in list(self.h2.streams.values()):
                exchange = stream.handler
                if exchange is not None and exchange.tunnels:
                    drain(exchange.feeder, exchange.body)

    def _refuse(self) -> None:
        self.h2.drain()
        self.kick()
