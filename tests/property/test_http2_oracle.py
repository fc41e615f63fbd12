"""HTTP/2 beside the h2 library, in both roles, and under mutated and arbitrary bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.http2 import GET, OK, POST, Clock, Ledger, an_end, block, data, headers, plain, read_frames
from tieline.model import Headers, Request
from tieline.wire.http2 import Connection, ErrorCode, Limits, Stream, frames
from tieline.wire.http2.frames import frame
from tieline.wire.http2.hpack import Repeated

Pairs = list[tuple[bytes, bytes]]


@dataclass
class Message:
    """What one end says on a stream."""

    head: Pairs
    pieces: list[bytes]
    trailers: Pairs

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


@dataclass
class Heard:
    """What the other end heard of it."""

    head: Pairs | None = None
    body: bytes = b""
    trailers: Pairs = field(default_factory=list)
    ended: bool = False
    cut: bool = False


@dataclass
class Outgoing:
    """What is still to be said."""

    pieces: deque[bytes]
    trailers: Pairs


class Side:
    """One end: what it heard, and what it has yet to say. ``lazy``: it gives credit back only when told to."""

    def __init__(self, *, lazy: bool) -> None:
        self.heard: dict[int, Heard] = {}
        self.saying: dict[int, Outgoing] = {}
        self.lazy = lazy
        self.unread: list[tuple[int, int]] = []

    def of(self, number: int) -> Heard:
        return self.heard.setdefault(number, Heard())

    def say(self, number: int, message: Message) -> None:
        self.saying[number] = Outgoing(deque(message.pieces), message.trailers)
        self.flush()

    def flush(self) -> None:
        for number in list(self.saying):
            if self.of(number).cut or self.say_more(number, self.saying[number]):
                del self.saying[number]

    def say_more(self, number: int, outgoing: Outgoing) -> bool:
        """Say what can be said; True when it was everything."""
        raise NotImplementedError

    def take(self) -> bytes:
        raise NotImplementedError

    def hear(self, data: bytes) -> None:
        raise NotImplementedError

    def begin(self, number: int, message: Message) -> int:
        raise NotImplementedError

    def cut(self, number: int) -> None:
        raise NotImplementedError

    def ping(self) -> None:
        raise NotImplementedError

    def read_all(self) -> None:
        raise NotImplementedError


class Ours(Side):
    def __init__(self, *, client: bool, lazy: bool, limits: Limits) -> None:
        super().__init__(lazy=lazy)
        self.client = client
        self.h2 = Connection(self, client=client, limits=limits, clock=Clock())
        self.streams: dict[int, Stream] = {}
        self.pongs = 0

    def begin(self, number: int, message: Message) -> int:
        if self.client:
            stream = self.h2.send_request(plain(message.head), end=False)
            self.streams[stream.id] = stream
        else:
            stream = self.streams[number]
            self.h2.send_response(stream, int(message.head[0][1]), message.head[1:], end=False)
        self.say(stream.id, message)
        return stream.id

    def say_more(self, number: int, outgoing: Outgoing) -> bool:
        stream = self.streams[number]
        while stream.pending is None and outgoing.pieces:
            self.h2.send_data(stream, outgoing.pieces.popleft(), end=False)
        if outgoing.pieces:
            return False
        self.h2.send_trailers(stream, outgoing.trailers)
        return True

    def take(self) -> bytes:
        data = b""
        while self.h2.out:
            data += self.h2.take()
            self.h2.pump()
        return data

    def hear(self, data: bytes) -> None:
        self.h2.receive(data)
        assert self.h2.fault is None, self.h2.fault

    def cut(self, number: int) -> None:
        if number in self.h2.streams:
            self.h2.reset(self.streams[number], ErrorCode.CANCEL)
            self.of(number).cut = True

    def ping(self) -> None:
        self.h2.ping(b"12345678")

    def read_all(self) -> None:
        unread, self.unread = self.unread, []
        for number, size in unread:
            self.h2.consumed(self.streams[number], size)

    # ── the listener ──
    def on_request(self, stream: Stream, request: Request, end: bool) -> None:
        self.streams[stream.id] = stream
        path = request.path if request.query is None else request.path + b"?" + request.query
        pseudo = [(b":method", request.verb), (b":scheme", b"http"), (b":path", path)]
        self.of(stream.id).head = [*pseudo, (b":authority", request.authority), *request.headers]
        self.of(stream.id).ended = end

    def on_response(self, stream: Stream, status: int, headers: Headers, end: bool) -> None:
        self.of(stream.id).head = [(b":status", b"%d" % status), *headers]
        self.of(stream.id).ended = end

    def on_repeated(self, stream: Stream, known: Repeated, tail: bytes, timeout: bytes, end: bool) -> bool:
        raise AssertionError("nobody left a plan")

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        heard = self.of(stream.id)
        heard.body += data
        heard.ended = end
        self.unread.append((stream.id, len(data)))
        if not self.lazy:
            self.read_all()

    def on_trailers(self, stream: Stream, headers: Headers) -> None:
        self.of(stream.id).trailers = headers
        self.of(stream.id).ended = True

    def on_reset(self, stream: Stream, code: int, *, local: bool, unprocessed: bool) -> None:
        assert not local, (stream.id, code)
        self.of(stream.id).cut = True

    def on_head_too_large(self, stream: Stream) -> None:
        raise AssertionError("nothing here is so large")

    def on_writable(self, stream: Stream) -> None:
        pass

    def on_settings(self) -> None:
        pass

    def on_capacity(self) -> None:
        pass

    def on_goaway(self, code: int, text: bytes) -> None:
        raise AssertionError(text)

    def on_ping_ack(self, data: bytes) -> None:
        self.pongs += 1


class Theirs(Side):
    def __init__(self, *, client: bool, lazy: bool, padding: int, window: int) -> None:
        super().__init__(lazy=lazy)
        self._window = window
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding=None))
        first = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window, h2.settings.SettingCodes.ENABLE_PUSH: 0}
        self.h2.local_settings = h2.settings.Settings(client=client, initial_values=first)
        self.h2.initiate_connection()
        self.client = client
        self.padding = padding
        self.pongs = 0
        self._needs_preface = not client
        self._buffer = b""
        self._unacknowledged = 1

    def begin(self, number: int, message: Message) -> int:
        if self.client:
            number = self.h2.get_next_available_stream_id()
        else:
            if number % 4 == 1:
                self.h2.send_headers(number, [(b":status", b"103"), (b"link", b"x")])
        self.h2.send_headers(number, message.head)
        self.say(number, message)
        return number

    def say_more(self, number: int, outgoing: Outgoing) -> bool:
        while outgoing.pieces:
            piece = outgoing.pieces.popleft()
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            padding = self.padding if self.padding and len(piece) + self.padding < room else None
            size = min(len(piece), room)
            if size <= 0 and piece:
                outgoing.pieces.appendleft(piece)
                return False
            self.h2.send_data(number, piece[:size], pad_length=padding)
            if piece[size:]:
                outgoing.pieces.appendleft(piece[size:])
        if outgoing.trailers:
            self.h2.send_headers(number, outgoing.trailers, end_stream=True)
        else:
            self.h2.end_stream(number)
        return True

    def take(self) -> bytes:
        return self.h2.data_to_send()

    def hear(self, data: bytes) -> None:
        # A frame at a time: h2 takes larger frames only from the call after the one that brought the acknowledgement.
        self._buffer += data
        while size := self._next_size():
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            for event in self.h2.receive_data(piece):
                self._on_event(event)

    def _next_size(self) -> int:
        """Return the size of the next whole frame, or of the preface; 0 if there is none yet."""
        if self._needs_preface:
            if len(self._buffer) < len(frames.PREFACE):
                return 0
            self._needs_preface = False
            return len(frames.PREFACE)
        if len(self._buffer) < frames.HEADER_SIZE:
            return 0
        size = frames.HEADER_SIZE + int.from_bytes(self._buffer[:3], "big")
        return size if len(self._buffer) >= size else 0

    def _on_event(self, event: Any) -> None:
        match event:
            case h2.events.RequestReceived() | h2.events.ResponseReceived():
                self.of(event.stream_id).head = [(bytes(name), bytes(value)) for name, value in event.headers]
            case h2.events.DataReceived():
                self.of(event.stream_id).body += event.data
                self.unread.append((event.stream_id, event.flow_controlled_length))
                if not self.lazy:
                    self.read_all()
            case h2.events.TrailersReceived():
                self.of(event.stream_id).trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
            case h2.events.StreamEnded():
                self.of(event.stream_id).ended = True
            case h2.events.StreamReset():
                self.of(event.stream_id).cut = True
            case h2.events.ConnectionTerminated():
                raise AssertionError(event)
            case h2.events.PingAckReceived():
                self.pongs += 1
            case h2.events.SettingsAcknowledged():
                self._unacknowledged -= 1
            case _:
                pass

    def cut(self, number: int) -> None:
        try:
            self.h2.reset_stream(number, ErrorCode.CANCEL)
        except h2.exceptions.ProtocolError:
            return  # over already
        self.of(number).cut = True

    def ping(self) -> None:
        self.h2.ping(b"12345678")

    def read_all(self) -> None:
        unread, self.unread = self.unread, []
        for number, size in unread:
            try:
                self.h2.acknowledge_received_data(size, number)
            except h2.exceptions.StreamClosedError:
                pass

    def change(self, values: dict[int, int]) -> bool:
        """Change settings, unless a change is under way: h2 mixes up which one is acknowledged.

        Windows only grow: h2 returns no credit to a stream whose window it took below zero, nor lets it end.
        """
        if self._unacknowledged or values.get(4, self._window) < self._window:
            return False
        self._window = values.get(4, self._window)
        self._unacknowledged += 1
        self.h2.update_settings({h2.settings.SettingCodes(key): value for key, value in values.items()})
        return True


# ── what happens ──
names = st.from_regex(rb"x-[a-z0-9]{1,8}", fullmatch=True)
values = st.one_of(
    st.from_regex(rb"[!-~](?:[ -~\x80-\xff]{0,20}[!-~])?", fullmatch=True),
    st.integers(0, 40000).map(lambda size: b"v" * size),
)
fields = st.lists(st.tuples(names, values), max_size=3).filter(
    lambda pairs: sum(len(name) + len(value) + 32 for name, value in pairs) < 60000
)
pieces = st.lists(st.one_of(st.binary(max_size=30), st.integers(0, 70000).map(bytes)), max_size=4)
requests = st.builds(lambda head, body, tail: Message([*POST, *head], body, tail), fields, pieces, fields)
responses = st.builds(lambda head, body, tail: Message([*OK, *head], body, tail), fields, pieces, fields)
choices = st.integers(0, 3)
changes = st.fixed_dictionaries(
    {}, optional={4: st.sampled_from([1, 100, 65535, 200_000]), 5: st.sampled_from([16384, 40000])}
)
steps = st.one_of(
    st.tuples(st.just("call"), requests),
    st.tuples(st.just("answer"), choices, responses),
    st.tuples(st.just("carry"), st.integers(1, 20000)),
    st.tuples(st.just("cut"), st.booleans(), choices),
    st.tuples(st.just("read")),
    st.tuples(st.just("ping"), st.booleans()),
    st.tuples(st.just("change"), changes),
)


class Play:
    """Two ends, and the bytes on their way between them."""

    def __init__(self, client: Side, server: Side) -> None:
        self.client = client
        self.server = server
        self.asked: dict[int, Message] = {}
        self.answered: dict[int, Message] = {}
        self.up = b""
        self.down = b""

    def carry(self, size: int) -> bool:
        """Let at most ``size`` bytes arrive at each end."""
        for side in (self.client, self.server):
            side.flush()
        self.up += self.client.take()
        self.down += self.server.take()
        up, self.up = self.up[:size], self.up[size:]
        down, self.down = self.down[:size], self.down[size:]
        self.server.hear(up)
        self.client.hear(down)
        return bool(up or down)

    def waiting(self) -> list[int]:
        return [number for number, heard in self.server.heard.items() if heard.head and number not in self.answered]

    def act(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("call", message):
                self.asked[self.client.begin(0, message)] = message
            case ("answer", choice, message):
                waiting = [number for number in self.waiting() if not self.server.of(number).cut]
                if waiting:
                    number = waiting[choice % len(waiting)]
                    self.answered[number] = message
                    self.server.begin(number, message)
            case ("carry", size):
                self.carry(size)
            case ("cut", of_client, choice):
                side = self.client if of_client else self.server
                known = list(self.asked) if of_client else list(self.server.heard)
                if known:
                    side.cut(known[choice % len(known)])
            case ("read",):
                self.client.read_all()
                self.server.read_all()
            case ("ping", of_client):
                (self.client if of_client else self.server).ping()
            case ("change", values):
                for side in (self.client, self.server):
                    if isinstance(side, Theirs):
                        side.change(values)
            case _:
                raise AssertionError(step)

    def end(self) -> None:
        """Let everything come to its end."""
        widened = False
        for _ in range(2000):
            for side in (self.client, self.server):
                if isinstance(side, Theirs) and not widened:
                    widened = side.change({4: 200_000})
            self.act(("answer", 0, Message(list(OK), [b"late"], [])))
            self.act(("read",))
            moved = self.carry(1 << 20)
            if not (moved or self.client.saying or self.server.saying or self.waiting_uncut()):
                return
        raise AssertionError("no end")

    def waiting_uncut(self) -> list[int]:
        return [number for number in self.waiting() if not self.server.of(number).cut]


def check(said: Message, heard: Heard, *, cut: bool) -> None:
    if cut:
        assert heard.head in (None, said.head)
        assert said.body.startswith(heard.body)
        return
    assert heard.head == said.head
    assert heard.body == said.body
    assert heard.trailers == said.trailers
    assert heard.ended


def play(client: Side, server: Side, ours: Ours, script: list[tuple[Any, ...]], limits: Limits) -> None:
    stage = Play(client, server)
    while stage.carry(1 << 20):
        pass

    for step in script:
        stage.act(step)
    stage.end()

    for number, message in stage.asked.items():
        cut = client.of(number).cut or server.of(number).cut
        check(message, server.of(number), cut=cut)
        if number in stage.answered:
            check(stage.answered[number], client.of(number), cut=cut)
    assert ours.h2.unread == 0
    assert not ours.h2.streams
    assert ours.h2._recv_window + ours.h2._recv_owed == limits.connection_window
    assert ours.h2._recv_owed * 4 < limits.connection_window


limits_ = st.builds(
    Limits,
    stream_window=st.sampled_from([1000, 65535]),
    stream_window_max=st.sampled_from([65535, 1 << 20]),
    connection_window=st.sampled_from([65535, 100_000]),
    unread=st.sampled_from([10_000, 1 << 25]),
    held_out=st.sampled_from([16384, 1 << 18]),
)
paddings = st.sampled_from([0, 1, 200])
windows = st.sampled_from([0, 100, 65535])
scripts = st.lists(steps, min_size=1, max_size=25)


@settings(deadline=None, max_examples=60)
@given(scripts, limits_, st.booleans(), st.booleans(), paddings, windows)
def test_a_server_understands_another_client(
    script: list[tuple[Any, ...]], limits: Limits, lazy: bool, their_lazy: bool, padding: int, window: int
) -> None:
    server = Ours(client=False, lazy=lazy, limits=limits)
    client = Theirs(client=True, lazy=their_lazy, padding=padding, window=window)
    play(client, server, server, script, limits)


@settings(deadline=None, max_examples=60)
@given(scripts, limits_, st.booleans(), st.booleans(), paddings, windows)
def test_a_client_understands_another_server(
    script: list[tuple[Any, ...]], limits: Limits, lazy: bool, their_lazy: bool, padding: int, window: int
) -> None:
    client = Ours(client=True, lazy=lazy, limits=limits)
    server = Theirs(client=False, lazy=their_lazy, padding=padding, window=window)
    play(client, server, client, script, limits)


# ── cuts, garbage, mutations ──
_BLOCK = block(GET)
CORPUS = [
    frames.settings({}),
    frames.settings({4: 0, 5: 20000, 1: 0}),
    frame(frames.SETTINGS, frames.ACK, 0, b""),
    headers(1, POST, end=False),
    headers(3, GET),
    headers(5, [*POST, (b"content-length", b"5")], end=False),
    data(1, b"hello"),
    data(5, b"hello", end=True),
    frame(frames.DATA, frames.PADDED, 1, b"\2ab\0\0"),
    frame(frames.HEADERS, frames.PADDED | frames.PRIORITY_FLAG | 5, 7, b"\1" + bytes(5) + _BLOCK + b"\0"),
    frame(frames.HEADERS, 1, 9, _BLOCK[:10]) + frame(frames.CONTINUATION, 4, 9, _BLOCK[10:]),
    headers(1, [(b"sum", b"1")]),
    headers(1, OK, end=False),
    headers(3, OK),
    headers(1, [(b":status", b"103")], end=False),
    frames.rst_stream(1, 8),
    frames.rst_stream(3, 7),
    frames.window_update(0, 1000),
    frames.window_update(1, 1000),
    frame(frames.PING, 0, 0, bytes(8)),
    frame(frames.PING, 1, 0, bytes(8)),
    frame(frames.PRIORITY, 0, 3, b"\0\0\0\1\0"),
    frames.goaway(1, 0, "bye"),
    frame(77, 9, 0, b"grease"),
    frame(frames.PUSH_PROMISE, 4, 1, bytes(4)),
]
arbitrary = st.builds(
    frame,
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 99, 2**31 - 1]),
    st.binary(max_size=24),
)
conversations = st.lists(st.one_of(st.sampled_from(CORPUS), arbitrary), max_size=25).map(b"".join)


def _mutate(whole: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, size, put in changes:
        place = at % (len(whole) + 1)
        whole = whole[:place] + put + whole[place + size :]
    return whole


mutated = st.builds(
    _mutate,
    conversations,
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3), st.binary(max_size=3)), max_size=4),
)


@settings(deadline=None, max_examples=300)
@given(mutated, st.booleans(), st.lists(st.integers(1, 40), max_size=60))
def test_whatever_arrives_ends_in_a_fault_or_not_at_all(whole: bytes, client: bool, cuts: list[int]) -> None:
    """Nothing is raised, what is answered stays small, and it makes no difference how the bytes were cut."""
    greeting = (b"" if client else frames.PREFACE) + frames.settings({})
    at_once, cut = an_end(client=client, greeted=False), an_end(client=client, greeted=False)
    for end in (at_once, cut):
        end.hear(greeting)
        if client:
            for _ in range(3):
                end.h2.send_request(plain(GET), end=True)
            end.said()

    at_once.h2.receive(whole)
    answer = at_once.said()
    at = 0
    rest = []
    for size in cuts:
        rest += cut.hear(whole[at : at + size])
        at += size
    rest += cut.hear(whole[at:])

    assert at_once.ledger.events == cut.ledger.events
    assert str(at_once.h2.fault) == str(cut.h2.fault)
    assert answer == rest
    assert sum(len(one.payload) + 9 for one in answer) <= 2 * len(whole) + 300
    if at_once.h2.fault is not None:
        assert answer[-1].kind == frames.GOAWAY
        assert at_once.hear(headers(101, GET)) == []
    assert len(at_once.h2._buffer) <= 16384 + 9
    assert at_once.h2.unread == 0


@given(st.binary(max_size=200), st.booleans())
def test_whatever_arrives_first_is_survived(whole: bytes, client: bool) -> None:
    ledger = Ledger()
    connection = Connection(ledger, client=client, limits=Limits(), clock=Clock())

    connection.receive(whole)

    assert len(read_frames(connection.take())) <= 4


@st.composite
def frames_of_two_streams(draw: st.DrawFn) -> bytes:
    """Bodies in rows of frames of one size and of many."""
    out = b""
    for number in draw(st.lists(st.sampled_from([1, 3]), min_size=1, max_size=4)):
        sizes = [draw(st.sampled_from([1, 7, 1000, 4000]))] * draw(st.integers(1, 40))
        sizes += draw(st.lists(st.sampled_from([1, 1000, 4000, 16384]), max_size=3))
        out += b"".join(data(number, bytes([place % 251 + 1]) * size) for place, size in enumerate(sizes))
    return out


@given(frames_of_two_streams(), st.data())
def test_however_a_stream_of_frames_is_cut_the_same_bodies_come_out(stream: bytes, drawn: st.DataObject) -> None:
    def bodies(pieces: list[bytes]) -> tuple[bytes, bytes]:
        server = an_end(client=False, limits=Limits(stream_window=1 << 20, stream_window_max=1 << 20))
        server.hear(headers(1, POST, end=False), headers(3, POST, end=False))
        for piece in pieces:
            server.hear(piece)
        assert server.h2.fault is None
        assert server.h2.unread == 0
        return server.ledger.body(1), server.ledger.body(3)

    cuts = sorted(drawn.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    expected = {
        number: b"".join(one.payload for one in read_frames(stream) if one.stream == number) for number in (1, 3)
    }

    assert bodies(pieces) == bodies([stream]) == (expected[1], expected[3])
