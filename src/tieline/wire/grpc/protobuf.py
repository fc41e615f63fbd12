"""What of protobuf's encoding is written by hand, where the library would cost each call too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

KNOWN_HEADS: Final = 512
"""Heads that are known with what they mean,"""
MAX_KNOWN_HEAD: Final = 2048
"""if they are no longer than so many bytes."""
_KEY: Final = 0x87
"""Of the byte before a field: how the field is written, and whether its number goes on in the next byte."""
_V = TypeVar("_V")


def field(number: int, content: bytes) -> bytes:
    """Return a field, of a number below 16, that holds bytes, text or a message."""
    return b"%c%b%b" % (number << 3 | 2, varint(len(content)), content)


def varint(number: int) -> bytes:
    """Return a number as it stands before what is as long as it says."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Odd(Exception):
    """Bytes that protobuf may read, but no sidecar writes."""


def long_number(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where it ends."""
    # One byte or two, as nearly all are, without the loop.
    low = raw[at]
    if low < 0x80:
        return low, at + 1
    high = raw[at + 1]
    if high < 0x80:
        return low & 0x7F | high << 7, at + 2
    number = shift = 0
    while True:
        byte = raw[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 28:
            raise Odd


def _past(raw: bytes, at: int) -> int:
    """Return where a field ends that holds bytes, text or a message."""
    if raw[at] & _KEY != 2:
        raise Odd
    size, at = long_number(raw, at + 1)
    return at + size


def split_invocation(message: bytes) -> tuple[bytes, bytes] | None:
    """Return an ``InvokeServiceRequest`` without its data and their length, and the data; ``None`` if it is odd.

    What is returned first tells requests apart that differ in more than their data, and no others: the parts stand in
    it between marks that say where each ends.
    """
    try:
        if message[0] != 0x0A:
            return None
        size = message[1]
        asked = 2 + size
        if size > 0x7F or message[asked] != 0x1A:
            return None
        size, at = long_number(message, asked + 1)
        if at + size != len(message):
            return None
        begin = at
        while message[at] != 0x12:
            at = _past(message, at)
        before = at
        size, at = long_number(message, at + 1)
        after = inner = at + size
        if after > len(message):
            return None
        kind = at
        if at < inner and message[at] == 0x0A:
            size, at = long_number(message, at + 1)
            at += size
        type_url = message[kind:at]
        data = b""
        if at < inner:
            if message[at] != 0x12:
                return None
            size, at = long_number(message, at + 1)
            if at + size != inner:
                return None
            data = message[at:inner]
        elif at != inner:
            return None
        at = after
        while at < len(message):
            if message[at] == 0x12:  # data that stand twice are put together
                return None
            at = _past(message, at)
        if at > len(message):
            return None
    except (IndexError, Odd):
        return None
    rest = message[after:]
    ends = b"%d %d %d:" % (asked, before - begin, len(type_url))
    return ends + message[:asked] + message[begin:before] + type_url + rest, data


class Memory(dict[bytes, _V]):
    """What was found out about heads that came before.

    Finding out costs more than reading a head once, so it is done when one comes a second time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._once: set[bytes] = set()

    def wants(self, head: bytes) -> bool:
        """Say whether a head that is not known came before, and so should be kept."""
        if len(head) > MAX_KNOWN_HEAD:
            return False
        if head in self._once:
            if len(self) >= KNOWN_HEADS:
                self.clear()
            return True
        if len(self._once) >= KNOWN_HEADS:
            self._once.clear()
        self._once.add(head)
        return False

    def learn(self, head: bytes, find_out: Callable[[bytes], _V | None]) -> _V | None:
        """Return, and keep, what ``find_out`` says of a head that is not known; ``None`` the first time it comes."""
        found = find_out(head) if self.wants(head) else None
        if found is not None:
            self[head] = found
        return found
