"""WebSocket's handshake and frames, against the RFC's own examples and the ``websockets`` library."""

from __future__ import annotations

from base64 import b64encode

import pytest
from websockets.frames import Close, Frame, Opcode

from tieline.model import Headers, Request
from tieline.wire.websocket import (
    BadHandshake,
    FrameWalker,
    accept_of,
    asks_for_websocket,
    check_request,
    check_version,
    close_frame,
    is_handshake,
    make_key,
    problem_of_answer,
    without_handshake,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
GOOD: Headers = [(b"sec-websocket-version", b"13"), (b"sec-websocket-key", KEY)]
ANSWER: Headers = [(b"upgrade", b"WebSocket"), (b"connection", b"Upgrade"), (b"sec-websocket-accept", ACCEPT)]


def test_the_accept_of_the_rfc() -> None:
    assert accept_of(KEY) == ACCEPT
    assert make_key(b"the sample nonce") == KEY


@pytest.mark.parametrize(
    ("upgrade", "is_asked"),
    [(b"websocket", True), (b"h2c, websocket", True), (b"websocket/13", False), (b"xwebsocket", False), (b"", False)],
)
def test_whether_an_upgrade_names_websocket(upgrade: bytes, is_asked: bool) -> None:
    assert asks_for_websocket(upgrade) is is_asked


def test_a_good_handshake_gives_its_key() -> None:
    assert check_request(b"GET", GOOD, has_body=False) == KEY


def with_key(key: bytes) -> Headers:
    return [GOOD[0], (b"sec-websocket-key", key)]


LIES: dict[str, tuple[bytes, Headers, bool, int]] = {
    "POST": (b"POST", GOOD, False, 400),
    "a body": (b"GET", GOOD, True, 400),
    "no version": (b"GET", GOOD[1:], False, 400),
    "version 8": (b"GET", [(b"sec-websocket-version", b"8"), GOOD[1]], False, 426),
    "version 13 and 8": (b"GET", [*GOOD, (b"sec-websocket-version", b"8")], False, 426),
    "version as a list": (b"GET", [(b"sec-websocket-version", b"13, 8"), GOOD[1]], False, 426),
    "no key": (b"GET", GOOD[:1], False, 400),
    "two keys": (b"GET", [*GOOD, GOOD[1]], False, 400),
    "an empty key": (b"GET", with_key(b""), False, 400),
    "a key of 15 bytes": (b"GET", with_key(b64encode(bytes(15))), False, 400),
    "a key of 17 bytes": (b"GET", with_key(b64encode(bytes(17))), False, 400),
    "no base64": (b"GET", with_key(b"dGhlIHNhbXBsZSBub25jZQ=!"), False, 400),
    "base64 without its end": (b"GET", with_key(b"dGhlIHNhbXBsZSBub25jZQ"), False, 400),
    "base64 with more behind": (b"GET", with_key(KEY + b"AAAA"), False, 400),
    "no ASCII": (b"GET", with_key(b"\xff" * 24), False, 400),
}


@pytest.mark.parametrize("name", LIES)
def test_a_handshake_that_lies_is_refused(name: str) -> None:
    verb, headers, has_body, status = LIES[name]

    with pytest.raises(BadHandshake) as refused:
        check_request(verb, headers, has_body=has_body)

    assert refused.value.status == status
    assert "\n" not in refused.value.text


def test_over_http2_the_version_may_be_missing() -> None:
    check_version([], needed=False)
    with pytest.raises(BadHandshake):
        check_version([(b"sec-websocket-version", b"12")], needed=False)


def test_what_is_a_handshake_over_http2() -> None:
    class Stream:
        trailers: Headers

        async def read(self) -> bytes:
            return b""

        def abandon(self) -> None:
            return

    def request(verb: bytes, protocol: bytes, body: bytes | Stream) -> Request:
        return Request(verb, b"/", None, [], body, None, protocol=protocol)

    assert is_handshake(request(b"CONNECT", b"websocket", Stream()))
    assert not is_handshake(request(b"CONNECT", b"websocket", b""))
    assert not is_handshake(request(b"CONNECT", b"connect-udp", Stream()))
    assert not is_handshake(request(b"GET", b"websocket", Stream()))


def test_a_good_answer() -> None:
    assert problem_of_answer(ANSWER, KEY) is None
    assert problem_of_answer([*ANSWER[:1], (b"connection", b"keep-alive, upgrade"), ANSWER[2]], KEY) is None


@pytest.mark.parametrize(
    "headers",
    [
        ANSWER[1:],
        [ANSWER[0], ANSWER[2]],
        ANSWER[:2],
        [*ANSWER[:2], (b"sec-websocket-accept", KEY)],
        [*ANSWER, ANSWER[2]],
        [(b"upgrade", b"h2c"), *ANSWER[1:]],
        [(b"upgrade", b"websocket, h2c"), *ANSWER[1:]],
        [ANSWER[0], (b"connection", b"close"), ANSWER[2]],
    ],
)
@pytest.mark.rule("H-157")
def test_an_answer_that_does_not_fit_is_told(headers: Headers) -> None:
    problem = problem_of_answer(headers, KEY)

    assert problem is not None
    assert problem.startswith("101 Switching Protocols")


def test_only_what_two_hops_agree_on_stays_between_them() -> None:
    end_to_end = [(b"sec-websocket-protocol", b"chat"), (b"sec-websocket-extensions", b"permessage-deflate")]

    assert without_handshake([*GOOD, *end_to_end, ANSWER[2]]) == end_to_end


def test_close_frames_are_the_librarys() -> None:
    frame = Frame(Opcode.CLOSE, Close(1001, "").serialize())

    assert close_frame(1001) == frame.serialize(mask=False)
    masked = close_frame(1001, b"abcd")
    assert masked[:2] == b"\x88\x82"
    assert bytes(one ^ two for one, two in zip(masked[6:], masked[2:6], strict=False)) == frame.data


def test_the_walker_knows_a_frame_in_pieces() -> None:
    frame = Frame(Opcode.BINARY, b"x" * 70_000).serialize(mask=True)
    walker = FrameWalker()

    for at in range(len(frame) - 1):
        walker.walk(frame[at : at + 1])
        assert not walker.between_frames
    assert walker.first_end(frame[-1:]) == 1
    walker.walk(frame[-1:])

    assert walker.between_frames
    assert not walker.closing


def test_the_walker_takes_whatever_comes() -> None:
    walker = FrameWalker()

    walker.walk(b"\xff" * 10)  # a frame of 2**64 - 1 bytes
    walker.walk(b"")
    walker.walk(b"no WebSocket at all")

    assert not walker.between_frames
    assert walker.first_end(b"more") == -1
