"""What a caller sent is quoted in error texts as Go's %q quotes it."""

from __future__ import annotations

import pytest

from tieline.wire.errors_text import MAX_HINT_BYTES, hint_value, quote


@pytest.mark.rule("H-32")
@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        (b"", '""'),
        (b"a b#c", '"a b#c"'),
        (b'a"b\\', r'"a\"b\\"'),
        (b"\a\b\f\n\r\t\v", r'"\a\b\f\n\r\t\v"'),
        (b"\x00\x01\x1f\x7f", r'"\x00\x01\x1f\x7f"'),
        ("grüße €".encode(), '"grüße €"'),
        (b"a\xffb\xc3", r'"a\xffb\xc3"'),
        (b"\xed\xa0\x80", r'"\xed\xa0\x80"'),
        ("\x85\u00a0\u200b\u2028\ufeff".encode(), r'"\u0085\u00a0\u200b\u2028\ufeff"'),
        ("\U000e0001😀\ufffd".encode(), '"\\U000e0001😀\ufffd"'),
    ],
)
def test_a_text_is_quoted_with_backslash_escapes(text: bytes, quoted: str) -> None:
    assert quote(text) == quoted


@pytest.mark.parametrize("before", range(MAX_HINT_BYTES - 4, MAX_HINT_BYTES + 1))
def test_a_hint_is_never_cut_within_an_escape(before: int) -> None:
    value = hint_value("x" * before + "ü")

    assert value == b"x" * before + (b"%C3" if before + 3 <= MAX_HINT_BYTES else b"")
    assert len(value) <= MAX_HINT_BYTES
