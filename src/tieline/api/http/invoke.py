"""A request to the HTTP API becomes an invocation, and its reply an answer."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final, NamedTuple

from tieline.api.http.errors import BAGGAGE_HINT, PERCENT_HINT, api_error, invocation_failed, text_error
from tieline.api.http.rpc import rpc_fields
from tieline.api.http.tracing import Tracer, put_back
from tieline.errors import AppBroken, GrpcCode, TielineError, untrace
from tieline.middleware.chain import Handler
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Cause, Headers, Hop, Invocation, Reply, Request, Target
from tieline.wire.baggage import BadBaggage
from tieline.wire.errors_text import explained
from tieline.wire.headers import IDENTITY, survey, to_caller
from tieline.wire.method_path import (
    PLAIN_VERBS,
    Addressed,
    BadEscape,
    MethodMissing,
    Via,
    app_verb,
    check,
    clean,
    encode_path,
    parse_invoke,
    read_target,
)
from tieline.wire.trace_context import is_exempt
from tieline.wire.websocket import is_handshake

NO_TARGET = "failed getting app id either from the URL path or the header dapr-app-id"
MAX_ROUTES: Final = 1024
"""How many paths are remembered with what they mean; then the memory starts afresh."""
MAX_ROUTE_BYTES: Final = 256
"""Longer paths are worked out anew each time."""


class Route(NamedTuple):
    """What a path means, whoever asks."""

    target: Target
    method: bytes
    encoded: bytes


class Invoke:
    """The invocation handler: whatever no other route takes comes here (H-21).

    Args:
        drop_token: An API token is configured, so that it must not travel on (H-124).
        is_external: Whether a target lies outside the mesh.
        count: Told of requests that turn out to be no calls, with the time at which they came.
        explain: Returns what is to be said of a verb and a path that mean nothing.
    """

    def __init__(
        self,
        outbound: Handler,
        observe: Observe,
        tracer: Tracer,
        *,
        app_id: str,
        namespace: str,
        drop_token: bool,
        is_external: Callable[[Target], bool],
        count: Callable[[Request, Reply, float], None],
        explain: Callable[[bytes, bytes], Headers],
    ) -> None:
        self._outbound = outbound
        self._observe = observe
        self._tracer = tracer
        self._app_id = app_id
        self._namespace = namespace
        self._drop_token = drop_token
        self._is_external = is_external
        self._count = count
        self._explain = explain
        self._routes: dict[bytes, Route] = {}

    async def __call__(self, request: Request) -> Reply:
        """Answer a request that may be an invocation."""
        headers, noted = survey(request.headers, drop_token=self._drop_token)
        path = request.path
        tracer = self._tracer
        context = baggage = None
        told = False
        if tracer.enabled:
            told = not is_exempt(path)
            try:
                context, baggage = tracer.begin(noted, checked=told)
            except BadBaggage as error:
                request.drop_body()
                refused = text_error(400, error.text, Cause.BAD_REQUEST, BAGGAGE_HINT)
                self._count(request, refused, perf_counter())
                return refused
            headers.append((b"traceparent", context.traceparent))
            if context.tracestate:
                headers.append((b"tracestate", context.tracestate))
        elif noted is not None:
            put_back(headers, noted)
        record = CallRecord()
        record.started = perf_counter()
        record.caller = self._app_id
        record.verb = request.verb
        record.api_path = path
        if context is not None:
            record.trace_id = context.trace_id
        if request.length:
            record.request_bytes = request.length
        elif request.length is None:
            record.streamed = True
        route = self._routes.get(path)
        if route is None or (noted is not None and (b"dapr-app-id" in noted or b"authorization" in noted)):
            found = self._find(request, record)
            if isinstance(found, Reply):
                request.drop_body()
                if context is not None and told:
                    tracer.complete(found, context, baggage)
                if record.duration_s == 0.0:
                    self._count(request, found, record.started)
                return found
            route = found
        target, method, encoded = route
        record.target = target
        record.method = method
        if noted is not None and not IDENTITY.isdisjoint(noted) and self._is_external(target):
            # Outside the mesh they mean nothing, and so pass as they are (H-48).
            headers += [(name, value) for name in IDENTITY for value in noted.get(name, ())]
        length = request.length
        try:
            verb = request.verb
            if verb not in PLAIN_VERBS:
                record.api_verb = verb
                record.verb = verb = b"GET" if is_handshake(request) else app_verb(verb)
            reply = await self._outbound(
                Invocation(
                    target,
                    verb,
                    method,
                    encoded,
                    request.query or b"",
                    headers,
                    request.body,
                    length,
                    record,
                    request.protocol,
                )
            )
            if request.verb == b"CONNECT" and reply.status < 300 and reply.status != 101:
                raise _not_opened(reply)
        except TielineError as error:
            if record.duration_s == 0.0:
                self._not_sent(record, error)
                request.drop_body()
            reply = invocation_failed(error, target.addressed)
            untrace(error)
        else:
            reply.headers = to_caller(reply.headers)
            status = reply.status
            if status == 304:
                reply.headers = [field for field in reply.headers if field[0] != b"content-type"]
            elif status >= 400:
                if record.rpc_code > 0:
                    reply.headers += rpc_fields(record)
                if length is not None:
                    _label_error(reply)
            if noted is not None and b"accept" in noted:
                if not record.local and not record.external:
                    _mark_events(reply)
                elif reply.body == b"" and status < 300:
                    told = False  # as daprd: a stream of no events says nothing of its trace
        if context is not None and told:
            tracer.complete(reply, context, baggage)
        return reply

    def _find(self, request: Request, record: CallRecord) -> Route | Reply:
        """Work out what a request means; the answer if it means no call."""
        try:
            addressed = parse_invoke(request.path, request.headers)
        except MethodMissing as error:
            self._not_sent(record, error)
            return invocation_failed(error, error.target)
        except BadEscape:
            return self._no_target(explained(Cause.BAD_REQUEST, Hop.CALLER, PERCENT_HINT))
        if addressed is None:
            return self._no_target(self._explain(request.verb, request.path))
        try:
            method = clean(addressed.method)
            record.method = method
            check(method)
            target = read_target(addressed.target, self._namespace)
        except TielineError as error:
            self._not_sent(record, error)
            return invocation_failed(error, addressed.target)
        route = Route(target, method, encode_path(method))
        self._remember(request.path, addressed, route)
        return route

    def _no_target(self, explanation: Headers) -> Reply:
        reply = api_error(404, TielineError.code, NO_TARGET)
        reply.headers += explanation
        return reply

    def _remember(self, path: bytes, addressed: Addressed, route: Route) -> None:
        if addressed.via is Via.PATH and len(path) <= MAX_ROUTE_BYTES:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[path] = route

    def _not_sent(self, record: CallRecord, error: TielineError) -> None:
        """End the record of a call that never set out."""
        target = record.target
        if target is not None and not self._is_own(target) and not self._is_external(target):
            # The callee's sidecar would have refused it, so that is how it is told (H-39).
            error.text = f"error invoking app channel: {error.detail}"
            error.grpc_code = GrpcCode.INTERNAL
        self._observe.failed(record, error)

    def _is_own(self, target: Target) -> bool:
        return target.app_id == self._app_id and target.namespace == self._namespace


def failure_size(record: CallRecord, error: TielineError) -> int:
    """Return the body bytes of the answer to a call that failed in a sidecar."""
    addressed = "" if record.target is None else record.target.addressed
    body = invocation_failed(error, addressed).body
    assert isinstance(body, bytes)
    return len(body)


def _not_opened(reply: Reply) -> AppBroken:
    """A 2xx would tell a client that speaks HTTP/2 that its WebSocket is open (RFC 8441 §5)."""
    reply.drop_body()
    error = AppBroken(f"the app answered {reply.status} and opened no WebSocket")
    error.http_status = 502
    return error


def _label_error(reply: Reply) -> None:
    """An error without a media type is taken for JSON, as Dapr's clients expect (H-72)."""
    for name, _ in reply.headers:
        if name == b"content-type":
            return
    reply.headers.append((b"content-type", b"application/json"))


def _mark_events(reply: Reply) -> None:
    """No cache on the way may keep a stream of events (H-77); what the app says about it stays."""
    is_stream = False
    for name, value in reply.headers:
        if name == b"cache-control":
            return
        if name == b"content-type":
            is_stream = value.lower().startswith(b"text/event-stream")
    if is_stream:
        reply.headers.append((b"cache-control", b"no-cache"))
