"""Statuses, metadata and time-outs on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.errors import GrpcCode
from tieline.model import Headers, RpcStatus
from tieline.wire.grpc.metadata import decode_binary, encode_binary, may_be_sent
from tieline.wire.grpc.status import (
    OK,
    decode_message,
    encode_message,
    read_status,
    render_status,
    status_of_http,
    why_malformed,
    without_status,
)
from tieline.wire.grpc.timeout import BadTimeout, parse_timeout, render_timeout


# ── statuses ───────────────────────────────────────────────────────────────────────────────────────
@given(st.integers(0, 99), st.text(max_size=200), st.binary(max_size=100))
def test_a_status_is_read_as_it_was_written(code: int, message: str, details: bytes) -> None:
    status = RpcStatus(code, message, details)

    assert read_status(render_status(status)) == status


def test_an_ok_is_one_field_and_no_status_is_none() -> None:
    assert render_status(OK) == [(b"grpc-status", b"0")]
    assert read_status([(b"x", b"y")]) is None


def test_metadata_beside_the_status_is_told_apart_from_it() -> None:
    trailers: Headers = [(b"x-a", b"1"), *render_status(RpcStatus(5, "gone", b"d")), (b"grpc-trace-bin", b"AA")]

    assert without_status(trailers) == [(b"x-a", b"1"), (b"grpc-trace-bin", b"AA")]


@pytest.mark.parametrize("value", [b"", b"abc", b"-1", b"1" * 30])
def test_a_code_that_is_no_number_is_unknown(value: bytes) -> None:
    assert read_status([(b"grpc-status", value)]) == RpcStatus(GrpcCode.UNKNOWN)


@given(st.integers(0, 999_999_999), st.binary(), st.booleans())
def test_a_status_and_a_binary_value_as_libraries_write_them_are_sound(code: int, value: bytes, padded: bool) -> None:
    encoded = encode_binary(value)
    fields = [(b"grpc-status", b"%d" % code), (b"x-bin", encoded + b"=" * (-len(encoded) % 4 * padded))]

    assert why_malformed([*fields, (b"x", b"!!"), (b"bin", b"!!"), (b"", b"")]) == ""


@given(st.binary())
def test_any_message_of_a_peer_can_be_read(value: bytes) -> None:
    assert isinstance(decode_message(value), str)


@given(st.text())
def test_a_message_is_one_printable_line_on_the_wire(text: str) -> None:
    value = encode_message(text)

    assert all(0x20 <= byte <= 0x7E for byte in value)
    if len(text.encode()) <= 8192:
        assert decode_message(value) == text


@pytest.mark.parametrize("text", [" ", "couldn't find service: ", " a b ", "  "])
def test_a_message_neither_begins_nor_ends_with_a_blank_on_the_wire(text: str) -> None:
    value = encode_message(text)

    assert value == value.strip()
    assert decode_message(value) == text


def test_broken_escapes_stay_as_they_are() -> None:
    assert decode_message(b"100% of %zz %41") == "100% of %zz A"


def test_an_answer_without_a_status_is_told_by_its_http_status() -> None:
    assert status_of_http(503, b"text/html").code == GrpcCode.UNAVAILABLE
    assert status_of_http(404, b"").code == GrpcCode.UNIMPLEMENTED
    assert status_of_http(200, b"text/plain").code == GrpcCode.UNKNOWN


# ── metadata ───────────────────────────────────────────────────────────────────────────────────────
@given(st.binary())
def test_binary_values_are_read_with_and_without_padding(value: bytes) -> None:
    sent = encode_binary(value)

    assert b"=" not in sent
    assert decode_binary(sent) == decode_binary(sent + b"=" * (-len(sent) % 4)) == [value]


@given(st.lists(st.binary(), min_size=1))
def test_binary_values_may_be_joined_by_commas(values: list[bytes]) -> None:
    assert decode_binary(b",".join(map(encode_binary, values))) == values


@pytest.mark.parametrize("value", [b"!!", b"A", b"AP8,!", b"A P8"])
def test_what_is_no_base64_is_told(value: bytes) -> None:
    assert decode_binary(value) is None


@pytest.mark.rule("G-63")
@pytest.mark.parametrize(
    ("name", "value", "may"),
    [
        (b"x-a_1.b", b"printable ~", True),
        (b"x-a", b"caf\xe9", False),
        (b"x-a", b"tab\t", False),
        (b"x b", b"v", False),
        (b"x!", b"v", False),
        (b"", b"v", False),
    ],
)
def test_only_plain_names_and_printable_values_are_metadata(name: bytes, value: bytes, may: bool) -> None:
    assert may_be_sent(name, value) is may


# ── time-outs ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"10S", 10), (b"500m", 0.5), (b"1u", 1e-6), (b"99999999n", 0.099999999), (b"0S", 0)],
)
def test_every_unit_is_understood(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == pytest.approx(seconds)


@pytest.mark.rule("G-125")
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"10", 'transport: timeout unit is not recognized: "10"'),
        (b"S", 'transport: timeout string is too short: "S"'),
        (b"-1S", 'strconv.ParseUint: parsing "-1": invalid syntax'),
        (b"123456789m", 'transport: timeout string is too long: "123456789m"'),
    ],
)
def test_what_is_no_timeout_is_told_as_grpc_tells_it(value: bytes, text: str) -> None:
    with pytest.raises(BadTimeout) as caught:
        parse_timeout(value)

    assert str(caught.value) == text


@given(st.floats(0, 1e12))
def test_a_timeout_is_sent_in_eight_digits_and_never_grows(seconds: float) -> None:
    value = render_timeout(seconds)

    assert len(value) <= 9
    assert parse_timeout(value) <= max(seconds * (1 + 1e-9), 1e-9)
