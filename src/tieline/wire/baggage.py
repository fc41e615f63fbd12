"""The W3C baggage of a request: refused if malformed, otherwise joined as the answer repeats it."""

from __future__ import annotations

import re
from typing import Final

from tieline.errors import BadRequest, GrpcCode
from tieline.wire.errors_text import quote
from tieline.wire.method_path import bad_escape

MAX_BYTES: Final = 8192
MAX_MEMBERS: Final = 64
MAX_REASONS: Final = 5
"""So many malformed members are told one by one."""

_KEY: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC-token-like values: printable ASCII without blank, double quote, comma, semicolon and backslash.
_VALUE: Final = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")


class BadBaggage(BadRequest):
    """The ``baggage`` of a request is malformed (H-56).

    ``text`` is the whole body of the HTTP answer, but for its line end, and the message of the gRPC status.
    """

    http_status = 400
    grpc_code = GrpcCode.INVALID_ARGUMENT

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid baggage header: {reason}")


def check(values: list[bytes]) -> bytes | None:
    """Check the values of all ``baggage`` fields of a request (H-56, O-10).

    Returns:
        All of them, joined by commas, as the answer repeats them; ``None`` if there is nothing to repeat.

    Raises:
        BadBaggage: They are no W3C baggage.
    """
    if not values:
        return None
    joined = b",".join(values)
    if not joined:
        return None
    if len(joined) > MAX_BYTES:
        raise BadBaggage(f"baggage-string too large: {len(joined)}")
    keys: set[bytes] = set()
    reasons: list[str] = []
    malformed = 0
    for member in joined.split(b","):
        if len(keys) >= MAX_MEMBERS:
            reasons.append("too many list-members in baggage-string")
            break
        try:
            keys.add(_key_of(member))
        except _Malformed as error:
            malformed += 1
            if malformed <= MAX_REASONS:
                reasons.append(str(error))
    if malformed > MAX_REASONS:
        reasons.append(f"and {malformed - MAX_REASONS} more invalid member(s)")
    if reasons:
        raise BadBaggage("\n".join(reasons))
    return joined


class _Malformed(ValueError):
    """A member is malformed, and why."""


def _key_of(member: bytes) -> bytes:
    """Check ``key=value`` and the properties behind it; return the key."""
    pair, *properties = member.split(b";")
    for item in properties:
        _check_property(item)
    key, equals, value = pair.partition(b"=")
    if not equals:
        raise _Malformed(f"invalid baggage list-member: {quote(member)}")
    key = key.strip()
    if not _KEY.fullmatch(key):
        raise _Malformed(f"invalid key: {quote(key)}")
    stripped = value.strip()
    if not _VALUE.fullmatch(stripped):
        raise _Malformed(f"invalid value: {quote(value)}")
    if bad := bad_escape(stripped):
        raise _Malformed(f"invalid value: invalid URL escape {quote(bad)}")
    return key


def _check_property(item: bytes) -> None:
    """Check what stands between semicolons: nothing, a key, or a key and a value."""
    if not item:
        return
    key, _, value = item.partition(b"=")
    value = value.strip()
    if not _KEY.fullmatch(key.strip()) or not _VALUE.fullmatch(value) or bad_escape(value):
        raise _Malformed(f"invalid baggage list-member property: {quote(item)}")
