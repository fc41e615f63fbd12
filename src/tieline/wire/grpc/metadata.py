"""Metadata of RPCs: binary values, and what may stand in a name or a value."""

from __future__ import annotations

import binascii
import re
from typing import Final

BINARY_SUFFIX: Final = b"-bin"
_is_name: Final = re.compile(rb"[0-9a-z._-]+").fullmatch
_is_value: Final = re.compile(rb"[\x20-\x7e]*").fullmatch


def is_binary(name: bytes) -> bool:
    """Say whether values under a name are binary: base64 on the wire."""
    return name.endswith(BINARY_SUFFIX)


def encode_binary(value: bytes) -> bytes:
    """Return a binary value as it is sent: base64 without padding."""
    return binascii.b2a_base64(value, newline=False).rstrip(b"=")


def is_base64(value: bytes) -> bool:
    """Say whether a field holds one binary value, padded or not; a list joined by commas is none (G-125)."""
    text = value.rstrip(b"=")
    try:
        binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return False
    return True


def decode_binary(value: bytes) -> list[bytes] | None:
    """Return the binary values that a field holds, padded or not, one or several joined by commas.

    ``None`` if any of them is no base64.
    """
    found = []
    for part in value.split(b","):
        text = part.strip().rstrip(b"=")
        try:
            found.append(binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True))
        except ValueError:
            return None
    return found


def may_be_sent(name: bytes, value: bytes) -> bool:
    """Say whether gRPC lets an entry pass whose value is not binary."""
    return _is_name(name) is not None and _is_value(value) is not None
