"""What the writers put on the wire, and what they refuse to."""

from __future__ import annotations

import pytest

from tieline.wire.http1 import (
    CHUNKED,
    LAST_CHUNK,
    chunk,
    declared,
    last_chunk,
    request_framing,
    request_head,
    response_head,
)


def test_a_request_head_has_canonical_names() -> None:
    headers = [(b"x-custom-header", b"a"), (b"x_under", b"\xfc"), (b"etag", b"")]

    head = request_head(b"POST", b"/new?q=1", b"127.0.0.1:8000", headers, declared(2))

    assert head == (
        b"POST /new?q=1 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nX-Custom-Header: a\r\nX_under: \xfc\r\nEtag: \r\n"
        b"Content-Length: 2\r\n\r\n"
    )


@pytest.mark.rule("H-57")
@pytest.mark.parametrize(
    ("verb", "length", "framing"),
    [
        (b"POST", 5, b"\r\nContent-Length: 5"),
        (b"GET", 5, b"\r\nContent-Length: 5"),
        (b"GET", None, CHUNKED),
        (b"GET", 0, b""),
        (b"HEAD", 0, b""),
        (b"DELETE", 0, b""),
        (b"OPTIONS", 0, b""),
        (b"POST", 0, b"\r\nContent-Length: 0"),
        (b"PUT", 0, b"\r\nContent-Length: 0"),
        (b"PATCH", 0, b"\r\nContent-Length: 0"),
        (b"TRACE", 0, b"\r\nContent-Length: 0"),
    ],
)
def test_a_request_is_framed_by_its_verb_and_length(verb: bytes, length: int | None, framing: bytes) -> None:
    assert request_framing(verb, length) == framing


@pytest.mark.parametrize(
    ("keep_alive", "minor", "expected"),
    [
        (True, 1, b"HTTP/1.1 546 status code 546\r\nX: 1\r\n\r\n"),
        (False, 1, b"HTTP/1.1 546 status code 546\r\nX: 1\r\nConnection: close\r\n\r\n"),
        (True, 0, b"HTTP/1.0 546 status code 546\r\nX: 1\r\nConnection: keep-alive\r\n\r\n"),
        (False, 0, b"HTTP/1.0 546 status code 546\r\nX: 1\r\n\r\n"),
    ],
)
def test_a_response_says_whether_the_connection_stays(keep_alive: bool, minor: int, expected: bytes) -> None:
    assert response_head(546, [(b"x", b"1")], b"", keep_alive=keep_alive, version_minor=minor) == expected


def test_a_known_status_has_its_reason() -> None:
    assert response_head(404, [], CHUNKED) == b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(ValueError, match="not an HTTP status"):
        response_head(1000, [], b"")


def test_chunks_and_trailers_are_framed() -> None:
    assert b"".join(chunk(b"x" * 26)) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert chunk(b"") == ()
    assert last_chunk([]) == LAST_CHUNK
    assert last_chunk([(b"x-sum", b"1"), (b"y", b"2")]) == b"0\r\nX-Sum: 1\r\nY: 2\r\n\r\n"


@pytest.mark.parametrize("breaker", [b"\r", b"\n", b"\r\n", b"\0", b"\r\nX: 1", b"\x01", b"\x7f"])
def test_nothing_that_ends_a_line_or_a_string_is_ever_written(breaker: bytes) -> None:
    text = b"a" + breaker + b"b"

    for field in ((b"x", text), (text, b"x")):
        with pytest.raises(ValueError, match=r"head|trailers"):
            request_head(b"GET", b"/", b"h", [field], b"")
        with pytest.raises(ValueError, match=r"head|trailers"):
            response_head(200, [field], b"")
        with pytest.raises(ValueError, match=r"head|trailers"):
            last_chunk([field])
    for verb, target, host in ((text, b"/", b"h"), (b"GET", text, b"h"), (b"GET", b"/", text)):
        with pytest.raises(ValueError, match=r"head|request line"):
            request_head(verb, target, host, [], b"")


@pytest.mark.parametrize("name", [b"content-length", b"Transfer-Encoding", b"", b"a b", b"a:b", b"\xfc"])
def test_framing_fields_and_names_that_are_none_are_a_callers_bug(name: bytes) -> None:
    with pytest.raises(ValueError, match="header name"):
        request_head(b"POST", b"/", b"h", [(name, b"1")], CHUNKED)
    with pytest.raises(ValueError, match="header name"):
        response_head(200, [(name, b"1")], CHUNKED)


def test_a_request_has_one_host_and_no_blank_in_its_line() -> None:
    with pytest.raises(ValueError, match="header name"):
        request_head(b"GET", b"/", b"h", [(b"host", b"other")], b"")
    with pytest.raises(ValueError, match="request line"):
        request_head(b"GET", b"/ HTTP/1.1", b"h", [], b"")


def test_a_trailer_that_frames_or_routes_is_a_callers_bug() -> None:
    for name in (b"content-length", b"Host", b"dapr-app-id"):
        with pytest.raises(ValueError, match="trailers"):
            last_chunk([(name, b"1")])
