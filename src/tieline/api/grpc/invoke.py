"""``InvokeService``: an RPC becomes an invocation, and its reply a message or a status (G-12 to G-20)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

from tieline.api.grpc.answers import RpcAnswer, ended, invocation_failed, succeeded
from tieline.api.grpc.calls import RpcCall, unreadable
from tieline.api.grpc.tracing import carry_on, told
from tieline.api.http.errors import explanation
from tieline.app.channel import read_out
from tieline.errors import BadRequest, GrpcCode, TielineError, TooLarge, untrace
from tieline.middleware.chain import Handler
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Headers, Invocation, Reply, Rpc, RpcReply, RpcStatus, Target
from tieline.wire.grpc.codes import MAX_ERROR_MESSAGE, http_failure, reason_phrase
from tieline.wire.grpc.failure import failure_fields
from tieline.wire.grpc.mapping import fields_to_metadata, metadata_to_metadata
from tieline.wire.grpc.protobuf import Memory, field, split_invocation, varint
from tieline.wire.grpc.trace import trace_metadata, trace_of
from tieline.wire.grpc.verbs import name_of_verb
from tieline.wire.headers import IDENTITY
from tieline.wire.method_path import PLAIN_VERBS, encode_escaped, normalise_rpc, read_target

log = logging.getLogger("dapr.runtime.grpc.api")

_NO_VERB: Final = b"POST"
"""What a call without a verb that HTTP has counts as: never sent twice on a mere chance."""
NO_MESSAGE: Final = (
    "parsing InternalInvokeRequest error: request does not contain the required fields in the leading chunk"
)


class _Asked(NamedTuple):
    """What a request asks for, but for its data.

    ``shown`` is the verb as HTTP has it; ``verb``, ``content_type`` and ``type_url`` as in ``Rpc``, the rest as in
    ``Invocation``.
    """

    target: Target
    shown: bytes
    method: bytes
    encoded: bytes
    query: bytes
    verb: int | None
    content_type: str
    type_url: str


class InvokeService:
    """The RPC by which an app calls another.

    Args:
        drop_token: See ``api.http.invoke.Invoke``; so are ``is_external`` and the rest.
        limit: Longest message in bytes, either way (G-2); ``None`` for no limit.
    """

    def __init__(
        self,
        outbound: Handler,
        observe: Observe,
        *,
        app_id: str,
        namespace: str,
        drop_token: bool,
        is_external: Callable[[Target], bool],
        limit: int | None,
    ) -> None:
        self._outbound = outbound
        self._observe = observe
        self._app_id = app_id
        self._namespace = namespace
        self._drop_token = drop_token
        self._is_external = is_external
        self._limit = limit
        self._known: Memory[_Asked] = Memory()

    async def __call__(self, rpc: RpcCall, message: bytes) -> RpcAnswer:
        """Answer the RPC.

        Raises:
            BadMessages: The message is none.
        """
        record = CallRecord()
        record.started = rpc.began
        record.caller = self._app_id
        record.api_rpc = rpc.request.path
        if rpc.context is not None:
            record.trace_id = rpc.context.trace_id
        addressed = ""
        split = split_invocation(message)
        asked = None if split is None else self._known.get(split[0])
        try:
            if asked is None or split is None:
                request = _read(message)
                addressed = request.id
                asked = self._asked(request, record)
                data = request.message.data.value
                if split is not None and self._known.wants(split[0]):
                    self._known[split[0]] = asked
            else:
                addressed = asked.target.addressed
                data = split[1]
            reply = await self._outbound(self._invocation(rpc, asked, data, record))
            if isinstance(reply, RpcReply):
                return self._from_app(reply, rpc, record)
            return await self._from_http(reply, rpc)
        except TielineError as error:
            if record.duration_s == 0.0:
                self._observe.failed(record, error)  # it never set out
            answer = invocation_failed(error, addressed)
            untrace(error)
            return answer

    def _asked(self, request: Any, record: CallRecord) -> _Asked:
        """Read who is meant and what is asked.

        Raises:
            BadRequest: It cannot be asked.
        """
        if not request.id:
            raise BadRequest("app id is empty", hint="name the app in the field id")
        target = record.target = read_target(request.id, self._namespace)
        asked = request.message
        verb = asked.http_extension.verb if asked.HasField("http_extension") else None
        named = name_of_verb(verb)
        record.verb = shown = named if named in PLAIN_VERBS else _NO_VERB
        if not request.HasField("message"):
            raise BadRequest(NO_MESSAGE, grpc_code=GrpcCode.INVALID_ARGUMENT)
        record.method = asked.method.encode()
        method = normalise_rpc(record.method)
        query = asked.http_extension.querystring.encode()
        return _Asked(
            target, shown, method, encode_escaped(method), query, verb, asked.content_type, asked.data.type_url
        )

    def _invocation(self, rpc: RpcCall, asked: _Asked, body: bytes, record: CallRecord) -> Invocation:
        target, shown, method, encoded, query, verb, content_type, type_url = asked
        record.target = target
        record.verb = shown
        record.method = method
        record.request_bytes = len(body)
        headers = rpc.headers
        carry_on(headers, rpc.context, rpc.noted)
        noted = rpc.noted
        if noted is not None:
            if not self._drop_token and b"dapr-api-token" in noted:
                headers += [(b"dapr-api-token", value) for value in noted[b"dapr-api-token"]]
            if not IDENTITY.isdisjoint(noted) and self._is_external(target):
                # Outside the mesh they mean nothing, and so pass as they are (H-48).
                headers += [(name, value) for name in IDENTITY for value in noted.get(name, ())]
        return Invocation(
            target, shown, method, encoded, query, headers, body, len(body), record,
            rpc=Rpc(verb, content_type, type_url, rpc.deadline),
        )  # fmt: skip

    # ── answers ────────────────────────────────────────────────────────────────────────────────────
    def _from_app(self, reply: RpcReply, rpc: RpcCall, record: CallRecord) -> RpcAnswer:
        """Pass on what a gRPC app answered, or a sidecar in its place (G-15, G-16)."""
        traced = _traced(reply, rpc, binary_first=True)
        headers = metadata_to_metadata(reply.headers, on_refused=_left_out) + traced
        trailers = metadata_to_metadata(reply.trailers or [], on_refused=_left_out) + traced
        if reply.rpc_status.code != GrpcCode.OK:
            return ended(reply.rpc_status, headers, trailers + failure_fields(record))
        assert isinstance(reply.body, bytes)
        return self._message(reply.body, reply.content_type, reply.type_url, headers, trailers)

    async def _from_http(self, reply: Reply, rpc: RpcCall) -> RpcAnswer:
        """Put what an HTTP app answered into gRPC's words (G-16, G-18)."""
        status = reply.status
        headers = [(b"dapr-http-status", b"%d" % status), *fields_to_metadata(reply.headers, on_refused=_left_out)]
        headers += _traced(reply, rpc, binary_first=False)
        if not 200 <= status <= 299:
            beginning = await _read_beginning(reply)
            return ended(http_failure(status, beginning), headers, reason=reason_phrase(status))
        try:
            body = await self._read(reply)
        except TooLarge as error:
            untrace(error)
            return ended(RpcStatus(GrpcCode.RESOURCE_EXHAUSTED, error.text), headers, explanation(error))
        content_type = next((value for name, value in reply.headers if name == b"content-type"), b"")
        return self._message(body, content_type.decode("latin-1"), "", headers, None)

    def _message(
        self, body: bytes, content_type: str, type_url: str, headers: Headers, trailers: Headers | None
    ) -> RpcAnswer:
        data = b"\x12%b%b" % (varint(len(body)), body) if body else b""
        if type_url:
            data = field(1, type_url.encode()) + data
        message = b"\x0a%b%b%b" % (varint(len(data)), data, _type_field(content_type))
        if self._limit is not None and len(message) > self._limit:
            error = _too_large(len(message), self._limit)
            return ended(RpcStatus(GrpcCode.RESOURCE_EXHAUSTED, error.text), headers, explanation(error))
        return succeeded(message, headers, trailers)

    async def _read(self, reply: Reply) -> bytes:
        """Return the whole body of an answer.

        Raises:
            TooLarge: It is over the limit; nothing more of it is read.
            TielineError: It broke off.
        """
        body = reply.body
        if isinstance(body, bytes):
            return body
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await body.read():
                pieces.append(piece)
                size += len(piece)
                if self._limit is not None and size > self._limit:
                    raise _too_large(size, self._limit)
        finally:
            body.abandon()
        return b"".join(pieces)


@lru_cache(maxsize=64)
def _type_field(content_type: str) -> bytes:
    return field(2, content_type.encode()) if content_type else b""


def _left_out(name: bytes) -> None:
    """Log a field that no gRPC client could be given (G-63)."""
    log.debug("a field of an answer cannot be metadata and is left out: %r", name)


def _too_large(size: int, limit: int) -> TooLarge:
    return TooLarge(
        f"grpc: trying to send message larger than max ({size} vs. {limit})",
        hint="the answer is over --max-body-size of the caller's sidecar: raise it, or call over HTTP",
    )


def _traced(reply: Reply, rpc: RpcCall, *, binary_first: bool) -> Headers:
    """Return the trace that the client is told: the app's own, else that of the call (G-117)."""
    said = trace_metadata(*trace_of(reply.headers, binary_first=binary_first))
    return told(rpc.context) if not said and rpc.context is not None else said


async def _read_beginning(reply: Reply) -> bytes:
    """Return the beginning of an error's body, as far as it is told, and let go of the rest."""
    body = reply.body
    if isinstance(body, bytes):
        return body
    beginning = b""
    try:
        while len(beginning) < MAX_ERROR_MESSAGE and (piece := await body.read()):
            beginning += piece
    except TielineError as error:  # what came of it is told all the same
        untrace(error)
    except BaseException:
        body.abandon()
        raise
    await read_out(reply)
    return beginning


class _Messages(NamedTuple):
    """What protobuf is needed for, imported at the first call: it costs a tenth of a second."""

    request: Any
    error: type[Exception]


@cache
def _messages() -> _Messages:
    from google.protobuf.message import DecodeError

    from tieline._generated.dapr.proto.runtime.v1.dapr_pb2 import InvokeServiceRequest

    return _Messages(InvokeServiceRequest, DecodeError)


def _read(message: bytes) -> Any:
    """Return the request that a message is.

    Raises:
        BadMessages: It is none.
    """
    messages = _messages()
    try:
        return messages.request.FromString(message)
    except messages.error as error:
        raise unreadable(error) from error
