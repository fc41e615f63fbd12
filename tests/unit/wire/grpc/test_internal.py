"""Dapr's internal messages, written and read by hand where protobuf is slow."""

from __future__ import annotations

from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb
from tieline.model import RpcStatus
from tieline.wire.grpc.internal import (
    PAYLOAD_BYTES,
    BrokenBody,
    Payloads,
    Said,
    frame_stream,
    map_of,
    metadata_of,
    payloads_of,
    request_head,
    response_head,
    split_first,
    split_trace,
    trace_entry,
)
from tieline.wire.grpc.messages import MessageReader

TEXT = st.text(max_size=40)
MAPS = st.dictionaries(TEXT, st.lists(TEXT | st.text(min_size=120, max_size=400), min_size=1, max_size=3), max_size=8)
AGAIN = st.tuples(TEXT, st.lists(TEXT, max_size=2))
SAID = st.builds(
    Said, TEXT, TEXT, TEXT, st.booleans(), st.none() | st.integers(0, 99), st.text(max_size=300)
)  # fmt: skip


@pytest.mark.rule("G-33", "G-10")
@given(MAPS, SAID)
def test_a_head_written_by_hand_is_what_protobuf_would_write(metadata: dict[str, list[str]], said: Said) -> None:
    head = pb.InternalInvokeRequest.FromString(request_head(metadata, said))

    assert map_of(head.metadata) == metadata
    assert (head.ver, head.message.method, head.message.content_type) == (pb.V1, said.method, said.content_type)
    assert head.message.HasField("data") == said.has_data
    assert head.message.data.type_url == (said.type_url if said.has_data else "")
    assert head.message.HasField("http_extension") == (said.verb is not None)
    if said.verb is not None:
        assert (head.message.http_extension.verb, head.message.http_extension.querystring) == (said.verb, said.query)


@given(MAPS, MAPS, st.integers(-9, 999))
def test_an_answer_written_by_hand_is_what_protobuf_would_write(
    headers: dict[str, list[str]], trailers: dict[str, list[str]], code: int
) -> None:
    head = pb.InternalInvokeResponse.FromString(response_head(RpcStatus(code, "text"), headers, trailers))

    assert (map_of(head.headers), map_of(head.trailers)) == (headers, trailers)
    assert head.HasField("status")
    assert (head.status.code, head.status.message) == (code, "text")


@pytest.mark.rule("G-34")
@given(st.binary(max_size=9000), st.integers(0, 300), st.none() | st.binary(max_size=300))
def test_a_body_is_cut_into_payloads_in_order(body: bytes, first: int, head: bytes | None) -> None:
    reader = MessageReader(None)
    reader.feed(frame_stream(b"" if head is None else request_head({"a": ["b"]}, SAID_NOTHING), body, first))
    messages = []
    while (message := reader.next()) is not None:
        messages.append(pb.InternalInvokeRequestStream.FromString(message))

    pieces = [one.payload for one in messages if one.HasField("payload")]
    assert b"".join(piece.data for piece in pieces) == body
    assert [piece.seq for piece in pieces] == list(range(first, first + payloads_of(len(body))))
    assert all(0 < len(piece.data) <= PAYLOAD_BYTES for piece in pieces)
    assert [one.HasField("request") for one in messages] == [True] + [False] * (len(messages) - 1)


SAID_NOTHING = Said("", "", "", False, None, "")


@pytest.mark.rule("G-47")
@given(
    MAPS,
    SAID,
    st.binary(max_size=300),
    st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=2)), max_size=4),
    st.booleans(),
)
def test_metadata_read_by_hand_are_what_protobuf_reads(
    metadata: dict[str, list[str]],
    said: Said,
    body: bytes,
    again: list[tuple[str, list[str]]],
    unknown: bool,
) -> None:
    """Also with entries that come twice, or have no values, and with fields that nobody knows."""
    raw = request_head(metadata, said)
    for name, values in again:
        more = pb.InternalInvokeRequest()
        more.metadata[name].values.extend(values)
        raw += more.SerializeToString()
    if unknown:
        raw += b"\xf8\x3f\x01" + b"\x3d\0\0\0\0"
    head = pb.InternalInvokeRequest.FromString(raw)
    stream = pb.InternalInvokeRequestStream(request=head)
    stream.payload.data = body

    assert metadata_of(head, raw, streamed=False) == map_of(head.metadata)
    streamed = stream.SerializeToString()
    assert metadata_of(stream.request, streamed, streamed=True) == map_of(head.metadata)


@given(st.binary(max_size=200))
def test_any_bytes_that_protobuf_reads_are_read_alike(raw: bytes) -> None:
    try:
        head = pb.InternalInvokeRequest.FromString(raw)
    except Exception:
        return

    assert metadata_of(head, raw, streamed=False) == map_of(head.metadata)


TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@given(MAPS, SAID, st.binary(max_size=PAYLOAD_BYTES))
def test_a_trace_stands_behind_any_head_and_can_be_told_from_it(
    metadata: dict[str, list[str]], said: Said, body: bytes
) -> None:
    metadata.pop("traceparent", None)
    static = request_head(metadata, said)
    message = frame_stream(static + trace_entry(TRACEPARENT), body, 0)[5:]

    split = split_first(message)
    read = pb.InternalInvokeRequestStream.FromString(message)

    assert split is not None
    assert split[1] == body == read.payload.data
    assert split_trace(split[0]) == (static, TRACEPARENT)
    assert map_of(read.request.metadata) == {**metadata, "traceparent": [TRACEPARENT.decode()]}


@given(st.binary(max_size=60))
def test_what_is_no_first_message_as_most_are_is_left_to_protobuf(raw: bytes) -> None:
    split = split_first(raw)

    if split is not None:
        head, data = split
        assert raw.startswith(b"\x0a")
        assert raw.endswith(data)
        assert len(head) + len(data) < len(raw)


def test_a_later_number_or_more_than_a_payload_is_left_to_protobuf() -> None:
    head = request_head({"a": ["b"]}, SAID_NOTHING)

    assert split_first(frame_stream(head, b"x", 3)[5:]) is None
    assert split_first(frame_stream(head, b"x", 0)[5:] + b"\x12\x03\x0a\x01y") is None
    assert split_first(frame_stream(None, b"x", 0)[5:]) is None


# ── later messages ─────────────────────────────────────────────────────────────────────────────────
def a_later(kind: type[Stream], **fields: str) -> Stream:
    later = kind()
    later.payload.data = b"x"
    for name, value in fields.items():
        head = later.request if isinstance(later, pb.InternalInvokeRequestStream) else later.response
        if name in ("metadata", "headers", "trailers"):
            getattr(head, name)[value].values.append("1")
        else:
            getattr(head, name).SetInParent()
    return later


Stream = TypeVar("Stream", pb.InternalInvokeRequestStream, pb.InternalInvokeResponseStream)


@pytest.mark.rule("G-37")
@pytest.mark.parametrize("name", ["status", "headers", "message"])
def test_a_later_message_of_an_answer_has_no_head(name: str) -> None:
    later = a_later(pb.InternalInvokeResponseStream, **{name: "X-A"})

    with pytest.raises(BrokenBody) as caught:
        Payloads().of_response(later.SerializeToString())

    assert caught.value.text == "response metadata found in non-leading chunk"


@pytest.mark.rule("G-37")
@pytest.mark.parametrize("fields", [{}, {"trailers": "X-A"}])
def test_a_later_message_of_an_answer_may_have_one_that_says_nothing(fields: dict[str, str]) -> None:
    later = a_later(pb.InternalInvokeResponseStream, **fields)
    later.response.SetInParent()

    assert Payloads().of_response(later.SerializeToString()) == b"x"


@pytest.mark.rule("G-42")
@pytest.mark.parametrize("name", ["metadata", "message"])
def test_a_later_message_of_a_request_has_no_head(name: str) -> None:
    later = a_later(pb.InternalInvokeRequestStream, **{name: "X-A"})

    with pytest.raises(BrokenBody) as caught:
        Payloads().of_request(later.SerializeToString())

    assert caught.value.text == "request metadata found in non-leading chunk"


@pytest.mark.rule("G-42")
def test_a_later_message_of_a_request_may_have_one_that_says_nothing() -> None:
    later = a_later(pb.InternalInvokeRequestStream)
    later.request.ver = pb.V1

    assert Payloads().of_request(later.SerializeToString()) == b"x"
