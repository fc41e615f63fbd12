"""The head of a proxied call: what of its metadata travels on, and what says where it goes."""

from __future__ import annotations

import os
import random
from typing import Final

from tieline.model import Headers
from tieline.wire.errors_text import quote
from tieline.wire.grpc.metadata import encode_binary, is_base64, is_binary
from tieline.wire.grpc.timeout import BadTimeout, Timeout, parse_timeout
from tieline.wire.headers import IDENTITY
from tieline.wire.http2.hpack import NEVER_INDEXED, Fields, trace_literals

MAX_KNOWN_NAMES: Final = 1024
"""How many names each table remembers before it starts afresh."""
MAX_KNOWN_NAME_BYTES: Final = 64
"""Longer names are worked out anew each time."""

RUNTIME: Final = b"/dapr.proto.runtime."
"""Where the paths of Dapr's own services begin that apps call."""

_METHOD: Final = (b":method", b"POST", False)
_SCHEME: Final = (b":scheme", b"http", False)
_TE: Final = (b"te", b"trailers", False)
_OWN_PREFIX: Final = b"tieline-"
# What to do with an entry.
_KEEP: Final = 0
_KEEP_UNINDEXED: Final = 1
_DROP: Final = 2
_NOTE: Final = 3
_TIMEOUT: Final = 4
_NOTE_AND_KEEP: Final = 5
_KEEP_BINARY: Final = 6
_TYPE: Final = 7

_NOTED: Final = IDENTITY | {b"dapr-app-id", b"dapr-stream", b"traceparent", b"grpc-trace-bin", b"dapr-api-token"}
_DROPPED: Final = frozenset({b"te", b"content-length"})


class _Known(dict[bytes, int]):
    """What to do with an entry of a name; worked out when first asked, remembered within bounds."""

    def __missing__(self, name: bytes) -> int:
        if name in _NOTED:
            action = _NOTE
        elif name == b"grpc-timeout":
            action = _TIMEOUT
        elif name == b"baggage":
            action = _NOTE_AND_KEEP
        elif name == b"content-type":
            action = _TYPE
        elif name in _DROPPED or name.startswith(_OWN_PREFIX):
            action = _DROP
        elif is_binary(name):
            action = _KEEP_BINARY
        else:
            action = _KEEP_UNINDEXED if name in NEVER_INDEXED else _KEEP
        if len(name) <= MAX_KNOWN_NAME_BYTES:
            if len(self) >= MAX_KNOWN_NAMES:
                self.clear()
            self[name] = action
        return action


_KNOWN: Final = _Known()


def no_target(path: bytes, *, traced: bool) -> str:
    """Return what an RPC that names no app is told (G-68): it depends on which of daprd's steps would notice first."""
    if traced and not path.startswith(RUNTIME):
        return "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata"
    return "failed to proxy request: required metadata dapr-callee-app-id or dapr-app-id not found"


class BadHead(ValueError):
    """A head that no gRPC client sends; the text says why, in the words that they know (G-125)."""


class Head:
    """A call taken apart.

    Attributes:
        content_type: Empty if there is none.
        fields: Of the request to send: the four pseudo-headers, of which ``:authority`` is to be written, and all
            entries that travel on whoever the next hop is.
        noted: Values, in order, of the entries that decide something; of these only ``baggage`` is among
            the fields.
        timeout: ``grpc-timeout`` as it came, and the seconds it says; ``None`` without one. Not among the fields.
    """

    __slots__ = ("content_type", "fields", "noted", "timeout")

    def __init__(self, path: bytes, headers: Headers) -> None:
        """Take a call apart.

        Args:
            path: As it came, query included.
            headers: Metadata and gRPC's own fields.

        Raises:
            BadHead: A time-out or a binary value is none.
        """
        known = _KNOWN
        fields: Fields = [_METHOD, (b":path", path, False), _SCHEME, _SCHEME, _TE]
        noted: dict[bytes, list[bytes]] = {}
        self.timeout: Timeout | None = None
        self.content_type = b""
        for name, value in headers:
            action = known[name]
            if not action:
                fields.append((name, value, False))
            elif action in (_NOTE, _NOTE_AND_KEEP):
                if name in noted:
                    noted[name].append(value)
                else:
                    noted[name] = [value]
                if action == _NOTE_AND_KEEP:
                    fields.append((name, value, False))
            elif action == _KEEP_UNINDEXED:
                fields.append((name, value, True))
            elif action == _TYPE:
                if not self.content_type:
                    self.content_type = value
                    fields.append((name, value, False))
            elif action == _TIMEOUT:
                if self.timeout is None:
                    self.timeout = (value, _seconds(value))
            elif action == _KEEP_BINARY:
                _check_binary(name, value)
                fields.append((name, value, True))
        self.fields = fields
        self.noted = noted

    def first(self, name: bytes) -> bytes | None:
        """Return the first value of an entry that was noted."""
        values = self.noted.get(name)
        return None if values is None else values[0]

    def put_back(self, name: bytes) -> None:
        """Let an entry travel on after all."""
        for value in self.noted.get(name, ()):
            self.fields.append((name, value, name in NEVER_INDEXED))


def _seconds(value: bytes) -> float:
    try:
        return parse_timeout(value)
    except BadTimeout as error:
        raise BadHead(f"malformed grpc-timeout: {error}") from error


def _check_binary(name: bytes, value: bytes) -> None:
    """Refuse a value that is no base64, padded or not; a list is none either (G-125)."""
    if not is_base64(value):
        raise BadHead(f"malformed binary metadata {quote(value)} in header {quote(name)}")


class NewTraces:
    """Draws trace contexts, unsampled: they must be unique, not secret."""

    __slots__ = ("_drawn", "_random")

    _AT_ONCE: Final = 64
    _BYTES: Final = 24

    def __init__(self, seed: bytes | None = None) -> None:
        self._random = random.Random(os.urandom(32) if seed is None else seed)
        self._drawn: list[tuple[bytes, bytes]] = []

    def __call__(self) -> tuple[bytes, bytes]:
        """Return the id of a new trace, 32 hex digits, and the ``trace_literals`` of a context in it."""
        if not self._drawn:
            size = self._BYTES
            drawn = self._random.randbytes(size * self._AT_ONCE)
            self._drawn = [_spelt(drawn[at : at + size]) for at in range(0, len(drawn), size)]
        return self._drawn.pop()


def _spelt(ids: bytes) -> tuple[bytes, bytes]:
    digits = ids.hex().encode()
    binary = b"\0\0%b\1%b\2\0" % (ids[:16], ids[16:])
    trace_id = digits[:32]
    return trace_id, trace_literals(b"00-%b-%b-00" % (trace_id, digits[32:]), encode_binary(binary))
