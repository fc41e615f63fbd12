"""Tunnels: the bytes of a WebSocket on their way through this sidecar, from connection to connection, without a task.

A tunnel has two *flows*, ``up`` from client to app and ``down`` from app to client, and two *ends*, which are
connections: a socket (``SocketEnd``) or an HTTP/2 stream (``net.http2.Exchange``). An end feeds the flow that begins
there, and is the sink that the other flow is piped into::

    client ─▶ end ── up ──▶ end ─▶ app
    client ◀─ end ◀─ down ─ end ◀─ app

Back-pressure: a sink that is full says so, and its flow keeps what still comes until it is told to ``resume``; the end
that feeds it reads nothing more while ``UNREAD_BYTES`` lie there, or returns no credit.

How it ends: the end of one direction is handed on as such (a FIN, END_STREAM), and the other lives on. What breaks one
end breaks the other (a reset, RST_STREAM): each flow tells its sink, and a sink that is lost abandons its flow.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, Protocol

from tieline.errors import AppBroken, Cancelled, ShuttingDown, TielineError
from tieline.model import Headers, Opened
from tieline.net.backpressure import BodyStream, Source
from tieline.net.lookout import forget, watch
from tieline.net.loop import Buffered
from tieline.wire.websocket import GOING_AWAY, FrameWalker, close_frame

UNREAD_BYTES: Final = 32768
"""Bytes of a flow that may wait for its sink before the socket they come from is not read any more."""
CLOSE_WITHIN_S: Final = 2.0
"""How long, at our shutdown, both ends may take to answer our close frames; then the tunnel is cut."""
HALF_CLOSED_S: Final = 10.0
"""How long a client may keep its side open after the app has closed its own, and how long it may take to read the rest
when it cannot be heard any more."""
_RESET: Final = struct.pack("ii", 1, 0)


class Sink(Protocol):
    """Where a flow goes."""

    feeder: Flow | None
    """The flow that is piped into this; it wants ``resume`` when there is room, ``abandon`` when the sink is lost."""

    def take(self, data: bytes) -> bool:
        """Send; False if nothing more may come before ``feeder.resume()``."""
        ...

    def finish(self, error: TielineError | None) -> None:
        """Nothing more comes: it ended, or broke off."""
        ...


class Flow(BodyStream):
    """One direction of a tunnel. Before it is piped, it is a body that nobody reads.

    Attributes:
        total: Bytes that came.
        tunnel: While this is one of its flows.
    """

    __slots__ = ("_close", "_direct", "_done", "_full", "_muted", "_sink", "_walker", "total", "tunnel")

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._sink: Sink | None = None
        self._direct = False
        """What comes goes straight on: piped, not full, not being closed."""
        self._full = False
        self._done = False
        self._close: bytes | None = None
        """A close frame of ours that waits for the end of a frame, and for room."""
        self._muted = False
        """Our close frame has gone out: what comes behind it is dropped."""
        self._walker = FrameWalker()
        self.total = 0
        self.tunnel: Tunnel | None = None

    # ── the end it comes from ──────────────────────────────────────────────────────────────────────
    def feed(self, data: bytes) -> None:
        self.total += len(data)
        if self._direct:
            self._walker.walk(data)
            assert self._sink is not None
            if not self._sink.take(data):
                self._full = True
                self._direct = False
            self._source.body_consumed(len(data))
        elif self._done:
            self._source.body_consumed(len(data))
        elif self._muted:
            self._walker.walk(data)
            self._source.body_consumed(len(data))
            self._settle()
        else:
            super().feed(data)
            if self._close is not None:
                self.resume(self._full)

    def end(self, trailers: Headers | None = None) -> None:
        super().end()
        if self._sink is not None and not self._pieces:
            self._finish(None)

    def fail(self, error: TielineError) -> None:
        super().fail(error)
        if self._error is not None:
            self._finish(self._error)

    def abandon(self) -> None:
        self.leave(None if self._ended else Cancelled("context canceled"))

    def leave(self, error: TielineError | None) -> None:
        """Abandon it for a reason of one's own; ``None``: in good order."""
        if self.tunnel is not None:
            self._finish(error)
        super().abandon()

    # ── the end it goes to ─────────────────────────────────────────────────────────────────────────
    def pipe(self, sink: Sink) -> None:
        """Hand on what is there, and from now on whatever comes."""
        self._sink = sink
        sink.feeder = self
        if self._done:
            sink.finish(self._error or Cancelled("context canceled"))
        else:
            self.resume()

    def resume(self, full: bool = False) -> None:
        """Go on: the sink has room."""
        self._full = full
        sink = self._sink
        if sink is None or self._done:
            return
        self._direct = False  # what comes meanwhile queues up behind what is there
        while not self._full:
            if self._close is not None and self._walker.between_frames:
                self._mute(sink, b"", self._close)
                return
            if not self._pieces:
                break
            piece = self._next()
            at = -1 if self._close is None else self._walker.first_end(piece)
            self._walker.walk(piece)
            if at >= 0:
                assert self._close is not None
                self._mute(sink, piece[:at], self._close)
                return
            if not sink.take(piece):
                self._full = True
        if self._done:
            return  # the sink broke meanwhile
        if self._ended and not self._pieces:
            self._finish(None)
        else:
            self._direct = not self._full and self._close is None

    # ── leaving ────────────────────────────────────────────────────────────────────────────────────
    def begin_close(self, frame: bytes) -> None:
        """Say goodbye in the sender's place, as soon as no frame is in the way; unless it has done so itself."""
        if not self._done and not self._walker.closing:
            self._close = frame
            self.resume(self._full)

    def _mute(self, sink: Sink, rest: bytes, frame: bytes) -> None:
        self._close = None
        self._muted = True
        sink.take(rest + frame)
        while self._pieces:
            self._walker.walk(self._next())
        self._settle()

    def _settle(self) -> None:
        if self.tunnel is not None:
            self.tunnel.settle()

    @property
    def has_said_goodbye(self) -> bool:
        """Whether nothing that matters will come: a close frame was passed on or dropped, or it is over."""
        return self._done or (self._walker.closing and not self._pieces)

    def hush(self) -> None:
        """Take nothing more of what its sender says."""
        self._ended = True
        self._drop()

    def _finish(self, error: TielineError | None) -> None:
        if self._done:
            return
        self._done = True
        self._direct = False
        sink, self._sink = self._sink, None
        tunnel, self.tunnel = self.tunnel, None
        if tunnel is not None and tunnel.error is None:
            tunnel.error = error  # before the other end breaks for it
        if sink is not None:
            sink.finish(error)
        if tunnel is not None:
            tunnel.flow_over(self)

    @property
    def has_ended(self) -> bool:
        """Whether all of it has come."""
        return self._ended

    @property
    def is_over(self) -> bool:
        """Whether nothing more will go through."""
        return self._done


class Tunnel:
    """Two flows that live and die together; see ``model.Tunnel``."""

    __slots__ = ("_callbacks", "_draining", "_timer", "_up", "bytes_down", "bytes_up", "error", "flows")

    def __init__(self, up: Flow, down: Flow) -> None:
        self.flows = {flow for flow in (up, down) if not flow.is_over}
        """Those that are not over."""
        self._up = up
        self._callbacks: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False
        self.error: TielineError | None = None
        self.bytes_up = self.bytes_down = 0
        up.tunnel = down.tunnel = self

    def when_over(self, callback: Callable[[], None]) -> None:
        """See ``model.Tunnel``."""
        if self.flows:
            self._callbacks.append(callback)
        else:
            callback()

    def flow_over(self, flow: Flow) -> None:
        """One flow is over."""
        self.flows.discard(flow)
        if flow is self._up:
            self.bytes_up = flow.total
        else:
            self.bytes_down = flow.total
        if not self.flows:
            self._over()
        elif self._draining:
            self.settle()
        elif flow is not self._up:
            self._timer = asyncio.get_running_loop().call_later(HALF_CLOSED_S, self.cut, None)

    def _over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def cut(self, error: TielineError | None) -> None:
        """End it at once."""
        if self.error is None:
            self.error = error
        for flow in list(self.flows):
            flow.abandon()

    def drain(self) -> None:
        """Send both ends a close frame and wait for theirs, ``CLOSE_WITHIN_S`` at most."""
        if self._draining or not self.flows:
            return
        self._draining = True
        if self._timer is not None:
            self._timer.cancel()
        error = ShuttingDown("the sidecar shut down, and the WebSocket was not closed in time")
        self._timer = asyncio.get_running_loop().call_later(CLOSE_WITHIN_S, self.cut, error)
        for flow in list(self.flows):
            flow.begin_close(close_frame(GOING_AWAY, os.urandom(4) if flow is self._up else None))
        self.settle()

    def settle(self) -> None:
        """Close both ends if both have said goodbye."""
        if self._draining and all(flow.has_said_goodbye for flow in self.flows):
            flows = list(self.flows)
            # All of them ended before the first end hears of it: then it closes at once, not just its side.
            for flow in flows:
                flow.hush()
            for flow in flows:
                flow.end()


def opened(headers: Headers, up: Flow, down: Flow) -> Opened:
    """Return the answer to a handshake that opened a tunnel; ``up`` is still to be piped."""
    return Opened(headers, down, Tunnel(up, down))


def drain(*flows: Flow | None) -> None:
    """Drain the tunnel of these flows, if it is still there."""
    for flow in flows:
        if flow is not None and flow.tunnel is not None:
            flow.tunnel.drain()


class SocketEnd(Buffered):
    """A socket that was an HTTP/1.1 connection until the 101.

    Attributes:
        flow: What comes from it.
        feeder: What goes to it.
    """

    def __init__(self, *, app: bool, members: set[Any] | None = None) -> None:
        """Wait for ``join``; ``app``: whose socket it is, the app's or else the client's."""
        self._loop = asyncio.get_running_loop()
        self._app = app
        self._members = members
        self._transport: Any = None
        self._reading = True
        self._full = False
        self._finished = False
        self._gone = False
        self.flow = Flow(self)
        self.feeder: Flow | None = None

    def join(self, transport: Any, rest: bytes, *, reading: bool, full: bool = False) -> None:
        """Take over a connection.

        Args:
            transport: Its socket.
            rest: What has been read of it already, beyond the handshake.
            reading: It is not paused.
            full: It takes nothing more for now.
        """
        self._transport = transport
        self._reading = reading
        self._full = full
        if self._members is not None:
            self._members.add(self)
        transport.set_protocol(self)
        watch(self._loop, transport)
        if rest:
            self.flow.feed(rest)
        self._read_on()

    # ── the socket ─────────────────────────────────────────────────────────────────────────────────
    def data_received(self, data: bytes) -> None:
        flow = self.flow
        flow.feed(data)
        if flow.size > UNREAD_BYTES and self._reading:
            self._reading = False
            if self._transport.can_write_eof():
                self._transport.pause_reading()
            else:
                # Paused within its own read, aiofastnet's TLS forgets what it has read already, and never wakes us.
                self._loop.call_soon(self._pause)

    def _pause(self) -> None:
        if not self._reading and not self._gone:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self.flow.end()
        # Over TLS half a connection cannot be closed.
        return not self._gone and not self._finished and bool(self._transport.can_write_eof())

    def connection_lost(self, exc: Exception | None) -> None:
        forget(self._loop, self._transport)
        if self._members is not None:
            self._members.discard(self)
        self._gone = True
        if exc is None and self._finished:
            self.flow.end()
        else:
            self.flow.fail(self._broken(exc))  # nothing happens if it had ended
        feeder, self.feeder = self.feeder, None
        if feeder is not None:
            feeder.leave(None if exc is None else self._broken(exc))

    def _broken(self, exc: Exception | None) -> TielineError:
        if not self._app:
            return Cancelled("context canceled")
        return AppBroken(f"read: {exc.strerror.lower()}" if isinstance(exc, OSError) and exc.strerror else "EOF")

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self.feeder is not None:
            self.feeder.resume()

    # ── the flow that begins here ──────────────────────────────────────────────────────────────────
    def body_consumed(self, size: int) -> None:
        if not self._reading and self.flow.size <= UNREAD_BYTES // 2:
            self._read_on()

    def body_abandoned(self) -> None:
        # In good order: what goes the other way is still written, if it is taken.
        if not self._gone and self._transport is not None:
            self._finished = True
            self._transport.close()
            self._loop.call_later(HALF_CLOSED_S, self.abort)

    def body_wanted(self) -> None:
        return

    def _read_on(self) -> None:
        if not self._reading and not self._gone and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()

    # ── the flow that goes here ────────────────────────────────────────────────────────────────────
    def take(self, data: bytes) -> bool:
        if self._gone:
            return True
        self._transport.write(data)
        return not self._full

    def finish(self, error: TielineError | None) -> None:
        self.feeder = None
        if self._gone or self._finished:
            return
        self._finished = True
        if error is not None:
            self._reset()
            self.flow.fail(error)
        elif self.flow.has_ended or not self._transport.can_write_eof():
            self._transport.close()
        else:
            try:
                self._transport.write_eof()
            except OSError:
                self._transport.abort()

    def _reset(self) -> None:
        """Drop the socket so that the other side sees a reset, no end."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # ── leaving ────────────────────────────────────────────────────────────────────────────────────
    @property
    def in_progress(self) -> int:
        """How many calls are: the tunnel is one until it is over."""
        return int(not self._gone)

    def drain(self) -> None:
        """See ``Tunnel.drain``."""
        drain(self.flow, self.feeder)
        self._loop.call_later(CLOSE_WITHIN_S, self.abort)

    def abort(self) -> None:
        """Drop the socket."""
        if not self._gone and self._transport is not None:
            self._transport.abort()
