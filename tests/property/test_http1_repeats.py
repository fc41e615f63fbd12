"""A connection that knows the fields of its last message again must say what one that never saw them says."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from tieline.wire.http1 import BadMessage, RequestParser, ResponseParser

MAX_HEAD = 160

LINES = [
    b"GET /a HTTP/1.1", b"GET /a HTTP/1.0", b"POST /b HTTP/1.1", b"POST /b?q HTTP/1.1", b"HEAD /a HTTP/1.1",
    b"GET /%zz HTTP/1.1", b"GET /" + b"x" * 120 + b" HTTP/1.1", b"GET  /a HTTP/1.1", b"",
]  # fmt: skip
FIELDS = [
    b"Host: a", b"Host: b", b"Content-Length: 3", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"X: 1",
    b"Connection: close", b"Connection: keep-alive, upgrade", b"Upgrade: h2c", b"Expect: 100-continue",
    b" folded", b"X",
]  # fmt: skip
STATUS_LINES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 None", b"HTTP/1.1 304 Same", b"HTTP/1.1 103 Early",
    b"HTTP 200",
]  # fmt: skip
BODIES = {b"Content-Length: 3": b"abc", b"Transfer-Encoding: chunked": b"3\r\nabc\r\n0\r\nT: 1\r\n\r\n"}

blocks = st.lists(st.sampled_from(FIELDS), max_size=4).map(tuple) | st.just((b"Host: a", b"Content-Length: 3"))


class Refused(NamedTuple):
    detail: str
    status: int
    text: str


def message(line: bytes, block: tuple[bytes, ...], *, body: bool) -> bytes:
    bodies = [BODIES[field] for field in block if field in BODIES] if body else []
    return b"\r\n".join([line, *block]) + b"\r\n\r\n" + (bodies[-1] if bodies else b"")


def request_of(parser: RequestParser, data: bytes) -> object:
    parser.receive(data)
    try:
        head = parser.next_head()
        if head is None:
            return None
        body = parser.take_whole_body()
    except BadMessage as error:
        return Refused(error.detail, error.status, error.text)
    return (
        (head.verb, head.path, head.query, list(head.headers), head.length, head.authority, head.body),
        (head.version_minor, head.keep_alive, head.expect_continue, head.upgrade),
        (body, list(parser.trailers), parser.body_done, parser.framing, parser.pending),
    )


@given(st.lists(st.tuples(st.sampled_from(LINES), blocks), min_size=2, max_size=6))
@example([(LINES[0], (b"Host: a",)), (LINES[1], (b"Host: a",)), (LINES[0], (b"Host: a",))])
@example([(LINES[0], (b"Host: a", b"X: 1")), (LINES[0], (b"Host: a", b"X: 1")), (LINES[6], (b"Host: a", b"X: 1"))])
@example([(LINES[0], (b"Host: a", b"Connection: keep-alive, upgrade", b"Upgrade: h2c"))] * 2)
@example([(LINES[2], (b"Host: a", b"Content-Length: 3", b"Expect: 100-continue"))] * 2)
def test_a_request_means_the_same_after_others_on_its_connection(
    sequence: list[tuple[bytes, tuple[bytes, ...]]],
) -> None:
    used = RequestParser(max_head=MAX_HEAD)
    for line, block in sequence:
        data = message(line, block, body=True)
        fresh = request_of(RequestParser(max_head=MAX_HEAD), data)

        assert request_of(used, data) == fresh
        if isinstance(fresh, Refused) or fresh is None or not used.body_done or used.pending:
            return  # such a connection is closed, or its next message is not at the beginning


def response_of(parser: ResponseParser, verb: bytes, data: bytes) -> object:
    parser.expect(verb)
    parser.receive(data)
    try:
        head = parser.next_head()
        if head is None:
            return None
        body = parser.take_whole_body()
    except BadMessage as error:
        return Refused(error.detail, error.status, error.text)
    return (
        (head.status, list(head.headers), head.length, head.framing, head.keep_alive),
        (body, list(parser.trailers), parser.body_done, parser.framing, parser.pending, parser.keep_alive),
        parser.reusable,
    )


@given(
    st.lists(
        st.tuples(st.sampled_from([b"GET", b"HEAD"]), st.sampled_from(STATUS_LINES), blocks), min_size=2, max_size=6
    )
)
@example([(b"GET", STATUS_LINES[0], (b"Content-Length: 3",)), (b"HEAD", STATUS_LINES[0], (b"Content-Length: 3",))] * 2)
@example([(b"GET", STATUS_LINES[0], (b"Transfer-Encoding: chunked",))] * 3)
def test_an_answer_means_the_same_after_others_on_its_connection(
    sequence: list[tuple[bytes, bytes, tuple[bytes, ...]]],
) -> None:
    used = ResponseParser(max_head=MAX_HEAD)
    for verb, line, block in sequence:
        data = message(line, block, body=verb != b"HEAD" and b" 200 " in line)
        fresh = response_of(ResponseParser(max_head=MAX_HEAD), verb, data)

        assert response_of(used, verb, data) == fresh
        if not used.reusable:
            return
