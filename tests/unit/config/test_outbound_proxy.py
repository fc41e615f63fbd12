"""Which requests take a proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.config.outbound_proxy import Proxy, read_proxies

PROXY = Proxy("proxy.corp", 3128)


def proxy_for(url: str, environ: dict[str, str]) -> Proxy | None:
    scheme, _, place = url.partition("://")
    host, _, port = place.rpartition(":")
    rules = read_proxies(environ)
    return rules.choose(scheme, host.strip("[]"), int(port)) if rules is not None else None


@pytest.mark.rule("H-17", "H-101")
@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, "http://a.example:80", None),
        ({"HTTP_PROXY": ""}, "http://a.example:80", None),
        ({"HTTP_PROXY": "http://proxy.corp:3128"}, "http://a.example:80", PROXY),
        ({"http_proxy": "http://proxy.corp:3128/"}, "http://a.example:80", PROXY),
        ({"HTTP_PROXY": "proxy.corp:3128"}, "http://a.example:80", PROXY),
        ({"HTTP_PROXY": "http://proxy.corp"}, "http://a.example:80", Proxy("proxy.corp", 80)),
        ({"HTTP_PROXY": "http://[::2]:8"}, "http://a.example:80", Proxy("::2", 8)),
        ({"HTTP_PROXY": "http://other", "http_proxy": "http://proxy.corp"}, "http://a.example:80", Proxy("other", 80)),
        ({"HTTP_PROXY": "http://proxy.corp:3128"}, "https://a.example:443", None),
        ({"https_proxy": "http://proxy.corp:3128"}, "https://a.example:443", PROXY),
        ({"ALL_PROXY": "http://proxy.corp:3128"}, "https://a.example:443", None),
        (
            {"HTTP_PROXY": "http://me:p%40ss@proxy.corp:3128"},
            "http://a.example:80",
            PROXY._replace(authorization=b"Basic bWU6cEBzcw=="),
        ),
    ],
)
def test_the_environment_names_the_proxy(environ: dict[str, str], url: str, expected: Proxy | None) -> None:
    assert proxy_for(url, environ) == expected


@pytest.mark.rule("H-17")
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_this_machine_is_never_asked_through_a_proxy(host: str) -> None:
    assert proxy_for(f"http://{host}:80", {"HTTP_PROXY": "http://proxy.corp"}) is None


@pytest.mark.rule("H-17")
@pytest.mark.parametrize(
    ("no_proxy", "url", "straight"),
    [
        ("*", "http://a.example:80", True),
        ("b.example, *", "http://a.example:80", True),
        ("a.example", "http://a.example:80", True),
        ("A.Example", "http://a.eXample.:80", True),
        ("a.example", "http://x.a.example:80", True),
        ("a.example", "http://ba.example:80", False),
        (".a.example", "http://x.a.example:80", True),
        (".a.example", "http://a.example:80", False),
        ("*.a.example", "http://x.a.example:80", True),
        ("*.a.example", "http://a.example:80", False),
        ("a.example:81", "http://a.example:80", False),
        ("a.example:80", "http://a.example:80", True),
        ("10.0.0.0/8", "http://10.1.2.3:80", True),
        ("10.1.2.3/8", "http://10.9.9.9:80", True),
        ("10.0.0.0/8", "http://11.1.2.3:80", False),
        ("10.0.0.0/8", "http://a.example:80", False),
        ("fd00::/8", "http://[fd12::1]:80", True),
        ("10.1.2.3", "http://10.1.2.3:80", True),
        ("10.1.2.3:90", "http://10.1.2.3:80", False),
        ("[fd12::1]:80", "http://[fd12::1]:80", True),
        ("fd12::1", "http://[fd12:0::1]:80", True),
        ("10.0.0.0/99, , a.example", "http://a.example:80", True),
        (".", "http://a.example:80", False),
    ],
)
def test_exceptions_name_hosts_domains_and_networks(no_proxy: str, url: str, straight: bool) -> None:
    found = proxy_for(url, {"HTTP_PROXY": "http://proxy.corp", "NO_PROXY": no_proxy})

    assert (found is None) is straight


@pytest.mark.parametrize("value", ["http://", "http://a:99999", "http://[::1", "socks5://a:1", "https://a", "a b"])
def test_a_proxy_that_cannot_be_used_says_why(value: str) -> None:
    found = proxy_for("http://a.example:80", {"HTTP_PROXY": value})

    assert found is not None
    assert found.problem.startswith("HTTP_PROXY ")


@given(st.text(), st.text(), st.text())
def test_nothing_in_the_environment_can_break_it(http: str, no_proxy: str, host: str) -> None:
    rules = read_proxies({"HTTP_PROXY": http, "NO_PROXY": no_proxy})

    assert rules is None or rules.choose("http", host, 80) is None or rules.choose("http", host, 80) is not None
