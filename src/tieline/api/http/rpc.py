"""The answer of a gRPC app as an HTTP client gets it (A-11, http.md §4.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import time
from typing import Any, Final

from tieline.api.http.errors import api_error, dated
from tieline.model import CallRecord, Headers, Reply, RpcReply, RpcStatus
from tieline.wire.errors_text import explained
from tieline.wire.grpc.codes import http_of_code
from tieline.wire.grpc.mapping import content_type_field, metadata_to_fields
from tieline.wire.grpc.trace import TRACE_BIN, parse_trace_bin

MALFORMED: Final = "ERR_MALFORMED_RESPONSE"
_JSON: Final = (b"content-type", b"application/json")


class RpcAnswers:
    """Turns answers of gRPC apps into HTTP's.

    Args:
        map_status: Codes become HTTP statuses by H-79; else any but OK is a 500.
        clock: Seconds since 1970.
    """

    def __init__(self, *, map_status: bool, clock: Callable[[], float] = time) -> None:
        self._map_status = map_status
        self._clock = clock

    def __call__(self, reply: Reply) -> Reply:
        """Return the answer in HTTP; what no gRPC app gave stays as it is. Trailers have no form there (G-60)."""
        if not isinstance(reply, RpcReply):
            return reply
        status = reply.rpc_status
        headers = metadata_to_fields(reply.headers)
        if not any(name == b"date" for name, _ in headers):
            headers.append(dated(self._clock()))  # an HTTP app would have said it
        headers += _trace(reply.headers)
        if status.code == 0:
            return Reply(200, headers + content_type_field(reply.content_type, reply.type_url), reply.body)
        reply.drop_body()
        try:
            body = status_json(status)
        except MalformedDetails as error:
            return api_error(500, MALFORMED, str(error))
        return Reply(http_of_code(status.code) if self._map_status else 500, [*headers, _JSON], body)


def rpc_fields(record: CallRecord) -> Headers:
    """Return the fields that tell the code of a failed call, and why if it was a sidecar that failed it."""
    fields = [(b"grpc-status", b"%d" % record.rpc_code)]
    if record.cause is not None:
        fields += explained(record.cause, record.hop, record.hint)
    return fields


class MalformedDetails(Exception):
    """The details of a status cannot be shown; the text says why."""


def status_json(status: RpcStatus) -> bytes:
    """Return a status as proto-JSON writes it: members that are zero or empty are left out (H-80).

    Raises:
        MalformedDetails: A detail has a type that is not known here, or is broken.
    """
    shown: dict[str, Any] = {}
    if status.code:
        shown["code"] = int(status.code)
    if status.message:
        shown["message"] = status.message
    if status.details and (details := _details(status.details)):
        shown["details"] = details
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _details(serialised: bytes) -> list[Any]:
    # Details are rare, and what reads them is large.
    from google.protobuf.json_format import Error, MessageToDict
    from google.protobuf.message import DecodeError

    from tieline._generated.google.rpc import error_details_pb2, status_pb2
    from tieline._generated.pool import POOL

    assert error_details_pb2.DESCRIPTOR.pool is POOL  # imported for the types that it adds to the pool
    try:
        status = status_pb2.Status.FromString(serialised)
    except DecodeError:
        return []  # no status at all: as if there were none
    try:
        return list(MessageToDict(status, descriptor_pool=POOL).get("details", ()))
    except (Error, DecodeError, TypeError, ValueError, RecursionError) as error:
        raise MalformedDetails(f"failed to serialize the status of the app: {error}") from None


def _trace(metadata: Headers) -> Headers:
    """Return the trace that an app says its answer belongs to, if it does (G-118)."""
    for name, value in metadata:
        if name == TRACE_BIN and (traceparent := parse_trace_bin(value)) is not None:
            return [(b"traceparent", traceparent)]
    return []
