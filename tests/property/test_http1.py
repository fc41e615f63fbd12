"""HTTP/1.1 under arbitrary bytes, arbitrary splits, and beside h11 and llhttp."""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.wire.http1.corpus import ACCEPTED, REFUSED
from tieline.model import Headers
from tieline.wire.http1 import (
    CHUNKED,
    BadMessage,
    Ending,
    RequestParser,
    ResponseParser,
    chunk,
    declared,
    is_trailer_name,
    last_chunk,
    request_head,
    response_head,
)

_WHOLE = [case.data for case in ACCEPTED] + [case.data for case in REFUSED]
_CORPUS = [data for data in _WHOLE if len(data) < 1000]
_LINES = [
    b"GET / HTTP/1.1",
    b"POST /a?b HTTP/1.1",
    b"PUT http://h/x HTTP/1.1",
    b"GET / HTTP/1.0",
    b"BREW /%41 HTTP/1.1",
]
_FIELDS = [
    b"Host: a", b"Host: b:80", b"Content-Length: 5", b"Content-Length: 05", b"Content-Length: 0", b"content-length:5 ",
    b"Transfer-Encoding: chunked", b"Transfer-encoding: CHUNKED", b"Transfer-Encoding: x", b"Transfer-Encoding:",
    b"Connection: close", b"Connection: Upgrade", b"Upgrade: h2c", b"Expect: 100-continue", b"X: \t", b"X: a\tb\xff",
    b" X: folded", b"X : a", b"X\0: a", b"X: a\rb", b"X: a\nb", b"no colon", b"",
]  # fmt: skip
_BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\nT: 1\r\n\r\n",
    b"0\r\n\r\n",
    b"5\nhello\n0\n\n",
]

# Mostly a request that is nearly right: its parts are drawn from what decides, and some bytes of it are changed.
nearly = st.builds(
    lambda line, fields, body: b"\r\n".join([line, *fields, b"", body]),
    st.sampled_from(_LINES),
    st.lists(st.sampled_from(_FIELDS), max_size=5).flatmap(lambda fields: st.permutations([b"Host: a", *fields])),
    st.sampled_from(_BODIES),
)


@st.composite
def spoiled(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> bytes:
    message = bytearray(draw(messages))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(message)))
        message[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b":", b"0", b"5", b";", b"\x0b", b"\xff"])
        )
    return bytes(message)


requests = spoiled(nearly | st.sampled_from(_CORPUS))


class Outcome(NamedTuple):
    """What became of the first message in some bytes."""

    status: int = 0
    """Of the refusal; 0 if there is none."""
    verb: bytes = b""
    path: bytes = b""
    query: bytes | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    done: bool = False
    rest: bytes = b""
    trailers: tuple[tuple[bytes, bytes], ...] = ()


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


def outcome(pieces: list[bytes], limit: int = 65536) -> Outcome:
    """Parse the first request; a body that is refused counts as refused, whatever came of it before."""
    parser = RequestParser(max_head=2000)
    head = None
    body = b""
    try:
        for piece in pieces:
            parser.receive(piece)
            head = head or parser.next_head()
            while head and (part := parser.read_body(limit)):
                body += part
    except BadMessage as refusal:
        return Outcome(refusal.status)
    if head is None:
        return Outcome(rest=parser.leftover())
    return Outcome(
        0, head.verb, head.path, head.query, tuple(head.headers), body, parser.body_done, parser.leftover(),
        tuple(parser.trailers),
    )  # fmt: skip


@given(requests | st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=6), st.integers(1, 10))
def test_it_does_not_matter_how_the_bytes_are_split(data: bytes, cuts: list[int], limit: int) -> None:
    whole = outcome([data])

    assert outcome(split(data, cuts), limit) == whole


@given(requests)
def test_a_whole_body_is_what_its_pieces_are(data: bytes) -> None:
    pieces = outcome([data])
    parser = RequestParser(max_head=2000)
    parser.receive(data)

    if pieces.status:
        with pytest.raises(BadMessage):
            read_whole(parser)
        return
    body = read_whole(parser)

    if body is not None:
        assert (body, parser.leftover(), tuple(parser.trailers)) == (pieces.body, pieces.rest, pieces.trailers)


def read_whole(parser: RequestParser) -> bytes | None:
    """Take the body of the first request at once, or go on piece by piece as a connection would, which may raise."""
    if parser.next_head() is None:
        return None
    body = parser.take_whole_body()
    while body is None and parser.read_body(7):
        pass
    return body


def ends_differ_by_design(ours: Outcome, data: bytes) -> bool:
    """Tell what h11 refuses and Tieline has to accept."""
    line = data.partition(b"\r\n")[0]
    return (
        not line.isascii()  # h11 takes only ASCII targets; daprd, and so Tieline, any byte from 0x80
        or not line.endswith((b"HTTP/1.0", b"HTTP/1.1"))  # HTTP/1.2 is accepted as 1.1 (H-155)
        or any(b"\xff" in name + value for name, value in ours.headers)
    )


@pytest.mark.rule("H-155")
@settings(max_examples=300)
@given(requests)
def test_what_passes_means_the_same_to_h11(data: bytes) -> None:
    ours = outcome([data])
    if ours.status or not ours.verb or ends_differ_by_design(ours, data):
        return

    other = h11.Connection(h11.SERVER)
    other.receive_data(data)
    head = other.next_event()
    body = b""
    done = False
    while True:
        event = other.next_event()
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            done = isinstance(event, h11.EndOfMessage)
            break

    assert isinstance(head, h11.Request)
    assert (bytes(head.method), [(bytes(n), bytes(v)) for n, v in head.headers]) == (
        ours.verb,
        [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in ours.headers],
    )
    assert (body, done, other.trailing_data[0] if done else b"") == (ours.body, ours.done, ours.rest if done else b"")


_blank_or_extension = re.compile(rb"\n[0-9A-Fa-f]+[ \t;]").search
_rare_scheme = re.compile(rb"[!-~]+ [A-Za-z]+[0-9+.\-][A-Za-z0-9+.\-]*://").match


class Llhttp:
    """What llhttp makes of a request."""

    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.done = False
        self.target = b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


@pytest.mark.rule("H-155")
@settings(max_examples=300)
@given(requests)
def test_what_passes_means_the_same_to_llhttp(data: bytes) -> None:
    """Only the first request is fed, as llhttp reads on; upgrades and verbs that it does not know are left out."""
    ours = outcome([data])
    upgrades = ours.verb == b"CONNECT" or any(name == b"upgrade" for name, _ in ours.headers)
    known = ours.verb in (b"GET", b"POST", b"PUT", b"OPTIONS", b"PROPFIND")
    if ours.status or not known or upgrades or ends_differ_by_design(ours, data):
        return

    try:
        theirs = Llhttp(data[: len(data) - len(ours.rest)])
    except httptools.HttpParserError:
        # llhttp is stricter in three places: blanks after a chunk's size (H-155), the grammar of extensions, and
        # the characters of a scheme (RFC 3986 §3.1 has more than letters).
        assert _blank_or_extension(data) or _rare_scheme(data)
        return

    assert (theirs.body, theirs.done) == (ours.body, ours.done)


tokens = st.from_regex(rb"[a-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)
values = st.from_regex(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]{0,20}[!-~\x80-\xff])?)?", fullmatch=True)
_framing = {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
fields = st.lists(st.tuples(tokens.filter(lambda name: name not in _framing), values), max_size=6)
bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=4)


@given(
    tokens,
    st.from_regex(rb"/[!-$&-~]{0,20}", fullmatch=True),
    fields,
    bodies,
    st.booleans(),
    fields.map(lambda them: [field for field in them if is_trailer_name(field[0])]),
    st.lists(st.integers(0, 400), max_size=4),
)
def test_a_written_request_is_read_back(
    verb: bytes,
    target: bytes,
    headers: Headers,
    pieces: list[bytes],
    chunked: bool,
    trailers: Headers,
    cuts: list[int],
) -> None:
    body = b"".join(pieces)
    head = request_head(verb, target, b"h:80", headers, CHUNKED if chunked else declared(len(body)))
    coded = b"".join(b"".join(chunk(piece)) for piece in pieces) + last_chunk(trailers)

    back = outcome(split(head + (coded if chunked else body) + b"next", cuts))

    path, mark, query = target.partition(b"?")
    assert (back.status, back.verb, back.path, back.query) == (0, verb, path, query if mark else None)
    assert [field for field in back.headers if field[0] not in _framing] == headers
    assert (back.body, back.done, back.rest) == (body, True, b"next")
    assert list(back.trailers) == (trailers if chunked else [])


@given(
    st.integers(200, 999),
    fields,
    bodies,
    st.sampled_from(["length", "chunked", "close"]),
    st.lists(st.integers(0, 400), max_size=4),
)
def test_a_written_response_is_read_back(
    status: int, headers: Headers, pieces: list[bytes], framing: str, cuts: list[int]
) -> None:
    body = b"" if status in (204, 304) else b"".join(pieces)
    line = {"length": declared(len(body)), "chunked": CHUNKED, "close": b""}[framing]
    coded = b"".join(b"".join(chunk(piece)) for piece in pieces) + last_chunk([])
    data = response_head(status, headers, line) + (coded if framing == "chunked" and status not in (204, 304) else body)
    parser = ResponseParser()
    parser.expect(b"GET")

    head = None
    back = b""
    for piece in split(data, cuts):
        parser.receive(piece)
        head = head or parser.next_head()
        while head and (part := parser.read_body(7)):
            back += part

    assert head is not None
    assert (head.status, back, parser.eof()) == (status, body, Ending.COMPLETE)
    assert [field for field in head.headers if field[0] not in _framing] == headers


_ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello",
    b"HTTP/1.0 404\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
]


@given(spoiled(st.sampled_from(_ANSWERS)) | st.binary(max_size=100))
def test_an_app_that_sends_anything_gets_an_answer_or_a_refusal(data: bytes) -> None:
    """No other exception, and never a reusable connection with bytes left on it."""
    parser = ResponseParser()
    parser.expect(b"GET")
    parser.receive(data)

    with contextlib.suppress(BadMessage):
        if parser.next_head() is not None:
            while parser.read_body(100):
                pass

    assert not (parser.reusable and parser.pending)
    assert parser.eof() in Ending
