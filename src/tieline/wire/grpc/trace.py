"""``grpc-trace-bin``: the trace context in binary, and which of the three fields of a call says what its trace is."""

from __future__ import annotations

import binascii
import re
from typing import Final

from tieline.model import Headers
from tieline.wire.grpc.metadata import decode_binary
from tieline.wire.trace_context import (
    MAX_TRACESTATE_BYTES,
    TraceParent,
    is_traceparent,
    parse_traceparent,
    render_traceparent,
)

TRACE_BIN: Final = b"grpc-trace-bin"
TRACE_FIELDS: Final = frozenset({b"traceparent", b"tracestate", TRACE_BIN})
# A version, then parts, each a number and its bytes: 0 and the trace id, 1 and the span id, 2 and the flags.
_IS_TRACE: Final = re.compile(rb"\x00\x00(.{16})\x01(.{8})(?:\x02(.))?", re.DOTALL).match
_TEXT_LENGTH: Final = 39
"""Of the 29 bytes in base64 without padding."""
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


def decode_trace(value: bytes) -> TraceParent | None:
    """Return what 29 bytes say; flags that are missing count as 0. ``None`` if it can be no parent.

    A value without a span, which the format allows, names a trace but nothing in it that could be a parent.
    """
    match = _IS_TRACE(value)
    if match is None:
        return None
    trace_id, span_id = binascii.hexlify(match[1]), binascii.hexlify(match[2])
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceParent(trace_id, span_id, match[3][0] if match[3] else 0)


def render_trace_bin(traceparent: bytes) -> bytes:
    """Return a ``traceparent`` as the value of ``grpc-trace-bin`` on the wire (G-115); empty if it is not valid."""
    return spell_trace_bin(traceparent) if is_traceparent(traceparent) else b""


def spell_trace_bin(traceparent: bytes) -> bytes:
    """Return what ``render_trace_bin`` does of a ``traceparent`` that is known to be valid."""
    # Written out by hand: each call of our app passes here.
    raw = binascii.unhexlify(traceparent[3:55].replace(b"-", b""))
    return binascii.b2a_base64(b"\0\0%b\1%b\2%b" % (raw[:16], raw[16:24], raw[24:]), newline=False)[:_TEXT_LENGTH]


def parse_trace_bin(value: bytes) -> bytes | None:
    """Return the value of ``grpc-trace-bin``, base64 as on the wire, as a ``traceparent``; ``None`` if it is none."""
    decoded = decode_binary(value)
    parent = decode_trace(decoded[0]) if decoded else None
    return None if parent is None else render_traceparent(*parent)


def trace_of(headers: Headers, *, binary_first: bool) -> tuple[bytes, bytes]:
    """Return the ``traceparent`` and ``tracestate`` that fields of a call or an answer say; empty if nothing valid.

    Args:
        headers: The fields as they came.
        binary_first: They are metadata of a gRPC client or app, whose ``grpc-trace-bin`` counts before its
            ``traceparent`` (G-116…G-118). Of an HTTP message only the latter counts.
    """
    traceparent = tracestate = binary = b""
    for name, value in headers:
        if name not in TRACE_FIELDS:
            continue
        if name == b"traceparent":
            traceparent = traceparent or value
        elif name == b"tracestate":
            tracestate = tracestate or value
        else:
            binary = binary or value
    said: bytes | None = None
    if is_traceparent(traceparent):
        parent = None if traceparent.startswith(b"00") else parse_traceparent(traceparent)
        said = traceparent if parent is None else render_traceparent(*parent)
    if binary_first and binary:
        found = parse_trace_bin(binary)
        if found is not None:
            # A state belongs to the trace beside which it came; daprd loses it.
            kept = tracestate if said is None or said[:35] == found[:35] else b""
            return found, kept
    return (b"", b"") if said is None else (said, tracestate)


def trace_metadata(traceparent: bytes, tracestate: bytes = b"") -> Headers:
    """Return the three fields of metadata that carry one context (G-117): none if it is empty."""
    if not traceparent:
        return []
    fields: Headers = [(b"traceparent", traceparent)]
    if tracestate and len(tracestate) <= MAX_TRACESTATE_BYTES:
        fields.append((b"tracestate", tracestate))
    binary = render_trace_bin(traceparent)
    if binary:
        fields.append((TRACE_BIN, binary))
    return fields
