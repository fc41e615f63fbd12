"""Sizes in the notation of Kubernetes resource quantities: ``4Mi``, ``500k``, ``1e3`` (H-11)."""

from __future__ import annotations

import re
from typing import Final

MAX_BYTES: Final = 2**63 - 1

_FORM: Final = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?(?P<suffix>[eEinumkKMGTP]*[+-]?[0-9]*)"
)
_EXPONENT: Final = r"[eE](?P<power>[+-]?[0-9]+)"
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL: Final = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "m": -3, "u": -6, "n": -9}
_MAX_DIGITS: Final = len(str(MAX_BYTES))

_WRONG_FORM: Final = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$' (examples: 4Mi, 500k)"
)
_WRONG_SUFFIX: Final = "unable to parse quantity's suffix (known: k M G T P E, Ki Mi Gi Ti Pi Ei)"


def parse_quantity(text: str) -> int:
    """Return the number of bytes, -2^63 < n < 2^63. Units are case-sensitive.

    A decimal point and the fractional units ``m``, ``u``, ``n`` are refused, even where they would give a whole
    number.

    Raises:
        ValueError: With a text that says what is wrong; it opens with the words that Dapr uses.
    """
    match = _FORM.fullmatch(text)
    if match is None or not (match["whole"] or match["part"]):
        raise ValueError(_WRONG_FORM)
    factor = _factor(match["suffix"])
    digits = match["whole"].lstrip("0")
    if match["part"] or factor is None:
        raise ValueError(_no_bytes(text, "not a whole number of bytes"))
    if len(digits) > _MAX_DIGITS or int(digits or "0") * factor > MAX_BYTES:
        raise ValueError(_no_bytes(text, "too large"))
    size = int(digits or "0") * factor
    return -size if match["sign"] == "-" else size


def _factor(suffix: str) -> int | None:
    """Return what the suffix multiplies by; ``None`` for a fraction. A power over 18 counts as 19: too large anyway."""
    if suffix in _BINARY:
        return 1 << _BINARY[suffix]
    if suffix in _DECIMAL:
        power = _DECIMAL[suffix]
    elif match := re.fullmatch(_EXPONENT, suffix):
        digits = match["power"].lstrip("+-0")
        power = int(digits or "0") if len(digits) < 3 else 19
        power = -power if match["power"].startswith("-") else min(power, 19)
    else:
        raise ValueError(_WRONG_SUFFIX)
    return None if power < 0 else 10**power


def _no_bytes(text: str, why: str) -> str:
    return f"cannot get bytes from resource quantity value '{text}': {why}"
