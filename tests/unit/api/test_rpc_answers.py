"""What an HTTP client gets of a gRPC app's answer."""

from __future__ import annotations

import json
from typing import Final

import pytest
from google.protobuf.message import Message

from tieline._generated.google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from tieline._generated.google.rpc.status_pb2 import Status
from tieline.api.http.errors import ErrorReply
from tieline.api.http.rpc import MalformedDetails, RpcAnswers, rpc_fields, status_json
from tieline.model import CallRecord, Cause, Headers, Hop, Reply, RpcReply, RpcStatus

TRACE_BIN = b"AAAK92UZFs1D3YRI6yEcgDGcAbeta3FpIDMxAgE"


NOW: Final = 784111777.0
DATE: Final = (b"date", b"Sun, 06 Nov 1994 08:49:37 GMT")


def answers(*, map_status: bool) -> RpcAnswers:
    return RpcAnswers(map_status=map_status, clock=lambda: NOW)


def details_of(*details: Message) -> bytes:
    status = Status(code=3, message="bad")
    for detail in details:
        status.details.add().Pack(detail)
    return status.SerializeToString()


@pytest.mark.rule("H-81", "G-59", "G-60")
def test_a_good_answer_is_its_data_with_the_metadata_as_headers() -> None:
    metadata: Headers = [
        (b"x-one", b"a"), (b"x-one", b"b"), (b"thing-bin", b"AAEC"), (b"dapr-thing", b"t"), (b"grpc-foo", b"f"),
        (b"grpc-accept-encoding", b"gzip"), (b"content-length", b"99"), (b"grpc-trace-bin", TRACE_BIN),
    ]  # fmt: skip
    trailers: Headers = [(b"app-trailer", b"t")]
    reply = RpcReply(RpcStatus(0), metadata, b"data", trailers, content_type="text/x")

    for map_status in (False, True):
        answer = answers(map_status=map_status)(reply)

        assert (answer.status, answer.body, answer.trailers) == (200, b"data", None)
        assert answer.headers == [
            (b"x-one", b"a"),
            (b"x-one", b"b"),
            (b"dapr-thing", b"t"),
            (b"dapr-grpc-foo", b"f"),
            DATE,
            (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            (b"content-type", b"text/x"),
        ]


@pytest.mark.rule("A-11", "H-79", "H-80")
def test_an_error_is_a_500_unless_statuses_are_mapped() -> None:
    reply = RpcReply(RpcStatus(5, "gone"), [(b"x-a", b"1")], b"", [(b"x-t", b"2")])

    plain, mapped = answers(map_status=False)(reply), answers(map_status=True)(reply)

    assert (plain.status, mapped.status) == (500, 404)
    assert plain.body == mapped.body == b'{"code":5,"message":"gone"}'
    assert plain.headers == mapped.headers == [(b"x-a", b"1"), DATE, (b"content-type", b"application/json")]


def test_a_date_of_the_apps_own_stays() -> None:
    reply = RpcReply(RpcStatus(0), [(b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")])

    assert answers(map_status=False)(reply).headers == reply.headers


@pytest.mark.rule("H-80")
def test_members_that_are_empty_are_left_out_and_text_is_as_it_is() -> None:
    assert status_json(RpcStatus(2)) == b'{"code":2}'
    assert status_json(RpcStatus(2, '<ü> "q" \n')) == '{"code":2,"message":"<ü> \\"q\\" \\n"}'.encode()
    assert json.loads(status_json(RpcStatus(20, "\udcff")))["code"] == 20


@pytest.mark.rule("H-80")
def test_details_are_written_as_proto_json_writes_them() -> None:
    retry = RetryInfo()
    retry.retry_delay.seconds, retry.retry_delay.nanos = 1, 500_000_000
    details = details_of(
        ErrorInfo(reason="BECAUSE", domain="app.test", metadata={"k": "v"}),
        retry,
        BadRequest(field_violations=[BadRequest.FieldViolation(field="f")]),
    )

    shown = json.loads(status_json(RpcStatus(3, "bad", details)))

    assert shown == {
        "code": 3,
        "message": "bad",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "BECAUSE",
                "domain": "app.test",
                "metadata": {"k": "v"},
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.500s"},
            {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": "f"}]},
        ],
    }


@pytest.mark.rule("H-80")
@pytest.mark.parametrize(
    ("type_url", "value"),
    [
        ("type.googleapis.com/no.such.Type", b"\x0a\x01x"),
        ("type.googleapis.com/google.rpc.ErrorInfo", b"\xff\xff"),
        ("", b"x"),
        ("nonsense", b""),
    ],
)
def test_a_detail_that_cannot_be_shown_makes_the_answer_malformed(type_url: str, value: bytes) -> None:
    message = Status()
    message.details.add(type_url=type_url, value=value)
    status = RpcStatus(3, "bad", message.SerializeToString())

    with pytest.raises(MalformedDetails):
        status_json(status)
    answer = RpcAnswers(map_status=True)(RpcReply(status, []))

    assert isinstance(answer, ErrorReply)
    assert (answer.status, answer.code) == (500, "ERR_MALFORMED_RESPONSE")
    assert isinstance(answer.body, bytes)
    assert set(json.loads(answer.body)) == {"errorCode", "message"}


def test_details_that_are_no_status_at_all_are_left_out() -> None:
    assert status_json(RpcStatus(3, "bad", b"\xff\xff\xff")) == b'{"code":3,"message":"bad"}'


def test_what_no_grpc_app_answered_stays_as_it_is() -> None:
    reply = Reply(418, [])

    assert RpcAnswers(map_status=True)(reply) is reply


@pytest.mark.rule("A-11", "H-83")
def test_the_code_stands_in_a_header_and_beside_it_why_a_sidecar_failed_the_call() -> None:
    record = CallRecord()
    record.rpc_code = 5
    assert rpc_fields(record) == [(b"grpc-status", b"5")]

    record.rpc_code, record.cause, record.hop, record.hint = 14, Cause.APP_UNREACHABLE, Hop.APP, "start the app"
    assert rpc_fields(record) == [
        (b"grpc-status", b"14"),
        (b"tieline-cause", b"app-unreachable"),
        (b"tieline-hop", b"app"),
        (b"tieline-hint", b"start the app"),
    ]
