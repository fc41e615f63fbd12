"""What fields, metadata and internal maps become as one another; the tables were recorded from a daprd 1.18.3."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.model import Headers
from tieline.wire.grpc.mapping import (
    RESERVED,
    added_to_internal,
    content_type_field,
    declared_length,
    fields_to_internal,
    fields_to_metadata,
    from_internal,
    is_grpc_origin,
    metadata_to_fields,
    metadata_to_internal,
    metadata_to_metadata,
)
from tieline.wire.grpc.metadata import encode_binary, may_be_sent

NAMES = st.sampled_from(
    [
        b"x-a",
        b"thing-bin",
        b"content-type",
        b"te",
        b"accept",
        b":path",
        b"tieline-x",
        b"x b",
        b"grpc-foo",
        b"host",
        b"\xff",
    ]
) | st.binary(max_size=8).map(bytes.lower)
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=12)), max_size=8)


# ── HTTP to gRPC ───────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-64", "G-63", "H-82")
def test_an_http_clients_headers_reach_a_grpc_app_as_recorded() -> None:
    headers: Headers = [
        (b"content-type", b"text/plain"),
        (b"x-two", b"a"),
        (b"x-two", b"b"),
        (b"thing-bin", b"AAEC"),
        (b"thing-two-bin", b"!!"),
        (b"accept", b"*/*"),
        (b"cookie", b"a=1"),
        (b"authorization", b"B x"),
        (b"user-agent", b"client/1"),
        (b"destination-app-id", b"gamma"),
        (b"x-forwarded-for", b"127.0.0.1"),
    ]

    assert sorted(fields_to_metadata(headers, length=1)) == [
        (b"authorization", b"B x"),
        (b"dapr-accept", b"*/*"),
        (b"dapr-content-length", b"1"),
        (b"dapr-content-type", b"text/plain"),
        (b"dapr-cookie", b"a=1"),
        (b"thing-bin", encode_binary(b"AAEC")),
        (b"thing-two-bin", encode_binary(b"!!")),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-two", b"a"),
        (b"x-two", b"b"),
    ]


@pytest.mark.rule("G-64", "G-57")
def test_an_http_apps_headers_reach_a_grpc_client_as_recorded() -> None:
    headers: Headers = [
        (b"cache-control", b"no-store"),
        (b"content-type", b"text/plain"),
        (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
        (b"dapr-thing", b"t"),
        (b"via", b"1.1 app"),
        (b"grpc-foo", b"bar"),
        (b"location", b"/elsewhere"),
        (b"server", b"app"),
        (b"set-cookie", b"c=1"),
        (b"set-cookie", b"d=2"),
        (b"thing-bin", b"AAEC"),
    ]

    assert fields_to_metadata(headers) == [
        (b"dapr-cache-control", b"no-store"),
        (b"dapr-content-type", b"text/plain"),
        (b"dapr-date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
        (b"dapr-thing", b"t"),
        (b"dapr-via", b"1.1 app"),
        (b"grpc-foo", b"bar"),
        (b"location", b"/elsewhere"),
        (b"server", b"app"),
        (b"set-cookie", b"c=1"),
        (b"set-cookie", b"d=2"),
        (b"thing-bin", b"QUFFQw"),
    ]


@pytest.mark.rule("G-63")
@pytest.mark.parametrize("convert", [fields_to_metadata, metadata_to_metadata])
def test_an_entry_that_grpc_cannot_carry_is_left_out_and_told(convert: object) -> None:
    refused: list[bytes] = []
    headers: Headers = [(b"x-a", "ü".encode()), (b"x b", b"1"), (b"x!y", b"2"), (b"x-good", b"3")]

    assert convert(headers, on_refused=refused.append) == [(b"x-good", b"3")]  # type: ignore[operator]
    assert sorted(refused) == [b"x b", b"x!y", b"x-a"]


@pytest.mark.rule("G-63")
@given(FIELDS)
def test_nothing_comes_out_that_grpc_does_not_carry(headers: Headers) -> None:
    for converted in (fields_to_metadata(headers), metadata_to_metadata(headers)):
        for name, value in converted:
            assert may_be_sent(name, value) or name.endswith(b"-bin")
            assert name not in RESERVED
            assert not name.startswith((b":", b"tieline-"))


# ── gRPC to gRPC ───────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-64", "G-61")
def test_metadata_pass_from_client_to_app_as_recorded() -> None:
    metadata: Headers = [
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"thing-bin", b"AP8="),
        (b"accept", b"*/*"),
        (b"cookie", b"a=1"),
        (b"proxy-authorization", b"p"),
        (b"trailer", b"x-t"),
        (b"destination-app-id", b"liar"),
        (b"x-empty", b""),
        (b"x_under.score", b"u"),
        (b"user-agent", b"grpc-python"),
        (b"content-type", b"application/grpc"),
        (b":authority", b"h"),
        (b"grpc-trace-bin", b"AA"),
        (b"traceparent", b"x"),
    ]

    assert metadata_to_metadata(metadata) == [
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"thing-bin", b"AP8"),
        (b"accept", b"*/*"),
        (b"cookie", b"a=1"),
        (b"proxy-authorization", b"p"),
        (b"trailer", b"x-t"),
        (b"x-empty", b""),
        (b"x_under.score", b"u"),
    ]


@pytest.mark.rule("G-62", "G-64")
def test_a_binary_value_that_is_no_base64_is_dropped_and_a_list_is_parted() -> None:
    assert metadata_to_metadata([(b"a-bin", b"!"), (b"b-bin", b"AA,AQ==")]) == [(b"b-bin", b"AA"), (b"b-bin", b"AQ")]


# ── gRPC to HTTP ───────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-59")
def test_a_grpc_clients_metadata_reach_an_http_app_as_recorded() -> None:
    metadata: Headers = [
        (b":authority", b"127.0.0.1:1"),
        (b":path", b"/p"),
        (b"content-type", b"application/grpc"),
        (b"content-length", b"3"),
        (b"host", b"h"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"thing-bin", b"AP8="),
        (b"accept", b"*/*"),
        (b"proxy-authorization", b"p"),
        (b"trailer", b"x-t"),
        (b"destination-app-id", b"liar"),
        (b"x_under.score", b"u"),
        (b"user-agent", b"grpc-python"),
        (b"baggage", b"k=v"),
        (b"baggage", b"l=w"),
        (b"grpc-foo", b"f"),
        (b"grpc-timeout", b"1S"),
        (b"connection", b"close, X-Hop"),
        (b"x-hop", b"h"),
        (b"traceparent", b"t"),
    ]

    assert metadata_to_fields(metadata) == [
        (b"dapr-authority", b"127.0.0.1:1"),
        (b"dapr-path", b"/p"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"accept", b"*/*"),
        (b"x_under.score", b"u"),
        (b"user-agent", b"grpc-python"),
        (b"baggage", b"k=v"),
        (b"dapr-grpc-foo", b"f"),
    ]


@pytest.mark.rule("G-60", "H-81")
@pytest.mark.parametrize(
    ("content_type", "type_url", "field"),
    [
        ("", "", None),
        ("text/plain", "", b"text/plain"),
        ("text/plain", "type.googleapis.com/x", b"application/x-protobuf"),
        ("", "x", b"application/x-protobuf"),
        ("a\r\nx-injected: 1", "", None),
    ],
)
def test_the_type_of_data_is_the_messages(content_type: str, type_url: str, field: bytes | None) -> None:
    assert content_type_field(content_type, type_url) == ([] if field is None else [(b"content-type", field)])


# ── internal maps ──────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-53", "G-55", "G-50")
def test_an_http_request_becomes_the_map_that_daprd_sends() -> None:
    headers: Headers = [
        (b"accept", b"*/*"),
        (b"content-type", b"text/plain"),
        (b"thing-bin", b"AAEC"),
        (b"x-two", b"a"),
        (b"x-two", b"b"),
        (b"dapr-caller-app-id", b"liar"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x(y", b"odd"),
    ]
    internal = fields_to_internal(headers, length=1)
    added_to_internal(
        internal, [(b"x-forwarded-for", b"127.0.0.1"), (b"forwarded", b"for=a"), (b"dapr-caller-app-id", b"alpha")]
    )

    assert internal == {
        "Accept": ["*/*"],
        "Content-Type": ["text/plain"],
        "Content-Length": ["1"],
        "Thing-Bin": ["AAEC"],
        "X-Two": ["a", "b"],
        "X-Forwarded-For": ["1.2.3.4", "127.0.0.1"],
        "Forwarded": ["for=a"],
        "dapr-caller-app-id": ["alpha"],
        "x(y": ["odd"],
    }
    assert not is_grpc_origin(internal)


@pytest.mark.rule("G-50")
def test_identity_replaces_what_a_client_claimed_in_any_spelling() -> None:
    internal = {"Dapr-Caller-App-Id": ["liar"], "dapr-caller-APP-id": ["liar"]}

    added_to_internal(internal, [(b"dapr-caller-app-id", b"alpha")])

    assert internal == {"dapr-caller-app-id": ["alpha"]}


@pytest.mark.rule("G-54", "G-56", "G-58", "G-62")
def test_metadata_become_the_map_that_daprd_sends() -> None:
    metadata: Headers = [
        (b"x-one", b"a"),
        (b"x-one", b"b"),
        (b"thing-bin", b"AP8"),
        (b":authority", b"h"),
        (b"tieline-cause", b"x"),
    ]

    internal = metadata_to_internal(metadata)

    assert internal == {
        "x-one": ["a", "b"],
        "thing-bin": ["AP8="],
        ":authority": ["h"],
        "content-type": ["application/grpc"],
    }
    assert is_grpc_origin(internal)
    assert metadata_to_internal([(b"end-bin", b"/w")], content_type=b"") == {"end-bin": ["/w=="]}


@pytest.mark.rule("G-52")
@pytest.mark.parametrize(
    ("internal", "is_grpc"),
    [
        ({"content-type": ["application/grpc"]}, True),
        ({"content-type": ["application/grpc+proto"]}, True),
        ({"content-type": ["text/plain", "application/grpc"]}, False),
        ({"Content-Type": ["application/grpc"]}, False),
        ({"content-type": []}, False),
        ({}, False),
    ],
)
def test_metadata_are_known_by_the_lower_case_type(internal: dict[str, list[str]], is_grpc: bool) -> None:
    assert is_grpc_origin(internal) is is_grpc


@pytest.mark.rule("G-128", "G-49")
def test_names_that_collide_are_joined_the_clients_values_first() -> None:
    internal = {"X-Forwarded-For": ["127.0.0.1"], "x-forwarded-for": ["1.2.3.4"]}

    assert metadata_to_metadata(from_internal(internal)) == [
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x-forwarded-for", b"127.0.0.1"),
    ]


@pytest.mark.rule("G-47")
def test_a_name_without_values_is_no_field() -> None:
    assert from_internal({"traceparent": [], "content-type": []}) == []
    assert not is_grpc_origin({"content-type": []})


@pytest.mark.rule("G-60")
def test_the_declared_length_is_read_from_either_spelling_and_is_no_field() -> None:
    assert declared_length({"Content-Length": ["12"]}) == 12
    assert declared_length({"content-length": ["3"]}) == 3
    assert declared_length({"Content-Length": ["-1"]}) is None
    assert declared_length({"Content-Length": ["²"]}) is None
    assert declared_length({}) is None
    assert from_internal({"Content-Length": ["12"]}) == []


@pytest.mark.rule("G-124")
def test_a_value_that_is_no_utf_8_is_taken_for_latin_1() -> None:
    assert fields_to_internal([(b"x-a", b"\xe9"), (b"x-b", "é".encode())]) == {"X-A": ["é"], "X-B": ["é"]}


@given(st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=3), max_size=6))
def test_no_peer_gets_a_line_end_or_a_name_of_ours_into_the_fields(internal: dict[str, list[str]]) -> None:
    for name, value in from_internal(internal | {"X\r\ny": ["1"], "x": ["a\r\nb", "\0"], "Tieline-Cause": ["x"]}):
        assert b"\n" not in name + value
        assert b"\r" not in name + value
        assert name == name.lower()
        assert not name.startswith(b"tieline-")


@given(st.lists(st.tuples(st.sampled_from([b"a", b"x-b", b"c-bin"]), st.binary(max_size=9)), max_size=6))
def test_metadata_survive_the_way_through_an_internal_map(raw: Headers) -> None:
    metadata = [(name, encode_binary(value) if name == b"c-bin" else base64.b16encode(value)) for name, value in raw]

    back = metadata_to_metadata(from_internal(metadata_to_internal(metadata)))

    assert sorted(back, key=lambda field: field[0]) == sorted(metadata, key=lambda field: field[0])
