"""What a request to the HTTP API passes, outermost first: tracing, routing, its handler (H-41)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from tieline.api.http.errors import text_error
from tieline.api.http.health import Health
from tieline.api.http.invoke import Invoke
from tieline.api.http.metadata import Metadata
from tieline.api.http.tracing import Tracer
from tieline.model import Reply, Request
from tieline.wire.baggage import BadBaggage
from tieline.wire.headers import survey
from tieline.wire.method_path import normalise_route
from tieline.wire.trace_context import is_exempt

log = logging.getLogger("dapr.runtime.http")

_METADATA: Final = b"/v1.0/metadata/"
Route = Callable[[Request], Awaitable[Reply]]


class HttpApi:
    """Answers every request on the HTTP API port.

    Args:
        shutdown: Begins the shutdown; ``True`` means at once.
    """

    def __init__(
        self,
        *,
        invoke: Invoke,
        health: Health,
        metadata: Metadata,
        shutdown: Callable[[bool], None],
        tracer: Tracer,
    ) -> None:
        self._invoke = invoke
        self._health = health
        self._metadata = metadata
        self._shutdown = shutdown
        self._tracer = tracer
        self._routes: dict[tuple[bytes, bytes], Route] = {
            (b"GET", b"/v1.0/healthz"): self._get_health,
            (b"GET", b"/v1.0/healthz/outbound"): self._get_outbound,
            (b"GET", b"/v1.0/metadata"): self._get_metadata,
            (b"POST", b"/v1.0/shutdown"): self._post_shutdown,
        }

    def __call__(self, request: Request) -> Awaitable[Reply]:
        """Answer one request; see ``net.http2_server.Handler``."""
        path = request.path
        if path.startswith(b"/v1.0/invoke/") and path.find(b"/.") < 0:
            return self._invoke(request)
        route = self._route(request.verb, path)
        return self._invoke(request) if route is None else self._own(request, route)

    async def _own(self, request: Request, route: Route) -> Reply:
        """Answer for an API of the sidecar's own."""
        if not self._tracer.enabled or is_exempt(request.path):
            return await route(request)
        _, noted = survey(request.headers)
        try:
            context, baggage = self._tracer.begin(noted)
        except BadBaggage as error:
            request.drop_body()
            return text_error(400, error.text)
        reply = await route(request)
        self._tracer.complete(reply, context, baggage)
        return reply

    def _route(self, verb: bytes, path: bytes) -> Route | None:
        """Return the handler of an API of the sidecar's own, by the cleaned, still encoded path (H-24)."""
        if not path.startswith(b"/"):
            return self._get_options if path == b"*" and verb == b"OPTIONS" else None
        route = normalise_route(path)
        found = self._routes.get((verb, route))
        if found is None and verb == b"PUT" and route.startswith(_METADATA):
            key = route[len(_METADATA) :]
            if key and b"/" not in key:
                return lambda request: self._put_metadata(request, key)
        return found

    # ── the sidecar's own APIs ─────────────────────────────────────────────────────────────────────
    async def _get_options(self, request: Request) -> Reply:
        request.drop_body()
        return Reply(200, [])

    async def _get_health(self, request: Request) -> Reply:
        request.drop_body()
        return self._health.answer(request.query)

    async def _get_outbound(self, request: Request) -> Reply:
        request.drop_body()
        return self._health.answer_outbound()

    async def _get_metadata(self, request: Request) -> Reply:
        request.drop_body()
        return self._metadata.answer()

    async def _put_metadata(self, request: Request, key: bytes) -> Reply:
        if _from_browser(request):
            return text_error(403, "metadata is not set by web pages")
        return await self._metadata.set_attribute(request, key)

    async def _post_shutdown(self, request: Request) -> Reply:
        request.drop_body()
        if _from_browser(request):
            return text_error(403, "shutdown is not for web pages")
        forced = next((value for name, value in request.headers if name == b"dapr-force-shutdown"), b"")
        self._shutdown(forced.lower() == b"true")
        return Reply(204, [])


def _from_browser(request: Request) -> bool:
    """Whether a web page sent this: it must not be able to stop somebody's sidecar."""
    return any(name in (b"origin", b"sec-fetch-site") for name, _ in request.headers)
