"""Each bound of a connection, by name: it holds off a flood, and lets ordinary traffic pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.http2 import GET, OK, POST, End, an_end, block, data, headers, plain
from tieline.wire.http2 import ErrorCode, Limits, frames
from tieline.wire.http2.frames import END_HEADERS, frame
from tieline.wire.http2.limits import Budget

PING = frame(frames.PING, 0, 0, bytes(8))
LIMITS = Limits()


def opened(end: End) -> None:
    end.hear(headers(1, POST, end=False))


def blocked(end: End) -> None:
    """Stream 1 has much to send and no window."""
    end.hear(frames.settings({4: 0}), headers(1, GET))
    end.h2.send_response(end.ledger.streams[1], 200, [], end=False)
    end.h2.send_data(end.ledger.streams[1], bytes(1 << 20), end=True)


def blocked_by_all(end: End) -> None:
    """Stream 1 has much to send, and a window, but the connection has none."""
    blocked(end)
    end.hear(frames.window_update(1, 1 << 20))


def over(end: End) -> None:
    """Stream 1 is over."""
    end.hear(headers(1, POST, end=False), frames.rst_stream(1, 8))


def idle(end: End) -> None:
    """Nothing has happened."""


# What costs its sender nothing and brings nothing: (what happened before, the frame that is repeated).
CONTROL_FLOODS: dict[str, tuple[Callable[[End], None], bytes]] = {
    "PING": (idle, PING),
    "PING answers": (idle, frame(frames.PING, frames.ACK, 0, bytes(8))),
    "SETTINGS": (idle, frames.settings({4: 65535})),
    "SETTINGS answers": (idle, frame(frames.SETTINGS, frames.ACK, 0, b"")),
    "PRIORITY": (idle, frame(frames.PRIORITY, 0, 3, b"\0\0\0\1\0")),
    "GOAWAY": (idle, frames.goaway(0, 0, "")),
    "unknown frames": (idle, frame(200, 0, 0, b"x")),
    "empty DATA": (opened, data(1)),
    "DATA of padding only": (opened, frame(frames.DATA, frames.PADDED, 1, b"\1\0")),
    "RST_STREAM on a stream over": (over, frames.rst_stream(1, 8)),
    "tiny WINDOW_UPDATEs": (blocked, frames.window_update(1, 1)),
    "tiny WINDOW_UPDATEs of the connection": (blocked_by_all, frames.window_update(0, 1)),
}


@pytest.mark.parametrize("case", CONTROL_FLOODS)
def test_a_flood_of_frames_that_bring_nothing_ends_the_connection(case: str) -> None:
    prepare, flood = CONTROL_FLOODS[case]
    server = an_end(client=False)
    prepare(server)

    many = LIMITS.control_burst + 20
    for _ in range(many):
        server.hear(flood)

    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("first", [b"", data(1, b"x"), data(1, b"xy") * 2])
def test_empty_frames_count_however_they_arrive(first: bytes) -> None:
    """Also in one read, behind frames that bring something, where a row of frames is taken as one."""
    server = an_end(client=False)
    opened(server)

    server.hear(first + data(1) * (LIMITS.control_burst + 20))

    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("case", CONTROL_FLOODS)
def test_the_same_frames_over_time_are_fine(case: str) -> None:
    prepare, flood = CONTROL_FLOODS[case]
    server = an_end(client=False)
    prepare(server)

    for _ in range(LIMITS.control_burst * 2):
        server.clock.now += 1 / LIMITS.control_rate
        server.hear(flood)

    assert server.h2.fault is None


def test_interim_answers_without_end_end_the_connection() -> None:
    client = an_end(client=True)
    client.h2.send_request(plain(GET), end=True)
    interim = headers(1, [(b":status", b"103")], end=False)

    for _ in range(LIMITS.control_burst + 20):
        client.hear(interim)

    assert client.h2.fault is not None
    assert client.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def cancel(number: int) -> bytes:
    return headers(number, GET) + frames.rst_stream(number, ErrorCode.CANCEL)


# Streams that are cut off, by the client or by the server for what the client did.
RESET_FLOODS: dict[str, Callable[[int], bytes]] = {
    "rapid reset": cancel,
    "a window that overflows": lambda number: headers(number, GET) + frames.window_update(number, 2**31 - 1),
    "a window update of nothing": lambda number: headers(number, GET) + frames.window_update(number, 0),
    "DATA after the end": lambda number: headers(number, GET) + data(number, b"x"),
    "HEADERS after the end": lambda number: headers(number, GET) + headers(number, [(b"x", b"1")]),
    "a PRIORITY of a wrong size": lambda number: headers(number, GET) + frame(frames.PRIORITY, 0, number, b"x"),
    "a malformed request": lambda number: headers(number, [*GET, (b"X", b"1")]),
    "a body too long": lambda number: (
        headers(number, [*POST, (b"content-length", b"1")], end=False) + data(number, b"xy")
    ),
    "bad trailers": lambda number: headers(number, POST, end=False) + headers(number, [(b":path", b"/")]),
}


@pytest.mark.parametrize("case", RESET_FLOODS)
@pytest.mark.parametrize("skipped", [2, 200])
def test_a_flood_of_streams_cut_off_ends_the_connection(case: str, skipped: int) -> None:
    server = an_end(client=False)
    number = 1

    while server.h2.fault is None and number < 2000 * skipped:
        server.hear(RESET_FLOODS[case](number))
        number += skipped

    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM
    assert LIMITS.reset_burst <= number / skipped <= LIMITS.reset_burst * 1.5
    assert not server.h2.streams or len(server.h2.streams) == 1


def test_a_flood_of_streams_beyond_the_limit_ends_the_connection() -> None:
    server = an_end(client=False)

    for number in range(1, 2 * (LIMITS.streams + LIMITS.reset_burst + 20), 2):
        server.hear(headers(number, GET))

    assert len(server.h2.streams) == LIMITS.streams
    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_late_data_on_streams_over_is_answered_once() -> None:
    server = an_end(client=False)
    numbers = range(1, 201, 2)
    server.hear(*[headers(number, GET) for number in numbers])
    answer_all(server)
    server.said()

    said = [one for _ in range(20) for number in numbers for one in server.hear(data(number, b"x"))]

    assert [one.kind for one in said] == [frames.RST_STREAM] * len(numbers)
    assert server.h2.fault is None


def answer_all(server: End) -> None:
    for stream in list(server.h2.streams.values()):
        server.h2.send_response(stream, 200, [], end=True)


def test_twenty_thousand_calls_with_pings_and_priorities_pass() -> None:
    server = an_end(client=False)

    for number in range(1, 40001, 2):
        server.clock.now += 0.00005
        pieces = [headers(number, POST, end=False), data(number), data(number, b"x", end=True)]
        server.hear(*pieces, PING, frame(frames.PRIORITY, 0, number, bytes(5)), frame(16, 0, 0, b"u=1"))
        answer_all(server)

    assert server.h2.fault is None
    assert len(server.ledger.of("request")) == 20000


def test_a_ping_for_each_piece_of_a_long_body_passes() -> None:
    """Go's gRPC measures the line that way, several thousand times a second."""
    server = an_end(client=False)
    opened(server)
    for _ in range(20000):
        server.hear(data(1, b"message"), PING)

    client = an_end(client=True)
    stream = client.h2.send_request(plain(POST), end=False)
    for _ in range(20000):
        client.h2.send_data(stream, b"message", end=False)
        client.hear(PING, frames.window_update(0, 7), frames.window_update(1, 7))

    assert server.h2.fault is None
    assert client.h2.fault is None


def test_an_interim_answer_for_each_call_passes() -> None:
    client = an_end(client=True)

    for number in range(1, 40001, 2):
        client.h2.send_request(plain(GET), end=True)
        client.hear(headers(number, [(b":status", b"103")], end=False), headers(number, OK))

    assert client.h2.fault is None
    assert len(client.ledger.of("response")) == 20000


def test_five_thousand_cancellations_over_time_pass() -> None:
    server = an_end(client=False)

    for number in range(1, 10001, 2):
        server.clock.now += 1 / LIMITS.reset_rate
        server.hear(cancel(number))

    assert server.h2.fault is None


def test_a_busy_connection_may_cancel_one_call_in_five_at_any_rate() -> None:
    server = an_end(client=False)

    for number in range(1, 50001, 2):
        server.hear(cancel(number) if number % 10 == 1 else headers(number, GET))
        answer_all(server)

    assert server.h2.fault is None


def test_a_client_may_cancel_all_its_calls_at_once_again_and_again() -> None:
    """However late the answers come, those of calls that nobody remembers harm nobody."""
    client = an_end(client=True)
    client.hear(frames.settings({3: 10000}))

    for batch in range(2):
        streams = [client.h2.send_request(plain(GET), end=True) for _ in range(3000)]
        for stream in streams:
            client.h2.reset(stream, ErrorCode.CANCEL)
        client.hear(*[headers(stream.id, OK, end=False) + data(stream.id, b"x", end=True) for stream in streams])
        client.clock.now += 10
        assert client.h2.fault is None, batch

    assert len(client.h2._forgotten) <= LIMITS.forgotten


# ── heads ──
def test_a_block_takes_only_so_many_frames() -> None:
    server = an_end(client=False)
    server.hear(frame(frames.HEADERS, 0, 1, b""))

    for _ in range(LIMITS.continuations):
        server.hear(frame(frames.CONTINUATION, 0, 1, b""))
    assert server.h2.fault is None
    server.hear(frame(frames.CONTINUATION, 0, 1, b""))

    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_block_takes_only_so_many_bytes() -> None:
    server = an_end(client=False)
    server.hear(frame(frames.HEADERS, 0, 1, b""))

    for _ in range(LIMITS.header_list_hard // 16384 + 1):
        server.hear(frame(frames.CONTINUATION, 0, 1, bytes(16384)))

    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_bomb_of_headers_ends_the_connection() -> None:
    server = an_end(client=False)
    bomb = b"\x40" + block([(b"x", b"y" * 4000)])[1:] + b"\xbe" * 16000

    server.hear(frame(frames.HEADERS, 0, 1, bomb[:16384]), frame(frames.CONTINUATION, END_HEADERS, 1, bomb[16384:]))

    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM
    assert server.ledger.events == []


@pytest.mark.parametrize(
    "fields",
    [
        [(b"x", b"y" * 66000)],
        [(b"x" * 40000, b"y" * 26000)],
        [(b"x%d" % number, b"y" * 700) for number in range(100)],
        [(b"x", b"")] * 2100,
    ],
)
def test_a_head_that_is_too_large_is_answered(fields: list[tuple[bytes, bytes]]) -> None:
    server = an_end(client=False)
    client = an_end(client=True)
    client.h2.send_request(plain(GET), end=True)

    server.hear(headers(1, [*GET, *fields]))
    client.hear(headers(1, [*OK, *fields]))

    assert server.ledger.events == [("too large", 1)]
    assert client.ledger.of("reset") == [(1, ErrorCode.ENHANCE_YOUR_CALM, True, False)]
    assert server.h2.fault is client.h2.fault is None


def test_a_head_just_within_the_limit_passes() -> None:
    server = an_end(client=False)
    size = LIMITS.header_list - 32 * 5 - sum(len(name) + len(value) for name, value in GET) - 1

    server.hear(headers(1, [*GET, (b"x", b"y" * size)]))
    server.hear(headers(3, [*GET, (b"x", b"y" * (size + 1))]))

    assert [event[:2] for event in server.ledger.events] == [("request", 1), ("too large", 3)]


def test_trailers_that_are_too_large_end_their_stream() -> None:
    server = an_end(client=False)
    server.hear(headers(1, POST, end=False))

    server.hear(headers(1, [(b"x", b"y" * 66000)]))

    assert server.ledger.of("reset") == [(1, ErrorCode.ENHANCE_YOUR_CALM, True, False)]
    assert server.h2.fault is None


# ── the rest ──
def test_a_frame_brings_only_so_many_settings() -> None:
    server = an_end(client=False)

    server.hear(frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\0\1" * LIMITS.settings))
    assert server.h2.fault is None
    server.hear(frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\0\1" * (LIMITS.settings + 1)))

    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_peer_that_reads_nothing_cannot_pile_up_answers() -> None:
    client = an_end(client=True, limits=Limits(held_frames=100))

    for _ in range(200):
        client.clock.now += 1
        client.h2.receive(PING)

    assert client.h2.fault is not None
    assert client.h2.fault.code == ErrorCode.ENHANCE_YOUR_CALM
    assert len(client.h2.out) <= 103


def test_reset_streams_are_remembered_within_bounds() -> None:
    server = an_end(client=False, limits=Limits(forgotten=10))
    for number in range(1, 101, 2):
        server.hear(headers(number, POST, end=False))
        server.h2.reset(server.ledger.streams[number], ErrorCode.CANCEL)

    server.hear(*[data(number, b"x") for number in range(1, 101, 2)])

    assert len(server.h2._forgotten) == 10
    assert server.h2.fault is None


def test_a_budget_is_a_burst_and_a_rate() -> None:
    now = [0.0]
    budget = Budget(10, 2.0, lambda: now[0])

    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]
    now[0] += 1.0
    assert [budget.spend() for _ in range(2)] == [True, False]
    now[0] += 1000.0
    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]


def test_a_budget_grows_by_what_is_earned_but_not_beyond_its_burst() -> None:
    budget = Budget(10, 0.0, lambda: 0.0)

    assert all(budget.spend(1.0) for _ in range(1000))
    assert all(budget.spend(1000.0) for _ in range(3))
    assert [budget.spend() for _ in range(10)] == [True] * 9 + [False]
