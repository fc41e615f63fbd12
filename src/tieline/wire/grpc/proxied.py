"""The head of a proxied call: what of its metadata travels on, and what says where it goes."""

from __future__ import annotations

from typing import Final

from tieline.model import Headers
from tieline.wire.grpc.timeout import BadTimeout, parse_timeout
from tieline.wire.headers import IDENTITY
from tieline.wire.http2.hpack import NEVER_INDEXED, Fields

MAX_KNOWN_NAMES: Final = 1024
"""How many names each table remembers before it starts afresh."""
MAX_KNOWN_NAME_BYTES: Final = 64
"""Longer names are worked out anew each time."""

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
        elif name in _DROPPED or name.startswith(_OWN_PREFIX):
            action = _DROP
        else:
            action = _KEEP_UNINDEXED if name in NEVER_INDEXED else _KEEP
        if len(name) <= MAX_KNOWN_NAME_BYTES:
            if len(self) >= MAX_KNOWN_NAMES:
                self.clear()
            self[name] = action
        return action


_KNOWN: Final = _Known()


class Head:
    """A call taken apart.

    Attributes:
        fields: Of the request to send: the four pseudo-headers, of which ``:authority`` is to be written, and all
            entries that travel on whoever the next hop is.
        noted: Values, in order, of the entries that decide something; of these only ``baggage`` is among
            the fields.
        timeout: Place of ``grpc-timeout`` among the fields, and the seconds it says; ``None`` without one.
    """

    __slots__ = ("fields", "noted", "timeout")

    def __init__(self, path: bytes, headers: Headers) -> None:
        """Take a call apart.

        Args:
            path: As it came, query included.
            headers: Metadata and gRPC's own fields.

        Raises:
            BadTimeout: ``grpc-timeout`` is none.
        """
        known = _KNOWN
        fields: Fields = [_METHOD, (b":path", path, False), _SCHEME, _SCHEME, _TE]
        noted: dict[bytes, list[bytes]] = {}
        self.timeout: tuple[int, float] | None = None
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
            elif action == _TIMEOUT and self.timeout is None:
                self.timeout = (len(fields), parse_timeout(value))
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


__all__ = ["BadTimeout", "Head"]
