"""Which fields pass a sidecar; the tables were recorded from a running daprd 1.18.3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.model import Headers
from tieline.wire.headers import (
    MAX_KNOWN_NAME_BYTES,
    MAX_KNOWN_NAMES,
    BadFields,
    canonical,
    check_h2_fields,
    clean_trailers,
    forwarded,
    from_app,
    identity,
    read_left_behind,
    survey,
    to_app,
    to_caller,
    to_endpoint,
    wants_events,
)

CALLER = identity("caller", "default")
BOTH = identity("caller", "default", "callee")
SELF = identity("caller", "default", "caller")

HOP_BY_HOP: Headers = [
    (b"connection", b"keep-alive, X-Listed"),
    (b"x-listed", b"gone"),
    (b"keep-alive", b"timeout=5"),
    (b"proxy-connection", b"keep-alive"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"foo/1"),
    (b"te", b"trailers"),
    (b"trailer", b"X-T"),
    (b"proxy-authorization", b"Basic eA=="),
    (b"proxy-authenticate", b"Basic"),
    (b"http2-settings", b"AAMAAABk"),
    (b"host", b"www.example.com:8080"),
    (b"content-length", b"5"),
]
ORDINARY: Headers = [
    (b"accept", b"text/x"),
    (b"authorization", b"Bearer t"),
    (b"x-request-id", b"r-1"),
    (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
    (b"via", b"1.1 x"),
    (b"max-forwards", b"3"),
    (b"expect", b"100-continue"),
    (b"origin", b"https://o.example"),
    (b"content-encoding", b"gzip"),
    (b"accept-encoding", b"br, gzip"),
    (b"cookie", b'a=1; b="x y"'),
    (b"cookie", b"c=3"),
    (b"x-empty", b""),
    (b"x!#$%&'*+-^`|~y", b"3"),
    (b"path", b"/x"),
    (b"x-u", b"gr\xc3\xbc\xc3\x9fe"),
    (b"x-l", b"\xfc"),
    (b"x-bin-not", b"1"),
    (b"x-grpc", b"1"),
    (b"dapr-foo", b"bar"),
    (b"sec-websocket-version", b"13"),
]


def outbound(headers: Headers, added: Headers, *, drop_token: bool = False) -> Headers:
    """What leaves the caller's sidecar: what passes the survey, and what is put behind it."""
    return survey(headers, drop_token=drop_token)[0] + added


def through_a_hop(headers: Headers) -> Headers:
    """Return what the app gets from another app's request, as HTTP/2 between the sidecars allows it."""
    sent = outbound(headers, CALLER)
    check_h2_fields(sent)
    return to_app(sent, BOTH)


def at_the_app(headers: Headers) -> list[Headers]:
    """Return what the called app gets, identity aside: remote, self, endpoint."""
    remote, local = through_a_hop(headers), to_app(headers, SELF)
    assert remote[-3:] == BOTH
    assert local[-3:] == SELF
    return [remote[:-3], local[:-3], to_endpoint(headers)]


# ── requests ──


@pytest.mark.rule("A-5", "H-152")
def test_ordinary_fields_reach_every_app_in_order() -> None:
    assert at_the_app(ORDINARY) == [ORDINARY] * 3


@pytest.mark.rule("H-47", "H-50")
def test_fields_of_a_connection_and_those_it_names_stop_at_the_sidecar() -> None:
    assert at_the_app([*HOP_BY_HOP, *ORDINARY]) == [ORDINARY] * 3


@pytest.mark.rule("H-47")
@pytest.mark.rule("G-64")
def test_what_a_connection_names_is_kept_aside_for_grpc_apps_unless_a_rule_is_against_it() -> None:
    sent: Headers = [
        (b"x-a", b"1"), (b"x-hop", b"h:1"), (b"connection", b"X-Hop, dapr-caller-app-id, te, authorization"),
        (b"dapr-caller-app-id", b"liar"), (b"te", b"trailers"), (b"authorization", b"B x"), (b"x-hop", b""),
        (b"tieline-left-behind", b"x-forged:1"),
    ]  # fmt: skip

    kept, noted = survey(sent)

    assert read_left_behind(kept) == [
        (b"x-hop", b"h:1"), (b"connection", b"X-Hop, dapr-caller-app-id, te, authorization"), (b"x-hop", b""),
    ]  # fmt: skip
    assert [field for field in kept if field[0] != b"tieline-left-behind"] == [(b"x-a", b"1")]
    assert noted is None
    for passed in (to_app(kept, []), to_endpoint(kept)):
        assert passed == [(b"x-a", b"1")]


def test_a_connection_may_name_any_field_in_any_case_and_place() -> None:
    headers = [(b"grpc-timeout", b"1S"), (b"x-b", b"1"), (b"connection", b" X-b ,GRPC-Timeout"), (b"x-c", b"2")]

    assert at_the_app(headers) == [[(b"x-c", b"2")]] * 3


@pytest.mark.rule("H-20")
def test_the_addressing_header_is_removed_but_basic_authorization_stays() -> None:
    basic = (b"authorization", b"Basic ZGFwci1hcHAtaWQ6Y2FsbGVl")

    assert at_the_app([(b"dapr-app-id", b"callee"), basic]) == [[basic]] * 3


@pytest.mark.rule("H-48")
def test_a_caller_cannot_forge_identity() -> None:
    forged = [
        (b"dapr-caller-app-id", b"evil"),
        (b"dapr-caller-namespace", b"evil"),
        (b"dapr-callee-app-id", b"evil"),
    ]

    assert outbound(forged, CALLER) == [(b"dapr-caller-app-id", b"caller"), (b"dapr-caller-namespace", b"default")]
    assert to_app(forged, BOTH) == [*CALLER, (b"dapr-callee-app-id", b"callee")]
    assert to_endpoint(forged) == forged


@pytest.mark.rule("H-49")
def test_the_callers_sidecar_appends_where_a_call_came_from_once() -> None:
    sent = [(b"x-forwarded-for", b"1.2.3.4"), (b"forwarded", b"for=1.2.3.4;proto=https")]
    added = [
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-forwarded-host", b"box"),
        (b"forwarded", b"for=127.0.0.1;by=127.0.0.1;host=box"),
    ]

    remote = to_app(outbound(sent, forwarded("127.0.0.1", "box") + CALLER), BOTH)

    assert remote == [*sent, *added, *BOTH]


@pytest.mark.rule("H-49")
@pytest.mark.parametrize(
    ("address", "hostname", "fields"),
    [
        (
            "fd00::1",
            "box",
            [
                (b"x-forwarded-for", b"fd00::1"),
                (b"x-forwarded-host", b"box"),
                (b"forwarded", b'for="[fd00::1]";by="[fd00::1]";host=box'),
            ],
        ),
        ("", "box", [(b"x-forwarded-host", b"box"), (b"forwarded", b"host=box")]),
        ("10.0.0.1", "", [(b"x-forwarded-for", b"10.0.0.1"), (b"forwarded", b"for=10.0.0.1;by=10.0.0.1")]),
        ("", "", []),
    ],
)
def test_what_is_unknown_is_left_out(address: str, hostname: str, fields: Headers) -> None:
    assert forwarded(address, hostname) == fields


def test_grpc_names_get_a_prefix_and_binary_ones_go() -> None:
    headers = [
        (b"grpc-timeout", b"1S"),
        (b"grpc-trace-bin", b"AAAA"),
        (b"x-data-bin", b"AAEC"),
        (b"destination-app-id", b"x"),
    ]

    assert outbound(headers, []) == headers
    assert at_the_app(headers) == [[(b"dapr-grpc-timeout", b"1S")]] * 3


@pytest.mark.rule("H-56", "O-10")
@pytest.mark.parametrize("first", [b"k1=v1", b""])
def test_the_app_gets_the_first_line_of_baggage(first: bytes) -> None:
    assert at_the_app([(b"baggage", first), (b"baggage", b"k2=v2")]) == [[(b"baggage", first)]] * 3


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ([b"a/b", b"c/d"], [b"a/b"]),
        ([b'multipart/form-data; boundary="a b"'], [b'multipart/form-data; boundary="a b"']),
        ([b"", b"c/d"], []),
        ([], []),
    ],
)
def test_a_content_type_is_single_and_filled_or_absent(sent: list[bytes], got: list[bytes]) -> None:
    expected = [(b"content-type", value) for value in got]

    assert at_the_app([(b"content-type", value) for value in sent]) == [expected] * 3
    assert to_caller([(b"content-type", value) for value in sent]) == expected


@pytest.mark.rule("H-51")
def test_an_empty_user_agent_means_none() -> None:
    # As long as "text/event-stream", which must not matter.
    agent = [(b"user-agent", b"curl/8.5.0 (Unix)")]

    assert at_the_app([(b"user-agent", b"")]) == [[]] * 3
    assert at_the_app(agent) == [agent] * 3


@pytest.mark.rule("H-75")
@pytest.mark.parametrize(
    ("accept", "is_sse", "got"),
    [
        (b"text/event-stream", True, b"text/event-stream"),
        (b"Text/Event-Stream", True, b"text/event-stream"),
        (b"text/event-stream, */*", False, b"text/event-stream, */*"),
        (b"text/event-stream;q=1", False, b"text/event-stream;q=1"),
        (b"text/event_stream", False, b"text/event_stream"),
        (b"", False, b""),
    ],
)
def test_an_event_stream_is_asked_for_by_its_own_type_alone(accept: bytes, is_sse: bool, got: bytes) -> None:
    assert wants_events([(b"host", b"x"), (b"accept", accept)]) is is_sse
    assert at_the_app([(b"accept", accept)]) == [[(b"accept", got)]] * 3


@pytest.mark.rule("H-75")
def test_a_request_without_accept_is_no_event_stream() -> None:
    assert not wants_events([(b"host", b"x")])


@pytest.mark.rule("H-124")
def test_a_configured_api_token_never_travels_on() -> None:
    token = [(b"dapr-api-token", b"whatever")]

    assert outbound(token, [], drop_token=True) == []
    assert to_app(token, [], drop_token=True) == []
    assert to_endpoint(token, drop_token=True) == []
    assert at_the_app(token) == [token] * 3


@pytest.mark.rule("H-114")
def test_the_apps_own_token_replaces_one_that_was_forwarded() -> None:
    assert to_app([(b"dapr-api-token", b"other")], BOTH, app_token=b"mine") == [*BOTH, (b"dapr-api-token", b"mine")]


def test_nothing_of_tielines_own_comes_in_from_an_app_or_goes_out_to_one() -> None:
    forged = [(b"tieline-invoke", b"1"), (b"tieline-error", b"7"), (b"tieline-x-bin", b"AA"), (b"tielinex", b"stays")]
    stays = [(b"tielinex", b"stays")]

    assert outbound(forged, []) == stays
    assert at_the_app(forged) == [stays] * 3
    assert from_app(forged) == stays
    assert to_caller(forged) == stays
    assert clean_trailers(forged) == stays


def test_the_callers_list_is_left_alone() -> None:
    headers = [*HOP_BY_HOP, *ORDINARY]

    outbound(headers, CALLER)
    to_app(headers, SELF, app_token=b"t")

    assert headers == [*HOP_BY_HOP, *ORDINARY]


# ── answers ──


@pytest.mark.rule("H-47", "H-67")
def test_an_answer_passes_less_what_belongs_to_the_connection() -> None:
    stays = [
        (b"content-type", b"text/plain"),
        (b"set-cookie", b"a=1; Path=/"),
        (b"x-stays", b"1"),
        (b"set-cookie", b"b=2; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
        (b"server", b"app/1"),
        (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
        (b"x-utf", b"\xc3\xbc"),
        (b"dapr-app-id", b"z"),
        (b"dapr-caller-app-id", b"q"),
    ]
    answer = [*(field for field in HOP_BY_HOP if field[0] != b"host"), *stays]

    assert from_app(answer) == stays
    assert to_caller(from_app(answer)) == stays
    assert to_caller(answer) == stays


@pytest.mark.rule("H-67")
def test_an_answers_grpc_binary_and_baggage_fields_change_at_the_caller() -> None:
    answer = [
        (b"destination-app-id", b"beta"),
        (b"x-data-bin", b"AAEC"),
        (b"grpc-status", b"5"),
        (b"grpc-message", b"hi"),
        (b"baggage", b"a=1"),
        (b"baggage", b"b=2"),
        (b"content-type", b"text/plain"),
        (b"content-type", b"text/html"),
    ]

    assert from_app(answer) == answer
    assert to_caller(answer) == [
        (b"dapr-grpc-status", b"5"),
        (b"dapr-grpc-message", b"hi"),
        (b"baggage", b"a=1"),
        (b"content-type", b"text/plain"),
    ]


def test_trailers_frame_route_and_authorise_nothing() -> None:
    refused = [
        *((name, value) for name, value in HOP_BY_HOP if name != b"x-listed"),
        *BOTH,
        *forwarded("127.0.0.1", "box"),
        (b":status", b"200"),
        (b":path", b"/"),
        (b"", b"x"),
        (b"content-type", b"a/b"),
        (b"content-encoding", b"gzip"),
        (b"authorization", b"x"),
        (b"set-cookie", b"a=1"),
        (b"dapr-app-id", b"x"),
        (b"dapr-api-token", b"x"),
        (b"tieline-error", b"7"),
    ]
    passes = [(b"x-checksum", b"abc"), (b"grpc-status", b"0"), (b"server-timing", b"db;dur=1")]

    assert clean_trailers([*refused, *passes]) == passes


# ── spelling and validity ──


@pytest.mark.parametrize(
    ("name", "spelt"),
    [
        (b"x-custom-header", b"X-Custom-Header"),
        (b"etag", b"Etag"),
        (b"ETag", b"Etag"),
        (b"x-B3-traceid", b"X-B3-Traceid"),
        (b"x.dot", b"X.dot"),
        (b"x_under", b"X_under"),
        (b"x!#$%&'*+-^`|~y", b"X!#$%&'*+-^`|~y"),
        (b"123", b"123"),
        (b"-a--b-", b"-A--B-"),
        (b"no token", b"no token"),
        (b"", b""),
    ],
)
def test_names_are_spelt_as_http_apps_expect(name: bytes, spelt: bytes) -> None:
    assert canonical(name) == spelt
    assert canonical(name) == spelt


def test_what_is_remembered_about_names_is_bounded() -> None:
    many = [(b"x-%d" % number, b"1") for number in range(3 * MAX_KNOWN_NAMES)]
    long = (b"x" * (MAX_KNOWN_NAME_BYTES + 1), b"1")

    for field in [*many, long]:
        check_h2_fields([field])
        assert to_app([field], []) == [field]
        assert canonical(field[0]) == b"X" + field[0][1:]

    table = getattr(canonical, "__self__", None)
    assert isinstance(table, dict)
    assert len(table) <= MAX_KNOWN_NAMES
    assert long[0] not in table


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\rb"),
        (b"x", b"a\nb"),
        (b"x", b"a\0b"),
        (b"x", b"a\x01b"),
        (b"x", b"a\x7f"),
        (b"x", b" a"),
        (b"x", b"a "),
        (b"x", b"\ta"),
        (b"x", b"a\t"),
        (b"x", b" "),
        (b"X", b"a"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b":path", b"/"),
        (b"", b"a"),
        (b"x\xfc", b"a"),
        (b"connection", b"close"),
        (b"keep-alive", b"x"),
        (b"proxy-connection", b"x"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"AA"),
        (b"te", b"gzip"),
        (b"te", b"trailers, gzip"),
    ],
)
def test_what_http1_would_read_otherwise_does_not_leave_http2(field: tuple[bytes, bytes]) -> None:
    good = (b"x-good", b"1")

    for headers in ([field], [good, field], [field, good], [good, field, good]):
        with pytest.raises(BadFields):
            check_h2_fields(headers)


def test_ordinary_fields_leave_http2() -> None:
    for _ in range(2):
        check_h2_fields([])
        check_h2_fields([(b"te", b"trailers"), (b"te", b"Trailers"), (b"trailer", b"x")])
        check_h2_fields(ORDINARY)
        check_h2_fields([(b"a", b"two  blanks"), (b"b", b"a\ttab"), (b"c", b""), (b"d", b"\x80\xff")])


@given(st.lists(st.text("a \t\r\n\0\x1f\x7f\xff", max_size=4).map(lambda text: text.encode("latin-1")), max_size=4))
def test_one_look_at_all_values_sees_what_a_look_at_each_sees(values: list[bytes]) -> None:
    bad = any(value.strip(b" \t") != value or {0, 10, 13, 0x1F, 0x7F} & set(value) for value in values)
    headers = [(b"x-known", value) for value in values]
    check_h2_fields([(b"x-known", b"1")])

    try:
        check_h2_fields(headers)
        refused = False
    except BadFields:
        refused = True

    assert refused == bad
