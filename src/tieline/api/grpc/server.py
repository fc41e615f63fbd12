"""What an RPC to the gRPC API passes, outermost first (G-113).

Is it an RPC at all (G-125), allow list, API token, tracing and baggage; then metrics and API log around its handler.
Whatever is below none of the services here is for the proxy.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from tieline.api.grpc import tracing
from tieline.api.grpc.answers import NOT_BUILT, RpcAnswer, failed, failed_by, no_rpc, refused
from tieline.api.grpc.calls import APP_ID, TOKEN, BadMetadata, RpcCall, deadline_of, read_message, survey
from tieline.api.grpc.conversation import Conversation
from tieline.api.http.tracing import Tracer
from tieline.config.api_lists import GrpcLists
from tieline.errors import GrpcCode, TielineError, TimedOut, untrace
from tieline.model import Cause, Headers, Reply, Request
from tieline.net.http2_server import Http2Server
from tieline.telemetry.api_log import GrpcApiLog
from tieline.wire.baggage import BadBaggage
from tieline.wire.errors_text import quote
from tieline.wire.grpc.messages import BadMessages
from tieline.wire.grpc.proxied import BadHead, Head, no_target
from tieline.wire.grpc.status import CONTENT_TYPE
from tieline.wire.grpc.timeout import Timeout
from tieline.wire.headers import Noted
from tieline.wire.http2 import Stream

Unary: TypeAlias = Callable[[RpcCall, bytes], Awaitable[RpcAnswer]]
"""Answers an RPC of one message; may raise ``BadMessages``."""
Streaming: TypeAlias = Callable[[RpcCall], Awaitable[Reply]]
"""Answers an RPC whose messages it reads itself, by a ``Conversation`` as body."""

_CLOSED: Final = "spec.api of the sidecar's Configuration closes it: allow it there"
_ASKS_FOR_TOKEN: Final = "send the metadata dapr-api-token with what DAPR_API_TOKEN of the sidecar holds"  # noqa: S105 - no token
_NAMES_NO_APP: Final = "name the app whose method it is by the metadata dapr-app-id"
_ONLY_INVOCATION: Final = "this sidecar is for service invocation: it has no other building blocks"
_RAISE: Final = "the message is over --max-body-size of this sidecar: raise it, or send less"
MAX_TYPES: Final = 64
"""How many content types are remembered with what they are answered by; then the memory starts afresh."""


class RpcMetrics(Protocol):
    """Is told of the RPCs that the API serves."""

    def record_rpc(self, path: bytes, code: int, seconds: float, received: int | None, sent: int) -> None:
        """Count an RPC that is over; ``received`` is ``None`` for a stream, whose bytes are not counted (O-26)."""

    def count_error(self, code: str, category: str) -> None:
        """Count an answer with an error code."""


class Proxy(Protocol):
    """Sends the RPCs of other services on to the apps that they name."""

    def take(
        self,
        connection: Http2Server,
        stream: Stream,
        path: bytes,
        head: Head,
        end: bool,
        *,
        user_agent: bytes = b"",
        repeats: bool = False,
    ) -> Any:
        """Take over an RPC that may be called.

        Args:
            connection, stream: The client's.
            path: As sent, with whatever follows a question mark.
            head: The request taken apart.
            end: It has no message.
            user_agent: For the log; empty if none is kept.
            repeats: More of them will come.

        Returns:
            What ``repeat`` is to be given for the next one; ``None`` if it must come here.
        """

    def repeat(self, connection: Http2Server, stream: Stream, plan: Any, timeout: Timeout | None) -> None:
        """Take over one with a head that is known but for its time-out."""


class _LetIn(NamedTuple):
    """What is known of RPCs with one head, none of which has a deadline.

    Attributes:
        by: Who let them in.
        headers, noted: See ``survey``.
        typed: The content type of their answers.
    """

    by: GrpcApi
    headers: Headers
    noted: Noted | None
    typed: tuple[bytes, bytes] | None


class GrpcApi:
    """Answers every request on the port of the gRPC API, by ``handle``, but for what ``take`` gives to the proxy.

    Args:
        own: Handlers by the paths of their RPCs.
        shared, streams: Likewise of services that apps have, too: metadata that name an app go before.
        limit: Longest message in bytes; ``None`` for no limit.
        lists: ``None`` if nothing is closed; likewise for the other steps.
    """

    def __init__(
        self,
        *,
        own: Mapping[bytes, Unary],
        shared: Mapping[bytes, Unary],
        streams: Mapping[bytes, Streaming],
        tracer: Tracer,
        limit: int | None,
        lists: GrpcLists | None = None,
        token: str | None = None,
        api_log: GrpcApiLog | None = None,
        metrics: Callable[[], RpcMetrics | None] = lambda: None,
        proxy: Proxy | None = None,
    ) -> None:
        self._own = own
        self._unary = {**own, **shared}
        self._streams = streams
        self._tracer = tracer
        self._limit = limit
        self._lists = lists
        self._token = None if token is None else token.encode("utf-8", "surrogateescape")
        self._log = api_log
        self._metrics = metrics
        self._proxy = proxy
        self._types: dict[bytes, tuple[bytes, bytes] | None] = {}

    async def handle(self, request: Request) -> Reply:
        """Answer one request; see ``net.http2_server.Handler``."""
        began = perf_counter()
        shape = request.shape
        known = None if shape is None else shape.made
        if type(known) is _LetIn and known.by is self:
            _, kept, noted, typed = known
            headers = kept.copy()
            deadline = refusal = None
        else:
            try:
                headers, content_type, noted = survey(request.headers)
                deadline = deadline_of(noted)
            except BadMetadata as error:
                return _dropped(request, no_rpc(400, GrpcCode.INTERNAL, str(error)))
            typed = self._types[content_type] if content_type in self._types else self._type(content_type)
            refusal = _no_rpc(request, content_type, typed)
            if refusal is not None:
                return _dropped(request, refusal)
            refusal = self._refuse(request.path, noted) if deadline != 0.0 else failed_by(TimedOut())
            if refusal is None and shape is not None and deadline is None:
                shape.made = _LetIn(self, headers.copy(), noted, typed)
        context = baggage = None
        if refusal is None and self._tracer.enabled:
            try:
                context, baggage = tracing.begin(self._tracer, noted)
            except BadBaggage as error:
                refusal = failed(GrpcCode.INVALID_ARGUMENT, error.text)
        if refusal is not None:
            reply: Reply = _dropped(request, refusal)
        else:
            reply = await self._route(RpcCall(request, headers, noted, context, deadline, began))
        if baggage is not None:
            _echo(reply, baggage)
        assert typed is not None
        reply.headers.insert(0, typed)
        return reply

    def take(self, connection: Http2Server, stream: Stream, request: Request, end: bool) -> bool:
        """Leave to the proxy an RPC that names an app; see ``net.http2_server.Taker``. Others are for ``handle``.

        So is whatever is to be refused.
        """
        path = request.path
        proxy = self._proxy
        if proxy is None or path in self._own or request.verb != b"POST" or path.find(b"/", 1) < 0:
            return False
        whole = path if request.query is None else path + b"?" + request.query
        try:
            head = Head(whole, request.headers)
        except BadHead:
            return False
        noted = head.noted
        if APP_ID not in noted or (head.timeout is not None and head.timeout[1] <= 0):
            return False
        content_type = head.content_type
        typed = self._types[content_type] if content_type in self._types else self._type(content_type)
        if typed is None or self._refuse(path, noted) is not None:
            return False
        agent = b""
        if self._log is not None:
            agent = next((value for name, value in request.headers if name == b"user-agent"), b"")
        repeated = connection.h2.repeated
        plan = proxy.take(connection, stream, whole, head, end, user_agent=agent, repeats=repeated is not None)
        if repeated is not None and plan is not None:
            repeated.plan = (self, plan, head.timeout if repeated.has_timeout else None)
        return True

    def repeat(
        self,
        connection: Http2Server,
        stream: Stream,
        plan: tuple[GrpcApi, Any, Timeout | None],
        tail: bytes,
        timeout: Timeout | None,
    ) -> bool:
        """Leave to the proxy an RPC of which all is known; see ``net.http2_server.Taker``."""
        owner, known, same = plan
        if owner is not self or tail or self._proxy is None or (timeout is not None and timeout[1] <= 0):
            return False
        self._proxy.repeat(connection, stream, known, timeout or same)
        return True

    # ── who may come in ────────────────────────────────────────────────────────────────────────────
    def _type(self, content_type: bytes) -> tuple[bytes, bytes] | None:
        """Return the field that answers to a content type have; ``None`` if it is not gRPC's (G-125)."""
        plain, rest = content_type[: len(CONTENT_TYPE)], content_type[len(CONTENT_TYPE) :]
        typed = None
        if plain == CONTENT_TYPE and (not rest or rest[:1] in (b"+", b";")):
            typed = (b"content-type", CONTENT_TYPE + (b"+" + rest[1:] if len(rest) > 1 else b""))
        if len(self._types) >= MAX_TYPES:
            self._types.clear()
        self._types[content_type] = typed
        return typed

    def _refuse(self, path: bytes, noted: Noted | None) -> RpcAnswer | None:
        """Return the refusal of an RPC that may not be called, or not without the token; ``None`` lets it in."""
        if self._lists is not None and not self._lists.is_open(path):
            available = "requested endpoint is not available"
            return refused(GrpcCode.UNIMPLEMENTED, "Not Implemented", 501, available, _CLOSED)
        if self._token is None:
            return None
        shown = None if noted is None else noted.get(TOKEN)
        if shown is None:
            reason = "missing api token in request metadata"
        elif hmac.compare_digest(shown[0], self._token):
            return None
        else:
            reason = "authentication error: api token mismatch"
        return refused(GrpcCode.UNAUTHENTICATED, "Unauthorized", 401, reason, _ASKS_FOR_TOKEN)

    # ── handlers ───────────────────────────────────────────────────────────────────────────────────
    def _route(self, rpc: RpcCall) -> Awaitable[Reply]:
        path = rpc.request.path
        unary = self._unary.get(path)
        if unary is not None:
            return self._answer(rpc, unary)
        streaming = self._streams.get(path)
        return self._answer_unknown(rpc) if streaming is None else self._converse(rpc, streaming)

    async def _answer(self, rpc: RpcCall, unary: Unary) -> RpcAnswer:
        """Let a handler answer within the time that the client gives it."""
        received = 0
        answer = None
        try:
            if rpc.deadline is None:
                message = await read_message(rpc, self._limit)
                received = len(message)
                answer = await unary(rpc, message)
            else:
                async with asyncio.timeout_at(rpc.deadline):
                    message = await read_message(rpc, self._limit)
                    received = len(message)
                    answer = await unary(rpc, message)
        except TimeoutError as error:
            untrace(error)
            answer = failed_by(TimedOut())
        except BadMessages as error:
            too_large = error.code == GrpcCode.RESOURCE_EXHAUSTED
            answer = failed(error.code, error.text, *((Cause.TOO_LARGE, _RAISE) if too_large else ()))
        except TielineError as error:
            untrace(error)
            answer = failed_by(error)
        except asyncio.CancelledError:
            self._count(rpc, GrpcCode.CANCELED, received, 0)
            raise
        rpc.request.drop_body()
        return self._counted(rpc, answer, received)

    async def _converse(self, rpc: RpcCall, streaming: Streaming) -> Reply:
        reply = await streaming(rpc)
        conversation = reply.body
        assert isinstance(conversation, Conversation)
        conversation.on_end = lambda code: self._write(rpc, code)
        return reply

    async def _answer_unknown(self, rpc: RpcCall) -> RpcAnswer:
        """Answer an RPC that is none of ours and that no proxy took."""
        rpc.request.drop_body()
        text = no_target(rpc.request.path, traced=rpc.context is not None)
        answer = failed(GrpcCode.UNKNOWN, text, hint=_NAMES_NO_APP)
        self._write(rpc, answer.code)
        return answer

    # ── what is told of it ─────────────────────────────────────────────────────────────────────────
    def _counted(self, rpc: RpcCall, answer: RpcAnswer, received: int) -> RpcAnswer:
        self._count(rpc, answer.code, received, answer.sent)
        if answer.reason:
            metrics = self._metrics()
            if metrics is not None:
                metrics.count_error(answer.reason, "service-invocation")
        return answer

    def _count(self, rpc: RpcCall, code: int, received: int, sent: int) -> None:
        metrics = self._metrics()
        if metrics is not None:
            metrics.record_rpc(rpc.request.path, code, perf_counter() - rpc.began, received, sent)
        self._write(rpc, code)

    def _write(self, rpc: RpcCall, code: int) -> None:
        if self._log is not None:
            agent = next((value for name, value in rpc.headers if name == b"user-agent"), b"")
            self._log.write(rpc.request.path, code, rpc.began, agent)


async def not_built(rpc: RpcCall, message: bytes) -> RpcAnswer:
    """Answer an RPC of a building block that this sidecar does not have (G-11)."""
    return failed(GrpcCode.UNIMPLEMENTED, NOT_BUILT, hint=_ONLY_INVOCATION)


def told_its_trace(unary: Unary) -> Unary:
    """Have the answers of one of the sidecar's own RPCs tell its trace (G-119)."""

    async def telling(rpc: RpcCall, message: bytes) -> RpcAnswer:
        answer = await unary(rpc, message)
        if rpc.context is not None:
            answer.headers.append(tracing.told_in_binary(rpc.context))
        return answer

    return telling


def _no_rpc(request: Request, content_type: bytes, typed: tuple[bytes, bytes] | None) -> RpcAnswer | None:
    """Return the answer to what is no RPC (G-125); ``None`` if it is one."""
    if typed is None:
        return no_rpc(415, GrpcCode.INVALID_ARGUMENT, f"invalid gRPC request content-type {quote(content_type)}")
    if request.verb != b"POST":
        shown = quote(request.verb)
        return no_rpc(405, GrpcCode.INTERNAL, f"Received a HEADERS frame with :method {shown} which should be POST")
    path = request.path
    if path.find(b"/", 1) < 0 or not path.startswith(b"/"):
        answer = failed(GrpcCode.UNIMPLEMENTED, f"malformed method name: {quote(path)}")
        answer.headers.insert(0, typed)
        return answer
    return None


def _echo(reply: Reply, baggage: bytes) -> None:
    """Repeat the baggage in front of what an answer brings (G-120), once (G-130)."""
    if reply.body == b"" and reply.trailers is None:
        reply.headers, reply.trailers = [], reply.headers
    if not any(name == tracing.BAGGAGE for name, _ in reply.headers):
        reply.headers.append((tracing.BAGGAGE, baggage))


def _dropped(request: Request, answer: RpcAnswer) -> RpcAnswer:
    request.drop_body()
    return answer
