"""What a request parser lets through, what it refuses, and how it keeps its bounds."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.unit.wire.http1.corpus import ACCEPTED, REFUSED, Accepted, Refused, chunked, get, post, target
from tieline.wire.http1 import PREFACE, BadMessage, RequestHead, RequestParser, looks_like_preface
from tieline.wire.http1.fields import MAX_REMEMBERED, parse_field

MAX_HEAD = 8192
_OWN_FIELDS = {b"host", b"content-length", b"transfer-encoding"}


def parser_with(data: bytes, *, max_head: int = MAX_HEAD) -> RequestParser:
    parser = RequestParser(max_head=max_head)
    parser.receive(data)
    return parser


def head_of(data: bytes) -> RequestHead:
    head = parser_with(data).next_head()
    assert head is not None
    return head


def read_all(parser: RequestParser, limit: int = 65536) -> bytes:
    body = b""
    while piece := parser.read_body(limit):
        body += piece
    return body


def feed(pieces: Iterable[bytes]) -> None:
    """Read one request that comes in these pieces, as a connection would."""
    parser = RequestParser(max_head=MAX_HEAD)
    for piece in pieces:
        parser.receive(piece)
        if not parser.body_done or parser.next_head() is not None:
            read_all(parser)


def refusal_of(*pieces: bytes) -> BadMessage:
    with pytest.raises(BadMessage) as refusal:
        feed(pieces)
    return refusal.value


@pytest.mark.rule("H-64", "H-155", "H-156")
@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_could_be_read_in_two_ways_is_refused(case: Refused) -> None:
    """Whole, and in single bytes, with the same status."""
    refusal = refusal_of(case.data)
    in_bytes = refusal_of(*(case.data[at : at + 1] for at in range(len(case.data))))

    assert refusal.status == in_bytes.status == case.status
    said = refusal.detail if case.text and not case.text[:1].isdigit() and case.status == 400 else refusal.text
    assert said.encode().startswith(case.text)
    assert "\n" not in refusal.detail


@pytest.mark.rule("H-155")
@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_what_is_ordinary_passes(case: Accepted) -> None:
    parser = parser_with(case.data)

    head = parser.next_head()
    assert head is not None
    body = parser.take_whole_body()
    if body is None:
        body = read_all(parser)

    assert (head.path, head.query, body) == (case.path, case.query, case.body)
    assert tuple(field for field in head.headers if field[0] not in _OWN_FIELDS) == case.fields
    assert (parser.body_done, parser.pending) == (True, 0)


def test_a_verb_is_kept_as_sent() -> None:
    assert head_of(target(b"/", b"Get")).verb == b"Get"


@pytest.mark.parametrize(
    ("version", "fields", "expected"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: keep-alive\r\n", True),
        (b"1.1", b"Connection: X, Close\r\n", False),
        (b"1.1", b"Connection: x\r\nConnection: close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
        (b"1.0", b"Connection: keep-alive, close\r\n", False),
    ],
)
def test_a_connection_is_kept_as_the_client_says(version: bytes, fields: bytes, expected: bool) -> None:
    head = head_of(get(b"GET / HTTP/" + version, fields))

    assert head.keep_alive is expected
    assert head.version_minor == int(version[-1:])


@pytest.mark.rule("H-53")
def test_a_client_waits_for_100_only_when_it_has_a_body() -> None:
    expecting = b"Expect: 100-Continue\r\n"

    assert head_of(post(expecting + b"Content-Length: 5\r\n")).expect_continue
    assert head_of(post(expecting + b"Transfer-Encoding: chunked\r\n")).expect_continue
    assert not head_of(post(expecting)).expect_continue
    assert not head_of(post(b"Content-Length: 5\r\n")).expect_continue
    assert (b"expect", b"100-Continue") in head_of(post(expecting)).headers


@pytest.mark.rule("H-53")
def test_any_other_expectation_fails_without_a_body_in_the_answer() -> None:
    refusal = refusal_of(post(b"Expect: something\r\nContent-Length: 5\r\n", b"hello"))

    assert (refusal.status, refusal.text) == (417, "")


def test_an_upgrade_counts_only_if_connection_lists_it() -> None:
    assert head_of(get(fields=b"Connection: keep-alive, Upgrade\r\nUpgrade: H2C\r\n")).upgrade == b"h2c"
    assert head_of(get(fields=b"Connection: Upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n")).upgrade == b"a, b"
    assert head_of(get(fields=b"Upgrade: h2c\r\n")).upgrade == b""
    assert head_of(get(b"GET / HTTP/1.0", b"Connection: Upgrade\r\nUpgrade: h2c\r\n")).upgrade == b""


def test_an_upgrade_request_keeps_its_body_and_the_bytes_after_it() -> None:
    """Other parsers stop at the head here and lose the body."""
    fields = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 5\r\n"
    parser = parser_with(post(fields, b"hello" + PREFACE))

    head = parser.next_head()

    assert head is not None
    assert (head.upgrade, parser.take_whole_body()) == (b"h2c", b"hello")
    assert parser.leftover() == PREFACE
    assert parser.pending == 0


@pytest.mark.rule("H-63")
def test_a_head_may_have_exactly_the_allowed_length() -> None:
    data = get(fields=b"X: " + b"v" * 500 + b"\r\n")

    assert parser_with(data, max_head=len(data)).next_head() is not None
    with pytest.raises(BadMessage) as refusal:
        parser_with(data, max_head=len(data) - 1).next_head()
    assert (refusal.value.status, refusal.value.text) == (431, "431 Request Header Fields Too Large")


@pytest.mark.rule("H-63")
@pytest.mark.parametrize("endless", [b"GET /" + b"f" * MAX_HEAD, get()[:-2] + b"X: " + b"v" * MAX_HEAD])
def test_a_head_without_end_is_refused_before_it_ends(endless: bytes) -> None:
    with pytest.raises(BadMessage) as refusal:
        parser_with(endless).next_head()

    assert refusal.value.status == 431


def test_a_late_head_can_be_told_by_its_first_line() -> None:
    parser = parser_with(b"GET / HTTP/1.1")
    assert parser.next_head() is None
    assert not parser.has_request_line

    parser.receive(b"\r\nHost: a\r\n")

    assert parser.next_head() is None
    assert parser.has_request_line


def test_pipelined_requests_wait_in_the_parser() -> None:
    parser = parser_with(post(b"Content-Length: 1\r\n", b"a") + chunked(b"1\r\nb\r\n0\r\n\r\n") + target(b"/three"))

    bodies = []
    while head := parser.next_head():
        bodies.append((head.path, parser.take_whole_body()))

    assert [body for _, body in bodies] == [b"a", b"b", b""]
    assert bodies[2][0] == b"/three"
    assert parser.pending == 0


def test_a_body_must_be_read_before_the_next_head() -> None:
    parser = parser_with(post(b"Content-Length: 5\r\n", b"hel"))
    parser.next_head()

    with pytest.raises(RuntimeError):
        parser.next_head()


@pytest.mark.parametrize("message", [post(b"Content-Length: 5\r\n", b"hel"), chunked(b"5\r\nhello\r\n0\r\n")])
def test_an_incomplete_body_is_not_taken_and_not_touched(message: bytes) -> None:
    parser = parser_with(message)
    parser.next_head()
    pending = parser.pending

    assert parser.take_whole_body() is None
    assert parser.pending == pending
    assert not parser.body_done
    parser.receive(b"lo" if message.endswith(b"hel") else b"\r\n")
    assert read_all(parser) == b"hello"
    assert parser.body_done


def test_a_piece_that_is_all_body_is_handed_on_uncopied() -> None:
    parser = parser_with(post(b"Content-Length: 200000\r\n"))
    parser.next_head()
    piece = bytes(65536)

    parser.receive(piece)

    assert parser.read_body(65536) is piece


def test_a_body_is_read_in_pieces_no_longer_than_asked() -> None:
    for message in (post(b"Content-Length: 10\r\n", b"0123456789"), chunked(b"a\r\n0123456789\r\n0\r\n\r\n")):
        parser = parser_with(message + b"next")
        parser.next_head()

        pieces = [parser.read_body(4), parser.read_body(4), parser.read_body(4), parser.read_body(4)]

        assert pieces == [b"0123", b"4567", b"89", b""]
        assert (parser.body_done, parser.leftover()) == (True, b"next")


def test_many_small_chunks_become_one_piece() -> None:
    parser = parser_with(chunked(b"1\r\nx\r\n" * 10000 + b"0\r\n\r\n"))
    parser.next_head()

    assert parser.read_body(65536) == b"x" * 10000
    assert parser.body_done


def test_trailers_are_there_when_the_body_is_done() -> None:
    parser = parser_with(chunked(b"1\r\nx\r\n0\r\nX-Sum: 1\r\n") + b"")
    parser.next_head()
    assert parser.read_body(10) == b"x"
    assert not parser.body_done

    parser.receive(b"X-Sum: 2\r\n\r\n" + get())

    assert parser.read_body(10) == b""
    assert parser.body_done
    assert parser.trailers == [(b"x-sum", b"1"), (b"x-sum", b"2")]
    assert parser.next_head() is not None
    assert parser.trailers == []


def test_a_preface_is_told_from_a_request_as_soon_as_possible() -> None:
    assert looks_like_preface(b"") is None
    assert looks_like_preface(PREFACE[:10]) is None
    assert looks_like_preface(PREFACE + b"frames") is True
    assert looks_like_preface(b"PRO") is False
    assert looks_like_preface(b"GET / HTTP/1.1") is False


def test_secrets_are_not_remembered_and_the_memory_is_bounded() -> None:
    memory = getattr(parse_field, "__self__")  # noqa: B009 - typed as any callable
    assert isinstance(memory, dict)

    for line in (b"Authorization: Bearer x", b"dapr-api-token: x", b"Cookie: a=1", b"traceparent: 00-1"):
        parse_field(line)
        assert line not in memory
    for number in range(3 * MAX_REMEMBERED):
        parse_field(b"X-Number: %d" % number)
    parse_field(b"X-Long: " + b"v" * 300)

    assert parse_field(b"Accept: */*") is parse_field(b"Accept: */*")
    assert len(memory) <= MAX_REMEMBERED
    assert b"X-Long: " + b"v" * 300 not in memory
