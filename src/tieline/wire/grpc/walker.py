"""The lengths of the messages in a stream of bytes that passes, without a look at the messages."""

from __future__ import annotations

import struct
from typing import Final

from tieline.wire.grpc.messages import PREFIX
from tieline.wire.http2.frames import are_alike

_LENGTH: Final = struct.Struct(">xL").unpack_from

MANY: Final = 8
"""So many messages at least are looked at together, whether they are of one length."""


class MessageWalker:
    """Finds a message that is longer than allowed as soon as its prefix is there.

    Args:
        limit: Longest message in bytes.
    """

    __slots__ = ("_left", "_limit", "_prefix")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = 0
        self._prefix = b""

    def walk(self, data: bytes) -> int:
        """Go on by a piece of the stream. Return the length of a message that is too long, else 0."""
        size = len(data)
        if not self._left and not self._prefix and size >= PREFIX:
            length = int.from_bytes(data[1:PREFIX], "big")
            if size == PREFIX + length and length <= self._limit:
                return 0  # one whole message, the usual piece
        elif self._left > size:
            self._left -= size
            return 0
        return self._walk(data, size)

    def _walk(self, data: bytes, size: int) -> int:
        at = self._left
        limit = self._limit
        if self._prefix and at < size:
            wanted = PREFIX - len(self._prefix)
            prefix = self._prefix + data[:wanted]
            if len(prefix) < PREFIX:
                self._prefix = prefix
                return 0
            self._prefix = b""
            length = int.from_bytes(prefix[1:], "big")
            if length > limit:
                return length
            at = wanted + length
        look_at = 0
        while at + PREFIX <= size:
            (length,) = _LENGTH(data, at)
            if length > limit:
                return int(length)
            step = PREFIX + length
            if at >= look_at and (count := (size - at) // step) > MANY:
                if are_alike(data, at, step, count, PREFIX):
                    at += step * count
                    continue
                # One at a time for half of the rest: to look from each message to the end would cost a square.
                look_at = at + (size - at) // 2
            at += step
        if at < size:
            self._prefix = data[at:]
            self._left = 0
        else:
            self._left = at - size
        return 0

    @property
    def between_messages(self) -> bool:
        """Whether the last message that began is complete."""
        return not self._left and not self._prefix
