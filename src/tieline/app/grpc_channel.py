"""Calls to an app that speaks gRPC: one RPC of Dapr's ``AppCallback`` service for every method."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from copy import copy
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tieline import __version__
from tieline.app.rpc_route import APP_LIMITS
from tieline.app.slots import Slots
from tieline.config.settings import DEFAULT_PEER_IDLE_S, DEFAULT_PEER_SWEEP_S
from tieline.errors import (
    AppBroken,
    BadRequest,
    GrpcCode,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    TielineError,
    TooLarge,
    name_of,
    untrace,
)
from tieline.model import AnyBody, CallRecord, Cause, Headers, Hop, Invocation, Reply, RpcReply, RpcStatus
from tieline.net.backpressure import BodyStream
from tieline.net.client_tls import trusting_context
from tieline.net.http2 import Upkeep
from tieline.net.http2_client import Http2Client, StreamCut
from tieline.net.http2_pool import Http2Pool
from tieline.wire.grpc import status as statuses
from tieline.wire.grpc.mapping import fields_to_metadata, metadata_to_metadata, own_metadata
from tieline.wire.grpc.messages import (
    ENCODINGS,
    PREFIX,
    BadMessages,
    MessageReader,
    frame,
    is_one_message,
    why_unreadable,
)
from tieline.wire.grpc.metadata import may_be_sent
from tieline.wire.grpc.protobuf import field
from tieline.wire.grpc.timeout import render_timeout
from tieline.wire.grpc.trace import spell_trace_bin, trace_metadata, trace_of
from tieline.wire.grpc.verbs import VERBS
from tieline.wire.headers import IDENTITY, read_left_behind
from tieline.wire.http2.connection import request_fields
from tieline.wire.http2.hpack import Fields, Likely, trace_literals

if TYPE_CHECKING:
    from tieline._generated.dapr.proto.common.v1 import common_pb2

log = logging.getLogger("dapr.runtime")

ON_INVOKE: Final = b"/dapr.proto.runtime.v1.AppCallback/OnInvoke"
HEALTH_CHECK: Final = b"/dapr.proto.runtime.v1.AppCallbackHealthCheck/HealthCheck"
CONNECT_WITHIN_S: Final = 20.0
"""For TCP and TLS, and once more for the app's SETTINGS: it may accept long before it answers (G-30)."""
MAX_REFUSALS: Final = 6
"""How often a call is sent again that the app refused without a look at it: the first time at once,"""
REFUSED_PAUSE_S: Final = 0.005
"""then after twice this time, and twice as long each time."""

_UNREACHABLE_HINT: Final = "start the app, or check --app-port, --app-channel-address and --app-protocol"
_NO_GRPC_HINT: Final = "what answers at --app-port speaks no gRPC: check --app-port and --app-protocol"
_GOOD: Final = (b"grpc-status", b"0")
_SIZE_HINT: Final = "raise --max-body-size, which bounds each message"
_NUMBERS: Final = {verb: number for number, verb in enumerate(VERBS) if verb}
"""Of the verbs in the HTTP extension."""
# The call's own, or set anew.
_NOT_PASSED: Final = IDENTITY | {b"host", b"dapr-app-id"}
_HEAD: Final[Headers] = [
    (b"content-type", statuses.CONTENT_TYPE),
    (b"user-agent", f"tieline/{__version__}".encode()),
    (b"te", b"trailers"),
    (b"grpc-accept-encoding", ENCODINGS),
]


class Answer(NamedTuple):
    """How a unary RPC ended.

    Attributes:
        headers, trailers: Metadata, without what gRPC keeps to itself.
        message: As it came; empty unless the RPC ended well.
        broken: Why the status is not the app's: what it answered is none of gRPC's. ``None`` if it is.
        hint: What to do then.
    """

    status: RpcStatus
    headers: Headers
    message: bytes = b""
    trailers: Headers | None = None
    broken: Cause | None = None
    hint: str = ""


class GrpcChannel:
    """The app behind one address.

    Args:
        secure: It speaks TLS, whatever its certificate says.
        max_message: Longest message, either way, in bytes; ``None`` for no limit.
        idle_s, look_every_s: When connections without calls, but for the last one, are closed, and how often that is
            looked into.

    Attributes:
        unhealthy: Makes the error of a call while the app's health checks fail; ``None`` lets calls through.
        pool: Connections to the app, for whatever else is asked of it.
    """

    def __init__(
        self,
        *,
        secure: bool,
        host: str,
        port: int,
        max_concurrency: int,
        max_message: int | None,
        token: str | None,
        idle_s: float = DEFAULT_PEER_IDLE_S,
        look_every_s: float = DEFAULT_PEER_SWEEP_S,
    ) -> None:
        self._place = (host[1:-1] if host.startswith("[") and host.endswith("]") else host, port)
        self._authority = f"{host}:{port}".encode()
        self._scheme = b"https" if secure else b"http"
        self._token = (token or "").encode()
        self._identity: tuple[Headers | None, Headers] = (None, [])
        """What was last to be told of who calls, and what of it can be."""
        self._max_message = max_message
        self._slots = Slots(max_concurrency) if max_concurrency > 0 else None
        self.unhealthy: Callable[[], TielineError] | None = None
        self.pool = Http2Pool(
            native=False,
            limits=APP_LIMITS,
            # Never a ping: gRPC servers close connections on which nothing else happens but those.
            upkeep=Upkeep(
                settings_within_s=CONNECT_WITHIN_S, ping_after_s=None, idle_s=idle_s, look_every_s=look_every_s
            ),
            connect_within_s=CONNECT_WITHIN_S,
            tls=(lambda: trusting_context("h2")) if secure else None,
            more_when_full=False,
            keeps_last=True,
        )

    @property
    def slots(self) -> Slots | None:
        """Hold the calls to a number at a time, whoever makes them; ``None`` if there may be any number."""
        return self._slots

    @property
    def waiting(self) -> int | None:
        """Calls that wait for a slot; ``None`` if there is no limit (H-115)."""
        return None if self._slots is None else self._slots.waiting

    def call(self, call: Invocation, identity: Headers) -> Coroutine[Any, Any, Reply]:
        """See ``AppChannel``; the answer is an ``RpcReply``.

        An app that cannot be reached, and a message over the limit, are answers too, as if the app had said so (H-83);
        the call's record tells them apart. So is a deadline of the caller's that passes.
        """
        if self.unhealthy is not None:
            raise self.unhealthy()
        if call.protocol:
            raise _no_websocket()
        deadline = None if call.rpc is None else call.rpc.deadline
        return self._call(call, identity) if deadline is None else self._call_within(call, identity, deadline)

    async def _call_within(self, call: Invocation, identity: Headers, deadline: float) -> Reply:
        try:
            # The app is told by a cancellation when the time is over, and not before: daprd tells it of no deadline.
            async with asyncio.timeout_at(deadline):
                return await self._call(call, identity)
        except TimeoutError:
            return _timed_out(call.record)

    async def _call(self, call: Invocation, identity: Headers) -> Reply:
        record = call.record
        limit = self._max_message
        shape = call.shape
        if shape is not None and isinstance(call.body, bytes):
            made = shape.made
            if type(made) is not _Made or made.channel is not self:
                made = shape.made = self._make(call, identity)
            message = made.message(call.body)
            traceparent = call.headers[-1][1]
            tail = trace_literals(traceparent, spell_trace_bin(traceparent))
            if limit is None or len(message) <= limit:
                return await self._send(record, made.head, tail, message)
        try:
            body = call.body if isinstance(call.body, bytes) else await _collect(call.body, limit)
        except _TooLong as error:
            return _failed(record, RpcStatus(GrpcCode.RESOURCE_EXHAUSTED, error.text), Cause.TOO_LARGE, _SIZE_HINT)
        message = _request(call, body)
        if limit is not None and len(message) > limit:
            text = _TooLong(len(message), limit).text
            return _failed(record, RpcStatus(GrpcCode.RESOURCE_EXHAUSTED, text), Cause.TOO_LARGE, _SIZE_HINT)
        head = self._fields(ON_INVOKE, self._metadata(call, identity))
        return await self._send(record, head, b"", message)

    async def _send(self, record: CallRecord, head: Fields | Likely, tail: bytes, message: bytes) -> Reply:
        """Call ``OnInvoke`` when a slot is free."""
        slots = self._slots
        if slots is not None:
            waited_from = perf_counter()
            await slots.acquire()
            record.waited_s = perf_counter() - waited_from
        try:
            began = perf_counter()
            answer = await self._unary(head, tail, message)
        except TielineError as error:
            untrace(error)
            return _failed(record, *_explained(error))
        finally:
            if slots is not None:
                slots.release()
        record.app_s = perf_counter() - began
        return _reply(record, answer)

    def _fields(self, path: bytes, metadata: Headers) -> Fields:
        return request_fields(b"POST", path, self._authority, _HEAD + metadata, scheme=self._scheme)

    def _make(self, call: Invocation, identity: Headers) -> _Made:
        """Return what calls of one shape have in common."""
        alike = copy(call)
        alike.headers = call.headers[:-1]
        return _Made(self, Likely(self._fields(ON_INVOKE, self._metadata(alike, identity))), _request(alike, b""))

    def _metadata(self, call: Invocation, identity: Headers) -> Headers:
        """Return the metadata of a call (G-25, G-64), its trace by one context in all three fields (G-117)."""
        headers = [field for field in call.headers if field[0] not in _NOT_PASSED]
        if call.rpc is None:
            headers += [field for field in read_left_behind(headers) if field[0] not in _NOT_PASSED]
            metadata = fields_to_metadata(headers, length=call.length, on_refused=_left_out)
        else:
            metadata = metadata_to_metadata(headers, on_refused=_left_out)
        if self._token:
            metadata = [field for field in metadata if field[0] != b"dapr-api-token"]
            metadata.append((b"dapr-api-token", self._token))
        if identity is not self._identity[0]:
            self._identity = (identity, [field for field in identity if may_be_sent(*field)])
        metadata += self._identity[1]
        metadata += trace_metadata(*trace_of(call.headers, binary_first=call.rpc is not None))
        return metadata

    async def probe(self, target: bytes, timeout_s: float) -> int:
        """See ``health.Probed``: by ``AppCallbackHealthCheck`` rather than a path, past slots, token and health (G-29).

        Returns:
            0; any other end is raised, ``Unimplemented`` included.
        """
        try:
            async with asyncio.timeout(timeout_s):
                timeout = (b"grpc-timeout", render_timeout(timeout_s))
                answer = await self._unary(self._fields(HEALTH_CHECK, [timeout]), b"", b"")
        except TimeoutError:
            text = "rpc error: code = DeadlineExceeded desc = context deadline exceeded"
            raise TielineError(text, cause=Cause.TIMEOUT, hop=Hop.APP, grpc_code=GrpcCode.DEADLINE_EXCEEDED) from None
        except TielineError as error:
            status = _explained(error)[0]
            raise _probe_failed(status) from error
        if answer.status.code != 0:
            raise _probe_failed(answer.status)
        return 0

    async def _unary(self, head: Fields | Likely, tail: bytes, message: bytes) -> Answer:
        """Make one RPC; ``tail`` see ``Connection.send_request``.

        Raises:
            PeerUnreachable: No connection was to be had, or the app refused the call: it did not see it.
            PeerLost, AppBroken: The answer did not come to its end.
        """
        data = frame(message)
        refusals = 0
        while True:
            try:
                reply = await self._ask(head, tail, data)
                return _whole_answer(reply, self._max_message) or await self._read(reply)
            except PeerRefused:
                # Certainly not processed: the connection was about to close, or the app counts its streams late.
                if refusals >= MAX_REFUSALS:
                    raise
                if refusals:
                    await asyncio.sleep(REFUSED_PAUSE_S * 2**refusals)
                refusals += 1

    async def _ask(self, head: Fields | Likely, tail: bytes, data: bytes) -> Reply:
        pool, place = self.pool, self._place
        connection: Http2Client | None = pool.ready(place)
        if connection is None:
            connection = await pool.connection(*place)
            await connection.wait_turn()
        exchange = connection.begin_request(head, data, tail)
        exchange.keeps_trailers = True
        try:
            return await exchange.answer
        except asyncio.CancelledError:
            exchange.cancel()
            raise

    async def _read(self, reply: Reply) -> Answer:
        """Read an answer to its end, or until it is clear that it is none."""
        headers, body = reply.headers, reply.body
        trailers: Headers | None = None
        if not _is_grpc(reply):
            reply.drop_body()
            content_type = next((value for name, value in headers if name == b"content-type"), b"")
            not_grpc = statuses.status_of_http(reply.status, content_type)
            return Answer(not_grpc, [], broken=Cause.APP_BROKEN, hint=_NO_GRPC_HINT)
        encoding = next((value for name, value in headers if name == b"grpc-encoding"), b"")
        message: bytes | None = None
        try:
            reader = MessageReader(self._max_message, encoding)
            if isinstance(body, bytes):
                reader.feed(body)
                message = reader.next()
            else:
                while piece := await body.read():
                    if message is None:  # what follows the message is not looked at
                        reader.feed(piece)
                        message = reader.next()
                trailers = body.trailers
        except BadMessages as error:
            return _unreadable(RpcStatus(error.code, error.text), own_metadata(headers))
        finally:
            if not isinstance(body, bytes):
                body.abandon()
        if not body and trailers is None:
            # Trailers only, in one HEADERS frame: what is there is trailers (G-26).
            trailers, headers = headers, []
        status = statuses.read_status(trailers or ())
        if status is None:
            text = "server closed the stream without sending trailers"
            return _unreadable(RpcStatus(GrpcCode.INTERNAL, text), own_metadata(headers))
        if status.code == 0 and message is None:
            text = "the answer ended well, but has no message"
            return _unreadable(RpcStatus(GrpcCode.INTERNAL, text), own_metadata(headers))
        found = message if message is not None and status.code == 0 else b""
        return Answer(status, own_metadata(headers), found, own_metadata(trailers or []))

    async def aclose(self) -> None:
        """See ``AppChannel``."""
        self.pool.close()


# ── messages ──


def _whole_answer(reply: Reply, limit: int | None) -> Answer | None:
    """Return the answer that most are: one message, and a good end, all of which is there; ``None`` for any other."""
    body, headers = reply.body, reply.headers
    if not isinstance(body, BodyStream) or not _is_grpc(reply):
        return None
    whole, trailers = body.whole(), body.trailers
    if (
        whole is None
        or _GOOD not in trailers
        or not is_one_message(whole, limit)
        or any(name == b"grpc-encoding" for name, _ in headers)
        or sum(name == _GOOD[0] for name, _ in trailers) > 1
    ):
        return None
    body.abandon()
    return Answer(statuses.OK, own_metadata(headers), whole[PREFIX:], own_metadata(trailers))


class _Made:
    """What calls of one shape to one app have in common.

    Args:
        channel: To the app.
        head: Of the RPC.
        empty: The message with data that are empty.
    """

    __slots__ = ("_before", "_type_url", "channel", "head")

    def __init__(self, channel: GrpcChannel, head: Likely, empty: bytes) -> None:
        self.channel = channel
        self.head = head
        message = _messages().request.FromString(empty)
        self._type_url = field(1, message.data.type_url.encode()) if message.data.type_url else b""
        # Fields stand in any order, and so the data last.
        message.ClearField("data")
        self._before = message.SerializeToString()

    def message(self, data: bytes) -> bytes:
        """Return the message with its data, which are there even if they are empty."""
        return self._before + field(2, self._type_url + (field(2, data) if data else b""))


class _TooLong(Exception):
    """A message is over the limit; the text is gRPC's."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__()
        self.text = f"trying to send message larger than max ({size} vs. {limit})"


async def _collect(body: AnyBody, limit: int | None) -> bytes:
    """Read a body that comes in pieces; the app gets it in one message."""
    assert not isinstance(body, bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := await body.read():
            size += len(piece)
            if limit is not None and size > limit:
                raise _TooLong(size, limit)
            pieces.append(piece)
    finally:
        body.abandon()
    return b"".join(pieces)


class _Messages(NamedTuple):
    """The messages of ``OnInvoke``."""

    request: type[common_pb2.InvokeRequest]
    response: type[common_pb2.InvokeResponse]
    broken: type[Exception]
    """Raised by what cannot be read."""


@cache
def _messages() -> _Messages:
    """Return the messages, imported by the first call that needs them: most sidecars never do."""
    from google.protobuf.message import DecodeError

    from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeRequest, InvokeResponse

    return _Messages(InvokeRequest, InvokeResponse, DecodeError)


def _request(call: Invocation, body: bytes) -> bytes:
    """Return the ``InvokeRequest`` of a call (G-24, H-82).

    Raises:
        BadRequest: The method is no text.
    """
    try:
        method = call.method.decode()
    except UnicodeDecodeError:
        raise BadRequest(
            "grpc: error while marshaling: string field contains invalid UTF-8",
            hint="methods of gRPC apps are text: percent-encode UTF-8 in the path",
            grpc_code=GrpcCode.INTERNAL,
        ) from None
    rpc = call.rpc
    request = _messages().request(method=method)
    data = request.data
    data.value = body
    data.SetInParent()  # there even if it is empty, as daprd sends it
    query = call.query.decode("utf-8", "replace")
    if rpc is None:
        request.content_type = _content_type(call.headers)
        request.http_extension.verb = _NUMBERS.get(call.verb, 0)  # type: ignore[assignment]
        request.http_extension.querystring = query
    else:
        request.content_type = rpc.content_type
        data.type_url = rpc.type_url
        if rpc.verb is not None:
            request.http_extension.verb = rpc.verb  # type: ignore[assignment]
            request.http_extension.querystring = query
            request.http_extension.SetInParent()
    return request.SerializeToString()


def _content_type(headers: Headers) -> str:
    for name, value in headers:
        if name == b"content-type":
            return value.decode("utf-8", "replace")
    return ""


def _reply(record: CallRecord, answer: Answer) -> Reply:
    """Return an answer as what goes back."""
    status = answer.status
    if answer.broken is not None:
        return _failed(record, status, answer.broken, answer.hint, answer.headers)
    record.rpc_code = status.code
    if status.code != 0:
        return RpcReply(status, answer.headers, b"", answer.trailers)
    messages = _messages()
    try:
        response = messages.response.FromString(answer.message)
    except messages.broken as error:
        text = f"grpc: failed to unmarshal the received message: {why_unreadable(error)}"
        hint = "look into the app: its OnInvoke answers with another message than InvokeResponse"
        return _failed(record, RpcStatus(GrpcCode.INTERNAL, text), Cause.APP_BROKEN, hint)
    return RpcReply(
        status,
        answer.headers,
        response.data.value,
        answer.trailers,
        content_type=response.content_type,
        type_url=response.data.type_url,
    )


# ── failures ──


def _is_grpc(reply: Reply) -> bool:
    if reply.status != 200:
        return False
    for name, value in reply.headers:
        if name == b"content-type":
            return value.startswith(statuses.CONTENT_TYPE)
    return False


def _explained(error: TielineError) -> tuple[RpcStatus, Cause, str]:
    """Return a failure as the status that gRPC's own client would give, its cause, and what to do."""
    if isinstance(error, PeerUnreachable):
        cause = Cause.APP_UNREACHABLE if error.cause is Cause.PEER_UNREACHABLE else error.cause
        return RpcStatus(GrpcCode.UNAVAILABLE, error.text), cause, _UNREACHABLE_HINT
    if isinstance(error, StreamCut):
        return RpcStatus(statuses.status_of_reset(error.reset_code), error.text), Cause.APP_BROKEN, ""
    if isinstance(error, PeerLost):
        text = f"error reading from server: {error.text}"
        return RpcStatus(GrpcCode.UNAVAILABLE, text), Cause.APP_BROKEN, "the app closed the connection: look at its log"
    code = GrpcCode.RESOURCE_EXHAUSTED if isinstance(error, TooLarge) else GrpcCode.INTERNAL
    return RpcStatus(code, error.text), error.cause, error.hint


def _unreadable(status: RpcStatus, headers: Headers) -> Answer:
    """Return the answer in place of one that cannot be read."""
    if status.code == GrpcCode.RESOURCE_EXHAUSTED:
        return Answer(status, headers, broken=Cause.TOO_LARGE, hint=_SIZE_HINT)
    return Answer(status, headers, broken=Cause.APP_BROKEN, hint="look into the app: its answer is broken")


def _failed(record: CallRecord, status: RpcStatus, cause: Cause, hint: str, headers: Headers | None = None) -> RpcReply:
    """Return what a sidecar says in the app's place, and write into the record why."""
    record.rpc_code = status.code
    record.cause, record.hop, record.hint = cause, Hop.APP, hint
    record.detail = f"rpc error: code = {name_of(status.code)} desc = {status.message}"
    return RpcReply(status, headers or [])


def _timed_out(record: CallRecord) -> RpcReply:
    status = RpcStatus(GrpcCode.DEADLINE_EXCEEDED, "context deadline exceeded")
    return _failed(record, status, Cause.TIMEOUT, "")


def _probe_failed(status: RpcStatus) -> TielineError:
    text = f"rpc error: code = {name_of(status.code)} desc = {status.message}"
    cause = Cause.APP_UNREACHABLE if status.code == GrpcCode.UNAVAILABLE else Cause.APP_BROKEN
    return TielineError(text, cause=cause, hop=Hop.APP, grpc_code=status.code)


def _no_websocket() -> AppBroken:
    error = AppBroken(
        "the app speaks gRPC, and takes no WebSockets", hint="let the app speak HTTP: --app-protocol http"
    )
    error.http_status = 501
    return error


def _left_out(name: bytes) -> None:
    log.debug("a header cannot be sent to the app by gRPC, and is left out: %r", name)
