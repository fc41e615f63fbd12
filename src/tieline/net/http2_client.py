"""The calling end of HTTP/2: requests on one multiplexed connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from tieline.errors import AppBroken, Cancelled, PeerLost, PeerRefused, PeerUnreachable, TielineError
from tieline.model import AnyBody, Cause, Headers, Reply, Request
from tieline.net.dial_text import tls_text
from tieline.net.http2 import Exchange, Http2Protocol, Upkeep
from tieline.net.tasks import spawn
from tieline.net.tunnel import Flow, opened
from tieline.wire.http2 import ErrorCode, Limits, Stream
from tieline.wire.http2.frames import code_name
from tieline.wire.http2.hpack import Fields, Likely, Repeated
from tieline.wire.websocket import without_handshake

log = logging.getLogger("dapr.runtime")


UPKEEP: Final = Upkeep()
HOLD_BACK_S: Final = 0.02
"""How long a server is asked for no more streams after it refused one."""
_NO_HTTP2_HINT: Final = "another program has the port of the sidecar that was known there"


class ClientExchange(Exchange):
    """A request whose answer somebody awaits."""

    reply: Reply
    """The answer, once its head is there; its body follows."""
    up: Flow | None = None
    """Of a WebSocket handshake in progress: what its client will send."""

    def __init__(self, connection: Http2Client, stream: Stream, answer: asyncio.Future[Reply]) -> None:
        self.connection = connection
        self.stream = stream
        self.answer = answer

    def body_abandoned(self) -> None:
        if self.upload is not None:
            self.upload.cancel()
        if self.feeder is not None:
            self.finish(Cancelled("context canceled"))
        else:
            self.cut(ErrorCode.CANCEL)

    def cancel(self) -> None:
        """Whoever awaited the answer is gone."""
        answer = self.answer
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            body = answer.result().body
            if not isinstance(body, bytes):
                body.abandon()
        self.body_abandoned()


class Http2Client(Http2Protocol):
    """One connection that we opened.

    Attributes:
        ready: Done when the server's SETTINGS are in force; fails if they do not come.

    Args:
        is_spare: Says whether an idle connection may be closed; ``None`` for any.
        holds_back: When the server refuses a stream, it is asked for no more than it has, for a moment: some servers
            still count streams that they have answered, and would refuse all that wait, one after the other.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        native: bool,
        on_gone: Callable[[Http2Client], None] | None = None,
        upkeep: Upkeep = UPKEEP,
        is_spare: Callable[[Http2Client], bool] | None = None,
        holds_back: bool = False,
    ) -> None:
        super().__init__(client=True, limits=limits, native=native, upkeep=upkeep)
        self._settings_within_s = upkeep.settings_within_s
        self._may_retire = is_spare
        self._holds_back = holds_back
        self._holding: asyncio.TimerHandle | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._on_gone = on_gone
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def usable(self) -> bool:
        """Whether new calls may be sent here."""
        return not self.lost and not self.h2.draining and self.h2.fault is None

    @property
    def socket(self) -> Any:
        """Its socket."""
        return self._transport.get_extra_info("socket")

    @property
    def load(self) -> int:
        """Calls in progress or waiting."""
        return len(self.h2.streams) + len(self._queue)

    # ── life ───────────────────────────────────────────────────────────────────────────────────────
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._timer = self._loop.call_later(self._settings_within_s, self._no_settings)

    def _no_settings(self) -> None:
        if not self.ready.done():
            self.ready.set_exception(PeerUnreachable(f"no SETTINGS from the server in {self._settings_within_s:g} s"))
            self.ready.exception()
        self.abort()

    def on_settings(self) -> None:
        if not self.ready.done():
            self.begin_upkeep()
            self.ready.set_result(None)
        self._admit()

    def is_spare(self, now: float, upkeep: Upkeep) -> bool:
        too_old = not self.load and now - self._last_used >= upkeep.idle_s
        return too_old and (self._may_retire is None or self._may_retire(self))

    def retire(self) -> None:
        log.debug("expired gRPC connection(s) to %s", self._transport.get_extra_info("peername"))
        self.close()

    def leave(self) -> None:
        """Take no new calls, and close after the last of those in progress."""
        self.h2.draining = True
        self._refuse_waiting(PeerRefused("the connection takes no more calls"))
        if not self.h2.streams:
            self.close()

    def on_goaway(self, code: int, text: bytes) -> None:
        if self._on_gone is not None:
            self._on_gone(self)
        self._refuse_waiting(PeerRefused("the peer is shutting down"))
        if not self.h2.streams:
            self.close()

    def on_fault(self, text: str) -> None:
        super().on_fault(text)
        if not self.ready.done():
            error = PeerUnreachable(f"what listens there speaks no HTTP/2: {text}", hint=_NO_HTTP2_HINT)
            error.cause = Cause.PEER_PROTOCOL
            self.ready.set_exception(error)
            self.ready.exception()
        if self._on_gone is not None:
            self._on_gone(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.ready.done():
            error = PeerUnreachable("connection closed before SETTINGS")
            if isinstance(exc, ssl.SSLError):
                error = PeerUnreachable(tls_text(exc))
                error.cause = Cause.PEER_TLS
            self.ready.set_exception(error)
            self.ready.exception()
        if self._on_gone is not None:
            self._on_gone(self)
        self._refuse_waiting(PeerRefused("connection lost"))
        super().connection_lost(exc)

    def _refuse_waiting(self, error: TielineError) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    # ── requests ───────────────────────────────────────────────────────────────────────────────────
    def begin_request(self, head: Fields | Likely, body: AnyBody, tail: bytes = b"") -> ClientExchange:
        """Send a request; ``h2.can_open`` must hold. Await ``answer`` of what is returned, or ``cancel`` it.

        The answer comes as soon as its head is there; its body is bytes when it came whole with the head, else a
        stream. It fails with ``PeerRefused`` (certainly not processed), ``PeerLost`` (cut off before any answer: it
        may have run), or with what broke the request's own body off.

        A body that is a ``Flow`` belongs to an extended CONNECT, whose 2xx opens a tunnel; one that says
        ``tieline-declined`` is an ordinary answer all the same.

        ``tail``: See ``Connection.send_request``.
        """
        h2 = self.h2
        whole = body if isinstance(body, bytes) else None
        stream = h2.send_request(head, end=whole == b"", tail=tail)
        exchange = stream.handler = ClientExchange(self, stream, self._loop.create_future())
        if whole is None:
            if isinstance(body, Flow):
                exchange.up = body
            else:
                exchange.upload = spawn(self._upload(exchange, body), name="upload")
        elif whole:
            h2.send_data(stream, whole, end=True)
        if not self.scheduled:
            self.scheduled = True
            self._loop.call_soon(self._flush)
        return exchange

    async def request(self, fields: Fields, body: AnyBody) -> Reply:
        """Send a request and return its answer, waiting for a free stream if need be; see ``begin_request``."""
        await self.wait_turn()
        exchange = self.begin_request(fields, body)
        try:
            return await exchange.answer
        except asyncio.CancelledError:
            exchange.cancel()
            raise

    async def wait_turn(self) -> None:
        """Return when the peer takes one more stream.

        Raises:
            PeerRefused: The connection takes no more calls; nothing was sent.
        """
        while not self.h2.can_open:
            if not self.usable:
                raise PeerRefused("the connection takes no more calls")
            waiter = self._loop.create_future()
            self._queue.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._admit()
                else:
                    with contextlib.suppress(ValueError):
                        self._queue.remove(waiter)
                raise

    def _admit(self) -> None:
        room = self.h2.peer_max_streams - len(self.h2.streams)
        queue = self._queue
        while queue and room > 0 and self.usable:
            waiter = queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def _hold_back(self) -> None:
        h2 = self.h2
        h2.peer_max_streams = min(h2.announced_streams, max(1, len(h2.streams)))
        if self._holding is None:
            self._holding = self._loop.call_later(HOLD_BACK_S, self._go_on)

    def _go_on(self) -> None:
        self._holding = None
        self.h2.peer_max_streams = self.h2.announced_streams
        self._admit()

    def on_capacity(self) -> None:
        self._last_used = self._loop.time()
        if self._queue:
            self._admit()
        elif self.h2.draining and not self.h2.streams:
            self.close()

    async def _upload(self, exchange: ClientExchange, body: AnyBody) -> None:
        try:
            await exchange.send_body(body)
        except PeerLost:
            pass  # told by whoever cut the stream off
        except TielineError as error:
            self.cut_off(exchange, error)
            exchange.cut(ErrorCode.CANCEL)

    # ── answers ────────────────────────────────────────────────────────────────────────────────────
    def on_response(self, stream: Stream, status: int, headers: Headers, end: bool) -> None:
        exchange = stream.handler
        if exchange.relays:
            exchange.on_head(status, headers, end)
            return
        if exchange.up is not None and self._becomes_tunnel(exchange, status, headers, end):
            return
        exchange.reply = Reply(status, list(headers))  # they may be shared
        if end:
            self.begin(exchange, b"")
            self.end(exchange)
        else:
            exchange.pieces = []
            self._fresh.append(exchange)

    def on_repeated(self, stream: Stream, known: Repeated, tail: bytes, timeout: bytes, end: bool) -> bool:
        handler = stream.handler
        if handler is not None and handler.relays and handler.pass_on(known.plan, end):
            return True
        if end:
            self.on_trailers(stream, known.meaning)
        else:
            status, headers, _ = known.meaning
            self.on_response(stream, status, headers, end)
        return True

    def _becomes_tunnel(self, exchange: ClientExchange, status: int, headers: Headers, end: bool) -> bool:
        """Open the tunnel if the answer to a handshake says so; else end our side, of which nothing was sent."""
        up, exchange.up = exchange.up, None
        assert up is not None
        if status >= 300 or any(name == b"tieline-declined" for name, _ in headers):
            self.h2.send_data(exchange.stream, b"", end=True)
            return False
        down = exchange.body = Flow(exchange)
        if exchange.answer.done():
            exchange.cut(ErrorCode.CANCEL)
            return True
        exchange.answer.set_result(opened(without_handshake(headers), up, down))
        up.pipe(exchange)
        if end:
            down.end()
        return True

    def begin(self, exchange: ClientExchange, body: AnyBody) -> None:
        answer = exchange.answer
        if not answer.done():
            reply = exchange.reply
            reply.body = body
            answer.set_result(reply)
        elif not isinstance(body, bytes):
            body.abandon()

    def on_complete(self, exchange: ClientExchange) -> None:
        if exchange.feeder is not None:
            return  # the app has closed its side of a tunnel
        # Answered in full before it had everything: nobody will read the rest.
        if exchange.upload is not None:
            exchange.upload.cancel()
        exchange.cut(ErrorCode.NO_ERROR)

    def on_reset(self, stream: Stream, code: int, *, local: bool, unprocessed: bool) -> None:
        exchange, stream.handler = stream.handler, None  # as in ``end``
        if exchange is None:
            return
        if exchange.relays:
            exchange.on_reset(code, local=local, unprocessed=unprocessed)
            return
        error: TielineError
        if unprocessed:
            if self._holds_back:
                self._hold_back()
            error = PeerRefused("stream terminated by RST_STREAM with error code: REFUSED_STREAM")
        elif local:
            error = AppBroken(f"malformed answer: {code_name(code)}")
        elif code == ErrorCode.INTERNAL_ERROR and stream.got_head and self.h2.peer_native:
            error = AppBroken("the answer broke off")  # so a Tieline says it (see Http2Server)
        elif code == ErrorCode.NO_ERROR and exchange.answer.done():
            exchange.wake(PeerLost("stream closed"))  # if the answer is complete, only our upload is not wanted
            if exchange.body is not None:
                exchange.body.detach(StreamCut(code))
            return
        else:
            error = StreamCut(code)
        self.cut_off(exchange, error)

    def cut_off(self, exchange: ClientExchange, error: TielineError) -> None:
        super().cut_off(exchange, error)
        if exchange.upload is not None:
            exchange.upload.cancel()
        if not exchange.answer.done():
            exchange.answer.set_exception(error)

    def on_request(self, stream: Stream, request: Request, end: bool) -> None:
        raise AssertionError("a client hears no requests")

    def on_head_too_large(self, stream: Stream) -> None:
        raise AssertionError("a client resets such streams")


class StreamCut(PeerLost):
    """The server cut one stream off with a code of its own; the connection lives on."""

    before_answer = False

    def __init__(self, code: int) -> None:
        super().__init__(f"stream terminated by RST_STREAM with error code: {code_name(code)}")
        self.reset_code = code
