"""Numbers and truth values as Go reads them, and its words where they do not parse (H-151)."""

from __future__ import annotations

import re
from typing import Final

MAX_INT64: Final = 2**63 - 1
MIN_INT64: Final = -(2**63)

_ESCAPES: Final = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    '"': r"\"",
    "\\": r"\\",
}
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
# Longer than any 64-bit number in any base, and short enough to convert at once.
_MAX_DIGITS: Final = 128
# Compiled at first use: few starts give a numeric option.
_ANY_BASE: Final = (
    r"[+-]?(?:0[xX](?P<hex>(?:_?[0-9a-fA-F])+)|0[bB](?P<bin>(?:_?[01])+)|0[oO]?(?P<oct>(?:_?[0-7])+)"
    r"|(?P<dec>0|[1-9](?:_?[0-9])*))"
)
_BASES: Final = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}


def quote(text: str) -> str:
    """Return the text in double quotes, with quotes, backslashes and unprintable characters escaped."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def atoi(text: str) -> int:
    """Read a decimal number of 64 bits.

    Raises:
        ValueError: With the text ``strconv.Atoi: parsing "abc": invalid syntax``, or ``… value out of range``.
    """
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()):
        raise _no_number("Atoi", text, "invalid syntax")
    return _bounded("Atoi", text, digits, 10)


def parse_int(text: str) -> int:
    """Read a number of 64 bits whose base follows from its prefix (``0x``, ``0b``, ``0o``, ``0``).

    Raises:
        ValueError: With the text ``strconv.ParseInt: parsing "ten": invalid syntax``, or ``… value out of range``.
    """
    match = re.fullmatch(_ANY_BASE, text)
    if match is None or match.lastgroup is None:
        raise _no_number("ParseInt", text, "invalid syntax")
    return _bounded("ParseInt", text, match[match.lastgroup].replace("_", ""), _BASES[match.lastgroup])


def parse_bool(text: str) -> bool:
    """Read a truth value: ``true``, ``True``, ``TRUE``, ``t``, ``T``, ``1`` and their opposites.

    Raises:
        ValueError: With the text ``strconv.ParseBool: parsing "maybe": invalid syntax``.
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise _no_number("ParseBool", text, "invalid syntax")


def _bounded(function: str, text: str, digits: str, base: int) -> int:
    digits = digits.lstrip("0") or "0"
    value = int(digits, base) if len(digits) <= _MAX_DIGITS else MAX_INT64 + 2
    if text.startswith("-"):
        value = -value
    if not MIN_INT64 <= value <= MAX_INT64:
        raise _no_number(function, text, "value out of range")
    return value


def _no_number(function: str, text: str, reason: str) -> ValueError:
    return ValueError(f"strconv.{function}: parsing {quote(text)}: {reason}")


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of the command line that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
