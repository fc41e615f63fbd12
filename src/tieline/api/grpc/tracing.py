"""The trace that an RPC belongs to, out of three kinds of metadata (G-116)."""

from __future__ import annotations

from tieline.api.http.tracing import Tracer
from tieline.model import Headers
from tieline.wire.grpc.trace import TRACE_BIN, TRACE_FIELDS, render_trace_bin, spell_trace_bin, trace_metadata, trace_of
from tieline.wire.headers import Noted
from tieline.wire.trace_context import Context

BAGGAGE = b"baggage"


def begin(tracer: Tracer, noted: Noted | None) -> tuple[Context, bytes | None]:
    """Return the context that holds from here on, and the baggage that the answer repeats (G-120).

    Raises:
        BadBaggage: The RPC is to be refused.
    """
    if noted is None:
        return tracer.begin(None)
    said = {BAGGAGE: noted[BAGGAGE]} if BAGGAGE in noted else {}
    fields = [(name, value) for name in TRACE_FIELDS for value in noted.get(name, ())]
    if fields:
        traceparent, tracestate = trace_of(fields, binary_first=True)
        if traceparent:
            said[b"traceparent"] = [traceparent]
            if tracestate:
                said[b"tracestate"] = [tracestate]
    return tracer.begin(said)


def carry_on(headers: Headers, context: Context | None, noted: Noted | None) -> None:
    """Put the context of a call behind its metadata, in place; where nobody traces, what came, as it came."""
    if context is not None:
        headers += context.fields
    elif noted is not None:
        headers += [(name, value) for name in TRACE_FIELDS for value in noted.get(name, ())]


def told(context: Context) -> Headers:
    """Return the metadata that tell a client what an RPC's trace was (G-117)."""
    traceparent, tracestate = context.traceparent, context.tracestate
    if tracestate:
        return trace_metadata(traceparent, tracestate)
    return [(b"traceparent", traceparent), (TRACE_BIN, spell_trace_bin(traceparent))]


def told_in_binary(context: Context) -> tuple[bytes, bytes]:
    """Return the one entry that the answers of the sidecar's own RPCs have (G-119)."""
    return (TRACE_BIN, render_trace_bin(context.traceparent))
