"""What a response parser makes of an app's answers, good and bad."""

from __future__ import annotations

import contextlib

import pytest

from tieline.wire.http1 import BadMessage, Ending, Framing, ResponseHead, ResponseParser
from tieline.wire.http1.response import MAX_INTERIM, MAX_RESPONSE_HEAD


def parser_with(data: bytes, verb: bytes = b"GET") -> ResponseParser:
    parser = ResponseParser()
    parser.expect(verb)
    parser.receive(data)
    return parser


def answer(fields: bytes, body: bytes = b"", line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return line + b"\r\n" + fields + b"\r\n" + body


def head_of(parser: ResponseParser) -> ResponseHead:
    head = parser.next_head()
    assert head is not None
    return head


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 200 OK", b"HTTP/1.1 999 Odd", b"HTTP/1.1 546", b"HTTP/1.1 546 ", b"HTTP/1.0 404 \xc3\xa4"]
)
def test_any_final_status_passes(line: bytes) -> None:
    head = head_of(parser_with(answer(b"Content-Length: 0\r\n", line=line)))

    assert head.status == int(line[9:12])


@pytest.mark.parametrize(
    "line",
    [
        b"this is not HTTP",
        b"HTTP/1.1 abc OK",
        b"HTTP/1.1 099 Odd",
        b"HTTP/1.1 1000 Odd",
        b"HTTP/1.1 20 Odd",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.10 200 OK",
        b"http/1.1 200 OK",
        b"ICY 200 OK",
        b"",
        b"HTTP/1.1 200 O\0K",
    ],
)
def test_a_line_that_is_no_status_line_is_refused(line: bytes) -> None:
    with pytest.raises(BadMessage):
        parser_with(answer(b"Content-Length: 0\r\n", line=line)).next_head()


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2, 2\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"X Y: 1\r\n",
        b"X : 1\r\n",
        b"X: a\r\n b\r\n",
        b"X: a\nY: b\r\n",
        b"X: a\0\r\n",
        b"no colon\r\n",
        b"X: v\r\n" * 257,
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(fields: bytes) -> None:
    with pytest.raises(BadMessage):
        parser_with(answer(fields, b"ok")).next_head()


def test_a_host_means_nothing_in_an_answer() -> None:
    head = parser_with(answer(b"Content-Length: 2\r\nHost: a b\r\nHost: c\r\n", b"ok")).next_head()

    assert head is not None
    assert [value for name, value in head.headers if name == b"host"] == [b"a b", b"c"]


def test_a_body_that_is_framed_twice_never_leaves_its_connection_in_use() -> None:
    """Whether it is refused or read as chunked: another reader may see its end elsewhere."""
    parser = parser_with(answer(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"))

    with contextlib.suppress(BadMessage):
        parser.next_head()
        assert parser.read_body(100) == b"hello"

    assert not parser.reusable


def test_chunked_from_an_http_1_0_app_is_refused() -> None:
    with pytest.raises(BadMessage):
        parser_with(answer(b"Transfer-Encoding: chunked\r\n", line=b"HTTP/1.0 200 OK")).next_head()


@pytest.mark.rule("H-157")
def test_a_101_that_nobody_asked_for_is_a_broken_answer() -> None:
    switching = answer(b"Upgrade: x\r\nConnection: Upgrade\r\n", line=b"HTTP/1.1 101 Switching Protocols")

    with pytest.raises(BadMessage, match="101"):
        parser_with(switching).next_head()


@pytest.mark.rule("H-54")
def test_interim_responses_are_skipped_up_to_a_bound() -> None:
    early = answer(b"Link: </x>\r\n", line=b"HTTP/1.1 103 Early Hints")
    final = answer(b"Content-Length: 2\r\n", b"ok")

    parser = parser_with(early * MAX_INTERIM + final)
    assert head_of(parser).status == 200
    assert parser.take_whole_body() == b"ok"
    with pytest.raises(BadMessage):
        parser_with(early * (MAX_INTERIM + 1) + final).next_head()


@pytest.mark.parametrize(
    ("data", "verb", "framing", "length"),
    [
        (answer(b"Content-Length: 2\r\n", b"ok"), b"GET", Framing.LENGTH, 2),
        (answer(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"ok"), b"GET", Framing.LENGTH, 2),
        (answer(b"Transfer-Encoding: Chunked\r\n", b"2\r\nok\r\n0\r\n\r\n"), b"GET", Framing.CHUNKED, None),
        (answer(b"", b"ok"), b"GET", Framing.CLOSE, None),
        (answer(b"Content-Length: 0\r\n"), b"GET", Framing.NONE, 0),
        (answer(b"Content-Length: 77\r\n"), b"HEAD", Framing.NONE, 0),
        (answer(b"Transfer-Encoding: chunked\r\n"), b"HEAD", Framing.NONE, 0),
        (answer(b"", line=b"HTTP/1.1 204 No Content"), b"GET", Framing.NONE, 0),
        (answer(b"Content-Length: 77\r\n", line=b"HTTP/1.1 304 Not Modified"), b"GET", Framing.NONE, 0),
    ],
)
def test_the_end_of_a_body_is_told_by_verb_status_and_fields(
    data: bytes, verb: bytes, framing: Framing, length: int | None
) -> None:
    parser = parser_with(data, verb)

    head = head_of(parser)
    body = parser.read_body(100)
    ending = parser.eof()

    assert (head.framing, parser.framing, head.length) == (framing, framing, length)
    assert body == (b"" if framing is Framing.NONE else b"ok")
    assert ending is Ending.COMPLETE
    assert parser.body_done


@pytest.mark.rule("H-70")
def test_a_body_shorter_than_declared_is_no_failure_and_a_longer_one_is_cut() -> None:
    short = parser_with(answer(b"Content-Length: 50\r\n", b"short"))
    head_of(short)
    assert short.take_whole_body() is None
    assert short.read_body(100) == b"short"
    assert short.eof() is Ending.SHORT
    assert not short.reusable

    long = parser_with(answer(b"Content-Length: 2\r\n", b"hello"))
    head_of(long)
    assert long.take_whole_body() == b"he"
    assert long.pending == 3
    assert not long.reusable


@pytest.mark.parametrize(
    "body", [b"", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n", b"5\r\nhello\r\n0\r\nX: 1\r\n"]
)
def test_a_chunked_body_that_breaks_off_is_told_from_a_complete_one(body: bytes) -> None:
    parser = parser_with(answer(b"Transfer-Encoding: chunked\r\n", body))
    head_of(parser)

    parser.read_body(100)

    assert parser.eof() is Ending.TRUNCATED
    assert not parser.reusable


def test_a_connection_closed_without_an_answer_is_told_from_one_closed_within() -> None:
    assert parser_with(b"").eof() is Ending.NOTHING
    assert parser_with(b"HTTP/1.1 200").eof() is Ending.TRUNCATED


def test_a_body_until_the_close_may_be_read_after_it() -> None:
    parser = parser_with(answer(b"", b"until close"))
    head = head_of(parser)
    assert parser.take_whole_body() is None
    assert not head.keep_alive

    assert parser.eof() is Ending.COMPLETE

    assert parser.read_body(5) == b"until"
    assert not parser.body_done
    assert parser.take_whole_body() == b" close"
    assert parser.body_done


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (answer(b"Content-Length: 2\r\n", b"ok"), True),
        (answer(b"Content-Length: 2\r\nConnection: close\r\n", b"ok"), False),
        (answer(b"Content-Length: 2\r\n", b"ok", b"HTTP/1.0 200 OK"), False),
        (answer(b"Content-Length: 2\r\nConnection: keep-alive\r\n", b"ok", b"HTTP/1.0 200 OK"), True),
        (answer(b"Content-Length: 2\r\n", b"okHTTP/1.1 200 OK\r\n"), False),
        (answer(b"", b"poison", b"HTTP/1.1 204 No Content"), False),
    ],
)
def test_a_connection_is_used_again_only_when_nothing_is_left_on_it(data: bytes, reusable: bool) -> None:
    parser = parser_with(data)
    head_of(parser)
    assert parser.read_body(2) in (b"ok", b"")

    assert parser.reusable is reusable


def test_a_response_is_read_only_when_one_is_expected() -> None:
    parser = parser_with(answer(b"Content-Length: 2\r\n", b"ok") * 2)
    head_of(parser)
    with pytest.raises(RuntimeError):
        parser.expect(b"GET")
    parser.take_whole_body()
    with pytest.raises(RuntimeError):
        parser.next_head()

    parser.expect(b"GET")

    assert head_of(parser).status == 200


@pytest.mark.rule("H-113")
def test_a_head_far_longer_than_daprs_limit_passes_and_an_endless_one_does_not() -> None:
    assert head_of(parser_with(answer(b"X: " + b"v" * 60000 + b"\r\n"))).status == 200
    with pytest.raises(BadMessage):
        parser_with(b"HTTP/1.1 200 OK\r\nX: " + b"v" * MAX_RESPONSE_HEAD).next_head()
