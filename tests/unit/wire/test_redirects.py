"""What goes along when an endpoint's redirect is followed."""

from __future__ import annotations

import pytest

from tieline.model import Headers
from tieline.wire.redirects import follow, location, with_referer
from tieline.wire.url import parse_url

HERE = parse_url("http://a:1")
SECURE = parse_url("https://a")
SENT: Headers = [
    (b"authorization", b"Bearer t"),
    (b"cookie", b"c=1"),
    (b"dapr-api-token", b"s"),
    (b"x-custom", b"1"),
    (b"x-key", b"of the resource"),
    (b"content-type", b"text/plain"),
]


def names(headers: Headers) -> set[bytes]:
    return {name for name, _ in headers}


@pytest.mark.rule("H-66", "H-159")
@pytest.mark.parametrize(
    ("status", "expected"),
    [(301, b"/x"), (302, b"/x"), (303, b"/x"), (307, None), (308, None), (300, None), (200, None)],
)
def test_only_three_statuses_lead_on(status: int, expected: bytes | None) -> None:
    assert location(status, [(b"location", b"/x")]) == expected


@pytest.mark.rule("H-159")
def test_without_a_location_nothing_is_followed() -> None:
    assert location(302, [(b"x", b"/x")]) is None
    assert location(302, [(b"location", b"")]) is None


@pytest.mark.rule("H-66", "H-159")
@pytest.mark.parametrize(
    ("verb", "then"), [(b"GET", b"GET"), (b"HEAD", b"HEAD"), (b"POST", b"GET"), (b"PUT", b"GET"), (b"DELETE", b"GET")]
)
def test_it_goes_on_as_get(verb: bytes, then: bytes) -> None:
    step = follow(verb, HERE, b"/x", HERE, SENT, had_body=False, own_names=frozenset())

    assert step.verb == then


@pytest.mark.rule("H-159")
def test_what_describes_the_body_goes_with_it() -> None:
    post = follow(b"POST", HERE, b"/x", HERE, SENT, had_body=True, own_names=frozenset())
    get = follow(b"GET", HERE, b"/x", HERE, SENT, had_body=False, own_names=frozenset())

    assert names(post.headers) == names(SENT) - {b"content-type"}
    assert get.headers == SENT


@pytest.mark.rule("H-159")
@pytest.mark.parametrize(
    ("here", "there", "kept"),
    [
        ("http://a:1", "http://a:2/y", True),
        ("http://a:1", "https://a/y", True),
        ("http://a:1", "http://b:1/y", False),
        ("http://a:1", "http://x.a:1/y", False),
        ("https://a", "http://a/y", False),
    ],
)
def test_credentials_stay_with_their_host(here: str, there: str, kept: bool) -> None:
    step = follow(
        b"GET", parse_url(here), b"/x", parse_url(there), SENT, had_body=False, own_names=frozenset({b"x-key"})
    )

    secret = {b"authorization", b"cookie", b"dapr-api-token", b"x-key"}
    assert names(step.headers) == (names(SENT) if kept else names(SENT) - secret)


def test_user_info_of_the_new_place_is_sent_there() -> None:
    step = follow(b"GET", HERE, b"/x", parse_url("http://u:p@b"), SENT, had_body=False, own_names=frozenset())

    assert (b"authorization", b"Basic dTpw") in step.headers
    assert (b"authorization", b"Bearer t") not in step.headers


@pytest.mark.rule("H-159")
@pytest.mark.parametrize(
    ("here", "there", "referer"),
    [
        ("http://u:p@a:1", "http://b", [(b"referer", b"http://a:1/x?q")]),
        ("https://a", "https://b", [(b"referer", b"https://a/x?q")]),
        ("https://a", "http://b", []),
    ],
)
def test_the_next_server_learns_where_the_call_comes_from(here: str, there: str, referer: Headers) -> None:
    assert with_referer([], parse_url(here), b"/x?q", parse_url(there)) == referer


def test_a_referer_of_the_caller_stays() -> None:
    own: Headers = [(b"referer", b"mine")]

    assert with_referer(own, HERE, b"/x", SECURE) == own
