"""Windows: what may be sent, what is given back, and that nothing of either is ever lost (RFC 9113 §5.2, §6.9)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.support.http2 import GET, POST, End, Frame, an_end, data, exchange, headers, plain, read_frames
from tieline.wire.http2 import ErrorCode, Limits, Stream, frames
from tieline.wire.http2.frames import are_alike

UPDATE = frames.window_update


def bodies(said: list[Frame]) -> list[bytes]:
    return [one.payload for one in said if one.kind == frames.DATA]


def answering(settings: dict[int, int] | None = None, limits: Limits | None = None) -> tuple[End, Stream]:
    """A server that has begun to answer stream 1."""
    server = an_end(client=False, limits=limits)
    server.hear(frames.settings(settings or {}), headers(1, GET))
    stream = server.ledger.streams[1]
    server.h2.send_response(stream, 200, [], end=False)
    server.said()
    return server, stream


def updates(said: list[Frame], number: int) -> list[int]:
    return [
        int.from_bytes(one.payload, "big") for one in said if one.kind == frames.WINDOW_UPDATE and one.stream == number
    ]


# ── sending ──
def test_no_more_is_sent_than_the_streams_window_lets_through() -> None:
    server, stream = answering({4: 10})

    assert not server.h2.send_data(stream, b"x" * 25, end=True)
    assert bodies(server.said()) == [b"x" * 10]
    assert bodies(server.hear(UPDATE(1, 10))) == [b"x" * 10]
    assert server.ledger.of("writable") == []
    last = server.hear(UPDATE(1, 10))

    assert bodies(last) == [b"x" * 5]
    assert last[-1].flags == frames.END_STREAM
    assert server.ledger.of("writable") == [(1,)]
    assert not server.h2.streams


def test_no_more_is_sent_than_the_connections_window_lets_through() -> None:
    server, stream = answering({4: 1 << 20})

    assert not server.h2.send_data(stream, b"x" * 70000, end=True)
    sent = bodies(server.said())

    assert sum(map(len, sent)) == 65535
    assert max(map(len, sent)) <= 16384
    assert sum(map(len, bodies(server.hear(UPDATE(0, 100000))))) == 70000 - 65535


def test_frames_are_no_longer_than_the_peer_takes() -> None:
    server, stream = answering({4: 1 << 20, 5: 20000})
    server.hear(UPDATE(0, 1 << 20))

    server.h2.send_data(stream, b"x" * 50000, end=True)

    assert list(map(len, bodies(server.said()))) == [20000, 20000, 10000]


def test_a_window_below_zero_is_waited_for() -> None:
    server, stream = answering({4: 100})
    server.h2.send_data(stream, b"x" * 150, end=True)
    server.said()

    assert bodies(server.hear(frames.settings({4: 20}))) == []
    assert bodies(server.hear(UPDATE(1, 80))) == []
    assert bodies(server.hear(UPDATE(1, 1))) == [b"x"]
    assert bodies(server.hear(frames.settings({4: 1000}))) == [b"x" * 49]
    assert server.h2.fault is None


def test_a_larger_window_is_used_after_it_was_acknowledged() -> None:
    server, stream = answering({4: 0})
    server.h2.send_data(stream, b"abc", end=True)

    server.h2.receive(frames.settings({4: 10}))

    assert [one.kind for one in read_frames(server.h2.take())] == [frames.SETTINGS, frames.DATA]


@pytest.mark.parametrize("trailers", [None, [], [(b"x", b"1")]])
def test_the_end_needs_no_window(trailers: list[tuple[bytes, bytes]] | None) -> None:
    server, stream = answering({4: 100})
    assert server.h2.send_data(stream, b"x" * 100, end=False)
    server.hear(frames.settings({4: 0}))

    if trailers is None:
        assert server.h2.send_data(stream, b"", end=True)
    else:
        server.h2.send_trailers(stream, trailers)
    said = server.said()

    assert said[-1].flags & frames.END_STREAM
    assert not server.h2.streams


def test_trailers_come_after_what_is_pending() -> None:
    server, stream = answering({4: 1})

    server.h2.send_data(stream, b"ab", end=False)
    server.h2.send_trailers(stream, [(b"x", b"1")])
    assert [one.kind for one in server.said()] == [frames.DATA]

    assert [one.kind for one in server.hear(UPDATE(1, 1))] == [frames.DATA, frames.HEADERS]
    assert not server.h2.streams


def test_streams_with_something_pending_take_turns() -> None:
    server = an_end(client=False)
    server.hear(frames.settings({4: 1 << 20}), headers(1, GET), headers(3, GET), headers(5, GET))
    for number in (1, 3, 5):
        server.h2.send_response(server.ledger.streams[number], 200, [], end=False)
    assert server.h2.send_data(server.ledger.streams[1], b"x" * 16384, end=True)
    for number in (3, 5):
        server.h2.send_data(server.ledger.streams[number], b"x" * 100_000, end=True)
    server.said()

    order = [one.stream for one in server.hear(UPDATE(0, 6 * 16384)) if one.kind == frames.DATA]

    assert len(order) >= 6
    assert all(one != following for one, following in pairwise(order))


def test_a_stream_without_a_window_holds_up_nobody() -> None:
    server = an_end(client=False)
    server.hear(frames.settings({4: 0}), headers(1, GET), headers(3, GET))
    for number in (1, 3):
        server.h2.send_response(server.ledger.streams[number], 200, [], end=False)
        server.h2.send_data(server.ledger.streams[number], b"x", end=True)

    assert bodies(server.hear(UPDATE(3, 1))) == [b"x"]
    assert list(server.h2.streams) == [1]


def test_nothing_of_a_body_is_taken_in_while_the_socket_takes_none() -> None:
    server, stream = answering()
    server.h2.paused = True

    assert not server.h2.send_data(stream, b"x", end=True)
    assert bodies(server.said()) == []

    server.h2.paused = False
    server.h2.pump()
    assert bodies(server.said()) == [b"x"]


def test_only_so_much_waits_to_be_written() -> None:
    limits = Limits()
    server, stream = answering({4: 2**31 - 1})
    server.hear(UPDATE(0, 1 << 30))

    server.h2.send_data(stream, b"x" * (1 << 20), end=True)

    assert sum(map(len, server.h2.out)) < limits.held_out + 2 * 16384
    assert sum(map(len, bodies(server.said()))) == 1 << 20


def test_a_reset_stream_sends_nothing_more() -> None:
    server, stream = answering({4: 1})
    server.h2.send_data(stream, b"abc", end=True)
    server.said()

    assert bodies(server.hear(frames.rst_stream(1, 8), UPDATE(0, 100))) == []
    assert server.h2.send_data(stream, b"x", end=True)
    server.h2.send_response(stream, 200, [], end=True)
    server.h2.send_trailers(stream, [(b"x", b"1")])
    server.h2.reset(stream, ErrorCode.CANCEL)
    assert server.said() == []


# ── receiving ──
def test_a_streams_window_is_returned_as_its_reader_consumes() -> None:
    server = an_end(client=False, consume=False)
    server.hear(headers(1, POST, end=False))
    stream = server.ledger.streams[1]

    assert server.hear(*[data(1, bytes(16383))] * 4) == []
    for _ in range(4):
        server.h2.consumed(stream, 16383)

    assert sum(updates(server.said(), 1)) >= 65532 // 2
    assert stream.recv_window + stream.credit == stream.window


def test_a_stream_that_overruns_its_window_is_cut_off() -> None:
    server = an_end(client=False, consume=False)
    server.hear(headers(1, POST, end=False))

    server.hear(*[data(1, bytes(16384))] * 4)

    assert server.ledger.of("reset") == [(1, ErrorCode.FLOW_CONTROL_ERROR, True, False)]
    assert server.h2.fault is None
    assert server.h2.unread == 0


def test_a_connection_that_overruns_its_window_ends() -> None:
    limits = Limits(connection_window=65535, unread=16384, stream_window=1 << 20)
    server = an_end(client=False, consume=False, limits=limits)
    server.hear(headers(1, POST, end=False))

    server.hear(*[data(1, bytes(16384))] * 6)

    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.FLOW_CONTROL_ERROR


def test_one_slow_reader_does_not_hold_up_the_connection() -> None:
    limits = Limits(connection_window=1 << 17)
    server = an_end(client=False, consume=False, limits=limits)
    server.hear(headers(1, POST, end=False), headers(3, POST, end=False))
    server.hear(*[data(1, bytes(16383))] * 4)

    for _ in range(100):
        assert server.h2.fault is None
        server.hear(data(3, bytes(16384)))
        server.h2.consumed(server.ledger.streams[3], 16384)

    assert len(server.ledger.body(3)) == 100 * 16384


def test_credit_is_held_back_while_too_much_lies_unread() -> None:
    limits = Limits(connection_window=1 << 17, unread=1 << 16, stream_window=1 << 20, stream_window_max=1 << 20)
    server = an_end(client=False, consume=False, limits=limits)
    server.hear(headers(1, POST, end=False))

    said = server.hear(*[data(1, bytes(16384))] * 8)
    assert sum(updates(said, 0)) <= 1 << 16
    server.h2.consumed(server.ledger.streams[1], 8 * 16384)

    assert sum(updates(said + server.said(), 0)) == 8 * 16384


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 10, 14, 40])
def test_a_row_of_small_frames_is_one_piece_however_it_is_cut(cut: int) -> None:
    server = an_end(client=False)
    server.hear(headers(1, POST, end=False), headers(3, POST, end=False))
    row = b"".join(data(1, b"%04d" % number) for number in range(5)) + data(1, b"longer") + data(1, b"x")
    stream = row + data(3, b"other") + data(1, b"y") + data(1, b"end", end=True)
    at = len(stream) - cut if cut else 0

    server.hear(stream[:at])
    server.hear(stream[at:])

    assert server.ledger.body(1) == b"00000001000200030004longerxyend"
    assert server.ledger.body(3) == b"other"
    assert len(server.ledger.of("data")) <= 5
    assert server.ledger.of("data")[-1][2] is True
    assert server.h2.unread == 0


def test_short_rows_of_two_streams_are_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look from each of them to the end of what arrived kept the event loop busy for half a second."""
    looked_at = 0

    def counting(piece: bytes, at: int, step: int, count: int, size: int) -> bool:
        nonlocal looked_at
        looked_at += step * count
        return are_alike(piece, at, step, count, size)

    monkeypatch.setattr("tieline.wire.http2.connection.are_alike", counting)
    server = an_end(client=False)
    server.hear(headers(1, POST, end=False), headers(3, POST, end=False))
    arrived = (data(1, b"x") * 2 + data(3, b"y")) * 1000

    for _ in range(3):
        server.hear(arrived)

    assert server.ledger.body(1) == b"x" * 6000
    assert server.ledger.body(3) == b"y" * 3000
    assert looked_at <= 3 * 2 * len(arrived)


def test_small_bodies_cost_no_window_updates() -> None:
    server = an_end(client=False)

    said = [
        one
        for number in range(1, 201, 2)
        for one in server.hear(headers(number, POST, end=False), data(number, bytes(1024), end=True))
    ]

    assert said == []


@pytest.mark.parametrize("padded", [1, 200])
def test_padding_counts_in_the_windows_and_is_returned(padded: int) -> None:
    limits = Limits(connection_window=1 << 17)
    server = an_end(client=False, limits=limits)
    server.hear(headers(1, POST, end=False))
    frame = frames.frame(frames.DATA, frames.PADDED, 1, bytes([padded]) + b"x" + bytes(padded))

    for _ in range(2000):
        server.hear(frame)

    assert server.h2.fault is None
    assert server.ledger.body(1) == b"x" * 2000
    stream = server.ledger.streams[1]
    assert stream.recv_window + stream.credit == stream.window
    assert server.h2._recv_window + server.h2._recv_owed == limits.connection_window


@pytest.mark.parametrize("at_once", [True, False])
def test_a_window_grows_for_a_reader_that_keeps_up_a_long_way_off(at_once: bool) -> None:
    limits = Limits()
    server = an_end(client=False)
    server.hear(headers(1, POST, end=False))
    stream = server.ledger.streams[1]

    known = stream.window
    for _ in range(40):  # what is returned in one round is known to the sender in the next
        pieces = [data(1, bytes(min(16384, known - at))) for at in range(0, known, 16384)]
        said = server.hear(*pieces) if at_once else [one for piece in pieces for one in server.hear(piece)]
        known = sum(updates(said, 1))
        server.clock.now += 0.05

    assert stream.window == limits.stream_window_max
    assert known > limits.stream_window_max // 2
    assert server.h2.fault is None


def grow(server: End, number: int) -> int:
    """Have the window of a new stream grow as far as it will, and return how large it is."""
    server.hear(headers(number, POST, end=False))
    stream = server.ledger.streams[number]
    known = stream.window
    for _ in range(20):
        said = server.hear(*[data(number, bytes(min(16384, known - at))) for at in range(0, known, 16384)])
        known = sum(updates(said, number))
        server.clock.now += 0.05
    return stream.window


def test_all_windows_together_grow_by_no_more_than_is_kept_for_it() -> None:
    """Else a few dozen readers that were quick once, and stopped, would use up what all streams may leave unread."""
    limits = Limits(grown=1 << 20)
    server = an_end(client=False, limits=limits)

    grown = [grow(server, number) for number in (1, 3, 5)]
    assert sum(grown) == 3 * limits.stream_window + limits.grown
    assert grown[2] == limits.stream_window

    server.hear(frames.rst_stream(1, ErrorCode.CANCEL), data(3, b"", end=True))
    assert grow(server, 7) == grown[0]


def test_a_window_that_grew_is_given_up_when_the_last_of_its_stream_is_read() -> None:
    limits = Limits(grown=1 << 18)
    server = an_end(client=False, limits=limits)
    grown = grow(server, 1)
    server.ledger.consume = False
    server.hear(data(1, bytes(1000), end=True))

    server.ledger.consume = True
    assert grow(server, 3) == limits.stream_window
    server.h2.consumed(server.ledger.streams[1], 1000)

    assert grow(server, 5) == grown


def test_a_window_stays_for_a_sender_that_is_near() -> None:
    server = an_end(client=False)
    server.hear(headers(1, POST, end=False))

    for _ in range(400):
        server.clock.now += 0.0005
        server.hear(data(1, bytes(16384)))

    assert server.ledger.streams[1].window == 65535


def test_a_window_stays_for_a_reader_that_does_not_keep_up() -> None:
    server = an_end(client=False, consume=False)
    server.hear(headers(1, POST, end=False))
    stream = server.ledger.streams[1]

    known = stream.window
    for _ in range(200):
        while known:
            size = min(16384, known)
            server.hear(data(1, bytes(size)))
            known -= size
        server.clock.now += 0.05
        server.h2.consumed(stream, 16384)
        known = sum(updates(server.said(), 1))
        server.clock.now += 0.0005

    assert stream.window == 65535


# ── nothing is lost ──
def end_normally(server: End) -> None:
    server.hear(data(1, b"", end=True))


def reset_by_peer(server: End) -> None:
    server.hear(frames.rst_stream(1, ErrorCode.CANCEL))


def reset_by_us(server: End) -> None:
    server.h2.reset(server.ledger.streams[1], ErrorCode.CANCEL)


def stream_error(server: End) -> None:
    server.hear(UPDATE(1, 0))


def stream_overrun(server: End) -> None:
    server.hear(*[data(1, bytes(16384))] * 4)


def bad_trailers(server: End) -> None:
    server.hear(headers(1, [(b"X", b"1")]))


@pytest.mark.parametrize(
    "ending", [end_normally, reset_by_peer, reset_by_us, stream_error, stream_overrun, bad_trailers]
)
@pytest.mark.parametrize("given_back", ["before", "after", "twice", "never"])
def test_when_all_is_over_no_byte_counts_as_unread_and_the_window_is_whole(
    ending: Callable[[End], None], given_back: str
) -> None:
    limits = Limits(connection_window=1 << 17, unread=20000)
    server = an_end(client=False, consume=False, limits=limits)
    server.hear(headers(1, POST, end=False), data(1, bytes(16384)), data(1, bytes(10000)))
    stream = server.ledger.streams[1]
    server.hear(frames.frame(frames.DATA, frames.PADDED, 1, b"\x09" + bytes(10)))

    if given_back in ("before", "twice"):
        server.h2.consumed(stream, 26384)
    ending(server)
    if given_back in ("after", "twice") or ending is end_normally:
        server.h2.consumed(stream, stream.unread if given_back == "before" else 26385)
    server.h2.send_response(stream, 200, [], end=True)
    server.said()

    assert server.h2.fault is None
    assert not server.h2.streams
    assert server.h2.unread == 0
    assert stream.unread == 0
    assert server.h2._recv_window + server.h2._recv_owed == limits.connection_window
    assert server.h2._recv_owed < limits.connection_window / 2


def test_late_data_of_streams_that_are_over_is_returned_to_the_connection() -> None:
    limits = Limits(connection_window=1 << 17)
    server = an_end(client=False, limits=limits)
    server.hear(headers(1, POST, end=False))
    server.h2.reset(server.ledger.streams[1], ErrorCode.CANCEL)

    for _ in range(100):
        server.hear(data(1, bytes(16384)))

    assert server.h2.fault is None
    assert server.h2.unread == 0


def test_a_large_body_crosses_both_ends() -> None:
    client, server = an_end(client=True, greeted=False), an_end(client=False, greeted=False)
    exchange(client, server)
    stream = client.h2.send_request(plain(POST), end=False)
    piece = bytes(range(256)) * 256

    for _ in range(64):
        if not client.h2.send_data(stream, piece, end=False):
            exchange(client, server)
        assert stream.pending is None
    client.h2.send_data(stream, b"", end=True)
    exchange(client, server)

    assert server.ledger.body(1) == piece * 64
    assert server.h2.unread == 0
