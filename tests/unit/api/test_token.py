"""Who shows the API token."""

from __future__ import annotations

import os

import pytest

from tieline.api.http.token import Token
from tieline.model import Request


def shows(*values: bytes, verb: bytes = b"GET", path: bytes = b"/v1.0/metadata") -> Request:
    return Request(verb, path, None, [(b"dapr-api-token", value) for value in values], b"", 0)


@pytest.mark.rule("H-122")
@pytest.mark.parametrize(
    ("value", "admitted"),
    [(b"secret", True), (b"secre", False), (b"secret ", False), (b"SECRET", False), (b"", False), (b"\xff\xfe", False)],
)
def test_only_the_very_token_is_admitted(value: bytes, admitted: bool) -> None:
    assert Token("secret").admits(shows(value)) is admitted


@pytest.mark.rule("H-122")
def test_a_token_may_hold_any_byte() -> None:
    raw = b"t\xc3\xb6ken\xff\x80"

    assert Token(os.fsdecode(raw)).admits(shows(raw))
    assert not Token(os.fsdecode(raw)).admits(shows(raw[:-1]))


@pytest.mark.rule("H-123")
@pytest.mark.parametrize(
    ("verb", "path", "exempt"),
    [
        (b"GET", b"/v1.0/healthz", True),
        (b"GET", b"//v1.0/healthz/", True),
        (b"GET", b"/v1.0/healthz/outbound", True),
        (b"GET", b"/v1.0//healthz", False),
        (b"GET", b"/v1.0/healthz/x", False),
        (b"HEAD", b"/v1.0/healthz", False),
        (b"OPTIONS", b"/v1.0/healthz", False),
        (b"GET", b"/v1.0/invoke/a/method/v1.0/healthz", False),
    ],
)
def test_only_asking_for_health_needs_no_token(verb: bytes, path: bytes, exempt: bool) -> None:
    assert Token("secret").admits(Request(verb, path, b"x=1", [], b"", 0)) is exempt
