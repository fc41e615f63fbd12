"""WebSocket (RFC 6455) as far as a tunnel must know it: the opening handshake, where frames end, and the close frame.

A tunnel relays bytes and looks into nothing: fragments, pings, compression and close codes are the two ends' business.
Only a sidecar that leaves says something itself, a close frame, and that must not fall into another frame.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64encode
from typing import Final

from tieline.model import Headers, Request

PROTOCOL: Final = b"websocket"
"""The token of ``Upgrade`` (RFC 6455 §4.1) and of ``:protocol`` (RFC 8441 §5)."""
VERSION: Final = b"13"
KEY_BYTES: Final = 16
GOING_AWAY: Final = 1001
"""Close code of an end that shuts down (RFC 6455 §7.4.1)."""

_is_loopback: Final = re.compile(
    rb"(?:localhost|[a-z0-9-]+\.localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]+)?"
).fullmatch
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CLOSE: Final = 8
_MASKED: Final = 0x80
# What is between two hops only: each makes its own.
_HANDSHAKE: Final = frozenset([b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-accept"])


class BadHandshake(Exception):
    """A request asks for a WebSocket and is no handshake.

    Attributes:
        status: To answer with: 426 if only the version is another one, else 400.
        text: What is wrong, in one line.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


def asks_for_websocket(upgrade: bytes) -> bool:
    """Tell whether a lower-case ``Upgrade`` value, which may be a list, names WebSocket."""
    return upgrade == PROTOCOL or (
        PROTOCOL in upgrade and PROTOCOL in [token.strip(b" \t") for token in upgrade.split(b",")]
    )


def is_handshake(request: Request) -> bool:
    """Tell whether a request whose verb is none of an app's is a handshake that came over HTTP/2 (RFC 8441)."""
    return request.verb == b"CONNECT" and request.protocol == PROTOCOL and not isinstance(request.body, bytes)


def foreign_origin(request: Request) -> bytes:
    """Return the origin of the web page that asks for a WebSocket, if it is another's; else ``b""``.

    Browsers ask nobody before a page opens one and reads it. Pages of this host are its user's own, and so are those
    that came from where the WebSocket is to go.
    """
    for name, value in request.headers:
        if name == b"origin":
            authority = value.partition(b"://")[2].lower()
            if authority == request.authority.lower() or _is_loopback(authority):
                return b""
            return value or b"null"
    return b""


def check_request(verb: bytes, headers: Headers, *, has_body: bool) -> bytes:
    """Check the handshake of an HTTP/1.1 client, whose ``Upgrade`` and ``Connection`` were found good; return its key.

    Raises:
        BadHandshake: With the answer.
    """
    if verb != b"GET":
        raise BadHandshake("a WebSocket handshake is a GET")
    if has_body:
        raise BadHandshake("a WebSocket handshake has no body")
    check_version(headers, needed=True)
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    if len(keys) != 1:
        raise BadHandshake("a WebSocket handshake needs one Sec-WebSocket-Key")
    try:
        nonce = binascii.a2b_base64(keys[0], strict_mode=True)
    except binascii.Error:
        nonce = b""
    if len(nonce) != KEY_BYTES:
        raise BadHandshake(f"Sec-WebSocket-Key is not the base64 of {KEY_BYTES} bytes")
    return keys[0]


def check_version(headers: Headers, *, needed: bool) -> None:
    """Raise ``BadHandshake`` unless ``Sec-WebSocket-Version`` is 13, or missing where it is not ``needed``."""
    versions = [value for name, value in headers if name == b"sec-websocket-version"]
    if not versions and needed:
        raise BadHandshake("a WebSocket handshake needs Sec-WebSocket-Version")
    if versions and versions != [VERSION]:
        raise BadHandshake("the only WebSocket version spoken here is 13", 426)


def make_key(nonce: bytes) -> bytes:
    """Return a ``Sec-WebSocket-Key`` for ``KEY_BYTES`` of randomness."""
    return b64encode(nonce)


def accept_of(key: bytes) -> bytes:
    """Return the ``Sec-WebSocket-Accept`` that answers a key (RFC 6455 §4.2.2)."""
    return b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def problem_of_answer(headers: Headers, key: bytes) -> str | None:
    """Say what is wrong with a 101 that answers our handshake (RFC 6455 §4.1); ``None`` if nothing is."""
    upgrade = connection = b""
    accepts: list[bytes] = []
    for name, value in headers:
        if name == b"upgrade":
            upgrade += b"," + value if upgrade else value
        elif name == b"connection":
            connection += b"," + value
        elif name == b"sec-websocket-accept":
            accepts.append(value)
    if upgrade.lower() != PROTOCOL:
        return "101 Switching Protocols, but not to WebSocket"
    if b"upgrade" not in [option.strip(b" \t") for option in connection.lower().split(b",")]:
        return "101 Switching Protocols without Connection: Upgrade"
    if accepts != [accept_of(key)]:
        return "101 Switching Protocols with a Sec-WebSocket-Accept that does not answer our key"
    return None


def without_handshake(headers: Headers) -> Headers:
    """Return the fields that go on to the next hop: subprotocols and extensions are agreed end to end."""
    return [field for field in headers if field[0] not in _HANDSHAKE]


def close_frame(code: int, mask: bytes | None = None) -> bytes:
    """Return a close frame without a reason; ``mask``: four random bytes, towards a server (RFC 6455 §5.3)."""
    payload = code.to_bytes(2, "big")
    if mask is None:
        return bytes([0x80 | _CLOSE, 2]) + payload
    masked = bytes([payload[0] ^ mask[0], payload[1] ^ mask[1]])
    return bytes([0x80 | _CLOSE, _MASKED | 2]) + mask + masked


class FrameWalker:
    """Follows the frames of one direction, byte for byte, and knows where they end.

    Whatever the bytes are, it keeps a number and at most 13 bytes; bytes that are no WebSocket only make it wrong.

    Attributes:
        closing: A close frame has begun: its sender says nothing more.
    """

    __slots__ = ("_head", "_left", "closing")

    def __init__(self) -> None:
        self._left = 0
        self._head = b""
        self.closing = False

    @property
    def between_frames(self) -> bool:
        """Whether the next byte begins a frame."""
        return not self._left and not self._head

    def walk(self, data: bytes) -> None:
        """Pass over what comes next."""
        size = len(data)
        at = self._left
        if at >= size:
            self._left = at - size
            return
        if self._head:
            data = self._head + data
            size = len(data)
            self._head = b""
        while at < size:
            end = self._end(data, at, size)
            if not end:
                self._head = data[at:]
                at = size
                break
            if data[at] & 15 == _CLOSE:
                self.closing = True
            at = end
        self._left = at - size

    def first_end(self, data: bytes) -> int:
        """Return at which byte of what comes next the frame in progress ends; -1 if not in there. Walks nowhere."""
        if self._head:
            data = self._head + data
            end = self._end(data, 0, len(data))
            return end - len(self._head) if 0 < end <= len(data) else -1
        return self._left if self._left <= len(data) else -1

    @staticmethod
    def _end(data: bytes, at: int, size: int) -> int:
        """Return where the frame that begins at ``at`` ends, perhaps beyond ``data``; 0 if its head is not complete."""
        start = at + 2
        if start > size:
            return 0
        second = data[at + 1]
        length = second & 127
        if length >= 126:
            wide = 2 if length == 126 else 8
            length = int.from_bytes(data[start : start + wide], "big")
            start += wide
        if second & _MASKED:
            start += 4
        return start + length if start <= size else 0
