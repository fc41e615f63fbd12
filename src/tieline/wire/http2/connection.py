"""One HTTP/2 connection, either end, without sockets: bytes in, calls to a listener; calls in, bytes out.

How it is used. The owner feeds ``receive`` with what arrived and writes what ``take`` returns, once a turn of
its event loop. Between the two it may call any ``send_…`` method, also from within a listener's method.

How flow control works here. *Sending*: ``send_data`` puts out what the windows let through and keeps the rest
of that one piece as the stream's *pending*; ``on_writable`` says that it has gone, and only then the next piece
may be sent. Nothing else is queued, so a stream holds at most one piece. Streams with something pending take
turns, a frame each. *Receiving*: each byte handed to ``on_data`` must be given back by ``consumed``; the
stream's window is refilled only then, the connection's at once, unless more than ``Limits.unread`` bytes of all
streams lie unread: so one slow reader never holds up the others.

Stream errors are answered with RST_STREAM here and told to the listener; connection errors end in ``fault``.
What is ambiguous or may not cross to HTTP/1.1 is refused in ``messages``.

What a peer may cost is bounded in ``Limits``. Frames that bring nothing and streams that are cut off draw on two
budgets, into which each stream opened pays: so a busy connection may have many of them, and a flood is not paid for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol

from tieline.model import Headers, Request
from tieline.wire.headers import check_h2_fields
from tieline.wire.http2 import frames
from tieline.wire.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    MAX_STREAM_ID,
    MAX_WINDOW,
    NATIVE_FORM,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Setting,
    are_alike,
)
from tieline.wire.http2.hpack import (
    NEVER_INDEXED,
    BadBlock,
    BlockTooLarge,
    Fields,
    HeaderDecoder,
    HeaderEncoder,
    Likely,
    Repeated,
    read_trace,
)
from tieline.wire.http2.limits import Budget, Limits
from tieline.wire.http2.messages import Malformed, read_request, read_response
from tieline.wire.websocket import PROTOCOL

LOCAL: Final = 1
REMOTE: Final = 2
BOTH: Final = 3

FAR_AWAY_S: Final = 0.002
"""A sender that waits so long for credit is a long way off, and gets a larger window."""
_NOT_PLAIN: Final = END_HEADERS | PADDED | PRIORITY_FLAG
SMALL_READ: Final = 8192
"""What arrives behind the beginning of a frame is copied to it up to this size, and frame by frame above."""
LONG_ROW: Final = 8
"""So many frames at least are looked at together, whether they are of one kind and length."""
MAX_PING_STRIKES: Final = 2
"""So many PINGs may come too early before the connection ends."""
MAX_ENTRY: Final = 4096 + 32
"""What one field can count at most if it came out of the compression table."""


class ConnectionFault(Exception):
    """The connection cannot go on.

    Attributes:
        code: Reason for the GOAWAY.
        text: The same for people.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text


class Sink(Protocol):
    """Takes a body that only passes."""

    def on_data(self, data: bytes, end: bool) -> bool:
        """As ``Listener.on_data``. Return whether the piece was read; else it is to be given back by ``consumed``."""
        ...


class Stream:
    """One exchange. ``handler`` and ``sink`` belong to the owner; everything else to the connection.

    Most streams carry a few frames, so that defaults are class attributes: a stream pays for what it sets.

    Attributes:
        id: Stream number.
        closed: Bits: 1 we ended our side, 2 the peer ended its side, 3 over (also after a reset).
        handler: Whatever the owner attaches.
        sink: Takes the body in place of the listener.
    """

    closed: int = 0
    handler: Any = None
    sink: Sink | None = None
    unread: int = 0
    credit: int = 0
    returned: int = 0
    returned_at: float = 0.0
    since: float = 0.0
    stalled_at: float = 0.0
    grows: bool = False
    grown: int = 0
    pending: bytes | None = None
    offset: int = 0
    pending_end: bool = False
    trailers: Headers | None = None
    got_head: bool = False
    length: int | None = None
    bodiless: bool = False

    def __init__(self, number: int, send_window: int, recv_window: int) -> None:
        self.id = number
        self.send_window = send_window
        self.recv_window = self.window = recv_window


class Listener(Protocol):
    """Whom a connection tells what arrived. ``end`` is True when the peer's side of the stream is over."""

    def on_request(self, stream: Stream, request: Request, end: bool) -> None:
        """Server: a request began."""

    def on_response(self, stream: Stream, status: int, headers: Headers, end: bool) -> None:
        """Client: the final answer began; interim ones are dropped. Others may be given the same ``headers``."""

    def on_repeated(self, stream: Stream, known: Repeated, tail: bytes, timeout: bytes, end: bool) -> bool:
        """In place of the above: a head or trailers came for which there is a ``plan``.

        Server: only heads that do not end the stream, with ``tail``, the literals of a trace context, and the value of
        ``grpc-timeout`` besides, both empty if there is none; return False to be told in full. Client: with neither;
        ``known.meaning`` is what it is else told, status and fields of a head in a tuple, or the trailers.
        """

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        """A piece of a body, at most what was received at once; may be empty when it only brings the end."""

    def on_trailers(self, stream: Stream, headers: Headers) -> None:
        """The trailers, and with them the end of the peer's side. Others may be given the same ``headers``."""

    def on_reset(self, stream: Stream, code: int, *, local: bool, unprocessed: bool) -> None:
        """The stream was cut off: by the peer, or (``local``) by us for a stream error.

        What of its body lies unread counts as given back.
        ``unprocessed``: the peer has certainly not looked at the request (REFUSED_STREAM, or above GOAWAY).
        """

    def on_head_too_large(self, stream: Stream) -> None:
        """Server: the header list is over ``Limits.header_list``. Answer 431; the stream is already reset-safe."""

    def on_writable(self, stream: Stream) -> None:
        """The pending piece has gone out; the next may follow."""

    def on_settings(self) -> None:
        """The peer's SETTINGS are in force (each time they come)."""

    def on_capacity(self) -> None:
        """Client: one more stream may be opened than before."""

    def on_goaway(self, code: int, text: bytes) -> None:
        """The peer takes no new streams. Those it did not process were told by ``on_reset`` before."""

    def on_ping_ack(self, data: bytes) -> None:
        """The peer answered our PING."""


class Connection:
    """The state of one connection and of its streams.

    Attributes:
        out: Frames waiting to be written.
        fault: Set when the connection cannot go on; the GOAWAY is in ``out`` then.
        peer_native: The native form that holds with this peer; 0 with anyone who is no Tieline.
        draining: The peer said GOAWAY, or we did: no new streams.
        paused: Set by the owner while the socket takes no more.
        repeated: The head or trailers that the listener is just being told of, if it may leave a ``plan`` for those
            that will say just so; else ``None``.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        client: bool,
        limits: Limits,
        clock: Callable[[], float],
        native: bool = False,
    ) -> None:
        self.listener = listener
        self.client = client
        self.limits = limits
        self.out: list[bytes | memoryview] = []
        self.streams: dict[int, Stream] = {}
        self.fault: ConnectionFault | None = None
        self.peer_native = 0
        self.peer_connect_protocol = False
        self.peer_max_streams = 100 if client else 0
        self.announced_streams = self.peer_max_streams
        """What the peer's SETTINGS say; ``peer_max_streams`` may be kept below it for a while."""
        self.got_settings = False
        self.draining = False
        self.paused = False
        self.repeated: Repeated | None = None
        self.recognises = False
        """Server: heads that differ in their time-out alone count as repeated, too."""
        self.unread = 0
        self._grown = 0
        self._clock = clock
        self._native = native
        self._encoder = HeaderEncoder()
        self._decoder = HeaderDecoder(limits.header_list_hard)
        self._buffer = b""
        self._next_id = 1 if client else 2
        self._last_peer_id = 0
        self._refuse_above = MAX_STREAM_ID
        self._send_window = DEFAULT_WINDOW
        self._peer_window = DEFAULT_WINDOW
        self._peer_max_frame = DEFAULT_MAX_FRAME
        self._recv_window = limits.connection_window
        self._recv_owed = 0
        self._held = 0
        self._blocked: dict[int, Stream] = {}
        self._block: tuple[int, int, list[bytes], int] | None = None
        self._look_at = 0
        """From here on in what arrived, frames are looked at together again (see ``_on_row``)."""
        self._forgotten: dict[int, None] = {}
        self._forgotten_below = 0
        self._control = Budget(limits.control_burst, limits.control_rate, clock)
        self._resets = Budget(limits.reset_burst, limits.reset_rate, clock)
        self._need_preface = not client
        self._need_settings = True
        self._opened = 0
        self._control_opened = self._resets_opened = 0
        self._granted = DEFAULT_WINDOW
        self._pinged_at = (0, 0)
        self._ping_at = -math.inf
        self._ping_mark = (0, 0)
        self._ping_strikes = 0
        self._open()

    def _open(self) -> None:
        limits = self.limits
        values: dict[int, int] = {
            Setting.MAX_HEADER_LIST_SIZE: limits.header_list,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
        }
        if self.client:
            self.out.append(PREFACE)
            values[Setting.ENABLE_PUSH] = 0
        else:
            values[Setting.MAX_CONCURRENT_STREAMS] = limits.streams
            values[Setting.ENABLE_CONNECT_PROTOCOL] = 1
        if self._native:
            values[Setting.NATIVE] = NATIVE_FORM
        self.out.append(frames.settings(values))
        if limits.connection_window > DEFAULT_WINDOW:
            self.out.append(frames.window_update(0, limits.connection_window - DEFAULT_WINDOW))

    # ── out ────────────────────────────────────────────────────────────────────────────────────────
    def take(self) -> bytes:
        """Return everything that is to be written now."""
        data = b"".join(self.out)
        self.out.clear()
        self._held = 0
        return data

    def pump(self) -> None:
        """Let pending bodies go on; call when the socket takes more again, and after each ``take``."""
        blocked = self._blocked
        high_water = self.limits.held_out
        while blocked and self._send_window > 0 and self._held < high_water and not self.paused:
            number = next(iter(blocked))
            stream = blocked.pop(number)
            if stream.pending is None or stream.closed & LOCAL:
                continue
            if self._emit_pending(stream):
                self._pending_gone(stream)
            elif stream.send_window > 0:
                blocked[number] = stream

    @property
    def can_open(self) -> bool:
        """Whether the peer takes one more stream now."""
        return len(self.streams) < self.peer_max_streams and not self.draining and self.fault is None

    @property
    def opened(self) -> int:
        """How many streams the peer has opened."""
        return self._opened

    def send_request(self, head: Fields | Likely, *, end: bool, tail: bytes = b"") -> Stream:
        """Open a stream. ``can_open`` must hold.

        Args:
            head: As ``hpack.HeaderEncoder`` takes it, the four pseudo-headers first, ``:method`` leading.
            end: There is no body.
            tail: ``literals`` to be sent behind it.
        """
        number = self._next_id
        self._next_id = number + 2
        if self._next_id > MAX_STREAM_ID - 2:
            self.draining = True
        stream = self.streams[number] = Stream(number, self._peer_window, self.limits.stream_window)
        if isinstance(head, Likely):
            fields, block = head.fields, self._encoder.encode_likely(head)
        else:
            fields, block = head, self._encoder.encode(head)
        if fields[0][1] == b"HEAD":
            stream.bodiless = True
        self._put_block(stream, block + tail, end)
        return stream

    def send_likely(self, stream: Stream, head: Likely, *, end: bool) -> None:
        """Send a head with its pseudo-headers, or trailers; ``end``: and end our side.

        As ``send_response`` and ``send_trailers``, and nothing may be pending.
        """
        if not stream.closed & LOCAL:
            self._put_block(stream, self._encoder.encode_likely(head), end)

    def send_response(self, stream: Stream, status: int, headers: Headers, *, end: bool) -> None:
        """Answer a request. Harmless on a stream that is over."""
        if not stream.closed & LOCAL:
            self._put_block(stream, self._encoder.encode_answer([(b":status", b"%d" % status), *headers]), end)

    def send_answer(self, stream: Stream, status: int, headers: Headers, body: bytes, trailers: Headers) -> None:
        """Answer a request with all there is; ``trailers`` may not be empty. Harmless on a stream that is over."""
        if stream.closed & LOCAL:
            return
        self._put_block(stream, self._encoder.encode_answer([(b":status", b"%d" % status), *headers]), False)
        size = len(body)
        if size and (
            size > stream.send_window
            or size > self._send_window
            or size > self._peer_max_frame
            or self.paused
            or self._held >= self.limits.held_out
        ):
            self.send_data(stream, body, end=False)
            self.send_trailers(stream, trailers)
            return
        if size:
            stream.send_window -= size
            self._send_window -= size
            self._held += size
            self.out += (HEADER.pack(size >> 8, size & 255, DATA, 0, stream.id), body)
        self._put_block(stream, self._encoder.encode_answer(trailers), True)

    def send_trailers(self, stream: Stream, headers: Headers) -> None:
        """End our side with trailers, after what is still pending."""
        if stream.closed & LOCAL:
            return
        if stream.pending is not None:
            stream.trailers = headers
        elif headers:
            self._put_block(stream, self._encoder.encode_answer(headers), True)
        else:
            self.send_data(stream, b"", end=True)

    def send_data(self, stream: Stream, data: bytes, *, end: bool) -> bool:
        """Send a piece of a body. Return False if some of it is pending: wait for ``on_writable`` then.

        Nothing may be pending on the stream.
        """
        if stream.closed & LOCAL:
            return True
        size = len(data)
        if (
            size <= stream.send_window
            and size <= self._send_window
            and size <= self._peer_max_frame
            and not self.paused
            and self._held < self.limits.held_out
        ):
            stream.send_window -= size
            self._send_window -= size
            self._held += size
            self.out.append(HEADER.pack(size >> 8, size & 255, DATA, END_STREAM if end else 0, stream.id))
            if size:
                self.out.append(data)
            if end:
                self._close_local(stream)
            return True
        if not size:
            # Needs no room in any window (RFC 9113 §6.9.1), and could wait for ever in one that went below zero.
            if end:
                self.out.append(frames.frame(DATA, END_STREAM, stream.id, b""))
                self._close_local(stream)
            return True
        if (
            size <= stream.send_window
            and size <= self._send_window
            and not self.paused
            and self._held + size <= self.limits.held_out
        ):
            self._put_frames(stream, data, end)
            return True
        stream.pending = data
        stream.offset = 0
        stream.pending_end = end
        self._blocked[stream.id] = stream
        self.pump()
        return stream.pending is None

    def _put_frames(self, stream: Stream, data: bytes, end: bool) -> None:
        """Put out a piece that needs several frames, all of which the windows let through."""
        size, step = len(data), self._peer_max_frame
        stream.send_window -= size
        self._send_window -= size
        self._held += size
        number, out, view = stream.id, self.out, memoryview(data)
        for at in range(0, size, step):
            piece = view[at : at + step]
            length = len(piece)
            flags = END_STREAM if end and at + step >= size else 0
            out += (HEADER.pack(length >> 8, length & 255, DATA, flags, number), piece)
        if end:
            self._close_local(stream)

    def reset(self, stream: Stream, code: int) -> None:
        """Cut a stream off. Harmless on one that is over."""
        if stream.closed != BOTH:
            self.out.append(frames.rst_stream(stream.id, code))
            self._forget(stream)

    def consumed(self, stream: Stream, size: int) -> None:
        """Give back ``size`` bytes that ``on_data`` delivered: they were read, or will never be.

        A reset gives back what the stream still has unread; for such bytes this does nothing.
        """
        if size > stream.unread:
            size = stream.unread
        stream.unread -= size
        self.unread -= size
        if self._recv_owed * 4 >= self.limits.connection_window and self.unread <= self.limits.unread:
            self._return_connection_credit()
        if stream.closed & REMOTE:
            if stream.grown and not stream.unread:
                self._shrink(stream)
            return
        stream.credit += size
        if stream.credit * 2 >= stream.window:
            self._return_credit(stream)

    def _return_credit(self, stream: Stream) -> None:
        increment = stream.credit
        now = self._clock()
        # All is spent but what was returned last, which a sender far away does not know of yet: if it falls
        # silent now, the window is too small for the way.
        if stream.recv_window <= max(stream.returned, stream.window // 4):
            stream.stalled_at = now
            stream.since = stream.returned_at
        stream.returned_at = now
        if stream.grows:
            stream.grows = False
            limits = self.limits
            more = max(0, min(stream.window, limits.stream_window_max - stream.window, limits.grown - self._grown))
            stream.window += more
            stream.grown += more
            self._grown += more
            increment += more
        stream.credit = 0
        stream.returned = increment
        stream.recv_window += increment
        self.out.append(frames.window_update(stream.id, increment))

    def ping(self, data: bytes) -> None:
        """Send a PING with eight bytes of ``data``."""
        self.out.append(frames.frame(PING, 0, 0, data))

    def announce_drain(self) -> None:
        """Server: ask the peer to open no new streams; those already on their way are still served."""
        if self._refuse_above == MAX_STREAM_ID and self.fault is None:
            self.out.append(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR, "shutting down"))

    def drain(self) -> None:
        """Server: name the last stream that is served; later ones are refused as not processed."""
        if self._refuse_above == MAX_STREAM_ID and self.fault is None:
            self.draining = True
            self._refuse_above = self._last_peer_id
            self.out.append(frames.goaway(self._last_peer_id, ErrorCode.NO_ERROR, "shutting down"))

    def close(self, code: ErrorCode, text: str) -> None:
        """Say goodbye; the owner closes the socket once ``out`` is written."""
        if self.fault is None:
            self._fail(ConnectionFault(code, text))

    def accept_upgrade(self, settings_payload: bytes) -> Stream:
        """Server: begin after an HTTP/1.1 Upgrade with the client's HTTP2-Settings; return stream 1.

        Raises:
            ConnectionFault: The settings are none.
        """
        self._apply_settings(settings_payload)
        self._last_peer_id = self._opened = 1
        stream = self.streams[1] = Stream(1, self._peer_window, self.limits.stream_window)
        stream.got_head = True
        stream.closed = REMOTE
        return stream

    # ── in ─────────────────────────────────────────────────────────────────────────────────────────
    def receive(self, data: bytes) -> None:
        """Take what arrived. After a fault everything is ignored."""
        if self.fault is not None:
            return
        try:
            self._receive(data)
        except ConnectionFault as fault:
            if self.fault is None:
                self._fail(fault)

    def _fail(self, fault: ConnectionFault) -> None:
        self.fault = fault
        # The last stream that is served never rises from one GOAWAY to the next (RFC 9113 §6.8).
        self.out.append(frames.goaway(min(self._last_peer_id, self._refuse_above), fault.code, fault.text))

    def _receive(self, data: bytes) -> None:
        position = 0
        buffer = self._buffer
        if buffer:
            self._buffer = b""
            if len(data) <= SMALL_READ or len(buffer) < HEADER_SIZE or self._need_settings:
                data = buffer + data
            else:
                # Only the frame that began before, lest all of a long piece be copied once more.
                position = min(HEADER_SIZE + int.from_bytes(buffer[:3], "big") - len(buffer), len(data))
                self._take_frames(buffer + data[:position], 0)
                if self._buffer:
                    return
        if self._need_preface:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
            if len(data) < len(PREFACE):
                self._buffer = data
                return
            position = len(PREFACE)
            self._need_preface = False
        if self._need_settings and len(data) - position >= HEADER_SIZE:
            if data[position + 3] != SETTINGS or data[position + 4] & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2: the first frame is no SETTINGS")
            self._need_settings = False
        self._take_frames(data, position)

    def _take_frames(self, data: bytes, position: int) -> None:
        """Take the frames from a position on, and keep what is left of the last."""
        size = len(data)
        self._look_at = 0
        unpack = HEADER.unpack_from
        while size - position >= 9 and self.fault is None:
            high, low, kind, flags, number = unpack(data, position)
            length = high << 8 | low
            if length > DEFAULT_MAX_FRAME:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            start = position + 9
            end = start + length
            if end > size:
                break
            position = end
            number &= 0x7FFFFFFF
            if self._block is not None and kind != CONTINUATION:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
            if kind == DATA:
                if not flags and start < end and size - end > 9 and data[end + 3 : end + 9] == data[start - 6 : start]:
                    position = self._on_row(number, data, start, end)
                else:
                    self._on_data(number, flags, data[start:end])
            elif kind == HEADERS:
                if flags & _NOT_PLAIN == END_HEADERS and number:
                    self._on_block(number, flags, data[start:end])
                else:
                    self._on_headers(number, flags, data[start:end])
            else:
                self._on_other(kind, number, flags, data[start:end])
        if position < size:
            self._buffer = data[position:]

    def _on_row(self, number: int, data: bytes, start: int, end: int) -> int:
        """Take a row of plain DATA frames of one stream as one, and return where the last of them ends.

        Many small messages come so, and what is done for each piece of a body costs more than the frames.
        """
        header, tag = data[start - 9 : start], data[start - 6 : start]
        size, length = len(data), end - start
        step = 9 + length
        view = memoryview(data)
        count = (size - start + 9) // step
        pieces = [view[start:end]]
        if count >= LONG_ROW and start >= self._look_at:
            if are_alike(data, start - 9, step, count, HEADER_SIZE):
                end += step * (count - 1)
                pieces = [view[at : at + length] for at in range(start, end, step)]
            else:
                # Not again in half of the rest: to look from each short row to the end would cost a square.
                self._look_at = start + (size - start) // 2
        while True:
            if data[end : end + 9] == header:  # and just as long, which most are
                start, end = end + 9, end + step
            elif data[end + 3 : end + 9] == tag:
                length = data[end] << 16 | data[end + 1] << 8 | data[end + 2]
                if length > DEFAULT_MAX_FRAME or not length:
                    break
                start, end = end + 9, end + 9 + length
            else:
                break
            if end > size:
                end = start - 9
                break
            pieces.append(view[start:end])
        self._on_data(number, 0, b"".join(pieces))
        return end

    def _on_data(self, number: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        self._recv_window -= size
        if self._recv_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window overrun")
        self._recv_owed += size
        if self._recv_owed * 4 >= self.limits.connection_window and self.unread + size <= self.limits.unread:
            self._return_connection_credit()
        stream = self.streams.get(number)
        if stream is None:
            self._on_closed_stream(number, "DATA")
            return
        if stream.closed & REMOTE:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
            return
        stream.recv_window -= size
        if stream.recv_window < 0:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if stream.stalled_at:
            self._measure_silence(stream)
        if flags & PADDED:
            if not size or payload[0] >= size:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
            padding = payload[0] + 1
            payload = payload[1 : size - payload[0]]
            self.unread += padding
            stream.unread += padding
            self.consumed(stream, padding)
            size -= padding
        end = flags & END_STREAM
        if not size and not end:
            self._spend_control("empty DATA frames")
            return
        if not stream.got_head:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if stream.length is not None:
            stream.length -= size
            if stream.length < 0 or (end and stream.length):
                self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
                return
        sink = stream.sink
        if sink is None:
            stream.unread += size
            self.unread += size
            if end:
                self._close_remote(stream)
            self.listener.on_data(stream, payload, bool(end))
            return
        if end:
            self._close_remote(stream)
        if not sink.on_data(payload, bool(end)):
            stream.unread += size
            self.unread += size
        elif not end and stream.closed != BOTH:
            stream.credit += size
            if stream.credit * 2 >= stream.window:
                self._return_credit(stream)

    def _measure_silence(self, stream: Stream) -> None:
        """Tell a sender that waited for its window, a long way off, from one that had nothing to say."""
        now = self._clock()
        silence = now - stream.stalled_at
        if silence > FAR_AWAY_S and silence * 4 > now - stream.since:
            stream.grows = True
            stream.stalled_at = 0.0
        else:
            # What comes out of the credit returned last shows that it is known.
            stream.stalled_at = 0.0 if stream.recv_window < stream.returned else now

    def _on_headers(self, number: int, flags: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        start = 0
        end = len(payload)
        if flags & (PADDED | PRIORITY_FLAG):
            if flags & PADDED:
                if not payload:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without padding length")
                start = 1
                end -= payload[0]
            if flags & PRIORITY_FLAG:
                start += 5
            if start > end:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
            if flags & PRIORITY_FLAG:
                self._check_priority(number, payload[start - 5 : start])
            payload = payload[start:end]
        if flags & END_HEADERS:
            self._on_block(number, flags, payload)
        else:
            self._block = (number, flags, [payload], len(payload))

    def _on_continuation(self, number: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, first_flags, pieces, size = self._block
        pieces.append(payload)
        size += len(payload)
        if len(pieces) > self.limits.continuations + 1 or size > self.limits.header_list_hard:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too long")
        if flags & END_HEADERS:
            self._block = None
            self._on_block(number, first_flags, b"".join(pieces))
        else:
            self._block = (number, first_flags, pieces, size)

    def _on_block(self, number: int, flags: int, block: bytes) -> None:
        tail = timeout = b""
        known = self._decoder.known.get(block)
        if known is None and not self.client:
            block, tail, timeout = self._decoder.split(block)
            known = self._decoder.known.get(block)
        fields: Fields
        if known is not None:
            if known.plan is not None and self._repeat(number, flags, known, tail, timeout):
                return
            fields = known
        else:
            try:
                fields = self._decoder.decode(block, strictly=not self.peer_native)
            except BlockTooLarge as error:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from error
            except BadBlock as error:
                raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
            if self.recognises and not tail and not timeout and type(fields) is not Repeated:
                known, value = self._decoder.recognise(fields)
                if known is not None and known.plan is not None and self._repeat(number, flags, known, b"", value):
                    return
        end = bool(flags & END_STREAM)
        stream = self.streams.get(number)
        if stream is None:
            if self.client or not number & 1 or number <= self._last_peer_id:
                self._on_closed_stream(number, "HEADERS")
                return
            stream = self._accept(number)
            if stream is None:
                self._spend_reset()
                return
        elif stream.closed & REMOTE:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
            return
        self.repeated = fields if type(fields) is Repeated else known
        if timeout:
            fields = [*fields, (b"grpc-timeout", timeout, True)]
        if tail:
            fields = [*fields, *[(name, value, True) for name, value in read_trace(tail) or ()]]
        try:
            if self._too_large(fields, len(block)):
                self._head_too_large(stream, end)
            elif stream.got_head:
                self._trailers(stream, fields, end)
            elif self.client:
                self._response(stream, fields, end)
            else:
                self._request(stream, fields, end)
        except Malformed:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)

    def _repeat(self, number: int, flags: int, known: Repeated, tail: bytes, timeout: bytes) -> bool:
        """Tell the listener of a head or trailers for which it has a plan; False if the whole way must be gone.

        They were found good before, and mean the same now.
        """
        stream = self.streams.get(number)
        end = flags & END_STREAM
        if self.client:
            if stream is None or stream.closed & REMOTE or stream.length is not None or stream.bodiless:
                return False
            if not stream.got_head:
                if end or type(known.meaning) is not tuple or known.meaning[2] is not None:
                    return False
                stream.got_head = True
            elif end and type(known.meaning) is list:
                self._close_remote(stream)
            else:
                return False
            self.repeated = None
            return self.listener.on_repeated(stream, known, tail, timeout, bool(end))
        if stream is not None or end or not number & 1 or number <= self._last_peer_id:
            return False
        if number > self._refuse_above or len(self.streams) >= self.limits.streams:
            return False
        stream = self._accept(number)
        assert stream is not None
        if self.listener.on_repeated(stream, known, tail, timeout, False):
            stream.got_head = True
            return True
        return False

    def _accept(self, number: int) -> Stream | None:
        """Open the peer's new stream, or refuse it as not processed."""
        self._last_peer_id = number
        if number > self._refuse_above or len(self.streams) >= self.limits.streams:
            self.out.append(frames.rst_stream(number, ErrorCode.REFUSED_STREAM))
            self._remember(number)
            return None
        self._opened += 1
        stream = self.streams[number] = Stream(number, self._peer_window, self.limits.stream_window)
        return stream

    def _request(self, stream: Stream, fields: list[tuple[bytes, bytes, bool]], end: bool) -> None:
        request = read_request(fields)
        stream.got_head = True
        stream.length = request.length
        if end:
            if request.length:
                raise Malformed("content-length without a body")
            request.length = 0
            self._close_remote(stream)
        self.listener.on_request(stream, request, end)

    def _response(self, stream: Stream, fields: list[tuple[bytes, bytes, bool]], end: bool) -> None:
        if type(fields) is Repeated:
            meaning = fields.meaning
            if type(meaning) is not tuple:
                meaning = fields.meaning = read_response(fields)
            status, headers, length = meaning
        else:
            status, headers, length = read_response(fields)
        if status < 200:
            if end or status == 101:
                raise Malformed("interim answer ends the stream")
            self._spend_control("interim answers")
            return
        stream.got_head = True
        # Whatever the length says, no body belongs to these (RFC 9110 §6.4.1).
        stream.length = 0 if stream.bodiless or status == 204 or status == 304 else length
        if end:
            if stream.length:
                raise Malformed("content-length without a body")
            self._close_remote(stream)
        self.listener.on_response(stream, status, headers, end)

    def _trailers(self, stream: Stream, fields: list[tuple[bytes, bytes, bool]], end: bool) -> None:
        if not end:
            raise Malformed("second header block does not end the stream")
        if stream.length:
            raise Malformed("body shorter than its content-length")
        headers: Headers
        if type(fields) is Repeated and type(fields.meaning) is list:
            headers = fields.meaning
        else:
            headers = [(name, value) for name, value, _ in fields]
            try:
                check_h2_fields(headers)
            except ValueError as error:
                raise Malformed(str(error)) from error
            if type(fields) is Repeated:
                fields.meaning = headers
        self._close_remote(stream)
        self.listener.on_trailers(stream, headers)

    def _too_large(self, fields: list[tuple[bytes, bytes, bool]], packed: int) -> bool:
        limit = self.limits.header_list
        count = len(fields)
        # Most are small beyond doubt: a field comes out of the table, or out of the block at 5 bits a byte at least.
        if count * MAX_ENTRY + packed * 2 <= limit:
            return False
        return sum([len(name) + len(value) for name, value, _ in fields]) + 32 * count > limit

    def _head_too_large(self, stream: Stream, end: bool) -> None:
        if self.client or stream.got_head:
            self._stream_error(stream, ErrorCode.ENHANCE_YOUR_CALM)
            return
        stream.got_head = True
        if end:
            self._close_remote(stream)
        self.listener.on_head_too_large(stream)

    def _on_other(self, kind: int, number: int, flags: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._on_window_update(number, payload)
        elif kind == SETTINGS:
            self._on_settings(number, flags, payload)
        elif kind == PING:
            self._on_ping(number, flags, payload)
        elif kind == RST_STREAM:
            self._on_rst_stream(number, payload)
        elif kind == CONTINUATION:
            self._on_continuation(number, flags, payload)
        elif kind == GOAWAY:
            self._on_goaway(number, payload)
        elif kind == PRIORITY:
            self._on_priority(number, payload)
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")
        else:
            self._spend_control("unknown frames")

    def _on_window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        increment = int.from_bytes(payload, "big") & MAX_WINDOW
        if not number:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._granted += increment
            self._send_window += increment
            if self._send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window too large")
            if self._blocked:
                self._spend_dribble(increment)
                self.pump()
            return
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
            return
        if not increment:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.send_window += increment
        if stream.send_window > MAX_WINDOW:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.pending is not None:
            self._spend_dribble(increment)
            self._blocked[number] = stream
            self.pump()

    def _on_settings(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with content")
            self._spend_control("SETTINGS acknowledgements")
            return
        self._spend_control("SETTINGS frames")
        if not self.got_settings and self.client:
            self.peer_max_streams = self.announced_streams = (
                MAX_STREAM_ID  # no limit, unless it names one (RFC 9113 §6.5.2)
            )
        self._apply_settings(payload)
        self.out.append(frames.frame(SETTINGS, ACK, 0, b""))
        # After the acknowledgement: until it comes, the peer may hold us to its old values.
        self.pump()
        self.got_settings = True
        self.listener.on_settings()

    def _apply_settings(self, payload: bytes) -> None:
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        if len(payload) > self.limits.settings * 6:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many settings in a frame")
        for at in range(0, len(payload), 6):
            key = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if key == Setting.INITIAL_WINDOW_SIZE:
                self._resize_windows(value)
            elif key == Setting.MAX_FRAME_SIZE:
                if not DEFAULT_MAX_FRAME <= value < 2**24:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
                self._peer_max_frame = min(value, 65536)
            elif key == Setting.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = self.announced_streams = value
            elif key == Setting.HEADER_TABLE_SIZE:
                self._encoder.resize(value)
            elif key == Setting.ENABLE_PUSH:
                if value > 1 or (value and self.client):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
            elif key == Setting.ENABLE_CONNECT_PROTOCOL:
                if value > 1 or value < self.peer_connect_protocol:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_CONNECT_PROTOCOL {value}")
                self.peer_connect_protocol = bool(value)
            elif key == Setting.NATIVE and self._native and not self.got_settings:
                self.peer_native = min(value, NATIVE_FORM)

    def _resize_windows(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE too large")
        change = value - self._peer_window
        self._peer_window = value
        for stream in list(self.streams.values()):
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window too large")
            if stream.pending is not None:
                self._blocked[stream.id] = stream

    def _on_ping(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong size")
        # Go's gRPC measures the line with a PING whenever DATA reached it: these are no flood.
        moved = (self._granted - self._send_window, self._recv_owed)
        if self.limits.ping_interval_s and not flags & ACK:
            self._judge_ping(moved[0])
        if moved == self._pinged_at or len(self.out) > self.limits.held_frames:
            self._spend_control("PING frames")
        self._pinged_at = moved
        if flags & ACK:
            self.listener.on_ping_ack(payload)
        else:
            self.out.append(frames.frame(PING, ACK, 0, payload))

    def _judge_ping(self, sent: int) -> None:
        """End a connection on which PINGs come too fast, as gRPC's servers do; traffic of ours pardons them."""
        now = self._clock()
        mark = (sent, self._opened)
        if mark != self._ping_mark:
            self._ping_mark = mark
            self._ping_strikes = 0
        elif now < self._ping_at + self.limits.ping_interval_s:
            self._ping_strikes += 1
            if self._ping_strikes > MAX_PING_STRIKES:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._ping_at = now

    def _on_rst_stream(self, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
            self._spend_control("RST_STREAM frames")
            return
        if not self.client:
            self._spend_reset()
        code = int.from_bytes(payload, "big")
        self._drop(stream)
        refused = self.client and code == ErrorCode.REFUSED_STREAM and not stream.got_head
        self.listener.on_reset(stream, code, local=False, unprocessed=refused)
        self._freed()

    def _on_goaway(self, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
        self._spend_control("GOAWAY frames")
        last = int.from_bytes(payload[:4], "big") & MAX_STREAM_ID
        code = int.from_bytes(payload[4:8], "big")
        if self.client:
            self.draining = True
            for stream in [stream for stream in self.streams.values() if stream.id > last]:
                if stream.closed == BOTH:
                    continue  # by the owner, when it heard of another
                self._drop(stream)
                self._remember(stream.id)
                self.listener.on_reset(stream, ErrorCode.REFUSED_STREAM, local=False, unprocessed=not stream.got_head)
        self.listener.on_goaway(code, payload[8:])

    def _on_priority(self, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._spend_control("PRIORITY frames")
        if len(payload) != 5:
            stream = self.streams.get(number)
            if stream is None:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")
            self._stream_error(stream, ErrorCode.FRAME_SIZE_ERROR)
            return
        self._check_priority(number, payload)

    def _check_priority(self, number: int, payload: bytes) -> None:
        """Priorities are checked and then ignored (RFC 9113 §5.3.2); a stream cannot depend on itself."""
        if int.from_bytes(payload[:4], "big") & MAX_STREAM_ID == number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream depends on itself")

    # ── streams ────────────────────────────────────────────────────────────────────────────────────
    def _put_block(self, stream: Stream, block: bytes, end: bool) -> None:
        size = len(block)
        flags = END_STREAM if end else 0
        if size <= self._peer_max_frame:
            self.out.append(HEADER.pack(size >> 8, size & 255, HEADERS, flags | END_HEADERS, stream.id))
            self.out.append(block)
        else:
            step = self._peer_max_frame
            self.out.append(frames.frame(HEADERS, flags, stream.id, block[:step]))
            for at in range(step, size, step):
                last = END_HEADERS if at + step >= size else 0
                self.out.append(frames.frame(CONTINUATION, last, stream.id, block[at : at + step]))
        if end:
            self._close_local(stream)

    def _emit_pending(self, stream: Stream) -> bool:
        """Put out one frame of what is pending; True when it has all gone."""
        data = stream.pending
        assert data is not None
        left = len(data) - stream.offset
        size = min(left, stream.send_window, self._send_window, self._peer_max_frame)
        if size <= 0:
            return False
        piece = data[stream.offset : stream.offset + size]
        last = size == left
        end = last and stream.pending_end
        self.out.append(HEADER.pack(size >> 8, size & 255, DATA, END_STREAM if end else 0, stream.id))
        self.out.append(piece)
        stream.offset += size
        stream.send_window -= size
        self._send_window -= size
        self._held += size
        return last

    def _pending_gone(self, stream: Stream) -> None:
        stream.pending = None
        if stream.pending_end:
            self._close_local(stream)
        elif stream.trailers is not None:
            trailers, stream.trailers = stream.trailers, None
            self.send_trailers(stream, trailers)
        self.listener.on_writable(stream)

    def _close_local(self, stream: Stream) -> None:
        stream.closed |= LOCAL
        if stream.closed == BOTH:
            del self.streams[stream.id]
            self._freed()

    def _shrink(self, stream: Stream) -> None:
        """Let others have what a stream's window had grown by: nothing more comes there, and nothing lies unread."""
        self._grown -= stream.grown
        stream.grown = 0

    def _close_remote(self, stream: Stream) -> None:
        stream.closed |= REMOTE
        if stream.grown and not stream.unread:
            self._shrink(stream)
        if stream.closed == BOTH:
            del self.streams[stream.id]
            self._freed()

    def _drop(self, stream: Stream) -> None:
        stream.closed = BOTH
        stream.pending = None
        self.streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        if stream.unread:
            self.consumed(stream, stream.unread)
        elif stream.grown:
            self._shrink(stream)

    def _forget(self, stream: Stream) -> None:
        self._drop(stream)
        self._remember(stream.id)
        self._freed()

    def _remember(self, number: int) -> None:
        forgotten = self._forgotten
        forgotten[number] = None
        if len(forgotten) > self.limits.forgotten:
            oldest = next(iter(forgotten))
            del forgotten[oldest]
            self._forgotten_below = max(self._forgotten_below, oldest)

    def _freed(self) -> None:
        if self.client:
            self.listener.on_capacity()

    def _stream_error(self, stream: Stream, code: ErrorCode) -> None:
        """Reset a stream for what the peer did; too many of them end the connection."""
        self._spend_reset()
        self.out.append(frames.rst_stream(stream.id, code))
        self._drop(stream)
        self._remember(stream.id)
        self.listener.on_reset(stream, code, local=True, unprocessed=False)
        self._freed()

    def _on_closed_stream(self, number: int, what: str) -> None:
        """A frame for a stream that is not open: late, or an error."""
        if self._is_idle(number):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on an idle stream")
        if number in self._forgotten:
            return
        if number <= self._forgotten_below:
            self._spend_control("frames on closed streams")
            return
        if what == "DATA":
            self._spend_reset()
            self.out.append(frames.rst_stream(number, ErrorCode.STREAM_CLOSED))
            self._remember(number)
            return
        raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"{what} on a closed stream")

    def _is_idle(self, number: int) -> bool:
        if bool(number & 1) == self.client:
            return number >= self._next_id
        return number > self._last_peer_id

    def _return_connection_credit(self) -> None:
        self.out.append(frames.window_update(0, self._recv_owed))
        self._recv_window += self._recv_owed
        self._recv_owed = 0

    def _spend_control(self, what: str) -> None:
        opened = self._streams_opened()
        earned = (opened - self._control_opened) * self.limits.control_per_stream
        self._control_opened = opened
        if not self._control.spend(earned):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")
        self._check_held()

    def _spend_reset(self) -> None:
        opened = self._streams_opened()
        earned = (opened - self._resets_opened) * self.limits.reset_per_stream
        self._resets_opened = opened
        if not self._resets.spend(earned):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset")
        self._check_held()

    def _spend_dribble(self, increment: int) -> None:
        if increment < self.limits.dribble:
            self._spend_control("tiny WINDOW_UPDATE frames")

    def _streams_opened(self) -> int:
        return self._next_id >> 1 if self.client else self._opened

    def _check_held(self) -> None:
        if len(self.out) > self.limits.held_frames:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "frames cause answers that are not read")


def request_fields(
    method: bytes, path: bytes, authority: bytes, headers: Headers, *, scheme: bytes = b"http"
) -> Fields:
    """Return the fields of a request, as ``Connection.send_request`` takes them."""
    fields: Fields = [
        (b":method", method, False),
        (b":path", path, False),
        (b":scheme", scheme, False),
        (b":authority", authority, False),
    ]
    fields += [(name, value, name in NEVER_INDEXED) for name, value in headers]
    return fields


def connect_fields(path: bytes, authority: bytes, headers: Headers, *, scheme: bytes = b"http") -> Fields:
    """Return the fields of an extended CONNECT for a WebSocket (RFC 8441 §5)."""
    fields = request_fields(b"CONNECT", path, authority, headers, scheme=scheme)
    fields.insert(1, (b":protocol", PROTOCOL, False))
    return fields
