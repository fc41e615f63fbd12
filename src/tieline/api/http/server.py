"""What a request to the HTTP API passes, outermost first (H-41).

Tracing and metrics, CORS, API token, API log, routing, its handler. Steps that nobody asked for are not there: then a
call goes straight to its handler, which does its own tracing and counting.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from functools import partial
from time import perf_counter
from typing import Final, Protocol

from tieline.api.http.cors import Cors
from tieline.api.http.errors import BAGGAGE_HINT, ErrorReply, category_of, text_error
from tieline.api.http.invoke import Invoke
from tieline.api.http.own import Answer, OwnApis, Route
from tieline.api.http.token import Token
from tieline.api.http.tracing import Tracer
from tieline.model import Cause, Opened, Reply, Request
from tieline.telemetry.api_log import ApiLog, LoggedBody
from tieline.wire.baggage import BadBaggage
from tieline.wire.headers import survey
from tieline.wire.method_path import BadEscape, MethodMissing, parse_invoke
from tieline.wire.trace_context import is_exempt
from tieline.wire.websocket import foreign_origin

log = logging.getLogger("dapr.runtime.http")

_INVOKE: Final = b"/v1.0/invoke/"
_ASKS_FOR_TOKEN: Final = "send the header dapr-api-token with what DAPR_API_TOKEN of the sidecar holds"  # noqa: S105 - no token
_ORIGIN_HINT: Final = "start the sidecar with --allowed-origins and the origin of the page"
_FOREIGN_PAGE: Final = "WebSockets are not for web pages from elsewhere; allow their origin with --allowed-origins"


class RequestMetrics(Protocol):
    """Is told of the requests that are no invocations; of those, the call record tells."""

    def record_request(
        self, verb: bytes, path: bytes, status: int, duration_s: float, request_bytes: int, response_bytes: int
    ) -> None:
        """Count a request and its answer."""

    def count_error(self, code: str, category: str) -> None:
        """Count an answer with an error code."""


class Front:
    """What every listener of the API does with a request that its handler does not do itself.

    Attributes:
        metrics: ``None`` as long as nothing is counted.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self.metrics: RequestMetrics | None = None

    async def answer(self, request: Request, answer: Answer) -> Reply:
        """Let a handler that is no invocation answer, traced and counted."""
        began = perf_counter()
        if not self._tracer.enabled or is_exempt(request.path):
            reply = await answer(request)
        else:
            _, noted = survey(request.headers)
            try:
                context, baggage = self._tracer.begin(noted)
            except BadBaggage as error:
                request.drop_body()
                reply = text_error(400, error.text, Cause.BAD_REQUEST, BAGGAGE_HINT)
            else:
                reply = await answer(request)
                self._tracer.complete(reply, context, baggage)
        self.count(request, reply, began)
        return reply

    def count(self, request: Request, reply: Reply, began: float) -> None:
        """Count a request that was no invocation."""
        metrics = self.metrics
        if metrics is None:
            return
        size = len(reply.body) if isinstance(reply.body, bytes) and request.verb != b"HEAD" else 0
        duration_s = perf_counter() - began
        metrics.record_request(request.verb, request.path, reply.status, duration_s, request.length or 0, size)
        if isinstance(reply, ErrorReply):
            metrics.count_error(reply.code, category_of(reply.code))


class HttpApi:
    """Answers every request on the HTTP API port, by ``handle``.

    Args:
        invoke: ``None`` if the lists close it.
        cors: ``None`` if web pages are not spoken of; likewise for the other steps.
    """

    def __init__(
        self,
        *,
        front: Front,
        own: OwnApis,
        invoke: Invoke | None,
        cors: Cors | None = None,
        token: Token | None = None,
        api_log: ApiLog | None = None,
    ) -> None:
        self._front = front
        self._own = own
        self._invoke = invoke
        self._cors = cors
        self._token = token
        self._log = api_log
        guarded = cors is not None or token is not None or api_log is not None
        self.handle = self._guarded if guarded else self._routed
        """Answers one request; see ``net.http2_server.Handler``."""

    def _routed(self, request: Request) -> Awaitable[Reply]:
        path = request.path
        invoke = self._invoke
        if request.protocol and self._is_foreign_page(request):
            return self._front.answer(
                request, partial(_drop_and_say, text_error(403, _FOREIGN_PAGE, Cause.DENIED, _ORIGIN_HINT))
            )
        if invoke is not None and path.startswith(_INVOKE) and path.find(b"/.") < 0:
            return invoke(request)
        route = self._own.find(request.verb, path)
        if route is not None:
            return self._front.answer(request, route.answer)
        return self._front.answer(request, self._refuse) if invoke is None else invoke(request)

    def _is_foreign_page(self, request: Request) -> bool:
        """Whether a web page asks for a WebSocket that may not."""
        origin = foreign_origin(request)
        return bool(origin) and (self._cors is None or not self._cors.allows(origin))

    async def _guarded(self, request: Request) -> Reply:
        cors = self._cors
        if cors is not None:
            preflight = cors.answer_preflight(request)
            if preflight is not None:
                return await self._front.answer(request, partial(_drop_and_say, preflight))
        if self._token is not None and not self._token.admits(request):
            refusal = text_error(401, "invalid api token", Cause.DENIED, _ASKS_FOR_TOKEN)
            reply = await self._front.answer(request, partial(_drop_and_say, refusal))
        elif self._log is not None:
            reply = await self._logged(self._log, request)
        else:
            reply = await self._routed(request)
        if cors is not None:
            cors.mark(request, reply)
        return reply

    async def _logged(self, api_log: ApiLog, request: Request) -> Reply:
        began = perf_counter()
        reply = await self._routed(request)
        route = self._own.find(request.verb, request.path)
        if api_log.omit_health and route is not None and route.is_health:
            return reply
        method = self._name(request, route) if api_log.obfuscate else f"{_text(request.verb)} {_text(request.path)}"
        agent = next((value for name, value in request.headers if name == b"user-agent"), b"")
        body = reply.body
        if isinstance(reply, Opened):
            tunnel = reply.tunnel
            tunnel.when_over(lambda: api_log.write(method, 101, tunnel.bytes_down, began, agent))
        elif isinstance(body, bytes):
            size = 0 if request.verb == b"HEAD" else len(body)
            api_log.write(method, reply.status, size, began, agent)
        else:
            status = reply.status
            reply.body = LoggedBody(body, lambda size: api_log.write(method, status, size, began, agent))
        return reply

    def _name(self, request: Request, route: Route | None) -> str:
        """Name the API without showing what the caller wrote, but for the target."""
        if route is not None:
            return route.name
        try:
            addressed = parse_invoke(request.path, request.headers)
        except MethodMissing as error:
            return f"InvokeService/{error.target}"
        except BadEscape:
            addressed = None
        return "InvokeService" if addressed is None else f"InvokeService/{addressed.target}"

    async def _refuse(self, request: Request) -> Reply:
        return self._own.refuse(request)


class PublicApi:
    """Answers on the public port: health and metadata, for whoever can reach it (H-131)."""

    def __init__(self, *, front: Front, own: OwnApis) -> None:
        self._front = front
        self._own = own

    def handle(self, request: Request) -> Awaitable[Reply]:
        """Answer one request; see ``net.http2_server.Handler``."""
        route = self._own.find(request.verb, request.path)
        return self._front.answer(request, self._refuse if route is None else route.answer)

    async def _refuse(self, request: Request) -> Reply:
        return self._own.refuse(request)


async def _drop_and_say(reply: Reply, request: Request) -> Reply:
    request.drop_body()
    return reply


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
