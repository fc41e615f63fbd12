"""Calls that arrive as gRPC, from daprd sidecars and by ``InvokeService``: they become invocations like any other.

``CallLocalStream`` is how daprd calls, ``CallLocal`` how it did before; what a gRPC client asks a Tieline for comes as
the former too. Everything in the internal metadata is the peer's claim (G-48).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final, NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb
from tieline.errors import (
    AppMissing,
    BadRequest,
    GrpcCode,
    RequestBroken,
    TielineError,
    TimedOut,
    TooLarge,
    untrace,
)
from tieline.inbound.failures import not_meant, rpc_failure
from tieline.middleware.chain import Handler
from tieline.middleware.observe import Observe
from tieline.model import (
    AnyBody,
    Body,
    CallRecord,
    Headers,
    Invocation,
    Reply,
    Request,
    Rpc,
    RpcReply,
    RpcStatus,
    Shape,
    Target,
)
from tieline.net.backpressure import BodyStream, NoSource
from tieline.net.payloads import Incoming, Outgoing, collect
from tieline.wire.grpc.failure import failure_fields
from tieline.wire.grpc.internal import (
    SERVICE,
    STREAM_PATH,
    UNARY_PATH,
    V1,
    BrokenBody,
    Payloads,
    RequestHead,
    frame_stream,
    map_of,
    metadata_of,
    read_message,
    read_said,
    response_head,
    split_first,
    split_trace,
)
from tieline.wire.grpc.mapping import (
    InternalMap,
    content_type_field,
    declared_length,
    fields_to_internal,
    from_internal,
    is_grpc_origin,
    metadata_to_internal,
)
from tieline.wire.grpc.messages import PREFIX, BadMessages, MessageReader, frame, is_one_message
from tieline.wire.grpc.protobuf import KNOWN_HEADS, MAX_KNOWN_HEAD, Memory
from tieline.wire.grpc.status import CONTENT_TYPE, OK, render_status
from tieline.wire.grpc.timeout import BadTimeout, parse_timeout
from tieline.wire.grpc.trace import TRACE_FIELDS, trace_of
from tieline.wire.grpc.verbs import name_of_verb
from tieline.wire.method_path import encode_escaped, encode_path, normalise_rpc, safe_query
from tieline.wire.trace_context import is_traceparent

ACTORS: Final = frozenset({SERVICE + name for name in (b"CallActor", b"CallActorReminder", b"CallActorStream")})
NO_HEAD: Final = (
    "parsing InternalInvokeRequest error: request does not contain the required fields in the leading chunk"
)
NO_MESSAGE: Final = "parsing InternalInvokeRequest error: field Message is nil"
MAX_METHODS: Final = 1024
"""Methods remembered with their spellings; then the memory starts afresh."""
MAX_METHOD_CHARACTERS: Final = 256
"""Longer ones are worked out anew each time."""

_HEAD: Final[Headers] = [(b"content-type", CONTENT_TYPE)]
_DONE: Final = render_status(OK)
_NO_VERB: Final = b"POST"
"""What a call without a verb counts as; an HTTP app is not called for it."""
_EVENTS: Final = "text/event-stream"


class GrpcCalls:
    """Answers the RPCs of ``dapr.proto.internals.v1.ServiceInvocation``.

    Args:
        has_app: Whether this sidecar has an app; without one nothing else is looked at (G-41).
        limit: Longest message in bytes (G-2); ``None`` for no limit.
        new_ids: Gives the ids of a trace to a call that comes without one; ``None`` if nobody traces.
    """

    def __init__(
        self,
        serve: Handler,
        observe: Observe,
        *,
        app_id: str,
        namespace: str,
        has_app: bool,
        limit: int | None,
        new_ids: Callable[[], tuple[bytes, bytes]] | None,
    ) -> None:
        self._serve = serve
        self._observe = observe
        self._app_id = app_id
        self._target = Target(app_id, namespace, app_id)
        self._has_app = has_app
        self._limit = limit
        self._new_ids = new_ids
        self._methods: dict[tuple[str, bool], tuple[bytes, bytes]] = {}
        self._known: Memory[_Known] = Memory()
        self._heads: dict[_HeadKey, bytes] = {}

    async def __call__(self, request: Request) -> Reply:
        """Answer one RPC; see ``net.http2_server.Handler``."""
        path = request.path
        if path in ACTORS:
            request.drop_body()
            return ended(RpcStatus(GrpcCode.UNAVAILABLE, "placement service is not configured"))
        if path not in (STREAM_PATH, UNARY_PATH):
            request.drop_body()
            shown = path[len(SERVICE) :].decode("latin-1")
            text = f"unknown method {shown} for service {SERVICE[1:-1].decode()}"
            return ended(RpcStatus(GrpcCode.UNIMPLEMENTED, text))
        try:
            deadline = _deadline(request.headers)
        except BadTimeout as error:
            request.drop_body()
            reply = ended(RpcStatus(GrpcCode.INTERNAL, f"malformed grpc-timeout: {error}"))
            reply.status = 400
            return reply
        record = CallRecord()
        record.started = perf_counter()
        record.inbound = True
        record.target = self._target
        try:
            if deadline is None:
                return await self._answer(request, record, None)
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._answer(request, record, deadline)
            except TimeoutError:
                raise TimedOut from None
        except BadMessages as error:
            return self._failed(record, _unreadable(error), request)
        except TielineError as error:
            return self._failed(record, error, request)

    def _failed(self, record: CallRecord, error: TielineError, request: Request) -> Reply:
        if record.duration_s == 0.0:
            self._observe.failed(record, error)  # it never set out, so nobody has told yet
            request.drop_body()
        untrace(error)
        return failed(error)

    async def _answer(self, request: Request, record: CallRecord, deadline: float | None) -> Reply:
        if not self._has_app:
            raise AppMissing(
                "app channel is not initialized",
                hint=f"the sidecar of {self._app_id} was started without an app: give it --app-port",
                grpc_code=GrpcCode.INTERNAL,
            )
        streams = request.path == STREAM_PATH
        encoding = _value(request.headers, b"grpc-encoding")
        body = request.body
        if streams and type(body) is bytes and not encoding and is_one_message(body, self._limit):
            known = self._known_call(body[PREFIX:], record, deadline)
            if known is not None:
                reply = await self._serve(known)
                answer = self._known_head(reply)
                if answer is None:
                    return _streamed(reply, False, deadline, record)
                assert isinstance(reply.body, bytes)
                return Reply(200, _HEAD, frame_stream(answer, reply.body, 0), _DONE)
        reader = MessageReader(self._limit, encoding)
        message = await _first_message(reader, request.body)
        if not streams:
            head = read_message(pb.InternalInvokeRequest, message, request=True)
            if not head.HasField("message"):
                raise BadRequest(NO_MESSAGE, grpc_code=GrpcCode.INVALID_ARGUMENT)
            internal = metadata_of(head, message, streamed=False)
            call = self._invocation(head, internal, record, deadline)
            self._trace(call.headers, request.headers, record, is_grpc_origin(internal))
            request.drop_body()
            self._give_body(call, head.message.data.value)
            return await _unary(await self._serve(call), self._limit, record)
        first = read_message(pb.InternalInvokeRequestStream, message, request=True)
        head = first.request
        if not head.metadata or not head.HasField("message"):
            raise BadRequest(NO_HEAD, grpc_code=GrpcCode.INVALID_ARGUMENT)
        internal = metadata_of(head, message, streamed=True)
        call = self._invocation(head, internal, record, deadline)
        self._trace(call.headers, request.headers, record, is_grpc_origin(internal))
        await self._read_body(call, request.body, reader, first)
        wants_events = call.rpc is None and _asks_for_events(internal)
        return _streamed(await self._serve(call), wants_events, deadline, record)

    # ── what is asked ──────────────────────────────────────────────────────────────────────────────
    def _known_call(self, message: bytes, record: CallRecord, deadline: float | None) -> Invocation | None:
        """Return a gRPC client's call that came whole, in one message with a head that came before.

        Returns ``None`` if the message is to be read.
        """
        split = split_first(message)
        if split is None:
            return None
        head, traceparent = split_trace(split[0])
        if not is_traceparent(traceparent) or not traceparent.startswith(b"00"):
            return None
        known = self._known.get(head) or self._known.learn(head, self._learn)
        if known is None:
            return None
        like, content_type, type_url, number, shape = known
        data = split[1]
        seen = like.record
        record.caller = seen.caller
        record.caller_namespace = seen.caller_namespace
        record.verb = like.verb
        record.method = like.method
        record.trace_id = traceparent[3:35]
        record.request_bytes = len(data)
        headers = [*like.headers, (b"traceparent", traceparent)]
        rpc = Rpc(number, content_type, type_url, deadline)
        return Invocation(
            self._target, like.verb, like.method, like.encoded, like.query, headers, data, len(data), record,
            rpc=rpc, shape=shape,
        )  # fmt: skip

    def _known_head(self, reply: Reply) -> bytes | None:
        """Return the head of a gRPC app's good answer, which many answers have; ``None`` for others."""
        if not isinstance(reply, RpcReply) or reply.rpc_status != OK or not isinstance(reply.body, bytes):
            return None
        key = (tuple(reply.headers), tuple(reply.trailers or ()), reply.content_type, reply.type_url, bool(reply.body))
        head = self._heads.get(key)
        if head is None:
            head = _head_of(reply, streams=True)
            if len(head) <= MAX_KNOWN_HEAD:
                if len(self._heads) >= KNOWN_HEADS:
                    self._heads.clear()
                self._heads[key] = head
        return head

    def _learn(self, raw: bytes) -> _Known | None:
        """Return what a head says; ``None`` if it must be read each time, or is to be refused."""
        try:
            head = pb.InternalInvokeRequest.FromString(raw)
            internal = map_of(head.metadata)
            if not internal or not head.HasField("message") or not is_grpc_origin(internal):
                return None
            call = self._invocation(head, internal, CallRecord(), None)
        except (DecodeError, TielineError) as error:
            untrace(error)
            return None
        rpc = call.rpc
        if rpc is None or any(name in TRACE_FIELDS for name, _ in call.headers):
            return None
        return _Known(call, rpc.content_type, rpc.type_url, rpc.verb, Shape())

    def _invocation(
        self, head: RequestHead, internal: InternalMap, record: CallRecord, deadline: float | None
    ) -> Invocation:
        """Return the call, still without its body and perhaps without a trace.

        Raises:
            TielineError: It cannot be made, or is not meant for us.
        """
        said = read_said(head.message)
        record.caller = _one(internal, "dapr-caller-app-id")
        record.caller_namespace = _one(internal, "dapr-caller-namespace")
        self._check_callee(_one(internal, "dapr-callee-app-id"))
        is_grpc = is_grpc_origin(internal)
        verb = name_of_verb(said.verb)
        record.verb = verb or _NO_VERB
        method, encoded = self._method(said.method, is_grpc)
        record.method = method
        if head.ver != V1:
            problem = BadRequest(f"Unsupported spec version: {head.ver}", grpc_code=GrpcCode.UNIMPLEMENTED)
            raise BadRequest(f"error invoking app channel: {problem.detail}", grpc_code=GrpcCode.INTERNAL)
        headers = [
            field
            for field in from_internal(internal)
            if field[0] != b"content-type" and (is_grpc or field[0][:1] != b":")
        ]
        rpc = None
        if is_grpc or verb in (b"", b"CONNECT"):
            # The app's protocol decides whether it can be called so.
            rpc = Rpc(said.verb, said.content_type, said.type_url, deadline)
        else:
            headers += content_type_field(said.content_type, said.type_url)
        length = None if is_grpc else declared_length(internal)
        if length:
            record.request_bytes = length
        return Invocation(
            self._target,
            record.verb,
            method,
            encoded,
            said.query.encode() if is_grpc else safe_query(said.query.encode()),
            headers,
            b"",
            length,
            record,
            rpc=rpc,
        )

    def _check_callee(self, app_id: str) -> None:
        """Refuse a call that means another app: a port may have a new owner."""
        if app_id and app_id != self._app_id:
            raise not_meant(self._app_id, app_id)

    def _method(self, said: str, is_grpc: bool) -> tuple[bytes, bytes]:
        """Return the method cleaned and checked, and as it is written for the app.

        That of a gRPC client was never decoded, so that its escapes stay (G-14, G-66).

        Raises:
            BadRequest: It could be read as something else further on.
        """
        known = self._methods.get((said, is_grpc))
        if known is None:
            method = normalise_rpc(said.encode())
            known = (method, encode_escaped(method) if is_grpc else encode_path(method))
            if len(said) <= MAX_METHOD_CHARACTERS:
                if len(self._methods) >= MAX_METHODS:
                    self._methods.clear()
                self._methods[(said, is_grpc)] = known
        return known

    def _trace(self, headers: Headers, metadata: Headers, record: CallRecord, is_grpc: bool) -> None:
        """Note the trace of the call; one that has none gets its caller's, or one of its own (G-118, H-55)."""
        traceparent, _ = trace_of(headers, binary_first=is_grpc)
        if not traceparent and self._new_ids is not None:
            traceparent, _ = trace_of(metadata, binary_first=True)
            if not traceparent:
                traceparent = b"00-%b-%b-00" % self._new_ids()
            if not any(name == b"traceparent" for name, _ in headers):
                headers.append((b"traceparent", traceparent))
        record.trace_id = traceparent[3:35]

    # ── the body ───────────────────────────────────────────────────────────────────────────────────
    async def _read_body(
        self, call: Invocation, body: AnyBody, reader: MessageReader, first: pb.InternalInvokeRequestStream
    ) -> None:
        """Give the call its body: whole if all of it has come, else as it comes."""
        payloads = Payloads()
        source: BodyStream
        if isinstance(body, BodyStream):
            source = body
        else:
            assert isinstance(body, bytes)
            source = BodyStream(NoSource())
            source.end()
        try:
            incoming = Incoming(
                source,
                reader,
                payloads.data_of(first),
                payloads.of_request,
                broken=_broken,
                length=call.length,
            )
            if source.is_complete:
                self._give_body(call, await collect(incoming, None, _never))
            else:
                call.body = incoming
        except (BrokenBody, RequestBroken) as error:
            # The app's channel tells it, as it tells whatever goes wrong with a body.
            broken = BodyStream(NoSource())
            broken.fail(_broken(error.text))
            call.body = broken

    def _give_body(self, call: Invocation, body: bytes) -> None:
        call.body = body
        call.record.request_bytes = len(body)
        if call.rpc is not None or not body:
            call.length = len(body)  # else an HTTP client said whether it has one


_Fields: TypeAlias = tuple[tuple[bytes, bytes], ...]
_HeadKey: TypeAlias = tuple[_Fields, _Fields, str, str, bool]
"""Metadata, trailers, content type, type of the data, and whether there are any."""


class _Known(NamedTuple):
    """What calls with one head have in common.

    Attributes:
        like: One of them, without its body and its trace.
        content_type, type_url, number: Of ``Rpc``.
        shape: Theirs.
    """

    like: Invocation
    content_type: str
    type_url: str
    number: int | None
    shape: Shape


def _broken(text: str) -> TielineError:
    return RequestBroken(text)


def _unreadable(error: BadMessages) -> TielineError:
    if error.code == GrpcCode.RESOURCE_EXHAUSTED:
        hint = "raise --max-body-size of the called app's sidecar, or send less in one message"
        return TooLarge(error.text, hint=hint, grpc_code=error.code)
    return BadRequest(error.text, grpc_code=error.code)


def _never() -> TielineError:
    raise AssertionError("no limit was set")


async def _first_message(reader: MessageReader, body: AnyBody) -> bytes:
    """Return the first message of a stream.

    Raises:
        BadMessages: There is none.
        TielineError: The peer broke off.
    """
    if isinstance(body, bytes):
        reader.feed(body)
        message = reader.next()
    else:
        while (message := reader.next()) is None and (piece := await body.read()):
            reader.feed(piece)
    if message is None:
        reader.check_end()
        raise BadMessages(GrpcCode.UNKNOWN, "EOF")
    return message


def _asks_for_events(internal: InternalMap) -> bool:
    """Whether daprd would send each event as a message of its own (G-46)."""
    return any(value.strip().lower() == _EVENTS for value in internal.get("Accept", ()))


def _deadline(metadata: Headers) -> float | None:
    value = _value(metadata, b"grpc-timeout")
    return asyncio.get_running_loop().time() + parse_timeout(value) if value else None


def _value(metadata: Headers, wanted: bytes) -> bytes:
    for name, value in metadata:
        if name == wanted:
            return value
    return b""


def _one(internal: InternalMap, name: str) -> str:
    values = internal.get(name)
    return values[0] if values else ""


# ── what is answered ──


class _Timely:
    """A body that fails when its reader's time is up."""

    __slots__ = ("_body", "_deadline", "trailers")

    def __init__(self, body: Body, deadline: float) -> None:
        self._body = body
        self._deadline = deadline
        self.trailers: Headers = []

    async def read(self) -> bytes:
        """See ``model.Body``."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._body.read()
        except TimeoutError:
            raise TimedOut from None

    def abandon(self) -> None:
        """See ``model.Body``."""
        self._body.abandon()


def _streamed(reply: Reply, wants_events: bool, deadline: float | None, record: CallRecord) -> Reply:
    """Return an answer as the messages of ``CallLocalStream`` (G-44)."""
    events = wants_events and not isinstance(reply, RpcReply) and 200 <= reply.status <= 299
    head = _events_head(reply) if events else _head_of(reply, streams=True)
    body = reply.body
    if isinstance(body, bytes):
        return Reply(200, _head(record), frame_stream(head, body, 0), _DONE)
    if deadline is not None:
        body = _Timely(body, deadline)
    return Reply(200, _HEAD, Outgoing(head, body, ending=_ending, events=events))


def _head(record: CallRecord) -> Headers:
    """Return the head of an answer that is whole; it says why if this sidecar answers in its app's place."""
    return _HEAD if record.cause is None else [*_HEAD, *failure_fields(record)]


async def _unary(reply: Reply, limit: int | None, record: CallRecord) -> Reply:
    """Return an answer as the message of ``CallLocal`` (G-45).

    Raises:
        TielineError: The answer broke off, or is too long for one message.
    """

    def too_long() -> TielineError:
        text = f"grpc: trying to send message larger than max ({limit} bytes)"
        return TooLarge(text, grpc_code=GrpcCode.RESOURCE_EXHAUSTED)

    body = reply.body
    if not isinstance(body, bytes):
        body = await collect(body, limit, too_long)
    return Reply(200, _head(record), frame(_head_of(reply, streams=False, body=body)), _DONE)


def _head_of(reply: Reply, *, streams: bool, body: bytes = b"") -> bytes:
    if isinstance(reply, RpcReply):
        status = reply.rpc_status
        failed = status.code != GrpcCode.OK
        # An error usually comes in one block of fields, which then count as trailers (G-26).
        in_one = failed and not reply.headers
        in_trailers = CONTENT_TYPE if in_one and reply.trailers is not None else b""
        return response_head(
            status,
            {} if in_one else metadata_to_internal(reply.headers),
            metadata_to_internal(reply.trailers or [], content_type=in_trailers),
            content_type=reply.content_type,
            type_url=reply.type_url,
            has_message=not (failed and streams),
            has_data=bool(reply.type_url or reply.body) or not streams,
            body=body,
        )
    content_type = _value(reply.headers, b"content-type").decode("utf-8", "replace")
    return response_head(
        RpcStatus(reply.status),
        fields_to_internal(reply.headers),
        {},
        content_type=content_type,
        has_data=not streams,
        body=body,
    )


def _events_head(reply: Reply) -> bytes:
    return response_head(OK, fields_to_internal(reply.headers), {}, has_message=False)


def _ending(error: TielineError | None) -> Headers:
    return _DONE if error is None else rpc_failure(error, GrpcCode.UNKNOWN)


def ended(status: RpcStatus) -> Reply:
    """Return the answer to an RPC that ends without a message."""
    return Reply(200, [*_HEAD, *render_status(status)])


def failed(error: TielineError) -> Reply:
    """Return the answer to an RPC that failed in this sidecar."""
    return Reply(200, [*_HEAD, *rpc_failure(error)])
