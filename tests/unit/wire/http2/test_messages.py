"""What makes a request or an answer of a header list, and what could be read in two ways (RFC 9113 §8.2, §8.3)."""

from __future__ import annotations

import pytest

from tests.support.http2 import GET, OK, plain
from tieline.model import Headers
from tieline.wire.http2.messages import MAX_SHAPES, Malformed, join_cookies, read_request, read_response

CONNECT: Headers = [(b":method", b"CONNECT"), (b":authority", b"a:1")]
WEBSOCKET: Headers = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]
NO_AUTHORITY = GET[:3]


def with_(changed: bytes, value: bytes, fields: Headers = GET) -> Headers:
    return [(name, value if name == changed else old) for name, old in fields]


def without(left_out: bytes, fields: Headers = GET) -> Headers:
    return [field for field in fields if field[0] != left_out]


MALFORMED: dict[str, Headers] = {
    "no method": without(b":method"),
    "no scheme": without(b":scheme"),
    "no path": without(b":path"),
    "an empty path": with_(b":path", b""),
    "a path without a slash": with_(b":path", b"a"),
    "an absolute path": with_(b":path", b"http://a/"),
    "a path with a blank": with_(b":path", b"/a b"),
    "a path with a tab": with_(b":path", b"/a\tb"),
    "a path with a line break": with_(b":path", b"/ HTTP/1.1\r\nx: y"),
    "a path with NUL": with_(b":path", b"/\0"),
    "a path with DEL": with_(b":path", b"/\x7f"),
    "a path that ends in a blank": with_(b":path", b"/ "),
    "* for GET": with_(b":path", b"*"),
    "a method with a blank": with_(b":method", b"GET /"),
    "a method with a line break": with_(b":method", b"GET\r\n"),
    "an empty method": with_(b":method", b""),
    "a scheme with a line break": with_(b":scheme", b"http\r\n"),
    "a scheme that is a URL": with_(b":scheme", b"http://x"),
    "an authority with a user": with_(b":authority", b"u@a"),
    "an authority with a path": with_(b":authority", b"a/b"),
    "an authority with a blank": with_(b":authority", b"a b"),
    "an authority with a line break": with_(b":authority", b"a\r\nx: y"),
    "an authority of another script": with_(b":authority", b"\xc3\xa4"),
    "a bad host": [*NO_AUTHORITY, (b"host", b"a/b")],
    "a host that is another": [*GET, (b"host", b"b")],
    "an empty host beside an authority": [*GET, (b"host", b"")],
    "two hosts of an RPC": [*NO_AUTHORITY, (b"content-type", b"application/grpc"), (b"host", b"a"), (b"host", b"b")],
    "two hosts": [*NO_AUTHORITY, (b"host", b"a"), (b"host", b"a")],
    "two methods": [GET[0], *GET],
    "two paths": [*GET, GET[2]],
    "a status": [*GET, *OK],
    "an unknown pseudo-header": [*GET, (b":x", b"1")],
    "a pseudo-header after a field": [*GET[:3], (b"x", b"1"), GET[3]],
    "an upper-case name": [*GET, (b"X-A", b"1")],
    "an empty name": [*GET, (b"", b"1")],
    "a name with a colon": [*GET, (b"x:", b"1")],
    "a name with a blank": [*GET, (b"x y", b"1")],
    "a name of another script": [*GET, (b"x\xe4", b"1")],
    "connection": [*GET, (b"connection", b"close")],
    "keep-alive": [*GET, (b"keep-alive", b"1")],
    "proxy-connection": [*GET, (b"proxy-connection", b"close")],
    "transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "upgrade": [*GET, (b"upgrade", b"h2c")],
    "te": [*GET, (b"te", b"gzip")],
    "te and more": [*GET, (b"te", b"trailers, deflate")],
    "two lengths": [*GET, (b"content-length", b"0"), (b"content-length", b"0")],
    "a signed length": [*GET, (b"content-length", b"+1")],
    "an empty length": [*GET, (b"content-length", b"")],
    "two lengths in one": [*GET, (b"content-length", b"1, 1")],
    "a length beyond all": [*GET, (b"content-length", b"9" * 19)],
    "CONNECT with a path": [*CONNECT, (b":path", b"/")],
    "CONNECT with a scheme": [*CONNECT, (b":scheme", b"http")],
    "CONNECT without an authority": CONNECT[:1],
    "a protocol without CONNECT": [*GET, (b":protocol", b"websocket")],
    "a protocol that is no token": with_(b":protocol", b"web socket", WEBSOCKET),
    "a protocol with a line break": with_(b":protocol", b"websocket\r\n", WEBSOCKET),
    "a protocol without a path": without(b":path", WEBSOCKET),
    "a protocol without a scheme": without(b":scheme", WEBSOCKET),
    **{f"a value with {byte:#04x}": [*GET, (b"x", b"a%cb" % byte)] for byte in {*range(32), 127} - {9}},
    **{f"a value that begins with {blank!r}": [*GET, (b"x", blank + b"a")] for blank in (b" ", b"\t")},
    **{f"a value that ends with {blank!r}": [*GET, (b"x", b"a" + blank)] for blank in (b" ", b"\t")},
}


@pytest.fixture(params=["first", "later"])
def seen_before(request: pytest.FixtureRequest) -> bool:
    """Good messages with the same names are remembered; what follows them is held to the same rules."""
    return bool(request.param == "later")


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_or_ambiguous_is_refused(case: str, seen_before: bool) -> None:
    fields = MALFORMED[case]
    if seen_before:
        good = {b":path": b"/", b":scheme": b"http", b":method": b"GET", b":authority": b"a", b"content-length": b"1"}
        for harmless in ([(name, good.get(name, b"1")) for name, _ in fields], GET, [*GET, (b"x", b"1")]):
            try:
                read_request(plain(harmless))
            except Malformed:
                pass

    with pytest.raises(Malformed):
        read_request(plain(fields))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (GET, (b"GET", b"/", b"a", b"", None)),
        ([GET[2], GET[3], GET[1], GET[0]], (b"GET", b"/", b"a", b"", None)),
        (with_(b":method", b"brew"), (b"brew", b"/", b"a", b"", None)),
        (with_(b":path", b"/a%20b?x=%00&y=\xff"), (b"GET", b"/a%20b?x=%00&y=\xff", b"a", b"", None)),
        (with_(b":path", b"*", with_(b":method", b"OPTIONS")), (b"OPTIONS", b"*", b"a", b"", None)),
        (with_(b":authority", b"[::1]:80"), (b"GET", b"/", b"[::1]:80", b"", None)),
        (with_(b":authority", b"shop%2fx.default"), (b"GET", b"/", b"shop%2fx.default", b"", None)),
        ([*NO_AUTHORITY, (b"host", b"h:80")], (b"GET", b"/", b"h:80", b"", None)),
        ([*GET, (b"host", b"A")], (b"GET", b"/", b"a", b"", None)),
        ([*GET, (b"content-type", b"application/grpc"), (b"host", b"h")], (b"GET", b"/", b"a", b"", None)),
        ([*GET, (b"content-length", b"0012")], (b"GET", b"/", b"a", b"", 12)),
        (CONNECT, (b"CONNECT", b"", b"a:1", b"", None)),
        (WEBSOCKET, (b"CONNECT", b"/", b"a", b"websocket", None)),
    ],
)
def test_a_request_is_taken_apart(fields: Headers, expected: tuple[object, ...], again: bool) -> None:
    if again:
        read_request(plain(fields))

    head = read_request(plain(fields))

    path = head.path if head.query is None else head.path + b"?" + head.query
    assert (head.verb, path, head.authority, head.protocol, head.length) == expected
    assert b"host" not in dict(head.headers)


def test_ordinary_fields_pass_in_their_order() -> None:
    fields = [
        (b"te", b"trailers"),
        (b"x", b""),
        (b"x", b"a  b"),
        (b"y", b"a\tb"),
        (b"z", b"\x80\xff"),
        (b"cookie", b"a=1"),
    ]

    for _ in range(2):
        assert read_request(plain([*GET, *fields])).headers == fields
        assert read_response(plain([*OK, *fields])) == (200, fields, None)


def test_a_remembered_answer_is_still_checked() -> None:
    read_response(plain([*OK, (b"x", b"1"), (b"content-length", b"5")]))

    assert read_response(plain([*OK, (b"x", b"2"), (b"content-length", b"6")]))[2] == 6
    for fields in (
        [*OK, (b"x", b"1\n2"), (b"content-length", b"5")],
        [*OK, (b"x", b"1"), (b"content-length", b"5,5")],
        [(b":status", b"20"), (b"x", b"1"), (b"content-length", b"5")],
    ):
        with pytest.raises(Malformed):
            read_response(plain(fields))


def test_the_memory_of_names_is_bounded() -> None:
    from tieline.wire.http2 import messages

    for number in range(MAX_SHAPES * 2):
        read_request(plain([*GET, (b"x-%d" % number, b"1")]))
        read_response(plain([*OK, (b"x-%d" % number, b"1")]))

    assert len(messages._REQUEST_SHAPES) <= MAX_SHAPES
    assert len(messages._RESPONSE_SHAPES) <= MAX_SHAPES


def test_crumbs_of_a_cookie_are_joined() -> None:
    assert join_cookies([(b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=2")]) == [
        (b"x", b"1"),
        (b"cookie", b"a=1; b=2"),
    ]
    assert join_cookies([(b"cookie", b"a=1")]) == [(b"cookie", b"a=1")]
