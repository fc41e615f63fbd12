"""What arrives at the internal port: native calls become invocations, everything else is turned away."""

from __future__ import annotations

from time import perf_counter
from typing import Final
from urllib.parse import unquote

from tieline.errors import BadRequest, Cancelled, GrpcCode, ShuttingDown, TielineError, untrace
from tieline.middleware.chain import Handler
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Cause, Headers, Hop, Invocation, Reply, Request, Target
from tieline.wire.errors_text import hint_value
from tieline.wire.method_path import PLAIN_VERBS, BadEscape, check, clean, decode_path, encode_path
from tieline.wire.websocket import is_handshake

_DECLINED: Final = (b"tieline-declined", b"1")
"""On an app's 2xx answer to a WebSocket handshake, which would open a tunnel otherwise."""
MAX_ERROR_TEXT: Final = 8192
MAX_PATHS: Final = 1024
"""How many paths are remembered with what they mean; then the memory starts afresh."""
MAX_PATH_BYTES: Final = 256
"""Longer paths are worked out anew each time."""


class InboundServer:
    """Answers requests on the internal port."""

    def __init__(self, serve: Handler, observe: Observe, *, app_id: str, namespace: str) -> None:
        self._serve = serve
        self._observe = observe
        self._app_id = app_id
        self._namespace = namespace
        self._target = Target(app_id, namespace, app_id)
        self._paths: dict[bytes, tuple[bytes, bytes]] = {}
        self._mine = frozenset(name.encode("utf-8", "surrogateescape") for name in (app_id, f"{app_id}.{namespace}"))

    async def __call__(self, request: Request) -> Reply:
        """Answer one request; see ``net.http2_server.Handler``."""
        if not request.native or request.path.startswith(b"/dapr.proto."):
            return _foreign(request)
        record = CallRecord()
        record.started = perf_counter()
        record.inbound = True
        record.target = self._target
        record.verb = request.verb
        said = dict(request.headers)
        record.caller = said.get(b"dapr-caller-app-id", b"").decode("utf-8", "replace")
        record.caller_namespace = said.get(b"dapr-caller-namespace", b"").decode("utf-8", "replace")
        record.trace_id = said.get(b"traceparent", b"")[3:35]
        if said.get(b"tieline-invoke") != b"1":
            return _foreign(request)
        try:
            reply = await self._serve(self._invocation(request, record))
            if request.protocol and reply.status < 300 and reply.status != 101:
                reply.headers = [*reply.headers, _DECLINED]
            return reply
        except TielineError as error:
            if record.duration_s == 0.0:
                self._observe.failed(record, error)  # it never set out, so nobody has told yet
                request.drop_body()
            untrace(error)
            return failure(error)

    def _invocation(self, request: Request, record: CallRecord) -> Invocation:
        if request.authority not in self._mine:
            self._check_target(request.authority)
        known = self._paths.get(request.path)
        if known is None:
            known = self._read_path(request.path)
        method, encoded = known
        verb = request.verb
        if verb not in PLAIN_VERBS:
            if not is_handshake(request):
                raise BadRequest("invalid HTTP verb", grpc_code=GrpcCode.INVALID_ARGUMENT)
            record.verb = verb = b"GET"
        record.method = method
        length = request.length
        if length:
            record.request_bytes = length
        elif length is None and request.body == b"":
            length = 0
        return Invocation(
            self._target,
            verb,
            method,
            encoded,
            request.query or b"",
            request.headers,
            request.body,
            length,
            record,
            request.protocol,
        )

    def _read_path(self, path: bytes) -> tuple[bytes, bytes]:
        """Return the method that a path means, and how it is written for the app. Decoded once, checked again."""
        try:
            method = clean(decode_path(path[1:]))
        except BadEscape as error:
            raise BadRequest(f"invalid method: {error}", grpc_code=GrpcCode.INVALID_ARGUMENT) from error
        check(method)
        known = (method, encode_path(method))
        if len(path) <= MAX_PATH_BYTES:
            if len(self._paths) >= MAX_PATHS:
                self._paths.clear()
            self._paths[path] = known
        return known

    def _check_target(self, authority: bytes) -> None:
        """Refuse a call that means another app: a port may have a new owner."""
        app_id, dot, namespace = authority.decode("latin-1").partition(".")
        if unquote(app_id) == self._app_id and (not dot or unquote(namespace) == self._namespace):
            return
        raise TielineError(
            f"this is the sidecar of {self._app_id}, not of {authority.decode('latin-1')}",
            cause=Cause.NAME_UNKNOWN,
            hop=Hop.PEER,
            grpc_code=GrpcCode.UNAVAILABLE,
        )


def failure(error: TielineError) -> Reply:
    """Return the answer by which a callee's sidecar reports a failure of its own to the caller's."""
    code = error.grpc_code if error.grpc_code is not None else GrpcCode.INTERNAL
    hop = error.hop if error.hop is not Hop.CALLER or isinstance(error, (BadRequest, Cancelled)) else Hop.PEER
    if isinstance(error, ShuttingDown):
        hop = Hop.PEER
    headers: Headers = [
        (b"tieline-error", b"%d" % int(code)),
        (b"tieline-cause", error.cause.encode()),
        (b"tieline-hop", hop.encode()),
    ]
    if error.hint:
        headers.append((b"tieline-hint", hint_value(error.hint)))
    return Reply(500, headers, error.text.encode("utf-8", "surrogateescape")[:MAX_ERROR_TEXT])


def _foreign(request: Request) -> Reply:
    """Answer who does not speak our form: a gRPC client in its own words, anybody else plainly."""
    content_type = next((value for name, value in request.headers if name == b"content-type"), b"")
    request.drop_body()
    if content_type.startswith(b"application/grpc"):
        text = b"this sidecar takes calls from Tieline sidecars only"
        return Reply(
            200,
            [(b"content-type", b"application/grpc"), (b"grpc-status", b"12"), (b"grpc-message", text)],
        )
    text = b"this port is for other sidecars; apps call the HTTP API port\n"
    return Reply(404, [(b"content-type", b"text/plain; charset=utf-8")], text)
