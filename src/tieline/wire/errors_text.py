"""How error texts quote what a caller sent, so that Dapr clients which match on them find what they expect."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote as quote_url

from tieline.model import Cause, Headers, Hop

_NAMED: Final = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}


def quote(text: bytes) -> str:
    """Return ``text`` in double quotes, spelled as Go's ``%q`` does.

    Printable characters stay. Bytes that are no UTF-8, and ASCII control characters without a letter of their
    own, become ``\\xNN``; other unprintable characters become ``\\uNNNN`` or ``\\UNNNNNNNN``.
    """
    decoded = text.decode("utf-8", "surrogateescape")
    if decoded.isascii() and decoded.isprintable() and '"' not in decoded and "\\" not in decoded:
        return f'"{decoded}"'
    return f'"{"".join(map(_quoted, decoded))}"'


def _quoted(char: str) -> str:
    named = _NAMED.get(char)
    if named is not None:
        return named
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        # A lone surrogate of this range stands for one byte that is no UTF-8.
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


MAX_HINT_BYTES: Final = 512
_HINT_SAFE: Final = " !\"#$&'()*+,-./:;<=>?@[]^_`{|}~"


def hint_value(hint: str) -> bytes:
    """Return a hint as a header value: one line of printable ASCII, at most ``MAX_HINT_BYTES``.

    What is not printable ASCII is percent-encoded; what is percent-encoded already (names) stays so.
    """
    text = quote_url(hint, safe=_HINT_SAFE + "%", errors="surrogateescape")
    if len(text) > MAX_HINT_BYTES:
        text = text[:MAX_HINT_BYTES]
        escape = text.find("%", MAX_HINT_BYTES - 2)
        text = text[:escape] if escape >= 0 else text
    return text.encode("ascii")


def explained(cause: Cause, hop: Hop | None, hint: str) -> Headers:
    """Return the fields by which a sidecar's error says why and, as far as that is known, where and what to do."""
    fields = [(b"tieline-cause", cause.encode())]
    if hop is not None:
        fields.append((b"tieline-hop", hop.encode()))
    if hint:
        fields.append((b"tieline-hint", hint_value(hint)))
    return fields
