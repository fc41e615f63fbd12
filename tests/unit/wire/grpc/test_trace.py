"""The trace context in binary, and which field of a call counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.model import Headers
from tieline.wire.grpc.metadata import decode_binary, encode_binary
from tieline.wire.grpc.trace import (
    decode_trace,
    parse_trace_bin,
    render_trace_bin,
    trace_metadata,
    trace_of,
)
from tieline.wire.trace_context import TraceParent, render_traceparent

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = b"00-11111111111111111111111111111111-2222222222222222-00"
RECORDED = b"AAAK92UZFs1D3YRI6yEcgDGcAbeta3FpIDMxAgE"
"""As a daprd sent it for the same trace."""


@pytest.mark.rule("G-115")
def test_the_binary_form_is_the_recorded_one_both_ways() -> None:
    assert render_trace_bin(TRACEPARENT) == RECORDED
    assert parse_trace_bin(RECORDED) == TRACEPARENT
    assert parse_trace_bin(RECORDED + b"=") == TRACEPARENT


def encoded(parent: TraceParent) -> bytes:
    """Return the bytes that a context is on the wire."""
    (value,) = decode_binary(render_trace_bin(render_traceparent(*parent))) or (b"",)
    return value


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.integers(0, 255))
def test_a_context_is_read_as_it_was_written(trace_id: bytes, span_id: bytes, flags: int) -> None:
    parent = TraceParent(trace_id.hex().encode(), span_id.hex().encode(), flags)

    expected = parent if any(trace_id) and any(span_id) else None
    assert decode_trace(encoded(parent)) == expected


@given(st.binary(max_size=40))
def test_any_bytes_are_a_context_or_none(value: bytes) -> None:
    parsed = parse_trace_bin(encode_binary(value))

    assert parsed is None or len(parsed) == 55


@pytest.mark.rule("G-115")
def test_flags_may_be_missing_but_a_parent_needs_a_span() -> None:
    whole = encoded(TraceParent(b"1" * 32, b"2" * 16, 1))

    assert decode_trace(whole[:27]) == TraceParent(b"1" * 32, b"2" * 16, 0)
    assert decode_trace(whole[:18]) is None
    assert decode_trace(b"\1" + whole[1:]) is None
    assert parse_trace_bin(b"no base64!") is None
    assert render_trace_bin(b"no traceparent") == b""


@pytest.mark.rule("G-116", "G-117", "G-118")
@pytest.mark.parametrize(
    ("headers", "of_metadata", "of_http"),
    [
        ([], (b"", b""), (b"", b"")),
        ([(b"traceparent", TRACEPARENT), (b"tracestate", b"a=b")], (TRACEPARENT, b"a=b"), (TRACEPARENT, b"a=b")),
        ([(b"grpc-trace-bin", RECORDED), (b"tracestate", b"a=b")], (TRACEPARENT, b"a=b"), (b"", b"")),
        (
            [(b"traceparent", OTHER), (b"tracestate", b"a=b"), (b"grpc-trace-bin", RECORDED)],
            (TRACEPARENT, b""),
            (OTHER, b"a=b"),
        ),
        ([(b"grpc-trace-bin", b"AA"), (b"traceparent", OTHER)], (OTHER, b""), (OTHER, b"")),
        ([(b"traceparent", b"nonsense"), (b"tracestate", b"a=b")], (b"", b""), (b"", b"")),
    ],
)
def test_metadata_say_it_in_binary_first(
    headers: Headers, of_metadata: tuple[bytes, bytes], of_http: tuple[bytes, bytes]
) -> None:
    assert trace_of(headers, binary_first=True) == of_metadata
    assert trace_of(headers, binary_first=False) == of_http


@pytest.mark.rule("G-117")
def test_the_three_fields_carry_one_context() -> None:
    assert trace_metadata(TRACEPARENT, b"a=b") == [
        (b"traceparent", TRACEPARENT),
        (b"tracestate", b"a=b"),
        (b"grpc-trace-bin", RECORDED),
    ]
    assert trace_metadata(TRACEPARENT, b"a=" + b"b" * 511) == [
        (b"traceparent", TRACEPARENT),
        (b"grpc-trace-bin", RECORDED),
    ]
    assert trace_metadata(b"") == []
