"""``grpc-timeout``: how long a caller waits, in at most eight digits and a unit."""

from __future__ import annotations

from typing import Final, TypeAlias

Timeout: TypeAlias = tuple[bytes, float]
"""A time-out as it came, and its seconds."""
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
MAX_DIGITS: Final = 8
_LARGEST: Final = 10**MAX_DIGITS - 1


class BadTimeout(ValueError):
    """A value that is no time-out; the text says why, in the words that gRPC clients know."""


def parse_timeout(value: bytes) -> float:
    """Return a time-out in seconds.

    Raises:
        BadTimeout: It is none.
    """
    unit = _UNITS_S.get(value[-1:])
    digits = value[:-1]
    if unit is not None and digits.isdigit() and len(digits) <= MAX_DIGITS:
        return int(digits) * unit
    shown = value.decode("latin-1")
    if len(value) < 2:
        raise BadTimeout(f'transport: timeout string is too short: "{shown}"')
    if len(value) > MAX_DIGITS + 1:
        raise BadTimeout(f'transport: timeout string is too long: "{shown}"')
    if unit is None:
        raise BadTimeout(f'transport: timeout unit is not recognized: "{shown}"')
    raise BadTimeout(f'strconv.ParseUint: parsing "{shown[:-1]}": invalid syntax')


def render_timeout(seconds: float) -> bytes:
    """Return a time-out as it is sent, in the finest unit that holds it, never longer than it is; at least 1 ns."""
    for unit in (b"n", b"u", b"m", b"S", b"M", b"H"):
        amount = int(seconds / _UNITS_S[unit])
        if amount <= _LARGEST:
            return b"%d%s" % (max(amount, 1), unit)
    return b"%dH" % _LARGEST
