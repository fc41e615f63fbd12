"""URLs of servers outside the mesh."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.wire.url import BadUrl, Url, parse_url


@pytest.mark.parametrize(
    ("text", "server", "authority", "path"),
    [
        ("http://a.example", ("http", "a.example", 80), b"a.example", b""),
        ("https://a.example", ("https", "a.example", 443), b"a.example", b""),
        ("HTTPS://A.Example:8443/Base", ("https", "a.example", 8443), b"A.Example:8443", b"/Base"),
        ("http://a.example:80/", ("http", "a.example", 80), b"a.example:80", b"/"),
        ("http://a.example:", ("http", "a.example", 80), b"a.example", b""),
        ("http://[::1]:8080/x", ("http", "::1", 8080), b"[::1]:8080", b"/x"),
        ("http://[::1]", ("http", "::1", 80), b"[::1]", b""),
        ("http://b\u00fccher.example", ("http", "xn--bcher-kva.example", 80), b"xn--bcher-kva.example", b""),
        ("http://a/b c/\u00fc", ("http", "a", 80), b"a", b"/b%20c/%C3%BC"),
        ("http://a/b%2Fc?q=%41", ("http", "a", 80), b"a", b"/b%2Fc?q=%41"),
        ("http://a?q=1", ("http", "a", 80), b"a", b"/?q=1"),
        ("http://a_b.example", ("http", "a_b.example", 80), b"a_b.example", b""),
    ],
)
@pytest.mark.rule("H-50", "H-96", "H-99")
def test_a_url_is_taken_apart(text: str, server: tuple[str, str, int], authority: bytes, path: bytes) -> None:
    url = parse_url(text)

    assert (url.server, url.authority, url.path) == (server, authority, path)


@pytest.mark.rule("H-99")
def test_user_info_becomes_a_header_and_its_password_is_not_shown() -> None:
    url = parse_url("http://user:pw@a:1/x")

    assert url.authorization == b"Basic dXNlcjpwdw=="
    assert url.shown == "http://user:***@a:1"
    assert url.authority == b"a:1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", 'unsupported protocol scheme ""'),
        ("a.example", 'unsupported protocol scheme ""'),
        ("ftp://a", 'unsupported protocol scheme "ftp"'),
        ("//a", 'unsupported protocol scheme ""'),
        ("http://", "http: no Host in request URL"),
        ("http:/a", "http: no Host in request URL"),
        ("http:///a", "http: no Host in request URL"),
        ("http://:80", "http: no Host in request URL"),
        ("http://user@", "http: no Host in request URL"),
        ("http://a b", 'parse "http://a b": invalid character " " in host name'),
        ("http://a\\b", 'parse "http://a\\\\b": invalid character "\\\\" in host name'),
        ("http://a:x", 'parse "http://a:x": invalid port ":x" after host'),
        ("http://a:0", 'parse "http://a:0": invalid port ":0" after host'),
        ("http://a:65536", 'parse "http://a:65536": invalid port ":65536" after host'),
        ("http://[::1", "parse \"http://[::1\": missing ']' in host"),
        ("http://[::1]x", 'parse "http://[::1]x": invalid port "x" after host'),
        ("http://[a]", 'parse "http://[a]": invalid host "[a]"'),
        ("http://a..b", 'parse "http://a..b": invalid host "a..b"'),
        ("http://a/%zz", 'parse "http://a/%zz": invalid URL escape "%zz"'),
        ("http://a/\r\nb", 'parse "http://a/\\r\\nb": net/url: invalid control character in URL'),
        ("http://a/#x", 'parse "http://a/#x": a fragment has no meaning here'),
        ("http://%0d%0a/", 'parse "http://%0d%0a/": invalid character "\\r" in host name'),
    ],
)
def test_what_is_no_url_says_why(text: str, reason: str) -> None:
    with pytest.raises(BadUrl) as caught:
        parse_url(text)

    assert caught.value.text == reason


@pytest.mark.rule("H-99")
@pytest.mark.parametrize(
    ("base", "method", "query", "target"),
    [
        ("http://a", b"foo", b"", b"/foo"),
        ("http://a", b"/foo", b"", b"/foo"),
        ("http://a", b"", b"", b"/"),
        ("http://a", b"", b"x=1", b"/?x=1"),
        ("http://a/", b"foo", b"", b"//foo"),
        ("http://a/base", b"foo/bar", b"q", b"/base/foo/bar?q"),
        ("http://a/base/", b"foo", b"", b"/base//foo"),
        ("http://a/base", b"", b"", b"/base"),
    ],
)
def test_a_method_is_put_behind_the_base(base: str, method: bytes, query: bytes, target: bytes) -> None:
    assert parse_url(base).target(method, query) == target


@pytest.mark.rule("H-159")
@pytest.mark.parametrize(
    ("location", "server", "target"),
    [
        (b"/moved", ("http", "a", 1), b"/moved"),
        (b"moved?x", ("http", "a", 1), b"/base/moved?x"),
        (b"?x=2", ("http", "a", 1), b"/base/foo?x=2"),
        (b"../up", ("http", "a", 1), b"/up"),
        (b"//b/x", ("http", "b", 80), b"/x"),
        (b"https://b:8443", ("https", "b", 8443), b"/"),
        (b"http://b/x#part", ("http", "b", 80), b"/x"),
        (b"/\xc3\xbc \xff", ("http", "a", 1), b"/%C3%BC%20%FF"),
    ],
)
def test_a_location_is_read_where_it_was_given(location: bytes, server: tuple[str, str, int], target: bytes) -> None:
    there = parse_url("http://a:1/base").join(b"/base/foo?q", location)

    assert (there.server, there.target(b"", b"")) == (server, target)


@given(st.text(), st.binary())
def test_whatever_is_read_can_be_sent(text: str, location: bytes) -> None:
    """Nothing of a URL can end the request line or a header."""

    def check(url: Url) -> None:
        assert not {0x20, 0x0D, 0x0A, 0} & set(url.target(b"", b"") + url.authority)
        assert url.target(b"", b"").isascii()
        assert 0 < url.port < 65536

    with contextlib.suppress(BadUrl):
        check(parse_url("http://" + text))
    with contextlib.suppress(BadUrl):
        check(parse_url("https://a:8/b").join(b"/b/c?d", location))
