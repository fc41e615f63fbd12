"""The life of a connection: settings, upgrade, refusals, leaving, and what is certain about calls cut off."""

from __future__ import annotations

import pytest

from tests.support.http2 import GET, OK, POST, Clock, End, Ledger, an_end, block, data, exchange, headers, plain
from tieline.wire.http2 import Connection, ConnectionFault, ErrorCode, Limits, Stream, frames
from tieline.wire.http2.frames import END_HEADERS, END_STREAM, MAX_STREAM_ID, frame
from tieline.wire.http2.hpack import HeaderEncoder

REFUSED = ErrorCode.REFUSED_STREAM.to_bytes(4, "big")


def goaways(end: End) -> list[int]:
    return [int.from_bytes(one.payload[:4], "big") for one in end.said() if one.kind == frames.GOAWAY]


# ── settings ──
def test_settings_are_acknowledged_each_time() -> None:
    server = an_end(client=False)

    said = server.hear(frames.settings({4: 5}), frames.settings({}))

    assert [(one.kind, one.flags) for one in said] == [(frames.SETTINGS, frames.ACK)] * 2
    assert server.ledger.events == [("settings",)] * 2


def test_a_client_opens_as_many_streams_as_the_server_takes() -> None:
    client = an_end(client=True, greeted=False)
    assert client.h2.peer_max_streams == 100

    client.hear(frames.settings({3: 1}))
    client.h2.send_request(plain(GET), end=True)
    assert not client.h2.can_open
    client.hear(headers(1, OK))
    assert client.h2.can_open
    assert client.ledger.of("capacity") == [()]

    client.hear(frames.settings({3: 0}))
    assert not client.h2.can_open


def test_a_server_that_names_no_limit_has_none() -> None:
    client = an_end(client=True)

    assert client.h2.peer_max_streams == MAX_STREAM_ID
    client.hear(frames.settings({3: 7}))
    client.hear(frames.settings({}))
    assert client.h2.peer_max_streams == 7


@pytest.mark.parametrize(("sent", "understood"), [({}, 0), ({frames.NATIVE_SETTING: 1}, 1), ({0x7469: 9}, 1)])
def test_two_tielines_know_each_other_by_their_first_settings(sent: dict[int, int], understood: int) -> None:
    server = an_end(client=False, native=True, greeted=False)
    server.hear(frames.PREFACE, frames.settings(sent))
    assert server.h2.peer_native == understood

    server.hear(frames.settings({frames.NATIVE_SETTING: 1 - understood}))
    assert server.h2.peer_native == understood


def test_the_private_setting_means_nothing_where_it_is_not_spoken() -> None:
    server = an_end(client=False, greeted=False)

    server.hear(frames.PREFACE, frames.settings({frames.NATIVE_SETTING: 1}))

    assert server.h2.peer_native == 0


def test_a_smaller_compression_table_is_obeyed() -> None:
    client, server = an_end(client=True, greeted=False), an_end(client=False, greeted=False)
    exchange(client, server)
    for size in (0, 4096, 100, 1 << 20):
        client.hear(frames.settings({1: size}))
        for _ in range(3):
            stream = client.h2.send_request(plain([*GET, (b"x-a", b"1"), (b"x-b", b"2" * 60)]), end=True)
            exchange(client, server)
            server.h2.send_response(server.ledger.streams[stream.id], 204, [], end=True)
            exchange(client, server)

    assert server.h2.fault is client.h2.fault is None
    assert len(server.ledger.of("request")) == 12


# ── HTTP/1.1 Upgrade ──
def test_an_upgraded_request_is_answered_on_stream_one() -> None:
    ledger = Ledger()
    server = End(Connection(ledger, client=False, limits=Limits(), clock=Clock()), ledger, Clock())
    stream = server.h2.accept_upgrade(frames.settings({4: 5})[frames.HEADER_SIZE :])

    server.h2.send_response(stream, 200, [], end=False)
    server.h2.send_data(stream, b"0123456789", end=True)
    before = [one for one in server.said() if one.stream == 1]
    after = server.hear(frames.PREFACE, frames.settings({}), frames.window_update(1, 5), headers(3, GET))

    assert [one.payload for one in before if one.kind == frames.DATA] == [b"01234"]
    assert [one.payload for one in after if one.kind == frames.DATA] == [b"56789"]
    assert server.ledger.of("request")[0][0] == 3
    assert server.h2.fault is None


def test_an_upgraded_stream_has_no_body_and_cannot_be_opened_again() -> None:
    ledger = Ledger()
    server = End(Connection(ledger, client=False, limits=Limits(), clock=Clock()), ledger, Clock())
    server.h2.accept_upgrade(b"")

    server.hear(frames.PREFACE, frames.settings({}), data(1, b"x"))

    assert server.ledger.of("reset") == [(1, ErrorCode.STREAM_CLOSED, True, False)]


@pytest.mark.parametrize("payload", [b"\0", b"\0\4\xff\xff\xff\xff", b"\0\5\0\0\0\0", b"\0\2\0\0\0\2"])
def test_settings_of_an_upgrade_are_checked(payload: bytes) -> None:
    server = an_end(client=False, greeted=False)

    with pytest.raises(ConnectionFault):
        server.h2.accept_upgrade(payload)


# ── refusing ──
def test_a_refused_request_leaves_the_compression_tables_in_step() -> None:
    server = an_end(client=False, limits=Limits(streams=1))
    encoder = HeaderEncoder()
    named = plain([*GET, (b"x-name", b"value"), (b"x-long", b"v" * 100)])
    server.hear(headers(1, POST, end=False))

    first = encoder.encode(named)
    said = server.hear(frame(frames.HEADERS, END_HEADERS | END_STREAM, 3, first))
    split = encoder.encode(named + plain([(b"x-more", b"1")]))
    said += server.hear(
        frame(frames.HEADERS, END_STREAM, 5, split[:5]), frame(frames.CONTINUATION, END_HEADERS, 5, split[5:])
    )
    server.hear(data(1, end=True))
    server.h2.send_response(server.ledger.streams[1], 200, [], end=True)
    again = encoder.encode(named)
    server.hear(frame(frames.HEADERS, END_HEADERS | END_STREAM, 7, again))

    assert len(again) < len(first)
    assert [(one.kind, one.stream, one.payload) for one in said] == [
        (frames.RST_STREAM, 3, REFUSED),
        (frames.RST_STREAM, 5, REFUSED),
    ]
    assert server.ledger.of("request")[-1] == (7, b"GET", b"/", [(b"x-name", b"value"), (b"x-long", b"v" * 100)], True)


def test_so_do_heads_of_streams_that_were_reset() -> None:
    client = an_end(client=True)
    encoder = HeaderEncoder()
    answer = plain([*OK, (b"x-name", b"value")])
    cancelled = client.h2.send_request(plain(GET), end=True)
    client.h2.send_request(plain(GET), end=True)
    client.h2.reset(cancelled, ErrorCode.CANCEL)

    client.hear(frame(frames.HEADERS, END_HEADERS, 1, encoder.encode(answer)), data(1, b"x", end=True))
    client.hear(frame(frames.HEADERS, END_HEADERS | END_STREAM, 3, encoder.encode(answer)))

    assert client.ledger.of("response") == [(3, 200, [(b"x-name", b"value")], True)]


def test_the_rest_of_a_refused_request_does_no_harm() -> None:
    server = an_end(client=False, limits=Limits(streams=1))
    server.hear(headers(1, POST, end=False))

    server.hear(headers(3, POST, end=False), data(3, b"x" * 1000), headers(3, [(b"x", b"1")]))

    assert server.h2.fault is None
    assert server.ledger.of("data") == []
    assert server.h2.unread == 0


def test_what_is_too_large_is_answered_and_the_rest_of_it_passed_over() -> None:
    server = an_end(client=False, limits=Limits(header_list=200))
    server.hear(headers(1, [*POST, (b"x", b"y" * 200)], end=False), data(1, b"x" * 10))

    stream = server.ledger.streams[1]
    server.h2.send_response(stream, 431, [], end=True)
    server.h2.reset(stream, ErrorCode.NO_ERROR)
    server.hear(data(1, b"more"), headers(1, [(b"t", b"1")]))

    assert server.h2.fault is None
    assert server.h2.unread == 0


# ── leaving ──
def test_a_server_leaves_in_two_steps_and_serves_what_was_on_its_way() -> None:
    server = an_end(client=False)
    server.hear(headers(1, GET))

    server.h2.announce_drain()
    assert goaways(server) == [MAX_STREAM_ID]
    server.hear(headers(3, GET))
    server.h2.drain()
    assert goaways(server) == [3]
    said = server.hear(headers(5, GET), headers(7, GET))

    assert [one[0] for one in server.ledger.of("request")] == [1, 3]
    assert [(one.stream, one.payload) for one in said] == [(5, REFUSED), (7, REFUSED)]
    assert server.h2.draining
    assert list(server.h2.streams) == [1, 3]


def test_the_last_stream_served_never_rises() -> None:
    server = an_end(client=False)
    server.hear(headers(1, GET))
    server.h2.drain()
    server.hear(headers(3, GET), headers(5, GET))

    server.h2.drain()
    server.h2.announce_drain()
    server.h2.close(ErrorCode.NO_ERROR, "bye")
    server.h2.close(ErrorCode.NO_ERROR, "bye again")
    server.h2.drain()

    assert goaways(server) == [1]


@pytest.mark.parametrize("how", ["fault", "close"])
def test_after_goodbye_nothing_is_heard(how: str) -> None:
    server = an_end(client=False)
    if how == "close":
        server.h2.close(ErrorCode.NO_ERROR, "bye")
    server.hear(frame(frames.PING, 0, 1, b"") if how == "fault" else b"", headers(1, GET))
    server.hear(headers(3, GET))

    assert server.ledger.events == []
    assert server.h2.fault is not None


def test_a_listener_may_close_in_the_middle_of_a_read() -> None:
    server = an_end(client=False)
    heard = []

    def on_request(stream: Stream, *_: object) -> None:
        heard.append(stream.id)
        server.h2.close(ErrorCode.NO_ERROR, "enough")

    server.ledger.on_request = on_request  # type: ignore[method-assign, assignment]

    said = server.hear(headers(1, GET), headers(3, GET), frame(frames.PING, 0, 1, b""))

    assert heard == [1]
    assert [one.kind for one in said] == [frames.GOAWAY]
    assert server.h2.fault is not None
    assert server.h2.fault.code == ErrorCode.NO_ERROR


def test_a_client_learns_which_calls_were_certainly_not_processed() -> None:
    client = an_end(client=True)
    for _ in range(4):
        client.h2.send_request(plain(GET), end=True)

    client.hear(frames.goaway(MAX_STREAM_ID, 0, ""))
    assert client.ledger.of("reset") == []
    assert not client.h2.can_open
    client.hear(frames.goaway(5, 0, "soon"))
    client.hear(frames.goaway(3, 0, "now"), frames.goaway(7, 0, "never more"))

    assert client.ledger.of("reset") == [
        (7, ErrorCode.REFUSED_STREAM, False, True),
        (5, ErrorCode.REFUSED_STREAM, False, True),
    ]
    assert client.ledger.of("goaway") == [(0, b""), (0, b"soon"), (0, b"now"), (0, b"never more")]
    assert list(client.h2.streams) == [1, 3]
    client.hear(headers(1, OK), headers(3, OK))
    assert client.h2.fault is None


def test_what_a_server_sends_above_its_last_stream_harms_nobody() -> None:
    client = an_end(client=True)
    for _ in range(2):
        client.h2.send_request(plain(GET), end=True)

    client.hear(frames.goaway(1, 0, ""), headers(3, OK, end=False), data(3, b"x", end=True), headers(1, OK))

    assert client.ledger.of("response") == [(1, 200, [], True)]
    assert client.h2.fault is None


@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize("how", [frames.goaway(0, 0, ""), frames.rst_stream(1, ErrorCode.REFUSED_STREAM)])
def test_a_call_whose_answer_began_was_processed_whatever_the_server_says(how: bytes, began: bool) -> None:
    client = an_end(client=True)
    client.h2.send_request(plain(GET), end=True)
    if began:
        client.hear(headers(1, OK, end=False))

    client.hear(how)

    assert client.ledger.of("reset") == [(1, ErrorCode.REFUSED_STREAM, False, not began)]


def test_a_client_that_has_used_up_its_streams_opens_no_more() -> None:
    client = an_end(client=True)
    client.h2._next_id = MAX_STREAM_ID - 4
    assert client.h2.can_open

    first = client.h2.send_request(plain(GET), end=True)
    second = client.h2.send_request(plain(GET), end=True) if client.h2.can_open else first

    assert second.id <= MAX_STREAM_ID
    assert not client.h2.can_open
    client.hear(headers(first.id, OK))
    assert client.h2.fault is None


def test_a_ping_is_answered_and_its_answer_heard() -> None:
    client, server = an_end(client=True), an_end(client=False)

    client.h2.ping(b"12345678")
    exchange(client, server)

    assert client.ledger.of("ping ack") == [(b"12345678",)]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_it_does_not_matter_how_bytes_are_cut(size: int) -> None:
    whole = frames.PREFACE + frames.settings({4: 9}) + headers(1, POST, end=False) + data(1, b"abc", end=True)
    whole += frame(frames.HEADERS, END_STREAM, 3, b"") + frame(frames.CONTINUATION, END_HEADERS, 3, block(GET))
    server, other = an_end(client=False, greeted=False), an_end(client=False, greeted=False)

    server.hear(whole)
    for at in range(0, len(whole), size):
        other.hear(whole[at : at + size])

    assert server.ledger.events == other.ledger.events
    assert len(server.ledger.events) == 4
