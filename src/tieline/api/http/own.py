"""The sidecar's own APIs: health, metadata and shutdown, found by verb and path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from tieline.api.health import Health
from tieline.api.http.cors import Cors
from tieline.api.http.errors import text_error
from tieline.api.http.health import answer_health, answer_outbound
from tieline.api.http.metadata import put_attribute, show_metadata
from tieline.api.metadata import Metadata
from tieline.config.api_lists import APIS, ApiLists
from tieline.model import Cause, Headers, Hop, Reply, Request
from tieline.wire.errors_text import explained, hint_value
from tieline.wire.method_path import normalise_route

_METADATA: Final = b"/v1.0/metadata/"
_VERBS: Final = (b"GET", b"POST", b"PUT")
_OTHER_APIS: Final = frozenset(APIS) - {"invoke", "metadata", "healthz", "shutdown"}
_ORIGIN_HINT: Final = "start the sidecar with --allowed-origins and the origin of the page"

Answer = Callable[[Request], Awaitable[Reply]]


class Route(NamedTuple):
    """One API.

    Attributes:
        name: As the API log shows it when it hides paths.
        is_health: It tells whether the sidecar is up.
    """

    name: str
    answer: Answer
    is_health: bool = False


class OwnApis:
    """What a listener offers of them.

    Args:
        shutdown: Begins the shutdown, ``True`` means at once; ``None`` where it cannot be asked for, and metadata
            cannot be written: on the public port (H-131).
        lists: What is closed is not there (H-129).
        cors: Pages of its origins may do what other web pages may not.
    """

    def __init__(
        self,
        *,
        health: Health,
        metadata: Metadata,
        shutdown: Callable[[bool], None] | None,
        lists: ApiLists,
        cors: Cors | None = None,
    ) -> None:
        self._health = health
        self._metadata = metadata
        self._shutdown = shutdown
        self._cors = cors
        self._routes: dict[tuple[bytes, bytes], Route] = {
            (b"GET", b"/v1.0/healthz"): Route("Healthz", self._get_health, is_health=True),
            (b"GET", b"/v1.0/healthz/outbound"): Route("HealthzOutbound", self._get_outbound, is_health=True),
        }
        if lists.is_open("metadata", "v1", "v1.0/metadata"):
            self._routes[b"GET", b"/v1.0/metadata"] = Route("GetMetadata", self._get_metadata)
        if shutdown is not None and lists.is_open("shutdown", "v1", "v1.0/shutdown"):
            self._routes[b"POST", b"/v1.0/shutdown"] = Route("Shutdown", self._post_shutdown)
        self._closed = _closed(lists)
        self._has_keys = lists.is_open("metadata", "v1", "v1.0/metadata/{key}")
        self._options = Route("", self._answer_options)

    def find(self, verb: bytes, path: bytes) -> Route | None:
        """Return the API that a request means, by the cleaned, still encoded path (H-24)."""
        if not path.startswith(b"/"):
            return self._options if path == b"*" and verb == b"OPTIONS" else None
        route = normalise_route(path)
        found = self._routes.get((verb, route))
        if found is None and verb == b"PUT" and self._has_keys and (key := _key(route)):
            return Route("PutMetadata", lambda request: self._put_metadata(request, key))
        return found

    def refuse(self, request: Request) -> Reply:
        """Answer what is no API, where nothing is an invocation: 404, or 405 for the wrong verb (H-129)."""
        request.drop_body()
        verbs = [verb for verb in _VERBS if self.find(verb, request.path) is not None]
        explanation = self.explain(request.verb, request.path)
        if verbs:
            return Reply(405, [*((b"allow", verb) for verb in verbs), *explanation])
        reply = text_error(404, "404 page not found", Cause.BAD_REQUEST)
        reply.headers[-2:] = explanation
        return reply

    def explain(self, verb: bytes, path: bytes) -> Headers:
        """Return what is to be said of a verb and a path that are no API and no invocation."""
        cause, hint = self._why_not(path)
        return explained(cause, Hop.CALLER, hint)

    def _why_not(self, path: bytes) -> tuple[Cause, str]:
        route = normalise_route(path) if path.startswith(b"/") else path
        first, _, rest = route.removeprefix(b"/").partition(b"/")
        name = rest.partition(b"/")[0].decode("latin-1")
        if self._shutdown is None:
            return Cause.BAD_REQUEST, "the public port has GET /v1.0/healthz, /v1.0/healthz/outbound and /v1.0/metadata"
        if first.startswith(b"v1.0") and name in self._closed:
            return Cause.DENIED, f"this API, {name}, is closed by spec.api of the Configuration"
        verbs = [verb.decode() for verb in _VERBS if self.find(verb, path) is not None]
        if verbs:
            return Cause.BAD_REQUEST, f"this path takes {' or '.join(verbs)}"
        if first.startswith(b"v1.0") and name in _OTHER_APIS:
            return Cause.BAD_REQUEST, f"Dapr's API {name} is not part of Tieline, which carries calls between apps"
        return (
            Cause.BAD_REQUEST,
            "call an app by /v1.0/invoke/<app-id>/method/<method>, or by any path with the header dapr-app-id",
        )

    async def _answer_options(self, request: Request) -> Reply:
        request.drop_body()
        return Reply(200, [])

    async def _get_health(self, request: Request) -> Reply:
        request.drop_body()
        return self._with_app(answer_health(self._health, request.query))

    async def _get_outbound(self, request: Request) -> Reply:
        request.drop_body()
        return answer_outbound(self._health)

    async def _get_metadata(self, request: Request) -> Reply:
        request.drop_body()
        return self._with_app(show_metadata(self._metadata))

    def _with_app(self, reply: Reply) -> Reply:
        """Say beside an answer how the app is, for which Dapr's answers have no place."""
        if self._health.app is not None:
            reply.headers.append((b"tieline-app", hint_value(self._health.app())))
        return reply

    async def _put_metadata(self, request: Request, key: bytes) -> Reply:
        if self._shutdown is None:
            request.drop_body()
            return text_error(403, "metadata is written on the API port only", Cause.DENIED)
        if self._is_foreign_page(request):
            request.drop_body()
            return _refuse_page("metadata is not set by web pages; allow their origin with --allowed-origins")
        return await put_attribute(self._metadata, request, key)

    async def _post_shutdown(self, request: Request) -> Reply:
        request.drop_body()
        if self._is_foreign_page(request):
            return _refuse_page("shutdown is not for web pages; allow their origin with --allowed-origins")
        forced = next((value for name, value in request.headers if name == b"dapr-force-shutdown"), b"")
        assert self._shutdown is not None
        self._shutdown(forced.lower() == b"true")
        return Reply(204, [])

    def _is_foreign_page(self, request: Request) -> bool:
        """Whether a web page sent this whose origin was not allowed: it must not stop somebody's sidecar."""
        said = {name: value for name, value in request.headers if name in (b"origin", b"sec-fetch-site")}
        if not said:
            return False
        origin = said.get(b"origin", b"")
        return self._cors is None or not origin or not self._cors.allows(origin)


def _refuse_page(text: str) -> Reply:
    return text_error(403, text, Cause.DENIED, _ORIGIN_HINT)


def _closed(lists: ApiLists) -> frozenset[str]:
    """Return the names of the APIs that the lists close, of those that there are."""
    routes = {"metadata": "v1.0/metadata", "shutdown": "v1.0/shutdown", "invoke": "v1.0/invoke/"}
    return frozenset(name for name, route in routes.items() if not lists.is_open(name, "v1", route))


def _key(route: bytes) -> bytes:
    """Return the key in the path of an attribute, still encoded; empty if it is none."""
    key = route[len(_METADATA) :] if route.startswith(_METADATA) else b""
    return b"" if b"/" in key else key
