"""Durations in Go's notation: ``500ms``, ``3m0s``, ``1h30m`` (H-146, H-151)."""

from __future__ import annotations

import re
from typing import Final

MAX_NANOSECONDS: Final = 2**63 - 1

_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, the micro sign
    "μs": 1_000,  # U+03BC, the Greek letter mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
# Compiled at first use: few starts give a duration.
_NUMBER: Final = r"(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?"
_UNIT: Final = r"[^.0-9]*"
# More digits than these say nothing: whole ones are out of range, those of a fraction below a nanosecond.
_MAX_WHOLE: Final = 19
_MAX_PART: Final = 18


def parse_duration(text: str) -> float:
    """Return the seconds that a Go duration stands for; a sign and several units are allowed.

    Raises:
        ValueError: With Go's text, e.g. ``time: missing unit in duration "5"``.
    """
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    if not rest:
        raise _invalid(text)
    nanoseconds = 0
    while rest:
        amount, rest = _take_one(rest, text)
        nanoseconds += amount
        if nanoseconds > MAX_NANOSECONDS:
            raise _invalid(text)
    return (-nanoseconds if text.startswith("-") else nanoseconds) / 1e9


def format_duration(seconds: float) -> str:
    """Return seconds in Go's form, rounded to nanoseconds: ``3m0s``, ``1.5s``, ``500ms``, ``0s``."""
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 1_000_000_000:
        unit = "ms" if nanoseconds >= 1_000_000 else "µs" if nanoseconds >= 1_000 else "ns"
        return sign + _decimal(nanoseconds, _UNITS[unit]) + unit
    minutes, below = divmod(nanoseconds, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    shown_minutes = f"{minutes}m" if hours or minutes else ""
    return sign + (f"{hours}h" if hours else "") + shown_minutes + _decimal(below, _UNITS["s"]) + "s"


def _take_one(rest: str, text: str) -> tuple[int, str]:
    """Take one number with its unit from the front; return its nanoseconds and what is left."""
    number = re.match(_NUMBER, rest)
    assert number is not None  # the pattern matches the empty text too
    whole, part = number["whole"].lstrip("0"), (number["part"] or "")[:_MAX_PART]
    if not (number["whole"] or part) or len(whole) > _MAX_WHOLE:
        raise _invalid(text)
    rest = rest[number.end() :]
    unit = re.match(_UNIT, rest)
    assert unit is not None
    name = unit[0]
    if not name:
        raise ValueError(f"time: missing unit in duration {_quote(text)}")
    if name not in _UNITS:
        raise ValueError(f"time: unknown unit {_quote(name)} in duration {_quote(text)}")
    size = _UNITS[name]
    return int(whole or "0") * size + int(part or "0") * size // 10 ** len(part), rest[len(name) :]


def _decimal(amount: int, unit: int) -> str:
    whole, part = divmod(amount, unit)
    digits = f"{part:0{len(str(unit)) - 1}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def _invalid(text: str) -> ValueError:
    return ValueError(f"time: invalid duration {_quote(text)}")


def _quote(text: str) -> str:
    """Quote as Go's ``time`` does: other than printable ASCII as the hex of its bytes."""
    shown: list[str] = []
    for character in text:
        if character in '"\\':
            shown.append("\\" + character)
        elif " " <= character < "\x80":
            shown.append(character)
        else:
            shown.extend(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return '"' + "".join(shown) + '"'
