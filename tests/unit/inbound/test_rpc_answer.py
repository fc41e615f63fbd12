"""The answer of a gRPC app between two Tielines: as the callee's sidecar sends it, and the caller's reads it."""

from __future__ import annotations

import pytest

from tieline._generated.google.rpc.error_details_pb2 import ErrorInfo
from tieline._generated.google.rpc.status_pb2 import Status
from tieline.inbound.server import rpc_answer
from tieline.model import CallRecord, Cause, Headers, Hop, Reply, RpcReply, RpcStatus
from tieline.outbound.peer import read_rpc
from tieline.wire.headers import check_h2_fields


async def across(reply: RpcReply, record: CallRecord) -> tuple[RpcReply, CallRecord]:
    """Return the answer as it arrives, and the caller's record."""
    sent = rpc_answer(reply, record)
    assert sent.status == 200
    assert sent.headers[0][0] == b"tieline-grpc-status"
    check_h2_fields(sent.headers)
    arrived = CallRecord()
    return await read_rpc(Reply(200, list(sent.headers), sent.body), arrived), arrived


METADATA: Headers = [(b"x-one", b"a"), (b"x-one", b"b"), (b"thing-bin", b"AAEC"), (b"grpc-trace-bin", b"AA")]


@pytest.mark.parametrize("type_url", ["", "type.googleapis.com/tést.Thing"])
async def test_a_good_answer_arrives_as_it_was(type_url: str) -> None:
    reply = RpcReply(RpcStatus(0), METADATA, b"data", [(b"x-t", b"t")], content_type="text/x", type_url=type_url)
    framing: Headers = [(b"content-length", b"99"), (b"connection", b"close"), (b"tieline-cause", b"forged")]
    reply.headers = reply.headers + framing

    arrived, record = await across(reply, CallRecord())

    assert arrived.rpc_status.code == 0
    assert arrived.headers == METADATA
    assert (arrived.body, arrived.content_type, arrived.type_url) == (b"data", "text/x", type_url)
    assert (record.rpc_code, record.cause) == (0, None)


async def test_an_error_arrives_with_its_details() -> None:
    status = Status(code=3, message="bad")
    status.details.add().Pack(ErrorInfo(reason="BECAUSE"))
    reply = RpcReply(RpcStatus(5, "gone ü", status.SerializeToString()), METADATA)

    arrived, record = await across(reply, CallRecord())

    assert (arrived.rpc_status.code, arrived.rpc_status.message) == (5, "gone ü")
    assert Status.FromString(arrived.rpc_status.details).details == status.details
    assert arrived.headers == METADATA
    assert (record.rpc_code, record.cause) == (5, None)


@pytest.mark.parametrize("details", [b"", b"\xff\xff"])
async def test_an_error_without_details_arrives_without(details: bytes) -> None:
    arrived, _ = await across(RpcReply(RpcStatus(20, "odd", details), []), CallRecord())

    assert arrived.rpc_status == RpcStatus(20, "odd")


@pytest.mark.rule("H-83")
async def test_why_a_sidecar_failed_the_call_in_the_apps_place_arrives_too() -> None:
    record = CallRecord()
    record.cause, record.hop, record.hint = Cause.APP_UNREACHABLE, Hop.APP, "start it"

    _, told = await across(RpcReply(RpcStatus(14, "refused"), []), record)

    assert (told.cause, told.hop, told.hint) == (Cause.APP_UNREACHABLE, Hop.APP, "start it")
    assert told.detail == "rpc error: code = Unavailable desc = refused"


async def test_a_body_that_is_no_status_is_told_as_text() -> None:
    record = CallRecord()

    arrived = await read_rpc(Reply(200, [(b"tieline-grpc-status", b"5")], b"\xffno status"), record)

    assert arrived.rpc_status.code == 5
    assert "no status" in arrived.rpc_status.message
