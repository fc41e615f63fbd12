"""Targets, methods and verbs out of requests; the tables were recorded from a running daprd 1.18.3."""

from __future__ import annotations

import pytest

from tieline.errors import BadRequest, GrpcCode
from tieline.model import Headers, Target
from tieline.wire.method_path import (
    Addressed,
    BadEscape,
    MethodMissing,
    Via,
    app_verb,
    check,
    check_percent,
    clean,
    decode_path,
    encode_escaped,
    encode_path,
    encode_query,
    has_bad_escape,
    is_url,
    normalise_route,
    parse_invoke,
    safe_query,
    split_target,
)

BASIC: Headers = [(b"authorization", b"Basic ZGFwci1hcHAtaWQ6Y2FsbGVl")]


def dispatched(path: bytes, headers: Headers | None = None) -> bytes:
    """Return the path at which the app is asked, by way of a native hop."""
    addressed = parse_invoke(path, headers or [])
    assert addressed is not None
    sent = encode_path(clean(addressed.method))
    method = clean(decode_path(sent))
    check(method)
    assert check_percent(method, "http://127.0.0.1:8080") is None
    return b"/" + encode_path(method).removeprefix(b"/")


# ── how a target is named ──


@pytest.mark.rule("H-18", "A-2", "A-4", "A-7")
@pytest.mark.parametrize(
    ("path", "target", "method"),
    [
        (b"/v1.0/invoke/callee/method/add", "callee", b"add"),
        (b"/v1.0/invoke/callee.prod/method/api/v1/add", "callee.prod", b"api/v1/add"),
        (b"/v1.0/invoke/CALLEE/method/Foo/BAR", "CALLEE", b"Foo/BAR"),
        (b"/v1.0/invoke/http://math.example.com/method/add", "http://math.example.com", b"add"),
        (b"/v1.0/invoke/https://[::1]:8443/base/method/add", "https://[::1]:8443/base", b"add"),
    ],
)
def test_the_path_names_the_target(path: bytes, target: str, method: bytes) -> None:
    assert parse_invoke(path, [(b"host", b"localhost")]) == Addressed(target, method, Via.PATH)


@pytest.mark.rule("H-18", "H-36")
@pytest.mark.parametrize(
    ("path", "headers", "target", "method", "via"),
    [
        (b"/api/v1/add", [(b"dapr-app-id", b"callee")], "callee", b"api/v1/add", Via.HEADER),
        (b"/", [(b"dapr-app-id", b"callee")], "callee", b"", Via.HEADER),
        (b"/add", [(b"dapr-app-id", b"callee"), (b"dapr-app-id", b"caller")], "callee", b"add", Via.HEADER),
        (b"/add", [*BASIC, (b"dapr-app-id", b"caller")], "caller", b"add", Via.HEADER),
        (b"/add", BASIC, "callee", b"add", Via.BASIC),
        (b"/add", [(b"authorization", b"Basic REFQUi1BUFAtSUQ6Y2FsbGVl")], "callee", b"add", Via.BASIC),
        (b"/add", [(b"dapr-app-id", b""), *BASIC], "callee", b"add", Via.BASIC),
        (b"///foo//bar%20/", [(b"dapr-app-id", b"callee")], "callee", b"foo//bar /", Via.HEADER),
    ],
)
def test_a_header_names_the_target(path: bytes, headers: Headers, target: str, method: bytes, via: Via) -> None:
    assert parse_invoke(path, headers) == Addressed(target, method, via)


@pytest.mark.rule("H-19")
def test_a_header_beats_the_path_which_is_then_all_method() -> None:
    addressed = parse_invoke(b"/v1.0/invoke/callee/method/add", [(b"dapr-app-id", b"caller")])

    assert addressed == Addressed("caller", b"v1.0/invoke/callee/method/add", Via.HEADER)


@pytest.mark.rule("H-18")
def test_an_ordinary_authorization_leaves_the_path_its_say() -> None:
    addressed = parse_invoke(b"/v1.0/invoke/callee/method/add", [(b"authorization", b"Bearer abc")])

    assert addressed == Addressed("callee", b"add", Via.PATH)


@pytest.mark.rule("H-18", "H-22", "H-23")
@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (b"/some/unknown/path", []),
        (b"/v1.0/invoke", []),
        (b"/v1.0/invoke/", []),
        (b"/v1.0/invoke/callee", []),
        (b"/v1.0/invoke/callee/", []),
        (b"/v1.0/invoke//method/add", []),
        (b"/v1.0/invoke//method", []),
        (b"/v1.0/invoke/method", []),
        (b"/v1.0/Invoke/callee/method/foo", []),
        (b"/v1.0/invoke/callee/Method/foo", []),
        (b"/invoke/callee/method/foo", []),
        (b"/v1/invoke/callee/method/foo", []),
        (b"callee:80", []),
        (b"/add", [(b"dapr-app-id", b"")]),
        (b"/add", [(b"authorization", b"basic ZGFwci1hcHAtaWQ6Y2FsbGVl")]),
        (b"/add", [(b"authorization", b"Basic YWxpY2U6c2VjcmV0")]),
        (b"/add", [(b"authorization", b"Basic !!!")]),
        (b"/add", [(b"authorization", b"Basic ZGFwci1hcHAtaWQ6Y2FsbGVl\n=")]),
        (b"/add", [(b"authorization", b"Basic ZGFwci1hcHAtaWQ6YTpi")]),  # three parts
        (b"/add", [(b"authorization", b"Basic ZGFwci1hcHAtaWQ6")]),  # nothing behind the colon
        (b"/add", [(b"authorization", b"Basic ZGFwci1hcHAtaWQ")]),  # no colon, no padding
    ],
)
def test_what_names_no_target_is_no_invocation(path: bytes, headers: Headers) -> None:
    assert parse_invoke(path, headers) is None


@pytest.mark.rule("A-10")
@pytest.mark.parametrize("path", [b"/v1.0/invoke/callee/method", b"//v1.0/invoke//callee/method"])
def test_a_url_that_stops_before_a_method_is_a_bad_request(path: bytes) -> None:
    with pytest.raises(MethodMissing) as caught:
        parse_invoke(path, [])

    assert caught.value.http_status == 400
    assert caught.value.target == "callee"


@pytest.mark.rule("H-23", "H-24", "H-26")
@pytest.mark.parametrize(
    ("path", "target", "method"),
    [
        (b"//v1.0////invoke//callee/method//foo", "callee", b"/foo"),
        (b"/v1.0/invoke//callee/method/foo", "callee", b"foo"),
        (b"/v1%2e0/%69nvoke/callee/method/foo", "callee", b"foo"),
        (b"/v1.0/invoke/callee/method/method/foo", "callee", b"method/foo"),
        (b"/v1.0/invoke/http://x/method/a/method/b", "http://x", b"a/method/b"),
        (b"/v1.0/invoke/callee/method/../../caller/method/foo", "callee", b"../../caller/method/foo"),
    ],
)
def test_the_path_is_read_uncleaned_and_split_at_the_first_method(path: bytes, target: str, method: bytes) -> None:
    assert parse_invoke(path, []) == Addressed(target, method, Via.PATH)


@pytest.mark.rule("H-25")
@pytest.mark.parametrize(
    ("written", "target"),
    [
        (b"c%2561llee", "callee"),
        (b"http%3A%2F%2Fhost%3A8080", "http://host:8080"),
        (b"a+b%2Bc", "a b c"),
        (b"a+%25zz", "a+%zz"),
        (b"a%FF", "a\udcff"),
        (b"gr%C3%BC%C3%9Fe", "grüße"),
    ],
)
def test_a_target_in_the_path_is_decoded_twice(written: bytes, target: str) -> None:
    assert parse_invoke(b"/v1.0/invoke/" + written + b"/method/x", []) == Addressed(target, b"x", Via.PATH)


@pytest.mark.rule("H-27")
def test_only_lower_case_schemes_make_a_target_a_url() -> None:
    assert is_url("http://x")
    assert is_url("https://x")
    assert not is_url("HTTP://x")
    assert not is_url("http:/x")
    assert not is_url("https")


@pytest.mark.rule("H-28", "A-12")
@pytest.mark.parametrize(
    ("text", "app_id", "namespace"),
    [
        ("callee", "callee", "mine"),
        ("callee.prod", "callee", "prod"),
        ("callee.", "callee", ""),
        (".default", "", "default"),
    ],
)
def test_a_dot_divides_id_and_namespace(text: str, app_id: str, namespace: str) -> None:
    assert split_target(text, "mine") == Target(app_id, namespace, text)


@pytest.mark.parametrize(("text", "is_url"), [("ftp://a.b.c", True), ("http:/127.0.0.1", True), ("a.b.c", False)])
def test_a_target_that_looks_like_a_url_is_told_how_one_begins(text: str, is_url: bool) -> None:
    with pytest.raises(BadRequest) as caught:
        split_target(text, "mine")

    assert ("by a URL that begins with http:// or https://" in caught.value.hint) == is_url


@pytest.mark.rule("H-28")
def test_two_dots_are_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        split_target("a.b.c", "mine")

    assert caught.value.detail == "invalid app id a.b.c"
    assert caught.value.http_status == 500


# ── methods ──


@pytest.mark.rule("H-30", "H-35", "H-36")
@pytest.mark.parametrize(
    ("method", "cleaned"),
    [
        (b"", b""),
        (b"foo", b"foo"),
        (b"/", b""),
        (b".", b""),
        (b"..", b""),
        (b"foo/", b"foo"),
        (b"public///extra", b"public/extra"),
        (b"/foo", b"/foo"),
        (b"//foo", b"/foo"),
        (b"/..", b""),
        (b"/../x", b"/x"),
        (b"./foo/./bar/.", b"foo/bar"),
        (b"foo/../bar", b"bar"),
        (b"a/b/../../..", b""),
        (b"../../x", b"x"),
        (b"a/.hidden/..b/c...", b"a/.hidden/..b/c..."),
        (b".well-known/x", b".well-known/x"),
        (b"a\\..\\b", b"a\\..\\b"),
        (b"http://x/y", b"http:/x/y"),
    ],
)
def test_a_method_is_cleaned_lexically(method: bytes, cleaned: bytes) -> None:
    assert clean(method) == cleaned


@pytest.mark.rule("H-30")
def test_a_clean_method_is_returned_as_it_is() -> None:
    method = b"api/v1/orders"

    assert clean(method) is method
    assert encode_path(method) is method


@pytest.mark.rule("G-66")
@pytest.mark.parametrize(
    ("method", "written"),
    [
        (b"a/b", b"a/b"),
        (b"a%2Fb", b"a%2Fb"),
        (b"100%", b"100%"),
        (b'a b"*\\', b"a%20b%22%2A%5C"),
        ("é".encode(), b"%C3%A9"),
        (b"a*b%20", b"a*b%20"),
    ],
)
def test_the_method_of_a_grpc_client_keeps_its_escapes(method: bytes, written: bytes) -> None:
    assert encode_escaped(method) == written


@pytest.mark.rule("G-66")
def test_a_query_of_a_grpc_client_is_made_one() -> None:
    assert encode_query("x=1 2&y=é#%20\n".encode()) == b"x=1%202&y=%C3%A9%23%20%0A"
    assert encode_query(b"a=%2F&b=[1]") == b"a=%2F&b=[1]"


@pytest.mark.rule("H-32")
@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (b"a%23b", 'forbidden character: "a#b"'),
        (b"a#b", 'forbidden character: "a#b"'),
        (b"a%3Fb", 'forbidden character: "a?b"'),
        (b"a%00b", r'forbidden character: "a\x00b"'),
        (b"a%01b%23", r'forbidden character: "a\x01b#"'),
        (b"a%22b%23%5C", r'forbidden character: "a\"b#\\"'),
        (b"a%0Db", r'control character at position 1: "a\rb"'),
        (b"a%0Ab", r'control character at position 1: "a\nb"'),
        (b"a%09b", r'control character at position 1: "a\tb"'),
        (b"%C3%A9%7F", r'control character at position 2: "é\x7f"'),
    ],
)
def test_a_method_that_could_be_misread_is_refused(written: bytes, reason: str) -> None:
    addressed = parse_invoke(b"/v1.0/invoke/callee/method/" + written, [])
    assert addressed is not None

    with pytest.raises(BadRequest) as caught:
        check(clean(addressed.method))

    expected = f"rpc error: code = InvalidArgument desc = invalid method: method contains {reason}"
    assert caught.value.detail == expected
    assert caught.value.grpc_code is GrpcCode.INVALID_ARGUMENT
    assert caught.value.http_status == 500


@pytest.mark.rule("H-30", "H-31", "H-33", "H-36", "H-38", "H-110", "H-152", "A-6")
@pytest.mark.parametrize(
    ("written", "at_the_app"),
    [
        (b"", b"/"),
        (b"/foo", b"/foo"),
        (b"foo/", b"/foo"),
        (b"s0/s1/s2/s3/s4/s5", b"/s0/s1/s2/s3/s4/s5"),
        (b"foo%2Fbar", b"/foo/bar"),
        (b"admin%2F..%2Fpublic", b"/public"),
        (b"admin/%2e%2e/public", b"/public"),
        (b"%2e%2e/%2e%2e/x", b"/x"),
        (b"public%23%2F..%2Fadmin", b"/admin"),
        (b"a\\b", b"/a%5Cb"),
        (b"a%5Cb%5C..%5Cc", b"/a%5Cb%5C..%5Cc"),
        (b"a%22b%2Ac", b"/a%22b%2Ac"),
        (b"a%20b", b"/a%20b"),
        (b"a+b", b"/a+b"),
        (b"{a}|^`<>", b"/%7Ba%7D%7C%5E%60%3C%3E"),
        (b"a%C2%85b", b"/a%C2%85b"),
        (b"a:b/c", b"/a:b/c"),
        (b"a;v=1/b;w", b"/a;v=1/b;w"),
        (b"http://x/y", b"/http:/x/y"),
        (b"gr%C3%BC%C3%9Fe/%E2%82%AC", b"/gr%C3%BC%C3%9Fe/%E2%82%AC"),
        (b"-._~:@!$&'()*+,=;[]", b"/-._~:@!$&'()*+,=;[]"),
        (b"a%FFb%FE", b"/a%FFb%FE"),
    ],
)
def test_a_method_reaches_the_app(written: bytes, at_the_app: bytes) -> None:
    assert dispatched(b"/v1.0/invoke/callee/method/" + written) == at_the_app


@pytest.mark.rule("H-30", "H-31", "H-110")
@pytest.mark.parametrize(
    ("path", "at_the_app"),
    [
        (b"///foo//bar/", b"/foo/bar"),
        (b"/admin%2F..%2Fpublic", b"/public"),
        (b"/../x", b"/x"),
        (b"/gr%C3%BC%C3%9Fe/%E2%82%AC", b"/gr%C3%BC%C3%9Fe/%E2%82%AC"),
        (b"/-._~:@!$&'()*+,=;[]", b"/-._~:@!$&'()*+,=;[]"),
    ],
)
def test_the_header_form_gives_the_same_methods(path: bytes, at_the_app: bytes) -> None:
    assert dispatched(path, [(b"dapr-app-id", b"callee")]) == at_the_app


@pytest.mark.rule("H-34")
@pytest.mark.parametrize(
    ("written", "at_the_app"),
    [
        (b"a%2520b", b"/a%2520b"),
        (b"a%252Fb", b"/a%252Fb"),
        (b"a%2500b", b"/a%2500b"),
        (b"a%2523b", b"/a%2523b"),
        (b"a%2520*", b"/a%2520*"),
        (b"a%2520%20*", b"/a%2520%20%2A"),
    ],
)
def test_a_literal_percent_sign_is_never_decoded_again(written: bytes, at_the_app: bytes) -> None:
    assert dispatched(b"/v1.0/invoke/callee/method/" + written) == at_the_app


@pytest.mark.rule("H-34")
@pytest.mark.parametrize(
    ("method", "query", "detail"),
    [
        (b"100%", b"", 'parse "http://127.0.0.1:80/100%": invalid URL escape "%"'),
        (b"/x%s", b"", 'parse "http://127.0.0.1:80/x%s": invalid URL escape "%s"'),
        (b"test%stream", b"", 'parse "http://127.0.0.1:80/test%stream": invalid URL escape "%st"'),
        (b'a%20"%g', b"q=1", r'parse "http://127.0.0.1:80/a%20\"%g?q=1": invalid URL escape "%g"'),
    ],
)
def test_a_bare_percent_sign_is_refused_as_daprd_does(method: bytes, query: bytes, detail: str) -> None:
    assert check_percent(method, "http://127.0.0.1:80", query) == detail


@pytest.mark.rule("H-64")
@pytest.mark.parametrize("path", [b"/a%zzb", b"/a%2", b"/%", b"/a%20%"])
def test_a_bad_escape_makes_a_path_malformed(path: bytes) -> None:
    assert has_bad_escape(path)
    with pytest.raises(BadEscape):
        decode_path(path)


@pytest.mark.rule("H-24")
@pytest.mark.parametrize(
    ("path", "route"),
    [
        (b"/v1.0/metadata", b"/v1.0/metadata"),
        (b"/v1.0/metadata/", b"/v1.0/metadata"),
        (b"//v1.0//metadata", b"/v1.0/metadata"),
        (b"/v1.0/invoke/callee/method/../../../healthz", b"/v1.0/healthz"),
        (b"/v1.0/invoke/callee/method/%2e%2e/x", b"/v1.0/invoke/callee/method/%2e%2e/x"),
        (b"/", b"/"),
        (b"", b"/"),
        (b"callee:80", b"/callee:80"),
    ],
)
def test_a_route_is_cleaned_but_not_decoded(path: bytes, route: bytes) -> None:
    assert normalise_route(path) == route


# ── verbs ──


@pytest.mark.rule("H-39", "A-3")
@pytest.mark.parametrize(
    ("verb", "seen"),
    [
        *((verb, verb) for verb in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE")),
        (b"post", b"POST"),
        (b"Get", b"GET"),
        (b"head", b"HEAD"),
        (b"PURGE", b"POST"),
        (b"PROPFIND", b"POST"),
        (b"x!#", b"POST"),
    ],
)
def test_the_app_sees_a_verb_that_dapr_knows(verb: bytes, seen: bytes) -> None:
    assert app_verb(verb) == seen


@pytest.mark.rule("H-39")
@pytest.mark.parametrize("verb", [b"CONNECT", b"NONE", b"none"])
def test_connect_and_none_are_refused(verb: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        app_verb(verb)

    assert caught.value.detail == "rpc error: code = InvalidArgument desc = invalid HTTP verb"


def test_a_query_cannot_end_the_line_that_it_stands_in() -> None:
    assert safe_query(b"a=b%20c&d=\xc3\xa9") == b"a=b%20c&d=\xc3\xa9"
    assert safe_query(b"a HTTP/1.1\r\nx: y\x00\x7f") == b"a%20HTTP/1.1%0D%0Ax:%20y%00%7F"
