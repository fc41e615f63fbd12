"""Methods keep one meaning on their way, whatever bytes a caller puts into a path."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.errors import BadRequest
from tieline.wire.method_path import (
    BadEscape,
    Via,
    check,
    check_percent,
    clean,
    decode_path,
    encode_path,
    has_bad_escape,
    normalise_route,
    parse_invoke,
)

PIECES = [b"/", b".", b"..", b"%", b"%2F", b"%2e", b"%25", b"%00", b"%0d", b"#", b"?", b"\\", b"a", b"B9", b"\xc3\xa9"]
METHODS = st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
URL_PATH = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@\[\]/-]|%[0-9A-F]{2})*")


@pytest.mark.rule("H-34", "H-110")
@given(METHODS)
def test_encoding_and_decoding_are_inverse(method: bytes) -> None:
    encoded = encode_path(method)

    assert URL_PATH.fullmatch(encoded)
    assert decode_path(encoded) == method
    assert encode_path(decode_path(encoded)) == encoded


@pytest.mark.rule("H-30")
@given(METHODS)
def test_cleaning_is_idempotent_and_leaves_nothing_to_clean(method: bytes) -> None:
    cleaned = clean(method)

    assert clean(cleaned) == cleaned
    segments = cleaned.removeprefix(b"/").split(b"/") if cleaned else []
    assert not {b"", b".", b".."} & set(segments)
    assert cleaned.startswith(b"/") <= method.startswith(b"/")


@pytest.mark.rule("H-24")
@given(METHODS)
def test_a_route_starts_with_one_slash_and_is_clean(path: bytes) -> None:
    route = normalise_route(path)

    assert route.startswith(b"/")
    assert not route.startswith(b"//")
    assert normalise_route(route) == route


@pytest.mark.rule("H-31", "H-32", "H-34")
@given(METHODS)
def test_what_passes_the_check_reaches_the_app_with_the_same_meaning(written: bytes) -> None:
    """Both sidecars and an app that decodes once see the same method, and no byte that could end a line or a path."""
    path = b"/v1.0/invoke/callee/method/" + written
    if has_bad_escape(path):
        with pytest.raises(BadEscape):
            parse_invoke(path, [])
        return
    addressed = parse_invoke(path, [])
    assert addressed is not None
    assert (addressed.target, addressed.method, addressed.via) == ("callee", decode_path(written), Via.PATH)
    method = clean(addressed.method)
    try:
        check(method)
    except BadRequest:
        assert any(byte < 0x20 or byte in b"\x7f#?" for byte in method)
        return

    at_the_callee = clean(decode_path(encode_path(method)))
    sent = b"/" + encode_path(at_the_callee).removeprefix(b"/")

    assert at_the_callee == method
    assert all(0x20 < byte < 0x7F and byte not in b"#?" for byte in sent)
    assert decode_path(sent).lstrip(b"/") == method.lstrip(b"/")
    assert not sent.startswith(b"//")


@pytest.mark.rule("H-34")
@given(METHODS)
def test_a_percent_sign_is_refused_exactly_if_two_hex_digits_do_not_follow(method: bytes) -> None:
    refused = check_percent(method, "http://127.0.0.1:8080") is not None

    assert refused == has_bad_escape(method)


@pytest.mark.rule("H-18", "H-30")
@given(METHODS)
def test_the_header_form_never_keeps_a_leading_slash(path: bytes) -> None:
    path = b"/" + path
    if has_bad_escape(path):
        return

    addressed = parse_invoke(path, [(b"dapr-app-id", b"callee")])

    assert addressed is not None
    assert not clean(addressed.method).startswith(b"/")
    assert clean(addressed.method) == clean(decode_path(path)).lstrip(b"/")
