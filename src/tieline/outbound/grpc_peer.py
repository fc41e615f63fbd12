"""A call to another sidecar as gRPC: to a daprd, and by ``InvokeService`` to a Tieline as well."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from tieline import __version__
from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb
from tieline.errors import (
    AppBroken,
    GrpcCode,
    PeerFailed,
    PeerLost,
    PeerProtocol,
    PeerRefused,
    TielineError,
    TimedOut,
    TooLarge,
)
from tieline.middleware.attempts import KeptBody
from tieline.model import AnyBody, CallRecord, Cause, Endpoint, Headers, Hop, Invocation, Reply, RpcReply, RpcStatus
from tieline.net.backpressure import BodyStream, NoSource
from tieline.net.http2_client import ClientExchange, Http2Client, StreamCut
from tieline.net.payloads import Incoming, Outgoing, collect
from tieline.wire.errors_text import MAX_HINT_BYTES
from tieline.wire.grpc.failure import explain_by
from tieline.wire.grpc.internal import (
    NUMBERS,
    STREAM_PATH,
    UNARY_PATH,
    BrokenBody,
    Payloads,
    ResponseHead,
    Said,
    frame_stream,
    headers_of,
    map_of,
    read_message,
    request_head,
    split_first,
    trace_entry,
)
from tieline.wire.grpc.mapping import (
    RESERVED,
    InternalMap,
    added_to_internal,
    content_type_field,
    fields_to_internal,
    from_internal,
    is_grpc_origin,
    metadata_to_internal,
)
from tieline.wire.grpc.messages import PREFIX, BadMessages, MessageReader, frame, is_one_message
from tieline.wire.grpc.protobuf import KNOWN_HEADS, MAX_KNOWN_HEAD, Memory
from tieline.wire.grpc.status import (
    CONTENT_TYPE,
    OK,
    is_grpc,
    read_status,
    render_status,
    status_of_http,
    status_of_reset,
)
from tieline.wire.grpc.timeout import render_timeout
from tieline.wire.grpc.trace import TRACE_FIELDS, trace_metadata, trace_of
from tieline.wire.http2.hpack import Fields, Likely, literals
from tieline.wire.trace_context import TRACEPARENT_BYTES

NO_HEAD: Final = "response does not contain the required fields in the leading chunk"
_BODILESS: Final = frozenset([b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"])
"""Without a body, these have no length either."""
_ANNOUNCED: Final = (
    (b"content-type", CONTENT_TYPE, False),
    (b"te", b"trailers", False),
    (b"user-agent", f"tieline/{__version__}".encode(), False),
    (b"grpc-accept-encoding", b"identity, gzip", False),
)
_PLAIN: Final[Headers] = [(b"content-type", CONTENT_TYPE)]
_DONE: Final = render_status(OK)
"""Head and trailers of an answer of Tieline's that is the app's, and good."""
_PASSING: Final = frozenset({GrpcCode.UNAVAILABLE, GrpcCode.UNAUTHENTICATED})
"""With these a peer, or what stands before it, says that it may go better later (G-40)."""


class GrpcPeer:
    """Makes calls on connections to peers.

    Args:
        added: Fields put on each call: who calls, and through which sidecar.
        limit: Longest message in bytes (G-2), and longest answer of a gRPC app; ``None`` for no limit.
    """

    def __init__(self, *, added: Headers, limit: int | None) -> None:
        self._added = added
        self._limit = limit
        self._heads: dict[_Key, bytes] = {}
        self._places: dict[Endpoint, Likely] = {}
        self._answers: Memory[_Answer] = Memory()

    async def call(self, connection: Http2Client, call: Invocation, endpoint: Endpoint) -> Reply:
        """Make a call, and once more as older sidecars know it if the peer knows no streams (G-39).

        Raises:
            PeerRefused, PeerLost, PeerProtocol, PeerFailed, TimedOut: See there.
        """
        head = self._known_head(call)
        if head is None:
            head = request_head(*self._head(call))
        asked = call.body
        body: AnyBody = frame_stream(head, asked, 0) if isinstance(asked, bytes) else Outgoing(head, asked)
        fields: Fields | Likely
        tail = b""
        if connection.h2.peer_native:
            fields = self._place(endpoint)
            timeout = _left(call)
            if timeout:
                tail = literals([(b"grpc-timeout", timeout)])
        else:
            fields = self._fields(connection, call, endpoint, STREAM_PATH)
        try:
            return await _Rpc(connection, self._limit, call.record, self._answers).stream(fields, tail, body, call)
        except _Unimplemented:
            whole = await _again_whole(call, self._limit)
        message = frame(request_head(*self._head(call), whole))
        try:
            return await _Rpc(connection, self._limit, call.record, self._answers).unary(
                self._fields(connection, call, endpoint, UNARY_PATH), message, call
            )
        except _Unimplemented as error:
            raise PeerFailed(error.text, grpc_code=GrpcCode.UNIMPLEMENTED) from None

    # ── what is sent ───────────────────────────────────────────────────────────────────────────────
    def _known_head(self, call: Invocation) -> bytes | None:
        """Return the head of a gRPC client's call, most of which is that of calls before; ``None`` for others.

        Its trace, which is new each time, stands at the end.
        """
        rpc = call.rpc
        headers = call.headers
        if rpc is None or not headers or headers[-1][0] != b"traceparent":
            return None
        traceparent = headers[-1][1]
        if len(traceparent) != TRACEPARENT_BYTES or not traceparent.isascii():
            return None
        rest = tuple(headers[:-1])
        key = (rest, call.target.app_id, call.method, call.query, rpc.verb, rpc.content_type, rpc.type_url)
        head = self._heads.get(key)
        if head is None:
            if any(name in TRACE_FIELDS for name, _ in rest):
                return None
            metadata, said = self._head(call)
            del metadata["traceparent"]
            head = request_head(metadata, said)
            if len(head) <= MAX_KNOWN_HEAD:
                if len(self._heads) >= KNOWN_HEADS:
                    self._heads.clear()
                self._heads[key] = head
        return head + trace_entry(traceparent)

    def _place(self, endpoint: Endpoint) -> Likely:
        """Return the fields of a call to another Tieline: they are always the same, its time-out stands behind them."""
        fields = self._places.get(endpoint)
        if fields is None:
            if len(self._places) >= KNOWN_HEADS:
                self._places.clear()
            fields = self._places[endpoint] = Likely(_plain_fields(endpoint, STREAM_PATH))
        return fields

    def _head(self, call: Invocation) -> tuple[InternalMap, Said]:
        """Return the call as the head of a request (G-33), with what the caller's sidecar adds."""
        rpc = call.rpc
        method = _text(call.method)
        query = _text(call.query)
        if rpc is not None:
            metadata = metadata_to_internal(call.headers)
            said = Said(method, rpc.content_type, rpc.type_url, True, rpc.verb, query)
        else:
            metadata = fields_to_internal(call.headers, length=call.length)
            if call.length == 0 and call.verb not in _BODILESS:
                metadata["Content-Length"] = ["0"]
            content_type = metadata.get("Content-Type", ("",))[0]
            said = Said(method, content_type, "", False, NUMBERS.get(call.verb, 0), query)
        callee = call.target.app_id.encode("utf-8", "surrogateescape")
        added_to_internal(metadata, [*self._added, (b"dapr-callee-app-id", callee), (b"destination-app-id", callee)])
        return metadata, said

    def _fields(self, connection: Http2Client, call: Invocation, endpoint: Endpoint, path: bytes) -> Fields:
        fields = _plain_fields(endpoint, path)
        rpc = call.rpc
        timeout = _left(call)
        if timeout:
            fields.append((b"grpc-timeout", timeout, True))
        if not connection.h2.peer_native:  # a Tieline reads the metadata of the call
            traceparent, _ = trace_of(call.headers, binary_first=rpc is not None)
            fields += [(name, value, True) for name, value in trace_metadata(traceparent)]
        return fields


_Key: TypeAlias = tuple[tuple[tuple[bytes, bytes], ...], str, bytes, bytes, int | None, str, str]
"""What the head of a call depends on, but for its trace."""


class _Answer(NamedTuple):
    """What a head says with which a gRPC app answered well."""

    headers: Headers
    trailers: Headers
    content_type: str
    type_url: str


class _Unimplemented(Exception):
    """The peer does not know the method."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Rpc:
    """One RPC to a peer."""

    __slots__ = ("_alarm", "_begun", "_connection", "_known", "_limit", "_record", "_said")

    def __init__(self, connection: Http2Client, limit: int | None, record: CallRecord, known: Memory[_Answer]) -> None:
        self._connection = connection
        self._known = known
        self._limit = limit
        self._record = record
        self._said: dict[bytes, bytes] = {}
        """What another Tieline says that answers in its app's place."""
        self._alarm: asyncio.TimerHandle | None = None
        self._begun = False
        """Something of an answer has come."""

    async def stream(self, fields: Fields | Likely, tail: bytes, body: AnyBody, call: Invocation) -> Reply:
        """Call ``CallLocalStream``."""
        answer = await self._ask(fields, tail, body, call)
        known = self._known_answer(answer)
        if known is not None:
            self._silence()
            return known
        source, reader = self._begin(answer)
        try:
            raw = await self._first_message(source, reader)
            first = read_message(pb.InternalInvokeResponseStream, raw, request=False)
            if not first.HasField("response") or not first.response.HasField("status"):
                raise _without_code(NO_HEAD)
            payloads = Payloads()
            incoming = Incoming(
                source,
                reader,
                payloads.data_of(first),
                payloads.of_response,
                broken=_without_code,
                ended=self._ended,
            )
            reply = await self._reply(
                first.response, headers_of(first.response, raw, streamed=True), incoming, source, call
            )
        except BaseException as error:
            self._drop(source)
            raise self._explained(error) from None
        return reply

    def _known_answer(self, answer: Reply) -> RpcReply | None:
        """Return an answer that is one message, with a head that came before, and ended well.

        Returns ``None``, and has read nothing, if it is any other.
        """
        source = answer.body
        if not isinstance(source, BodyStream) or answer.headers != _PLAIN or answer.status != 200:
            return None
        raw = source.whole()
        if raw is None or source.trailers != _DONE or not is_one_message(raw, self._limit):
            return None
        split = split_first(raw[PREFIX:])
        if split is None:
            return None
        head, data = split
        known = self._known.get(head) or self._known.learn(head, _learn)
        if known is None:
            return None
        source.abandon()
        self._record.rpc_code = 0
        headers, ends, content_type, type_url = known
        return RpcReply(OK, headers.copy(), data, ends.copy(), content_type=content_type, type_url=type_url)

    async def unary(self, fields: Fields, body: bytes, call: Invocation) -> Reply:
        """Call ``CallLocal``."""
        source, reader = self._begin(await self._ask(fields, b"", body, call))
        try:
            raw = await self._first_message(source, reader)
            head = read_message(pb.InternalInvokeResponse, raw, request=False)
            while await source.read():
                pass
            self._ended(source.trailers)
            self._silence()
            headers = headers_of(head, raw, streamed=False)
            return _make_reply(head, headers, head.message.data.value, call)
        except BaseException as error:
            self._drop(source)
            raise self._explained(error) from None

    async def _ask(self, fields: Fields | Likely, tail: bytes, body: AnyBody, call: Invocation) -> Reply:
        """Send the request, and return what comes back once its head is there.

        ``tail``: See ``Connection.send_request``.

        Raises:
            TielineError: The RPC failed before it brought anything.
        """
        connection = self._connection
        if not connection.h2.can_open:
            await connection.wait_turn()
        exchange = connection.begin_request(fields, body, tail)
        if call.rpc is not None and call.rpc.deadline is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_at(call.rpc.deadline, _expire, connection, exchange)
        try:
            return await exchange.answer
        except asyncio.CancelledError:
            self._silence()
            exchange.cancel()
            raise
        except TielineError as error:
            self._silence()
            raise self._explained(error) from None

    def _begin(self, reply: Reply) -> tuple[BodyStream, MessageReader]:
        """Return what comes back if its head is good.

        Raises:
            TielineError: The RPC failed before it brought anything.
            _Unimplemented: The peer does not know the method.
        """
        source = reply.body
        try:
            self._check_head(reply)
            reader = MessageReader(self._limit, _value(reply.headers, b"grpc-encoding"))
        except (TielineError, BadMessages, _Unimplemented) as error:
            self._drop(source)
            raise self._explained(error) from None
        if isinstance(source, bytes):
            # It ended without trailers: in the head, or not at all as gRPC wants it.
            stream = BodyStream(NoSource())
            stream.feed(source)
            stream.end(reply.headers if read_status(reply.headers) is not None else None)
            source = stream
        assert isinstance(source, BodyStream)
        return source, reader

    def _check_head(self, reply: Reply) -> None:
        """Raise what an answer says that no gRPC server gave, or that has no more than a status."""
        content_type = _value(reply.headers, b"content-type")
        if reply.status != 200 or not is_grpc(content_type):
            raise self._failed(status_of_http(reply.status, content_type), [])
        if reply.body == b"":
            status = read_status(reply.headers)
            if status is not None and status.code != GrpcCode.OK:
                raise self._failed(status, reply.headers)
        elif len(reply.headers) > 1 and self._connection.h2.peer_native:
            self._said = _own(reply.headers)

    async def _first_message(self, source: BodyStream, reader: MessageReader) -> bytes:
        """Return the first message of an answer.

        Raises:
            BadMessages: There is none, or it is broken.
            TielineError: The RPC failed, or broke off.
            _Unimplemented: See there.
        """
        while (message := reader.next()) is None:
            piece = await source.read()
            if not piece:
                self._ended(source.trailers)
                reader.check_end()
                raise BadMessages(GrpcCode.UNKNOWN, "EOF")
            reader.feed(piece)
        self._begun = True
        return message

    async def _reply(
        self, head: ResponseHead, headers: InternalMap, incoming: Incoming, source: BodyStream, call: Invocation
    ) -> Reply:
        """Return the answer with its body: whole if all of it is there, or the app speaks gRPC."""
        is_rpc = _is_rpc(head, headers)
        if source.is_complete or is_rpc:
            body = await collect(incoming, self._limit if is_rpc else None, self._too_long)
            self._silence()
            reply = _make_reply(head, headers, body, call)
            if b"tieline-cause" in self._said and isinstance(reply, RpcReply):
                explain_by(self._said, reply.rpc_status, self._record)
            return reply
        reply = _make_reply(head, headers, b"", call)
        reply.body = incoming if self._alarm is None else _Alarmed(incoming, self._alarm)
        self._alarm = None
        return reply

    def _ended(self, trailers: Headers) -> None:
        """Raise what the trailers of an RPC say went wrong."""
        status = read_status(trailers)
        if status is None:
            raise PeerProtocol("server closed the stream without sending trailers")
        if status.code != GrpcCode.OK:
            raise self._failed(status, trailers)

    def _failed(self, status: RpcStatus, trailers: Headers) -> Exception:
        """Return the failure that a status is."""
        code, text = status.code, status.message
        if self._connection.h2.peer_native:
            said = _own(trailers)
            if b"tieline-cause" in said:
                return _as_told(code, text, said)
        if code == GrpcCode.UNIMPLEMENTED and not self._begun:
            return _Unimplemented(text)
        if code in _PASSING:
            lost = PeerLost(text, grpc_code=code)
            lost.before_answer = not self._begun
            return lost
        cause, hop = _guess(code, text)
        return PeerFailed(text, grpc_code=code, cause=cause, hop=hop)

    def _explained(self, error: BaseException) -> BaseException:
        """Return a failure in the words of gRPC's library, which users of daprd know."""
        if isinstance(error, BadMessages):
            return PeerProtocol(error.text, grpc_code=error.code) if error.text != "EOF" else _without_code("EOF")
        if isinstance(error, BrokenBody):
            return _without_code(error.text)
        if isinstance(error, AppBroken):
            return PeerProtocol(error.text)  # no app is at the other end
        if isinstance(error, StreamCut):
            error.grpc_code = status_of_reset(error.reset_code)
        elif isinstance(error, PeerLost) and self._begun:
            error.before_answer = False
        return error

    def _too_long(self) -> TielineError:
        text = f"grpc: received message larger than max ({self._limit} bytes)"
        return TooLarge(text, grpc_code=GrpcCode.RESOURCE_EXHAUSTED, hop=Hop.PEER)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _drop(self, source: AnyBody) -> None:
        self._silence()
        if not isinstance(source, bytes):
            source.abandon()


class _Alarmed:
    """A body whose reader stops waiting at a deadline."""

    __slots__ = ("_alarm", "_body", "trailers")

    def __init__(self, body: Incoming, alarm: asyncio.TimerHandle) -> None:
        self._body = body
        self._alarm = alarm
        self.trailers: Headers = []

    async def read(self) -> bytes:
        """See ``model.Body``."""
        try:
            piece = await self._body.read()
        except BaseException:
            self._alarm.cancel()
            raise
        if not piece:
            self._alarm.cancel()
        return piece

    def abandon(self) -> None:
        """See ``model.Body``."""
        self._alarm.cancel()
        self._body.abandon()


def _expire(connection: Http2Client, exchange: ClientExchange) -> None:
    """The caller's time is up."""
    connection.cut_off(exchange, TimedOut())
    exchange.cancel()


async def _again_whole(call: Invocation, limit: int | None) -> bytes:
    """Return the body once more and whole, for a peer that takes no streams.

    Raises:
        PeerProtocol: It cannot be had again.
    """
    body = call.body
    if isinstance(body, bytes):
        return body
    if call.length is None or not isinstance(body, KeptBody) or body.overflowed:
        addressed = call.target.addressed
        raise _without_code(
            f"target app '{addressed}' is running a version of Dapr that does not support streaming-based service "
            "invocation"
        )
    body.rewind()
    return await collect(body, limit, lambda: TooLarge("stream too large"))


def _left(call: Invocation) -> bytes:
    """Return the time that a call has left, as it is sent; empty for any time.

    Raises:
        TimedOut: It has none.
    """
    if call.rpc is None or call.rpc.deadline is None:
        return b""
    left = call.rpc.deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise TimedOut
    return render_timeout(left)


def _plain_fields(endpoint: Endpoint, path: bytes) -> Fields:
    return [
        (b":method", b"POST", False),
        (b":scheme", b"http", False),
        (b":path", path, False),
        (b":authority", str(endpoint).encode(), False),
        *_ANNOUNCED,
    ]


# ── what comes back ──


def _learn(raw: bytes) -> _Answer | None:
    """Return what a head says; ``None`` if it must be read each time, or is none."""
    try:
        head = pb.InternalInvokeResponse.FromString(raw)
    except DecodeError:
        return None
    internal = map_of(head.headers)
    status = head.status
    if not head.HasField("status") or status.code or status.message or status.details or not _is_rpc(head, internal):
        return None
    return _Answer(
        _metadata(internal), _metadata(map_of(head.trailers)), head.message.content_type, head.message.data.type_url
    )


def _metadata(internal: InternalMap) -> Headers:
    return [field for field in from_internal(internal) if field[0] not in RESERVED]


def _is_rpc(head: ResponseHead, headers: InternalMap) -> bool:
    """Whether a gRPC app answered, rather than an HTTP app with events, whose status daprd does not tell (G-46)."""
    code = head.status.code
    if code >= 100:
        return False
    return code != 0 or is_grpc_origin(headers) or not headers or head.HasField("message")


def _make_reply(head: ResponseHead, internal: InternalMap, body: bytes, call: Invocation) -> Reply:
    """Return an answer as what it was, an HTTP app's or a gRPC app's.

    Raises:
        PeerProtocol: Its status is none.
    """
    status = head.status
    if status.code < 0:
        raise PeerProtocol(f"the peer answered with status {status.code}")
    message = head.message
    if _is_rpc(head, internal):
        call.record.rpc_code = status.code
        details = status.SerializeToString() if status.details else b""
        return RpcReply(
            RpcStatus(status.code, status.message, details),
            _metadata(internal),
            body,
            _metadata(map_of(head.trailers)),
            content_type=message.content_type,
            type_url=message.data.type_url,
        )
    code = status.code or 200
    if not 200 <= code <= 999:
        raise PeerProtocol(f"the peer answered with status {code}")
    headers = from_internal(internal)
    if head.HasField("message"):
        headers = [field for field in headers if field[0] != b"content-type"]
        headers += content_type_field(message.content_type, message.data.type_url)
    return Reply(code, [field for field in headers if field[0][:1] != b":"], body)


def _own(fields: Headers) -> dict[bytes, bytes]:
    """Return what another Tieline says besides."""
    return {name: value for name, value in fields if name.startswith(b"tieline-")}


def _as_told(code: int, text: str, said: dict[bytes, bytes]) -> TielineError:
    """Return the failure that another Tieline explains."""
    try:
        cause = Cause(said[b"tieline-cause"].decode("latin-1"))
    except ValueError:
        cause = Cause.PEER_PROTOCOL
    if cause is Cause.NAME_UNKNOWN:
        # The port has a new owner: our address is old. Nothing was processed.
        return PeerRefused(text)
    return PeerFailed(
        text,
        hint=unquote(said.get(b"tieline-hint", b"").decode("latin-1"))[:MAX_HINT_BYTES],
        cause=cause,
        hop=Hop.APP if said.get(b"tieline-hop") == b"app" else Hop.PEER,
        grpc_code=code,
    )


_FROM_CHANNEL: Final = "error invoking app channel: "
_CAUSES: Final = {
    GrpcCode.PERMISSION_DENIED: Cause.DENIED,
    GrpcCode.INVALID_ARGUMENT: Cause.BAD_REQUEST,
    GrpcCode.DEADLINE_EXCEEDED: Cause.TIMEOUT,
    GrpcCode.RESOURCE_EXHAUSTED: Cause.TOO_LARGE,
    GrpcCode.CANCELED: Cause.CANCELLED,
}


def _guess(code: int, text: str) -> tuple[Cause, Hop]:
    """Return why and where a call failed of which a daprd says no more than a code and a text."""
    if text == "app channel is not initialized":
        return Cause.APP_MISSING, Hop.APP
    if text.endswith("app is not in a healthy state"):
        return Cause.APP_UNHEALTHY, Hop.APP
    if text.startswith(_FROM_CHANNEL):
        return (Cause.APP_UNREACHABLE if "dial tcp" in text else Cause.APP_BROKEN), Hop.APP
    for known, cause in _CAUSES.items():
        if code == known:
            return cause, Hop.PEER
    return Cause.PEER_PROTOCOL, Hop.PEER


def _without_code(text: str) -> TielineError:
    """Make a failure that daprd tells without the words of an RPC error."""
    return TielineError(text, cause=Cause.PEER_PROTOCOL, hop=Hop.PEER)


def _value(headers: Headers, wanted: bytes) -> bytes:
    for name, value in headers:
        if name == wanted:
            return value
    return b""


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
