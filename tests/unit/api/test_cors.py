"""Which origins may call, and what browsers are told."""

from __future__ import annotations

import pytest

from tieline.api.http.cors import Cors
from tieline.model import Headers, Reply, Request


def request(verb: bytes, *headers: tuple[bytes, bytes]) -> Request:
    return Request(verb, b"/v1.0/metadata", None, list(headers), b"", 0)


@pytest.mark.rule("H-125")
@pytest.mark.parametrize(
    ("allowed", "origin", "may"),
    [
        ("https://a.example", b"https://a.example", True),
        ("https://a.example", b"HTTPS://A.example", True),
        ("https://a.example", b"https://a.example:8443", False),
        ("https://a.example", b"https://a.example.evil", False),
        ("https://*.b.example", b"https://x.y.b.example", True),
        ("https://*.b.example", b"https://b.example", False),
        ("https://*.b.example", b"https://.b.example", True),
        ("https://ab*ba", b"https://aba", False),  # the two ends may not share a letter
        (" https://a.example", b"https://a.example", False),  # not trimmed
        ("*", b"null", True),
    ],
)
def test_an_origin_is_compared_whole_or_by_its_ends(allowed: str, origin: bytes, may: bool) -> None:
    assert Cors([allowed]).allows(origin) is may


@pytest.mark.rule("H-126")
def test_a_preflight_echoes_only_names_that_are_names() -> None:
    asked = request(
        b"OPTIONS",
        (b"origin", b"https://a.example"),
        (b"access-control-request-method", b"put"),
        (b"access-control-request-headers", b"x-one,, sp ace ,\x01bad,y"),
    )

    reply = Cors(["https://a.example"]).answer_preflight(asked)

    assert reply is not None
    assert (b"access-control-allow-methods", b"PUT") in reply.headers
    assert (b"access-control-allow-headers", b"X-One, Y") in reply.headers


@pytest.mark.rule("H-126")
def test_only_options_with_a_verb_to_ask_for_is_a_preflight() -> None:
    cors = Cors(["*"])

    assert cors.answer_preflight(request(b"OPTIONS", (b"origin", b"https://a.example"))) is None
    assert cors.answer_preflight(request(b"OPTIONS", (b"access-control-request-method", b""))) is None
    assert cors.answer_preflight(request(b"GET", (b"access-control-request-method", b"GET"))) is None


@pytest.mark.rule("H-127")
def test_what_the_app_says_about_origins_stays_beside_ours() -> None:
    headers: Headers = [(b"access-control-allow-origin", b"https://app.example")]
    reply = Reply(200, headers)

    Cors(["https://a.example"]).mark(request(b"GET", (b"origin", b"https://a.example")), reply)

    assert [value for name, value in reply.headers if name == b"access-control-allow-origin"] == [
        b"https://a.example",
        b"https://app.example",
    ]
