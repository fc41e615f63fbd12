"""What a request to the HTTP API passes, outermost first: tracing, routing, its handler (H-41)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from tieline.api.http.errors import text_error
from tieline.api.http.health import Health
from tieline.api.http.invoke import Invoke
from tieline.api.http.metadata import Metadata
from tieline.model import Headers, Reply, Request
from tieline.wire.baggage import BadBaggage
from tieline.wire.baggage import check as check_baggage
from tieline.wire.method_path import normalise_route
from tieline.wire.trace_context import Context, IdSource, add_to_answer, continue_or_start, is_exempt

log = logging.getLogger("dapr.runtime.http")

_METADATA: Final = b"/v1.0/metadata/"
Route = Callable[[Request], Awaitable[Reply]]


class HttpApi:
    """Answers every request on the HTTP API port.

    Args:
        shutdown: Begins the shutdown; ``True`` means at once.
        tracing: False only if the sampling rate says so: then trace headers are ordinary headers (O-1).
    """

    def __init__(
        self,
        *,
        invoke: Invoke,
        health: Health,
        metadata: Metadata,
        shutdown: Callable[[bool], None],
        tracing: bool,
        new_ids: IdSource,
    ) -> None:
        self._invoke = invoke
        self._health = health
        self._metadata = metadata
        self._shutdown = shutdown
        self._tracing = tracing
        self._new_ids = new_ids
        self._routes: dict[tuple[bytes, bytes], Route] = {
            (b"GET", b"/v1.0/healthz"): self._get_health,
            (b"GET", b"/v1.0/healthz/outbound"): self._get_outbound,
            (b"GET", b"/v1.0/metadata"): self._get_metadata,
            (b"POST", b"/v1.0/shutdown"): self._post_shutdown,
        }

    async def __call__(self, request: Request) -> Reply:
        """Answer one request; see ``net.http2_server.Handler``."""
        path = request.path
        if not self._tracing or is_exempt(path):
            return await self._answer(request, request.headers, b"")
        values = [value for name, value in request.headers if name == b"baggage"]
        try:
            baggage = check_baggage(values) if values else None
        except BadBaggage as error:
            _drop(request)
            return text_error(400, error.text)
        headers, context = continue_or_start(request.headers, self._new_ids)
        reply = await self._answer(request, headers, context.trace_id)
        _complete(reply, context, baggage)
        return reply

    async def _answer(self, request: Request, headers: Headers, trace_id: bytes) -> Reply:
        path = request.path
        if path.startswith(b"/v1.0/invoke/") and path.find(b"/.") < 0:
            return await self._invoke(request, headers, trace_id)
        route = self._route(request.verb, path)
        if route is not None:
            return await route(request)
        if path == b"*" and request.verb == b"OPTIONS":
            return Reply(200, [])
        return await self._invoke(request, headers, trace_id)

    def _route(self, verb: bytes, path: bytes) -> Route | None:
        """Return the handler of an API of the sidecar's own, by the cleaned, still encoded path (H-24)."""
        if not path.startswith(b"/"):
            return None
        route = normalise_route(path)
        found = self._routes.get((verb, route))
        if found is None and verb == b"PUT" and route.startswith(_METADATA):
            key = route[len(_METADATA) :]
            if key and b"/" not in key:
                return lambda request: self._put_metadata(request, key)
        return found

    # ── the sidecar's own APIs ─────────────────────────────────────────────────────────────────────
    async def _get_health(self, request: Request) -> Reply:
        _drop(request)
        return self._health.answer(request.query)

    async def _get_outbound(self, request: Request) -> Reply:
        _drop(request)
        return self._health.answer_outbound()

    async def _get_metadata(self, request: Request) -> Reply:
        _drop(request)
        return self._metadata.answer()

    async def _put_metadata(self, request: Request, key: bytes) -> Reply:
        if _from_browser(request):
            return text_error(403, "metadata is not set by web pages")
        return await self._metadata.set_attribute(request, key)

    async def _post_shutdown(self, request: Request) -> Reply:
        _drop(request)
        if _from_browser(request):
            return text_error(403, "shutdown is not for web pages")
        forced = next((value for name, value in request.headers if name == b"dapr-force-shutdown"), b"")
        self._shutdown(forced.lower() == b"true")
        return Reply(204, [])


def _complete(reply: Reply, context: Context, baggage: bytes | None) -> None:
    add_to_answer(reply.headers, context)
    if baggage is not None and not any(name == b"baggage" for name, _ in reply.headers):
        reply.headers.append((b"baggage", baggage))


def _drop(request: Request) -> None:
    if not isinstance(request.body, bytes):
        request.body.abandon()


def _from_browser(request: Request) -> bool:
    """Whether a web page sent this: it must not be able to stop somebody's sidecar."""
    return any(name in (b"origin", b"sec-fetch-site") for name, _ in request.headers)
