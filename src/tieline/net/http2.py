"""HTTP/2 on a socket: what both ends share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tieline.errors import AppBroken, PeerLost, TielineError
from tieline.model import AnyBody, Headers
from tieline.net.backpressure import BodyStream, ended, within
from tieline.net.lookout import forget, watch
from tieline.net.loop import WRITE_HIGH_WATER, BufferedLong
from tieline.net.tunnel import Flow
from tieline.wire.headers import clean_trailers
from tieline.wire.http2 import Connection, ErrorCode, Limits, Stream

PING_DATA: Final = b"tieline\0"
OUT_WHILE_PAUSED: Final = 65536
"""A server stops reading from a peer that takes nothing while so many bytes of frames wait for it."""


class Upkeep(NamedTuple):
    """How a connection is looked after; times in seconds.

    Attributes:
        settings_within_s: How long a server may take to send its SETTINGS; then it counts as unreachable.
        ping_after_s: A connection on which nothing came for so long is asked for a sign of life, again and again;
            ``None`` for never: gRPC servers hang up on clients that ask without need.
        ping_within_s: How long the answer may take; then the connection counts as lost.
        idle_s: A connection without calls is closed after this time.
        look_every_s: How often it is looked at if nothing else is due.
    """

    settings_within_s: float = 5.0
    ping_after_s: float | None = 30.0
    ping_within_s: float = 10.0
    idle_s: float = 180.0
    look_every_s: float = 30.0


class _Nobody:
    """Hears what a connection still has to say whose socket is gone."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("on_"):
            return _ignore
        raise AttributeError(name)


def _ignore(*arguments: Any, **named: Any) -> None:
    return


_NOBODY: Final[Any] = _Nobody()


class Exchange:
    """One stream with its owner: the body that comes in, and the writer of the body that goes out.

    Defaults are class attributes: most calls are whole from the start and need none of this.
    """

    relays = False
    """Whether it is a lane of ``net.relay``, which takes frames as they come."""
    keeps_trailers = False
    """Whether trailers are the metadata of an RPC, and so all come through, whatever their names mean to HTTP."""
    body: BodyStream | None = None
    pieces: list[bytes] | None = None
    """What came in the same read as the head, until it is known whether it is everything."""
    writable: asyncio.Future[None] | None = None
    upload: asyncio.Task[None] | None = None
    """Sends our side's body, if that is a stream and we are the client."""
    feeder: Flow | None = None
    """Of a tunnel: the flow that goes out here. The one that comes in is ``body``."""
    connection: Http2Protocol
    stream: Stream

    def body_consumed(self, size: int) -> None:
        connection = self.connection
        connection.h2.consumed(self.stream, size)
        if connection.h2.out:
            connection.kick()

    def body_abandoned(self) -> None:
        self.cut(ErrorCode.CANCEL)

    def body_wanted(self) -> None:
        return

    def cut(self, code: ErrorCode) -> None:
        """Reset the stream; harmless when it is over."""
        self.connection.h2.reset(self.stream, code)
        self.connection.kick()

    def begin_stream(self, limit: int | None = None) -> BodyStream:
        """Turn what came so far into the beginning of a stream of at most ``limit`` bytes."""
        body = self.body = BodyStream(self, limit)
        for piece in self.pieces or ():
            body.feed(piece)
        self.pieces = None
        return body

    async def send_body(self, body: AnyBody) -> None:
        """Send a body and its trailers, piece by piece as the peer takes them, and end our side.

        Raises:
            TielineError: The body broke off; nothing was ended.
            PeerLost: The stream is gone.
        """
        h2 = self.connection.h2
        if isinstance(body, bytes):
            h2.send_data(self.stream, body, end=True)
            self.connection.kick()
            return
        while piece := await body.read():
            if self.stream.closed & 1:
                raise PeerLost("stream closed")
            sent = h2.send_data(self.stream, piece, end=False)
            self.connection.kick()
            if not sent:
                self.writable = asyncio.get_running_loop().create_future()
                await self.writable
        h2.send_trailers(self.stream, body.trailers)
        self.connection.kick()

    def wake(self, error: TielineError | None = None) -> None:
        """Let a waiting ``send_body`` go on, or fail; or the flow of a tunnel."""
        feeder = self.feeder
        if feeder is not None:
            if error is None:
                feeder.resume()
            else:
                self.feeder = None
                feeder.leave(error)
            return
        writable = self.writable
        if writable is not None:
            self.writable = None
            if not writable.done():
                if error is None:
                    writable.set_result(None)
                else:
                    writable.set_exception(error)

    # ── an end of a tunnel (see ``net.tunnel.Sink``) ───────────────────────────────────────────────
    def take(self, data: bytes) -> bool:
        connection = self.connection
        sent = connection.h2.send_data(self.stream, data, end=False)
        connection.kick()
        return sent

    def finish(self, error: TielineError | None) -> None:
        self.feeder = None
        connection = self.connection
        if error is not None:
            # As ``Http2Server`` says of any answer that broke off.
            broken = isinstance(error, AppBroken) and not connection.h2.client
            self.cut(ErrorCode.INTERNAL_ERROR if broken else ErrorCode.CANCEL)
            connection.cut_off(self, error)
            return
        connection.h2.send_trailers(self.stream, [])
        connection.kick()
        if self.stream.closed == 3:
            self.stream.handler = None  # as in ``Http2Protocol.end``


class Http2Protocol(BufferedLong):
    """One HTTP/2 connection: one write a turn of the event loop, frames of many calls joined."""

    def __init__(
        self,
        *,
        client: bool,
        limits: Limits,
        native: bool,
        max_body: int | None = None,
        upkeep: Upkeep | None = None,
    ) -> None:
        self.h2 = Connection(self, client=client, limits=limits, clock=time.monotonic, native=native)  # type: ignore[arg-type]
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self.scheduled = False
        self._reading = True
        self._fresh: list[Any] = []
        self._max_body = max_body
        self._upkeep = upkeep
        self._timer: asyncio.TimerHandle | None = None
        self._now = self._loop.time
        self._heard_at = self._last_used = self._now()
        self._ping_sent = False
        self.lost = False

    # ── the socket ─────────────────────────────────────────────────────────────────────────────────
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        watch(self._loop, transport)
        self.kick()

    def kick(self) -> None:
        """See that what is waiting gets written at the end of this turn."""
        if not self.scheduled:
            self.scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.scheduled = False
        h2 = self.h2
        while h2.out and not self.lost:
            if h2.paused and h2.fault is None:
                self._stop_reading()
                return
            self._transport.write(h2.take())
            h2.pump()
        if (h2.fault is not None or (h2.draining and not h2.streams and not h2.client)) and not self.lost:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._now()
        self._ping_sent = False
        h2 = self.h2
        h2.receive(data)
        if self._fresh:
            self._begin_fresh()
        if h2.out:
            self.kick()
        if h2.fault is not None:
            self.on_fault(h2.fault.text)

    def _begin_fresh(self) -> None:
        """Start the calls whose head came in this read but whose body has not ended."""
        fresh, self._fresh = self._fresh, []
        for exchange in fresh:
            if exchange.body is None and exchange.pieces is not None:
                self.begin(exchange, exchange.begin_stream(self._max_body))

    def begin(self, exchange: Any, body: AnyBody) -> None:
        """The message is there, its body whole or coming."""
        raise NotImplementedError

    def on_fault(self, text: str) -> None:
        """The connection cannot go on; the GOAWAY is about to be written."""
        self.kick()

    def pause_writing(self) -> None:
        self.h2.paused = True

    def resume_writing(self) -> None:
        self.h2.paused = False
        self.h2.pump()
        self.kick()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def _stop_reading(self) -> None:
        """A server reads nothing more from a peer that takes nothing, lest its answers pile up here.

        A client must not: two ends that both wait for the other to read would wait for ever. Never to be called within
        a read: aiofastnet's TLS would forget what it has read already.
        """
        if self._reading and not self.h2.client and sum(map(len, self.h2.out)) > OUT_WHILE_PAUSED:
            self._reading = False
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        forget(self._loop, self._transport)
        self.lost = True
        for stream in list(self.h2.streams.values()):
            stream.closed = 3
            handler, stream.handler = stream.handler, None
            if handler is None:
                continue
            if handler.relays:
                handler.on_lost()
            else:
                self.cut_off(handler, PeerLost("connection lost"))
        self.h2.streams.clear()
        self.h2.listener = _NOBODY  # each holds the other

    # ── upkeep ─────────────────────────────────────────────────────────────────────────────────────
    def begin_upkeep(self) -> None:
        """Look after the connection from now on; whatever timer ran before is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        upkeep = self._upkeep
        if upkeep is not None:
            wait = upkeep.look_every_s
            if upkeep.ping_after_s is not None:
                wait = min(wait, upkeep.ping_after_s)
            self._timer = self._loop.call_later(wait, self.look_after)

    def look_after(self) -> None:
        """Close an idle connection in the end; ask a quiet one for a sign of life before."""
        upkeep = self._upkeep
        if self.lost or upkeep is None:
            return
        now = self._now()
        if self._ping_sent:
            self.h2.close(ErrorCode.NO_ERROR, "no answer to a PING")
            self._flush()
            self.abort()
            return
        if self.is_spare(now, upkeep):
            self.retire()
            return
        wait = upkeep.look_every_s
        if upkeep.ping_after_s is not None:
            left = upkeep.ping_after_s - (now - self._heard_at)
            if left <= 0:
                self._ping_sent = True
                self.h2.ping(PING_DATA)
                self.kick()
                left = upkeep.ping_within_s
            wait = min(wait, left)
        self._timer = self._loop.call_later(wait, self.look_after)

    def is_spare(self, now: float, upkeep: Upkeep) -> bool:
        """Whether the connection had no calls for so long that it may be closed."""
        raise NotImplementedError

    def retire(self) -> None:
        """Close an idle connection."""
        raise NotImplementedError

    def cut_off(self, exchange: Any, error: TielineError) -> None:
        """The exchange is over before its time."""
        exchange.pieces = None  # and if it has not begun, it never will
        if exchange.body is not None:
            exchange.body.detach(error)
        exchange.wake(error)

    def close(self) -> None:
        """Close the socket after what is waiting has been written."""
        self.h2.close(ErrorCode.NO_ERROR, "closing")
        self.kick()

    def abort(self) -> None:
        """Drop the socket at once."""
        if self._transport is not None and not self.lost:
            self._transport.abort()

    # ── what both ends hear ────────────────────────────────────────────────────────────────────────
    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        exchange = stream.handler
        if exchange is None:
            self.h2.consumed(stream, len(data))
            return
        if exchange.relays:
            exchange.on_data(data, end)
            return
        body = exchange.body
        if body is not None:
            if data:
                body.feed(data)
            if end:
                body.end()
                self.end(exchange)
        elif not end:
            exchange.pieces.append(data)
        else:
            pieces = exchange.pieces
            if pieces:
                pieces.append(data)
                data = b"".join(pieces)
            exchange.pieces = None
            self.h2.consumed(stream, len(data))
            self.begin(exchange, data if self._max_body is None else within(data, self._max_body))
            self.end(exchange)

    def on_trailers(self, stream: Stream, headers: Headers) -> None:
        exchange = stream.handler
        if exchange is None:
            return
        if exchange.relays:
            exchange.on_trailers(headers)
            return
        trailers = headers if exchange.keeps_trailers else clean_trailers(headers)
        if exchange.body is None:
            # All of it is here: nothing has to be held back any more.
            pieces, exchange.pieces = exchange.pieces, None
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self.h2.consumed(stream, len(data))
            self.begin(exchange, ended(data, self._max_body, trailers))
        else:
            exchange.body.end(trailers)
        self.end(exchange)

    def end(self, exchange: Any) -> None:
        """Everything of the peer's side has arrived."""
        if exchange.stream.closed != 3:
            self.on_complete(exchange)
        else:
            exchange.stream.handler = None  # they hold each other, and would leave work to the collector

    def on_complete(self, exchange: Any) -> None:
        """Everything of the peer's side has arrived, while our side is still being sent."""

    def on_writable(self, stream: Stream) -> None:
        if stream.handler is not None:
            stream.handler.wake()

    def on_settings(self) -> None:
        """SETTINGS came."""

    def on_capacity(self) -> None:
        """A stream was freed."""

    def on_goaway(self, code: int, text: bytes) -> None:
        """The peer is leaving."""

    def on_ping_ack(self, data: bytes) -> None:
        """A PING was answered; that something came is noted whatever it is."""
