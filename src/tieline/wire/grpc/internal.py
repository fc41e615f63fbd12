"""Dapr's internal messages: a call from sidecar to sidecar as ``CallLocalStream`` and ``CallLocal`` carry it.

On a stream, the first message of either side has the head, and all of them may have a *payload*: a piece of the body
and its number. The two directions look alike, field 1 being the head and field 2 the payload, so that one encoder and
one reader do for both. Import this only when a call needs it: protobuf takes long to load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeRequest
from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb
from tieline.errors import GrpcCode
from tieline.model import RpcStatus
from tieline.wire.grpc.mapping import InternalMap
from tieline.wire.grpc.messages import BadMessages, why_unreadable
from tieline.wire.grpc.protobuf import Odd, long_number, varint
from tieline.wire.grpc.verbs import VERBS

SERVICE: Final = b"/dapr.proto.internals.v1.ServiceInvocation/"
STREAM_PATH: Final = SERVICE + b"CallLocalStream"
UNARY_PATH: Final = SERVICE + b"CallLocal"
PAYLOAD_BYTES: Final = 2048
"""Longest payload that is sent; longer ones are understood (G-34)."""
NUMBERS: Final = {verb: number for number, verb in enumerate(VERBS)}
"""Of the verbs in the HTTP extension."""
V1: Final = pb.V1

REMEMBERED: Final = 1024
"""Entries, and what is asked besides, that are kept serialised;"""
MAX_REMEMBERED: Final = 256
"""with values of so many characters at most."""
_VER_1: Final = b"\x08\x01"
_METADATA: Final = b"\x12"
_MESSAGE: Final = b"\x1a"
_HEADERS: Final = b"\x12"
_TRAILERS: Final = b"\x1a"
_HEAD: Final = b"\x0a"  # field 1, a message or bytes
_PAYLOAD: Final = b"\x12"  # field 2
_SEQ: Final = b"\x10"  # field 2, a number

TRACE_BYTES: Final = 74
"""Length of the entry of a trace context."""
_TRACE_ENTRY: Final = b"\x12\x48\x0a\x0btraceparent\x12\x39\x0a\x37%b"
_TRACE_BEGINS: Final = _TRACE_ENTRY[:-2]

RequestHead: TypeAlias = pb.InternalInvokeRequest
ResponseHead: TypeAlias = pb.InternalInvokeResponse
_M = TypeVar("_M", bound=Message)


class Said(NamedTuple):
    """What a request's head says besides its metadata.

    Attributes:
        content_type, type_url: Of the body.
        has_data: There was a message of data, if only an empty one, as gRPC clients have it.
        verb: Number in the HTTP extension; ``None`` without one.
        query: Raw.
    """

    method: str
    content_type: str
    type_url: str
    has_data: bool
    verb: int | None
    query: str


# ── out ──


def request_head(metadata: InternalMap, said: Said, body: bytes | None = None) -> bytes:
    """Return a serialised ``InternalInvokeRequest``; with its body only for ``CallLocal`` (G-33)."""
    message = _said(said) if body is None else _message(said, body)
    return b"".join([_VER_1, *_entries(metadata, _METADATA), _MESSAGE, varint(len(message)), message])


def _message(said: Said, body: bytes | None) -> bytes:
    message = InvokeRequest(method=said.method, content_type=said.content_type)
    if body is not None:
        message.data.type_url = said.type_url
        message.data.value = body
    if said.verb is not None:
        message.http_extension.verb = said.verb  # type: ignore[assignment]  # any number is passed on
        message.http_extension.querystring = said.query
    return message.SerializeToString()


@lru_cache(maxsize=REMEMBERED)
def _said(said: Said) -> bytes:
    return _message(said, b"" if said.has_data else None)


def response_head(
    status: RpcStatus,
    headers: InternalMap,
    trailers: InternalMap,
    *,
    content_type: str = "",
    type_url: str = "",
    has_message: bool = True,
    has_data: bool = False,
    body: bytes = b"",
) -> bytes:
    """Return a serialised ``InternalInvokeResponse``; with its body only for ``CallLocal``.

    The status is there even if it is all zero, since by it the other end knows the head (G-36).
    """
    head = pb.InternalInvokeResponse()
    head.status.SetInParent()
    if status.details:
        try:
            # google.rpc.Status has the same fields.
            head.status.MergeFromString(status.details)
        except DecodeError:
            head.status.Clear()
            head.status.SetInParent()
    head.status.code = status.code
    head.status.message = status.message
    if has_message:
        message = head.message
        message.content_type = content_type
        if has_data or body:
            message.data.type_url = type_url
            message.data.value = body
    return b"".join([head.SerializeToString(), *_entries(headers, _HEADERS), *_entries(trailers, _TRAILERS)])


def trace_entry(traceparent: bytes) -> bytes:
    """Return the entry of the metadata that 55 bytes of ``traceparent`` are; it may stand behind any head."""
    return _TRACE_ENTRY % traceparent


def split_trace(head: bytes) -> tuple[bytes, bytes]:
    """Return a head without the ``trace_entry`` at its end, and the ``traceparent``; empty without one.

    What looks like an entry may be the end of something else: whoever goes by the rest must know that it is whole.
    """
    if head[-TRACE_BYTES:-55] == _TRACE_BEGINS:
        return head[:-TRACE_BYTES], head[-55:]
    return head, b""


def split_first(raw: bytes) -> tuple[bytes, bytes] | None:
    """Return head and data of a stream's first message as most are written; ``None`` for any other."""
    try:
        if raw[0] != _HEAD[0]:
            return None
        size, start = long_number(raw, 1)
        end = start + size
        if end == len(raw):
            return raw[start:], b""
        if raw[end] != _PAYLOAD[0]:
            return None
        size, at = long_number(raw, end + 1)
        if at + size != len(raw) or raw[at] != _HEAD[0]:
            return None
        size, at = long_number(raw, at + 1)
    except (IndexError, Odd):
        return None
    return (raw[start:end], raw[at:]) if at + size == len(raw) else None


def _entries(source: InternalMap, tag: bytes) -> list[bytes]:
    """Return the entries of a map serialised, each behind its tag."""
    return [
        tag + (_entry(name, values[0]) if len(values) == 1 else _make_entry(name, values))
        for name, values in source.items()
    ]


@lru_cache(maxsize=REMEMBERED)
def _remembered(name: str, value: str) -> bytes:
    return _make_entry(name, [value])


def _entry(name: str, value: str) -> bytes:
    """Return an entry of one value, with its length before it; most calls have the same."""
    return _remembered(name, value) if len(value) <= MAX_REMEMBERED else _make_entry(name, [value])


def _make_entry(name: str, values: Sequence[str]) -> bytes:
    inner = b""
    for value in values:
        raw = value.encode()
        inner += b"\x0a%s%s" % (varint(len(raw)), raw)
    key = name.encode()
    entry = b"\x0a%s%s\x12%s%s" % (varint(len(key)), key, varint(len(inner)), inner)
    return varint(len(entry)) + entry


def frame_stream(head: bytes | None, body: bytes, seq: int) -> bytes:
    """Return the messages, framed and joined, that carry a head and a piece of a body.

    Args:
        head: Serialised, for the first message; ``None`` for later ones.
        seq: Number of the first payload; each takes one, ``payloads_of`` says how many they are.
    """
    size = len(body)
    first = b"" if head is None else b"\x0a%b%b" % (varint(len(head)), head)
    if not seq and 0x80 <= size <= PAYLOAD_BYTES:
        # Most calls, without a function for each number: what a number below 16384 takes is two bytes.
        return b"\0%b%b\x12%c%c\x0a%c%c%b" % (
            (len(first) + size + 6).to_bytes(4, "big"), first,
            size + 3 & 0x7F | 0x80, size + 3 >> 7, size & 0x7F | 0x80, size >> 7, body,
        )  # fmt: skip
    if size <= PAYLOAD_BYTES:
        message = first + _payload(body, seq) if size else first
        return b"\0%s%s" % (len(message).to_bytes(4, "big"), message)
    out: list[bytes] = []
    for at in range(0, size, PAYLOAD_BYTES):
        message = _payload(body[at : at + PAYLOAD_BYTES], seq)
        if first:
            message = first + message
            first = b""
        out += (b"\0", len(message).to_bytes(4, "big"), message)
        seq += 1
    return b"".join(out)


def payloads_of(size: int) -> int:
    """Return into how many payloads so many bytes are cut."""
    return -(-size // PAYLOAD_BYTES)


def _payload(data: bytes, seq: int) -> bytes:
    size = len(data)
    inner = b"%s%s%s" % (_HEAD, varint(size), data)
    if seq:
        inner += _SEQ + varint(seq)
    return b"%s%s%s" % (_PAYLOAD, varint(len(inner)), inner)


# ── in ──


def map_of(entries: Mapping[str, pb.ListStringValue]) -> InternalMap:
    """Return a map of a message that was read; names without values are left out (G-47)."""
    found: InternalMap = {}
    for name, one in entries.items():
        values = list(one.values)
        if values:
            found[name] = values
    return found


def metadata_of(head: RequestHead, raw: bytes, *, streamed: bool) -> InternalMap:
    """Return the metadata of a request that was read from ``raw``, without asking protobuf for each entry again."""
    return _quick_map(raw, _METADATA[0], streamed=streamed) or map_of(head.metadata)


def headers_of(head: ResponseHead, raw: bytes, *, streamed: bool) -> InternalMap:
    """Return the headers of an answer that was read from ``raw``; see ``metadata_of``."""
    return _quick_map(raw, _HEADERS[0], streamed=streamed) or map_of(head.headers)


def _quick_map(raw: bytes, tag: int, *, streamed: bool) -> InternalMap | None:
    """Return the map of a head whose entries stand behind ``tag``; ``None`` if it is not as sidecars write it.

    Entries that came before are known by their bytes; so nobody may change the lists. ``raw`` was read by protobuf
    before, and so is in order.
    """
    found: InternalMap = {}
    try:
        at, end = _head_within(raw) if streamed else (0, len(raw))
        while at < end:
            key = raw[at]
            at += 1
            if key & 7 == 0 and key < 0x80:
                while raw[at] > 0x7F:
                    at += 1
                at += 1
                continue
            if key & 7 != 2 or key > 0x7F:
                return None
            size = raw[at]
            at += 1
            if size > 0x7F:
                size, at = long_number(raw, at - 1)
            if key == tag:
                entry = raw[at : at + size]
                name, values = _known_entry(entry) if size <= MAX_REMEMBERED else _read_entry(entry)
                if values:
                    found[name] = values
                else:
                    found.pop(name, None)
            at += size
    except Odd:
        return None
    return found


def _head_within(raw: bytes) -> tuple[int, int]:
    """Return where the head of a stream's message begins and ends; at most a payload may follow it."""
    if raw[:1] != _HEAD:
        raise Odd
    size, start = long_number(raw, 1)
    end = start + size
    if end < len(raw):
        if raw[end] != _PAYLOAD[0]:
            raise Odd
        size, at = long_number(raw, end + 1)
        if at + size != len(raw):
            raise Odd
    return start, end


def _read_entry(entry: bytes) -> tuple[str, list[str]]:
    size = len(entry)
    if 6 < size < 0x80 and entry[0] == 0x0A:
        # As nearly all are: a name, and a list of one value. Each call has one of its own, its trace.
        at = 2 + entry[1]
        if at + 4 <= size and entry[at] == 0x12 and entry[at + 2] == 0x0A:
            end = at + 4 + entry[at + 3]
            if end == size == at + 2 + entry[at + 1]:
                return entry[2:at].decode(), [entry[at + 4 :].decode()]
    one = pb.InternalInvokeRequest.MetadataEntry.FromString(entry)
    return one.key, list(one.value.values)


_known_entry: Final = lru_cache(REMEMBERED)(_read_entry)


def read_said(message: InvokeRequest) -> Said:
    """Return what the ``InvokeRequest`` of a head says."""
    has_extension = message.HasField("http_extension")
    extension = message.http_extension
    return Said(
        message.method,
        message.content_type,
        message.data.type_url,
        message.HasField("data"),
        int(extension.verb) if has_extension else None,
        extension.querystring if has_extension else "",
    )


class BrokenBody(Exception):
    """The messages of a body are not what they should be.

    Attributes:
        text: In the words that daprd has for it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Payloads:
    """The payloads of one stream, as they come: checks that they are in order, and alone after the first message."""

    __slots__ = ("_expected",)

    def __init__(self) -> None:
        self._expected = 0

    def data_of(self, message: pb.InternalInvokeRequestStream | pb.InternalInvokeResponseStream) -> bytes:
        """Return the bytes that a message brings; none without a payload.

        Raises:
            BrokenBody: It is not the next.
        """
        if not message.HasField("payload"):
            return b""
        payload = message.payload
        if payload.seq != self._expected:
            raise BrokenBody(f"invalid sequence number received: {payload.seq} (expected: {self._expected})")
        self._expected += 1
        return payload.data

    def of_request(self, raw: bytes) -> bytes:
        """Return the bytes that a later message of a request brings.

        Raises:
            BrokenBody: It is no message, has a head, or is not the next.
        """
        message = _read_later(pb.InternalInvokeRequestStream, raw, request=True)
        if message.HasField("request") and (message.request.metadata or message.request.HasField("message")):
            raise BrokenBody("request metadata found in non-leading chunk")
        return self.data_of(message)

    def of_response(self, raw: bytes) -> bytes:
        """Return the bytes that a later message of an answer brings.

        Raises:
            BrokenBody: It is no message, has a head, or is not the next.
        """
        message = _read_later(pb.InternalInvokeResponseStream, raw, request=False)
        if message.HasField("response"):
            head = message.response
            if head.HasField("status") or head.headers or head.HasField("message"):
                raise BrokenBody("response metadata found in non-leading chunk")
        return self.data_of(message)


def _read_later(kind: type[_M], raw: bytes, *, request: bool) -> _M:
    try:
        return read_message(kind, raw, request=request)
    except BadMessages as error:
        raise BrokenBody(f"error receiving message: rpc error: code = Internal desc = {error.text}") from error


def read_message(kind: type[_M], raw: bytes, *, request: bool) -> _M:
    """Read a message.

    Raises:
        BadMessages: It is none, in the words that gRPC has at either end (G-124).
    """
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        where = "error unmarshalling request" if request else "failed to unmarshal the received message"
        raise BadMessages(GrpcCode.INTERNAL, f"grpc: {where}: {why_unreadable(error)}") from None
