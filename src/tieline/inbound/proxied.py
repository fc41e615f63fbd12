"""Proxied calls that another sidecar makes to our app: sent on to it as they come."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final

from tieline.errors import BadRequest, GrpcCode, TielineError
from tieline.model import CallRecord, Cause, Headers, Hop, Request, Target
from tieline.net.deadlines import Deadlines
from tieline.net.http2_server import Http2Server
from tieline.net.relay import Outline, Relay, Route, refuse
from tieline.wire.grpc.proxied import BadHead, Head, no_target
from tieline.wire.grpc.status import CONTENT_TYPE
from tieline.wire.grpc.timeout import Timeout
from tieline.wire.grpc.trace import TRACE_BIN
from tieline.wire.http2 import Stream
from tieline.wire.http2.hpack import literals
from tieline.wire.method_path import check, clean

_INTERNALS: Final = b"/dapr.proto.internals."
_REFLECTION: Final = b"/grpc.reflection."
_TARGETS: Final = frozenset({b"dapr-callee-app-id", b"dapr-app-id"})
_NATIVE: Final = (b"tieline-invoke", b"1")
_PLAIN_TYPE: Final = (b"content-type", CONTENT_TYPE)

Allows = Callable[[CallRecord, bytes], None]
"""Says whether a caller may call a normalised full method (G-85); raises ``TielineError`` if not."""


class Plan:
    """What is alike in all calls that come with the same head on the same connection.

    Attributes:
        owner: Who made it.
        path: As sent, query included.
        outline: Of their head as it is sent on.
        caller, caller_namespace: As they say.
        trace_id, tail: Of the trace context among what they say; both empty without one.
        timeout: That among what they say; ``None`` without one.
    """

    __slots__ = ("caller", "caller_namespace", "outline", "owner", "path", "tail", "timeout", "trace_id")

    def __init__(self, owner: ProxiedCalls, path: bytes) -> None:
        self.owner = owner
        self.path = path
        self.outline: Outline
        self.caller = self.caller_namespace = ""
        self.trace_id = self.tail = b""
        self.timeout: Timeout | None = None


class ProxiedCalls:
    """Takes proxied calls at the internal port.

    Args:
        app_id, namespace: The sidecar's own: calls that mean another app are refused (G-75).
        app: The way to our own app.
        over: Is told of each call that never sets out.
        traced: See ``outbound.proxy.Proxy``; so are ``deadlines`` and ``app_token``.
        allows: Access control; ``None`` without any.
    """

    def __init__(
        self,
        *,
        app_id: str,
        namespace: str,
        app: Route,
        over: Callable[[CallRecord], None],
        deadlines: Deadlines,
        traced: bool,
        app_token: str,
        allows: Allows | None = None,
    ) -> None:
        self._app_id = app_id.encode("utf-8", "surrogateescape")
        self._mine = frozenset(name.encode("utf-8", "surrogateescape") for name in (app_id, f"{app_id}.{namespace}"))
        self._target = Target(app_id, namespace, app_id)
        self._app = app
        self._over = over
        self._deadlines = deadlines
        self._traced = traced
        self._app_token = app_token.encode()
        self._allows = allows

    def take(self, connection: Http2Server, stream: Stream, request: Request, end: bool) -> bool:
        """Take over a request if it is a proxied call; see ``net.http2_server.Taker``."""
        headers = request.headers
        path = request.path
        if (
            request.verb != b"POST"
            or (request.native and _NATIVE in headers)
            or path.startswith(_INTERNALS)
            or path.find(b"/", 1) < 0
            or (path.startswith(_REFLECTION) and not _names_an_app(request))
            or not (_PLAIN_TYPE in headers or _is_rpc(request))
        ):
            return False
        if request.query is not None:
            path += b"?" + request.query
        plan = Plan(self, path)
        repeated = connection.h2.repeated
        try:
            timeout = self._read(plan, headers, repeats=repeated is not None)
        except TielineError as error:
            record = self._record(plan)
            refuse(connection, stream, error, record)
            self._over(record)
            return True
        if repeated is not None and self._allows is None:
            repeated.plan = plan
            if repeated.has_timeout:
                plan.timeout = timeout
        self._begin(connection, stream, plan, plan.tail, plan.trace_id, timeout, end)
        return True

    def repeat(self, connection: Http2Server, stream: Stream, plan: Plan, tail: bytes, timeout: Timeout | None) -> bool:
        """Take over a proxied call with a head that is known; see ``net.http2_server.Taker``."""
        if plan.owner is not self:
            return False
        within = timeout or plan.timeout
        # Of what is there twice the last one is the sidecar's own, as ever.
        if tail:
            self._begin(connection, stream, plan, tail, tail[17:49], within, False)
        else:
            self._begin(connection, stream, plan, plan.tail, plan.trace_id, within, False)
        return True

    def _begin(
        self,
        connection: Http2Server,
        stream: Stream,
        plan: Plan,
        tail: bytes,
        trace_id: bytes,
        timeout: Timeout | None,
        end: bool,
    ) -> None:
        record = self._record(plan)
        record.trace_id = trace_id
        relay = Relay(self._app, plan.outline, tail, record)
        relay.begin(connection, stream, end=end, deadlines=self._deadlines, timeout=timeout)

    def _record(self, plan: Plan) -> CallRecord:
        record = CallRecord()
        record.started = perf_counter()
        record.inbound = True
        record.target = self._target
        record.verb = b"POST"
        record.method = plan.path
        record.caller = plan.caller
        record.caller_namespace = plan.caller_namespace
        return record

    def _read(self, plan: Plan, headers: Headers, *, repeats: bool) -> Timeout | None:
        """Write down how calls with a head are sent to our app, and return how long this one may take.

        Raises:
            TielineError: They are not to be made.
        """
        path = plan.path
        try:
            head = Head(path, headers)
        except BadHead as error:
            raise BadRequest(str(error), grpc_code=GrpcCode.INTERNAL) from error
        noted = head.noted
        caller = noted.get(b"dapr-caller-app-id", (b"",))[-1]
        namespace = noted.get(b"dapr-caller-namespace", (b"",))[-1]
        plan.caller = caller.decode("utf-8", "replace")
        plan.caller_namespace = namespace.decode("utf-8", "replace")
        plan.trace_id = noted.get(b"traceparent", (b"",))[-1][3:35]
        self._check_target(head, path)
        check(path)
        if self._allows is not None:
            self._allows(self._record(plan), clean(path))
        fields = head.fields
        # Of what is there twice the last one is the sidecar's own (G-73): daprd appends to what its client forged.
        if caller:
            fields.append((b"dapr-caller-app-id", caller, False))
        if namespace:
            fields.append((b"dapr-caller-namespace", namespace, False))
        if b"dapr-callee-app-id" in noted:
            fields.append((b"dapr-callee-app-id", self._app_id, False))
        plan.tail = literals([(name, noted[name][-1]) for name in (b"traceparent", TRACE_BIN) if name in noted])
        if b"dapr-stream" in noted:
            head.put_back(b"dapr-stream")
        if self._app_token:
            fields.append((b"dapr-api-token", self._app_token, True))
        plan.outline = Outline(fields, repeats=repeats)
        return head.timeout

    def _check_target(self, head: Head, path: bytes) -> None:
        """Refuse a call that means another app: ours is no relay, and a port may have a new owner (G-75)."""
        named = head.first(b"dapr-callee-app-id")
        if named is None:
            named = head.first(b"dapr-app-id")
        if named is None:
            hint = "calls to this port come from sidecars; apps call their own sidecar"
            raise BadRequest(no_target(path, traced=self._traced), hint=hint)
        if named not in self._mine:
            raise TielineError(
                f"this is the sidecar of {self._target.app_id}, not of {named.decode('utf-8', 'backslashreplace')}",
                cause=Cause.NAME_UNKNOWN,
                hop=Hop.PEER,
                grpc_code=GrpcCode.PERMISSION_DENIED,
            )


def _names_an_app(request: Request) -> bool:
    """Say whether an RPC that may be for the port itself is meant for an app."""
    return any(name in _TARGETS for name, _ in request.headers)


def _is_rpc(request: Request) -> bool:
    for name, value in request.headers:
        if name == b"content-type":
            return value.startswith(CONTENT_TYPE) and value[len(CONTENT_TYPE) : len(CONTENT_TYPE) + 1] in b"+;"
    return False
