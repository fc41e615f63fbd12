"""A request to the HTTP API becomes an invocation, and its reply an answer."""

from __future__ import annotations

from time import perf_counter

from tieline.api.http.errors import api_error, invocation_failed
from tieline.errors import GrpcCode, TielineError
from tieline.middleware.chain import Handler
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Headers, Invocation, Reply, Request, Target
from tieline.wire.headers import to_caller, wants_events
from tieline.wire.method_path import BadEscape, MethodMissing, app_verb, check, clean, parse_invoke, split_target

NO_TARGET = "failed getting app id either from the URL path or the header dapr-app-id"


class Invoke:
    """The invocation handler: whatever no other route takes comes here (H-21)."""

    def __init__(self, outbound: Handler, observe: Observe, *, app_id: str, namespace: str) -> None:
        self._outbound = outbound
        self._observe = observe
        self._app_id = app_id
        self._namespace = namespace

    async def __call__(self, request: Request, headers: Headers, trace_id: bytes) -> Reply:
        """Answer a request that may be an invocation.

        Args:
            request: As received.
            headers: Its fields with the trace context that holds from here on.
            trace_id: Of that context, or empty.
        """
        try:
            addressed = parse_invoke(request.path, headers)
        except MethodMissing as error:
            _drop(request)
            return api_error(400, error.code, f"failed to invoke, id: {error.target}, err: {error.text}")
        except BadEscape:
            addressed = None
        if addressed is None:
            _drop(request)
            return api_error(404, TielineError.code, NO_TARGET)
        record = CallRecord()
        record.started = perf_counter()
        record.caller = self._app_id
        record.caller_namespace = self._namespace
        record.trace_id = trace_id
        record.verb = request.verb
        length = request.length
        if length:
            record.request_bytes = length
        try:
            method = clean(addressed.method)
            record.method = method
            check(method)
            record.target = target = split_target(addressed.target, self._namespace)
            record.verb = verb = app_verb(request.verb)
        except TielineError as error:
            if record.target is not None and not self._is_own(record.target):
                # The callee's sidecar would have refused it, so that is how it is told (H-39).
                error.text = f"error invoking app channel: {error.detail}"
                error.grpc_code = GrpcCode.INTERNAL
            self._observe.failed(record, error)
            _drop(request)
            return invocation_failed(error, addressed.target)
        call = Invocation(target, verb, method, request.query or b"", headers, request.body, length, record)
        try:
            reply = await self._outbound(call)
        except TielineError as error:
            return invocation_failed(error, addressed.target)
        reply.headers = to_caller(reply.headers)
        if reply.status == 304:
            reply.headers = [field for field in reply.headers if field[0] != b"content-type"]
        elif reply.status >= 400 and length is not None:
            _label_error(reply)
        if not record.local and wants_events(headers):
            _mark_events(reply)
        return reply

    def _is_own(self, target: Target) -> bool:
        return target.app_id == self._app_id and target.namespace == self._namespace


def _drop(request: Request) -> None:
    if not isinstance(request.body, bytes):
        request.body.abandon()


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
