"""A call that a gRPC client made, as an HTTP app is asked it."""

from __future__ import annotations

from tieline.model import Invocation, Rpc
from tieline.wire.grpc.mapping import content_type_field, metadata_to_fields
from tieline.wire.grpc.trace import trace_of
from tieline.wire.grpc.verbs import http_verb
from tieline.wire.method_path import encode_query


def as_http(call: Invocation, rpc: Rpc) -> Invocation:
    """Return the call with the verb of its HTTP extension, and its metadata as fields (G-13, G-59, G-60, G-118).

    Raises:
        BadRequest: It has no extension, or no verb that an app can be asked with.
    """
    verb = call.record.verb = http_verb(rpc.verb)
    headers = metadata_to_fields(call.headers) + content_type_field(rpc.content_type, rpc.type_url)
    traceparent, tracestate = trace_of(call.headers, binary_first=True)
    if traceparent:
        headers.append((b"traceparent", traceparent))
        if tracestate:
            headers.append((b"tracestate", tracestate))
    query = encode_query(call.query)
    return Invocation(
        call.target, verb, call.method, call.encoded, query, headers, call.body, call.length, call.record, rpc=rpc
    )
