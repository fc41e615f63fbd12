"""What arrives at the internal port: native calls become invocations, gRPC goes to who answers that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final
from urllib.parse import quote, unquote

from tieline.errors import BadRequest, GrpcCode, TielineError, untrace
from tieline.inbound.failures import native_failure, not_meant
from tieline.middleware.chain import Handler
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Headers, Invocation, Reply, Request, RpcReply, RpcStatus, Target
from tieline.net.http2_server import Handler as Server
from tieline.wire.errors_text import explained
from tieline.wire.errors_text import quote as quoted
from tieline.wire.grpc.codes import render_status_body
from tieline.wire.grpc.mapping import content_type_field, metadata_of_hop
from tieline.wire.grpc.status import CONTENT_TYPE, is_grpc, render_status
from tieline.wire.method_path import PLAIN_VERBS, BadEscape, check, clean, decode_path, encode_path
from tieline.wire.websocket import is_handshake

_DECLINED: Final = (b"tieline-declined", b"1")
"""On an app's 2xx answer to a WebSocket handshake, which would open a tunnel otherwise."""
SERVICE: Final = b"/dapr.proto.internals.v1.ServiceInvocation/"
_URL_SAFE: Final = "!$&'()*+,-./:;=?@_~"
MAX_PATHS: Final = 1024
"""How many paths are remembered with what they mean; then the memory starts afresh."""
MAX_PATH_BYTES: Final = 256
"""Longer paths are worked out anew each time."""


class InboundServer:
    """Answers requests on the internal port.

    Args:
        make_calls: Makes what answers Dapr's internal RPCs, when the first one comes; ``None`` for a port without them.
    """

    def __init__(
        self,
        serve: Handler,
        observe: Observe,
        *,
        app_id: str,
        namespace: str,
        make_calls: Callable[[], Server] | None = None,
    ) -> None:
        self._serve = serve
        self._observe = observe
        self._app_id = app_id
        self._namespace = namespace
        self._target = Target(app_id, namespace, app_id)
        self._make_calls = make_calls
        self._calls: Server | None = None
        self._paths: dict[bytes, tuple[bytes, bytes]] = {}
        self._mine = frozenset(name.encode("utf-8", "surrogateescape") for name in (app_id, f"{app_id}.{namespace}"))

    def __call__(self, request: Request) -> Awaitable[Reply]:
        """Answer one request; see ``net.http2_server.Handler``."""
        if not request.native or request.path.startswith(b"/dapr.proto."):
            return self._foreign(request)
        return self._native(request)

    async def _native(self, request: Request) -> Reply:
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
            return await self._foreign(request)
        try:
            reply = await self._serve(self._invocation(request, record))
            if record.rpc_code >= 0:
                return rpc_answer(reply, record)
            if request.protocol and reply.status < 300 and reply.status != 101:
                reply.headers = [*reply.headers, _DECLINED]
            return reply
        except TielineError as error:
            if record.duration_s == 0.0:
                self._observe.failed(record, error)  # it never set out, so nobody has told yet
                request.drop_body()
            untrace(error)
            return native_failure(error)

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
        raise not_meant(self._app_id, authority.decode("latin-1"))

    def _foreign(self, request: Request) -> Awaitable[Reply]:
        """Answer what is no native call: a gRPC client in its own words, anybody else plainly."""
        content_type = next((value for name, value in request.headers if name == b"content-type"), b"")
        path = request.path
        if path.startswith(SERVICE) and self._make_calls is not None:
            refused = _no_rpc(request, content_type)
            if refused is None:
                if self._calls is None:
                    self._calls = self._make_calls()
                return self._calls(request)
            request.drop_body()
            return _at_once(refused)
        request.drop_body()
        if is_grpc(content_type):
            if (refused := _no_rpc(request, content_type)) is not None:
                return _at_once(refused)
            if path.find(b"/", 1) < 0:
                return _at_once(_ended(GrpcCode.UNIMPLEMENTED, f"malformed method name: {quoted(path)}"))
            text = f"unknown service {path[1:].rpartition(b'/')[0].decode('latin-1')}"
            return _at_once(_ended(GrpcCode.UNIMPLEMENTED, text))
        plain = b"this port is for other sidecars; apps call the HTTP API port\n"
        return _at_once(Reply(404, [(b"content-type", b"text/plain; charset=utf-8")], plain))


async def _at_once(reply: Reply) -> Reply:
    return reply


def _no_rpc(request: Request, content_type: bytes) -> Reply | None:
    """Return the answer to what is no RPC (G-125); ``None`` if it is one."""
    if not is_grpc(content_type):
        shown = content_type.decode("latin-1")
        return _ended(GrpcCode.INVALID_ARGUMENT, f'invalid gRPC request content-type "{shown}"', 415)
    if request.verb != b"POST":
        shown = request.verb.decode("latin-1")
        text = f'Received a HEADERS frame with :method "{shown}" which should be POST'
        return _ended(GrpcCode.INTERNAL, text, 405)
    return None


def rpc_answer(reply: Reply, record: CallRecord) -> Reply:
    """Return the answer of a gRPC app in the native form: the caller's sidecar puts it into its client's words."""
    if not isinstance(reply, RpcReply):
        return reply
    status = reply.rpc_status
    headers: Headers = [(b"tieline-grpc-status", b"%d" % status.code)]
    body = reply.body
    if status.code:
        body = render_status_body(status)
    else:
        headers += content_type_field(reply.content_type, "")
        if reply.type_url:
            headers.append((b"tieline-type-url", quote(reply.type_url, safe=_URL_SAFE).encode("ascii")))
    if record.cause is not None:
        headers += explained(record.cause, record.hop, record.hint)
    headers += metadata_of_hop(reply.headers)
    return Reply(200, headers, body)


def _ended(code: int, text: str, status: int = 200) -> Reply:
    return Reply(status, [(b"content-type", CONTENT_TYPE), *render_status(RpcStatus(code, text))])
