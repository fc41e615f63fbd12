"""RFC 9113 rule by rule: what each frame does to a connection, a stream, or nobody."""

from __future__ import annotations

import pytest

from tests.support.http2 import GET, OK, POST, an_end, block, data, exchange, headers, plain
from tieline.wire.http2 import ErrorCode, Limits, frames
from tieline.wire.http2.frames import END_HEADERS, END_STREAM, PADDED, PRIORITY_FLAG, frame

NOBODY = None
E = ErrorCode
OPEN = headers(1, POST, end=False)
"""Stream 1 is open."""
HALF = headers(1, GET)
"""Stream 1 is half closed: the client has said everything."""
RESET = frames.rst_stream(1, E.CANCEL)
UPDATE = frames.window_update

# What a client sends after its greeting → what a server must find wrong with the connection.
CONNECTION_ERRORS = {
    "4.2 a frame longer than announced": (OPEN + data(1, bytes(16385)), E.FRAME_SIZE_ERROR),
    "4.3 a block that is no HPACK": (frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"), E.COMPRESSION_ERROR),
    "4.3 a block that breaks off": (frame(frames.HEADERS, END_HEADERS, 1, b"\0\x7f"), E.COMPRESSION_ERROR),
    "4.3 a block that ends after a name": (frame(frames.HEADERS, END_HEADERS, 1, b"\0\1a"), E.COMPRESSION_ERROR),
    "4.3 an interrupted block": (frame(frames.HEADERS, 0, 1, block(GET)) + frame(frames.PING, 0, 0, bytes(8)), 1),
    "4.3 a block interrupted by an unknown frame": (frame(frames.HEADERS, 0, 1, b"") + frame(77, 0, 1, b""), 1),
    "4.3 a block interrupted by DATA": (frame(frames.HEADERS, 0, 1, block(POST)) + data(1, b"x"), 1),
    "4.3 a block interrupted by HEADERS": (frame(frames.HEADERS, 0, 1, block(POST)) + headers(3, GET), 1),
    "5.1 DATA on an idle stream": (data(1, b"x"), E.PROTOCOL_ERROR),
    "5.1 RST_STREAM on an idle stream": (RESET, E.PROTOCOL_ERROR),
    "5.1 WINDOW_UPDATE on an idle stream": (UPDATE(1, 1), E.PROTOCOL_ERROR),
    "5.1 HEADERS on a stream over": (OPEN + RESET + headers(1, GET), E.STREAM_CLOSED),
    "5.1.1 an even stream": (headers(2, GET), E.PROTOCOL_ERROR),
    "5.1.1 an even stream's DATA": (data(2, b"x"), E.PROTOCOL_ERROR),
    "5.1.1 a lower stream than before": (headers(5, GET) + headers(3, GET), E.STREAM_CLOSED),
    "5.3 PRIORITY on itself": (frame(frames.PRIORITY, 0, 3, b"\0\0\0\3\0"), E.PROTOCOL_ERROR),
    "5.3 HEADERS with priority on itself": (
        frame(frames.HEADERS, END_HEADERS | PRIORITY_FLAG, 3, b"\0\0\0\3\0" + block(GET)),
        E.PROTOCOL_ERROR,
    ),
    "6.1 DATA on stream 0": (data(0, b"x"), E.PROTOCOL_ERROR),
    "6.1 padding as long as the frame": (OPEN + frame(frames.DATA, PADDED, 1, b"\5abcd\0"[:5]), E.PROTOCOL_ERROR),
    "6.1 padding without its length": (OPEN + frame(frames.DATA, PADDED, 1, b""), E.PROTOCOL_ERROR),
    "6.2 HEADERS on stream 0": (headers(0, GET), E.PROTOCOL_ERROR),
    "6.2 padding longer than the block": (frame(frames.HEADERS, END_HEADERS | PADDED, 1, b"\2a"), E.PROTOCOL_ERROR),
    "6.2 padding without its length": (frame(frames.HEADERS, END_HEADERS | PADDED, 1, b""), E.FRAME_SIZE_ERROR),
    "6.2 a priority that breaks off": (frame(frames.HEADERS, END_HEADERS | PRIORITY_FLAG, 1, b"\0\0"), 1),
    "6.3 PRIORITY on stream 0": (frame(frames.PRIORITY, 0, 0, bytes(5)), E.PROTOCOL_ERROR),
    "6.3 PRIORITY of a wrong size": (frame(frames.PRIORITY, 0, 1, bytes(4)), E.FRAME_SIZE_ERROR),
    "6.4 RST_STREAM on stream 0": (frames.rst_stream(0, 8), E.PROTOCOL_ERROR),
    "6.4 RST_STREAM of a wrong size": (OPEN + frame(frames.RST_STREAM, 0, 1, bytes(3)), E.FRAME_SIZE_ERROR),
    "6.5 SETTINGS on a stream": (frame(frames.SETTINGS, 0, 1, b""), E.PROTOCOL_ERROR),
    "6.5 SETTINGS of a wrong size": (frame(frames.SETTINGS, 0, 0, bytes(5)), E.FRAME_SIZE_ERROR),
    "6.5 an acknowledgement with content": (frame(frames.SETTINGS, 1, 0, bytes(6)), E.FRAME_SIZE_ERROR),
    "6.5.2 ENABLE_PUSH 2": (frames.settings({2: 2}), E.PROTOCOL_ERROR),
    "6.5.2 a window beyond the largest": (frames.settings({4: 2**31}), E.FLOW_CONTROL_ERROR),
    "6.5.2 frames too small": (frames.settings({5: 16383}), E.PROTOCOL_ERROR),
    "6.5.2 frames too large": (frames.settings({5: 2**24}), E.PROTOCOL_ERROR),
    "8441 3 ENABLE_CONNECT_PROTOCOL 2": (frames.settings({8: 2}), E.PROTOCOL_ERROR),
    "8441 3 ENABLE_CONNECT_PROTOCOL taken back": (frames.settings({8: 1}) + frames.settings({8: 0}), E.PROTOCOL_ERROR),
    "6.6 PUSH_PROMISE": (OPEN + frame(frames.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), E.PROTOCOL_ERROR),
    "6.7 PING on a stream": (frame(frames.PING, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
    "6.7 PING of a wrong size": (frame(frames.PING, 0, 0, bytes(7)), E.FRAME_SIZE_ERROR),
    "6.8 GOAWAY on a stream": (frame(frames.GOAWAY, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
    "6.8 GOAWAY of a wrong size": (frame(frames.GOAWAY, 0, 0, bytes(7)), E.FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of a wrong size": (frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), E.FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of nothing": (UPDATE(0, 0), E.PROTOCOL_ERROR),
    "6.9.1 a connection's window beyond the largest": (UPDATE(0, 2**31 - 1), E.FLOW_CONTROL_ERROR),
    "6.9.2 a stream's window beyond the largest by SETTINGS": (
        OPEN + UPDATE(1, 2**31 - 1 - 65535) + frames.settings({4: 65536}),
        E.FLOW_CONTROL_ERROR,
    ),
    "6.10 CONTINUATION without HEADERS": (frame(frames.CONTINUATION, END_HEADERS, 1, b""), E.PROTOCOL_ERROR),
    "6.10 CONTINUATION after the block's end": (OPEN + frame(frames.CONTINUATION, END_HEADERS, 1, b""), 1),
    "6.10 CONTINUATION of another stream": (
        frame(frames.HEADERS, 0, 1, block(GET)) + frame(frames.CONTINUATION, END_HEADERS, 3, b""),
        E.PROTOCOL_ERROR,
    ),
    "6.10 CONTINUATION on stream 0": (
        frame(frames.HEADERS, 0, 1, block(GET)) + frame(frames.CONTINUATION, END_HEADERS, 0, b""),
        E.PROTOCOL_ERROR,
    ),
}

# → what it must answer with RST_STREAM on stream 1, while the connection lives.
STREAM_ERRORS = {
    "5.1 DATA after the end": (HALF + data(1, b"x"), E.STREAM_CLOSED),
    "5.1 HEADERS after the end": (HALF + headers(1, [(b"x", b"1")]), E.STREAM_CLOSED),
    "5.1 DATA on a stream over": (OPEN + RESET + data(1, b"x"), E.STREAM_CLOSED),
    "6.3 PRIORITY of a wrong size": (OPEN + frame(frames.PRIORITY, 0, 1, bytes(4)), E.FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of nothing": (OPEN + UPDATE(1, 0), E.PROTOCOL_ERROR),
    "6.9.1 a window beyond the largest": (OPEN + UPDATE(1, 2**31 - 1), E.FLOW_CONTROL_ERROR),
    "8.1 trailers that do not end the stream": (OPEN + headers(1, [(b"x", b"1")], end=False), E.PROTOCOL_ERROR),
    "8.1 trailers with a pseudo-header": (OPEN + headers(1, [(b":path", b"/")]), E.PROTOCOL_ERROR),
    "8.1 trailers with an upper-case name": (OPEN + headers(1, [(b"X", b"1")]), E.PROTOCOL_ERROR),
    "8.1 trailers with a line break": (OPEN + headers(1, [(b"x", b"1\r\n2")]), E.PROTOCOL_ERROR),
    "8.3 no pseudo-header": (headers(1, [(b"x", b"1")]), E.PROTOCOL_ERROR),
    "8.3 no field at all": (headers(1, []), E.PROTOCOL_ERROR),
}
LONG = [*POST, (b"content-length", b"3")]
LENGTH_ERRORS = {
    "no body": headers(1, LONG),
    "an empty body": headers(1, LONG, end=False) + data(1, end=True),
    "a short body": headers(1, LONG, end=False) + data(1, b"ab", end=True),
    "a short body before trailers": headers(1, LONG, end=False) + data(1, b"ab") + headers(1, [(b"x", b"1")]),
    "a long body": headers(1, LONG, end=False) + data(1, b"abcd"),
    "a long body in pieces": headers(1, LONG, end=False) + data(1, b"ab") + data(1, b"cd", end=True),
    "a body where none was announced": headers(1, [*POST, (b"content-length", b"0")], end=False) + data(1, b"a"),
}

# → what is odd, or late, and must do no harm.
HARMLESS = {
    "4.1 a reserved bit": frame(frames.PING, 0, 2**31, bytes(8)),
    "4.1 unknown flags": frame(frames.PING, 0xFE, 0, bytes(8)),
    "5.1 WINDOW_UPDATE on a stream over": OPEN + RESET + UPDATE(1, 5),
    "5.1 RST_STREAM on a stream over": OPEN + RESET + RESET,
    "5.1 PRIORITY on a stream over": OPEN + RESET + frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\0"),
    "5.1 PRIORITY on an idle stream": frame(frames.PRIORITY, 0, 9, b"\0\0\0\1\0"),
    "5.1.1 streams left out": headers(7, GET) + headers(99, GET),
    "5.5 an unknown frame": frame(0xBB, 0xFF, 0, b"grease") + frame(0xBB, 0, 1, b""),
    "6.1 padding": OPEN + frame(frames.DATA, PADDED, 1, b"\3ab\0\0\0"),
    "6.1 nothing but padding": OPEN + frame(frames.DATA, PADDED, 1, b"\0"),
    "6.2 padding and priority": frame(
        frames.HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, 1, b"\2" + b"\0\0\0\0\7" + block(GET) + b"\0\0"
    ),
    "6.5 unknown settings": frames.settings({0x0A0A: 1, 0xFFFF: 2**32 - 1}),
    "6.5 an empty SETTINGS": frames.settings({}),
    "6.8 GOAWAY of a client": frames.goaway(0, 0, "bye"),
    "6.10 an empty CONTINUATION": frame(frames.HEADERS, END_STREAM, 1, block(GET))
    + frame(frames.CONTINUATION, 0, 1, b"")
    + frame(frames.CONTINUATION, END_HEADERS, 1, b""),
}


@pytest.mark.parametrize("case", CONNECTION_ERRORS)
def test_what_breaks_a_connection_ends_it_with_the_reason(case: str) -> None:
    sent, code = CONNECTION_ERRORS[case]
    server = an_end(client=False)

    said = server.hear(sent)

    assert server.h2.fault is not None
    assert server.h2.fault.code == code
    assert said[-1].kind == frames.GOAWAY
    assert said[-1].payload[4:8] == code.to_bytes(4, "big")
    assert server.hear(frames.frame(frames.PING, 0, 0, bytes(8))) == []


@pytest.mark.parametrize("case", STREAM_ERRORS)
def test_what_breaks_a_stream_leaves_the_others_alone(case: str) -> None:
    sent, code = STREAM_ERRORS[case]
    server = an_end(client=False)

    said = server.hear(sent, headers(3, GET))

    assert server.h2.fault is None
    assert (frames.RST_STREAM, 1, code.to_bytes(4, "big")) in [(one.kind, one.stream, one.payload) for one in said]
    assert 1 not in server.h2.streams
    assert server.ledger.of("request")[-1][0] == 3


@pytest.mark.parametrize("case", LENGTH_ERRORS)
def test_a_body_is_as_long_as_its_head_says(case: str) -> None:
    server = an_end(client=False)

    server.hear(LENGTH_ERRORS[case])

    assert server.ledger.of("reset") == [(1, E.PROTOCOL_ERROR, True, False)]
    assert server.h2.fault is None


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_odd_or_late_does_no_harm(case: str) -> None:
    server = an_end(client=False)

    said = server.hear(HARMLESS[case], headers(101, GET))

    assert server.h2.fault is None
    assert server.ledger.of("request")[-1][0] == 101
    assert frames.RST_STREAM not in [one.kind for one in said]
    assert server.h2.unread == 0


FIRST = {
    "DATA": data(1, b"x"),
    "HEADERS": headers(1, GET),
    "PRIORITY": frame(frames.PRIORITY, 0, 1, bytes(5)),
    "RST_STREAM": RESET,
    "an acknowledgement": frame(frames.SETTINGS, frames.ACK, 0, b""),
    "PING": frame(frames.PING, 0, 0, bytes(8)),
    "GOAWAY": frames.goaway(0, 0, ""),
    "WINDOW_UPDATE": UPDATE(0, 1),
    "CONTINUATION": frame(frames.CONTINUATION, 0, 1, b""),
    "an unknown frame": frame(99, 0, 0, b""),
    "HTTP/1.1": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("client", [True, False])
def test_the_first_frame_of_the_peer_is_its_settings(first: str, client: bool) -> None:
    end = an_end(client=client, greeted=False)

    end.hear(b"" if client else frames.PREFACE, FIRST[first])

    assert end.h2.fault is not None
    assert end.h2.fault.code == E.PROTOCOL_ERROR
    assert end.ledger.events == []


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\r", b"\0"])
def test_a_client_begins_with_the_preface(sent: bytes) -> None:
    server = an_end(client=False, greeted=False)

    server.hear(sent + b"\n\n")

    assert server.h2.fault is not None


def test_each_end_greets_before_it_hears_anything() -> None:
    server = an_end(client=False, greeted=False, native=True)
    client = an_end(client=True, greeted=False)
    preface = client.h2.out[0]

    assert preface == frames.PREFACE
    assert [one.kind for one in client.said()] == [frames.SETTINGS, frames.WINDOW_UPDATE]
    greeting, update = server.said()
    assert (greeting.kind, update.kind) == (frames.SETTINGS, frames.WINDOW_UPDATE)
    assert frames.NATIVE_SETTING.to_bytes(2, "big") + bytes([0, 0, 0, 1]) in greeting.payload
    assert bytes([0, 8, 0, 0, 0, 1]) in greeting.payload
    assert int.from_bytes(update.payload, "big") == Limits().connection_window - 65535


# ── what a client hears ──
CLIENT_CONNECTION_ERRORS = {
    "6.5.2 ENABLE_PUSH 1": (frames.settings({2: 1}), E.PROTOCOL_ERROR),
    "6.6 PUSH_PROMISE": (frame(frames.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + block(GET)), E.PROTOCOL_ERROR),
    "5.1 HEADERS on a stream that nobody opened": (headers(3, OK), E.PROTOCOL_ERROR),
    "5.1 HEADERS on a stream of the server's": (headers(2, OK), E.PROTOCOL_ERROR),
    "5.1 DATA on a stream that nobody opened": (data(3, b"x"), E.PROTOCOL_ERROR),
    "5.1 HEADERS on a stream over": (headers(1, OK) + headers(1, OK), E.STREAM_CLOSED),
    "6.8 GOAWAY of a wrong size": (frame(frames.GOAWAY, 0, 0, bytes(4)), E.FRAME_SIZE_ERROR),
}
CLIENT_STREAM_ERRORS = {
    "8.1 DATA before HEADERS": data(1, b"x"),
    "8.1 an interim answer that ends the stream": headers(1, [(b":status", b"103")]),
    "8.1 DATA after an interim answer": headers(1, [(b":status", b"103")], end=False) + data(1, b"x"),
    "8.6 a change of protocols": headers(1, [(b":status", b"101")], end=False),
    "8.3.2 no status": headers(1, [(b"x", b"1")]),
    "8.3.2 a second status": headers(1, [*OK, *OK]),
    "8.3.2 a status after a field": headers(1, [(b"x", b"1"), *OK]),
    "8.3.2 a pseudo-header of requests": headers(1, [*OK, (b":path", b"/")]),
    "8.3.2 a status of two digits": headers(1, [(b":status", b"99")]),
    "8.3.2 a status of four digits": headers(1, [(b":status", b"0200")]),
    "8.3.2 a status below 100": headers(1, [(b":status", b"099")]),
    "8.3.2 a status of no digits": headers(1, [(b":status", b"+20")]),
    "8.1.1 too short": headers(1, [*OK, (b"content-length", b"2")], end=False) + data(1, b"a", end=True),
    "8.1.1 too long": headers(1, [*OK, (b"content-length", b"2")], end=False) + data(1, b"abc"),
    "8.1.1 nothing": headers(1, [*OK, (b"content-length", b"2")]),
    "8.1.1 two lengths": headers(1, [*OK, (b"content-length", b"0"), (b"content-length", b"0")]),
    "8.1.1 a length that is none": headers(1, [*OK, (b"content-length", b"+0")]),
    "8.2.2 a field of the connection's": headers(1, [*OK, (b"connection", b"close")]),
}


@pytest.mark.parametrize("case", CLIENT_CONNECTION_ERRORS)
def test_a_server_that_breaks_the_rules_loses_the_connection(case: str) -> None:
    sent, code = CLIENT_CONNECTION_ERRORS[case]
    client = an_end(client=True)
    client.h2.send_request(plain(GET), end=True)

    client.hear(sent)

    assert client.h2.fault is not None
    assert client.h2.fault.code == code


@pytest.mark.parametrize("case", CLIENT_STREAM_ERRORS)
def test_a_malformed_answer_ends_its_stream(case: str) -> None:
    client = an_end(client=True)
    client.h2.send_request(plain(GET), end=True)

    said = client.hear(CLIENT_STREAM_ERRORS[case])

    assert client.h2.fault is None
    assert client.ledger.of("reset") == [(1, E.PROTOCOL_ERROR, True, False)]
    assert said[-1].kind == frames.RST_STREAM


@pytest.mark.parametrize(
    ("verb", "status", "length", "body", "is_fine"),
    [
        (b"HEAD", b"200", b"7", None, True),
        (b"HEAD", b"200", b"7", b"", True),
        (b"HEAD", b"200", b"7", b"x", False),
        (b"HEAD", b"200", None, b"x", False),
        (b"GET", b"304", b"7", None, True),
        (b"GET", b"304", b"7", b"", True),
        (b"GET", b"304", b"7", b"1234567", False),
        (b"GET", b"204", None, None, True),
        (b"GET", b"204", None, b"x", False),
        (b"GET", b"200", b"7", b"1234567", True),
        (b"GET", b"200", b"0", b"", True),
    ],
)
def test_an_answer_that_has_no_body_may_have_a_length(
    verb: bytes, status: bytes, length: bytes | None, body: bytes | None, is_fine: bool
) -> None:
    client = an_end(client=True)
    client.h2.send_request(plain([(b":method", verb), *GET[1:]]), end=True)
    fields = [(b":status", status)] + ([(b"content-length", length)] if length else [])

    client.hear(headers(1, fields, end=body is None), b"" if body is None else data(1, body, end=True))

    assert client.h2.fault is None
    assert bool(client.ledger.of("reset")) != is_fine
    assert client.h2.streams == {}


def test_interim_answers_are_dropped() -> None:
    client = an_end(client=True)
    client.h2.send_request(plain(GET), end=True)

    client.hear(*[headers(1, [(b":status", status), (b"link", b"x")], end=False) for status in (b"100", b"103")])
    client.hear(headers(1, OK))

    assert client.ledger.of("response") == [(1, 200, [], True)]


def test_a_message_goes_through_both_ends_unchanged() -> None:
    client, server = an_end(client=True, greeted=False), an_end(client=False, greeted=False)
    exchange(client, server)
    long = [(b"x-%d" % number, b"v" * 3000) for number in range(10)]

    stream = client.h2.send_request(plain([*POST, *long]), end=False)
    client.h2.send_data(stream, b"question", end=False)
    client.h2.send_trailers(stream, [(b"sum", b"1")])
    exchange(client, server)
    asked = server.ledger.streams[1]
    server.h2.send_response(asked, 200, long, end=False)
    server.h2.send_data(asked, b"answer", end=False)
    server.h2.send_trailers(asked, [(b"grpc-status", b"0")])
    exchange(client, server)

    assert server.ledger.of("request") == [(1, b"POST", b"/", long, False)]
    assert server.ledger.body(1) == b"question"
    assert server.ledger.of("trailers") == [(1, [(b"sum", b"1")])]
    assert client.ledger.of("response") == [(1, 200, long, False)]
    assert client.ledger.body(1) == b"answer"
    assert client.ledger.of("trailers") == [(1, [(b"grpc-status", b"0")])]
    assert not client.h2.streams
    assert not server.h2.streams
