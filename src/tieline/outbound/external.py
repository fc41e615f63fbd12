"""A call that leaves the mesh: to an ``HTTPEndpoint`` by its name, or to a URL (http.md §6)."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Final, NamedTuple, TypeAlias

from tieline.app.gunzip import unpack_unasked
from tieline.app.slots import HeldBody, Slots
from tieline.config.http_endpoint import HttpEndpoint
from tieline.config.outbound_proxy import Proxy, ProxyRules
from tieline.errors import (
    AppBroken,
    AppUnreachable,
    BadRequest,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    TielineError,
    TooLarge,
)
from tieline.model import AnyBody, Attempt, CallRecord, Cause, Endpoint, Headers, Hop, Invocation, Opened, Reply
from tieline.net.client_tls import LazyTls, verifying_context
from tieline.net.dial import Dialler, LeadsBackCheck
from tieline.net.dial_text import TlsUnusable
from tieline.net.http1_client import Unanswered
from tieline.net.http_transport import Exchange, Http1Transport, Transport, http1_transport, may_go_again
from tieline.net.https_transport import HttpsTransport
from tieline.wire import headers as fields
from tieline.wire import redirects
from tieline.wire.grpc.mapping import content_type_field
from tieline.wire.grpc.verbs import http_verb
from tieline.wire.method_path import check_percent, encode_query
from tieline.wire.url import BadUrl, Url, parse_url

log = logging.getLogger("dapr.runtime")

MAX_ANSWER_HEAD: Final = 65536
"""Longest head of an answer, in bytes."""
CONNECT_TIMEOUT_S: Final = 15.0
HANDSHAKE_TIMEOUT_S: Final = 15.0
SERVERS_MAX: Final = 256
"""Servers whose connections are kept, for all URLs together, and for the redirects of one endpoint; the one that was
not called for longest makes room."""
SERVER_IDLE_S: Final = 90.0
"""A server that was not called for so long is forgotten."""
MAX_URLS: Final = 1024
"""URL targets that are remembered taken apart; then the memory starts afresh."""
MAX_URL_LENGTH: Final = 256
"""Longer ones are taken apart anew each time."""
_PERCENT: Final = 0x25
# Every message has its own, whatever a resource says (H-50); the rest of what it sets is sent.
_NOT_SET: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"trailer"})


Server: TypeAlias = tuple[str, str, int, bytes]
"""Scheme, host and port of a URL, and the protocol that is asked for in place of HTTP."""


class Way(NamedTuple):
    """How servers outside are reached, whoever calls them.

    Attributes:
        proxies: What the environment says; ``None`` for no proxy.
        leads_back: Whether a socket leads to this sidecar's own API, where a call would go round in circles.
    """

    proxies: ProxyRules | None
    leads_back: LeadsBackCheck | None

    def proxy_for(self, url: Url) -> Proxy | None:
        """Return the proxy to ask, ``None`` for the straight way."""
        return self.proxies.choose(url.scheme, url.host, url.port) if self.proxies is not None else None


class Servers:
    """Connections to the servers of one trust, made as they are called."""

    def __init__(self, tls: LazyTls, way: Way) -> None:
        self._tls = tls
        self._way = way
        # In the order of their last call.
        self._known: dict[Server, tuple[Transport, float]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def to(self, url: Url, protocol: bytes = b"") -> Transport:
        """Return the transport to a URL's server; handshakes (``protocol``) have one of their own."""
        loop = asyncio.get_running_loop()
        server = (*url.server, protocol)
        found = self._known.pop(server, None)
        if found is not None:
            transport = found[0]
        else:
            make = make_handshake_transport if protocol else make_transport
            transport = make(url, self._tls, self._way)
        self._known[server] = transport, loop.time()
        if len(self._known) > SERVERS_MAX:
            self._forget(next(iter(self._known)))
        if self._sweep is None:
            self._sweep = loop.call_later(SERVER_IDLE_S / 2, self._forget_idle)
        return transport

    def _forget(self, server: Server) -> None:
        self._known.pop(server)[0].close()

    def _forget_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = None
        while self._known:
            server, (_, used_at) = next(iter(self._known.items()))
            if used_at > loop.time() - SERVER_IDLE_S:
                self._sweep = loop.call_later(SERVER_IDLE_S / 2, self._forget_idle)
                return
            self._forget(server)

    def close(self) -> None:
        """Let go of idle connections; calls in progress end as they do."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._known:
            self._forget(next(iter(self._known)))


def make_transport(url: Url, tls: LazyTls, way: Way) -> Transport:
    """Return a way to a URL's server, with nothing opened yet."""
    secure = url.scheme == "https"
    dialler = Dialler(
        url.host,
        url.port,
        tls=tls.get if secure else None,
        proxy=way.proxy_for(url),
        leads_back=way.leads_back,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
    )
    if secure:
        return HttpsTransport(dialler, host=url.authority, max_head=MAX_ANSWER_HEAD)
    return http1_transport(dialler, host=url.authority, max_head=MAX_ANSWER_HEAD)


def make_handshake_transport(url: Url, tls: LazyTls, way: Way) -> Transport:
    """Return a way to a URL's server for WebSockets: HTTP/1.1, and straight through a proxy (RFC 6455 §4.1)."""
    dialler = Dialler(
        url.host,
        url.port,
        tls=tls.for_http1().get if url.scheme == "https" else None,
        proxy=way.proxy_for(url),
        leads_back=way.leads_back,
        asks_proxy=True,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
    )
    return Http1Transport(dialler, host=url.authority, max_head=MAX_ANSWER_HEAD)


class Request(NamedTuple):
    """One request of a call; a redirect makes another."""

    verb: bytes
    url: Url
    target: bytes
    headers: Headers
    body: AnyBody
    length: int | None


class NamedEndpoint:
    """One ``HTTPEndpoint``, with its own connections and trust."""

    def __init__(self, spec: HttpEndpoint, *, slots: Slots | None, system: LazyTls, others: Servers, way: Way) -> None:
        self.spec = spec
        self.slots = slots
        self.headers = [field for field in spec.headers if field[0] not in _NOT_SET]
        self._own_names = frozenset(name for name, _ in self.headers)
        self._others = others
        self._base: Url | BadUrl
        try:
            self._base = parse_url(spec.base_url)
        except BadUrl as error:
            self._base = error
        is_plain = spec.root_ca is None and spec.certificate is None
        tls = system if is_plain and spec.renegotiation == "Never" else LazyTls(self._make_tls)
        # Redirects may lead to other ports of the same host.
        self._own = Servers(tls, way)

    def _make_tls(self) -> ssl.SSLContext:
        spec = self.spec
        try:
            return verifying_context(
                root_ca=spec.root_ca,
                certificate=spec.certificate,
                private_key=spec.private_key,
                renegotiates=spec.renegotiation != "Never",
            )
        except TlsUnusable as error:
            raise TlsUnusable(f"HTTPEndpoint {spec.name}: {error}", self._mend) from error

    async def call(self, call: Invocation) -> Reply:
        """Call the endpoint, and follow where it sends us (H-66).

        Raises:
            AppUnreachable, AppBroken: See there.
            BadRequest: The call or the endpoint's resource is wrong.
        """
        call.record.external = self.spec.name
        try:
            return await self._call(call)
        except TielineError as error:
            _add_hint(error, f"is the server up that the HTTPEndpoint {self.spec.name} names? See {self._where}")
            raise

    @property
    def _where(self) -> str:
        return f"{self.spec.file}:{self.spec.line}" if self.spec.file else "its file"

    @property
    def _mend(self) -> str:
        return f"mend the HTTPEndpoint {self.spec.name} in {self._where}"

    async def _call(self, call: Invocation) -> Reply:
        spec, base = self.spec, self._base
        if spec.problem:
            raise BadRequest(spec.problem, hint=self._mend)
        if isinstance(base, BadUrl):
            raise _bad_url(base, spec.base_url, call, self._mend)
        headers = _to_endpoint(call)
        if self.headers:
            headers = [field for field in headers if field[0] not in self._own_names]
            headers += self.headers
        request = first_request(call, base, headers)
        if call.protocol:
            # Where a redirect leads is the client's business: it has said nothing yet.
            transport = self._own.to(base, call.protocol)
            return await hold(self.slots, call, lambda: exchange(transport, request, call.record))
        return await hold(self.slots, call, lambda: self._follow(call, request))

    async def _follow(self, call: Invocation, request: Request) -> Reply:
        base = self._base
        assert isinstance(base, Url)
        sent = 0
        carried = request.headers
        while True:
            own = request.url.host == base.host
            transport = (self._own if own else self._others).to(request.url)
            reply = await exchange(transport, request, call.record)
            sent += 1
            location = redirects.location(reply.status, reply.headers)
            if location is None:
                return reply
            if not isinstance(reply.body, bytes):
                reply.body.abandon()
            verb, here, target = request.verb, request.url, request.target
            there = _next(here, target, location, verb, last=sent >= redirects.MAX_REQUESTS)
            had_body = bool(request.length) or request.length is None
            step = redirects.follow(verb, here, target, there, carried, had_body=had_body, own_names=self._own_names)
            carried = step.headers
            headers = redirects.with_referer(carried, here, target, there)
            request = Request(step.verb, there, there.target(b"", b""), headers, b"", 0)

    def close(self) -> None:
        """Let go of idle connections; calls in progress end as they do."""
        self._own.close()


class External:
    """All targets outside the mesh.

    Args:
        max_concurrency: Most calls at one time to each endpoint, and to all URLs together; 0 for no limit (H-104).
        proxies: What the environment says; ``None`` for no proxy.
        leads_back: Whether a socket leads to this sidecar's own API.

    Attributes:
        endpoints: By name. The same mapping for ever, changed in place.
    """

    def __init__(
        self,
        *,
        max_concurrency: int = 0,
        proxies: ProxyRules | None = None,
        leads_back: LeadsBackCheck | None = None,
    ) -> None:
        self._max_concurrency = max_concurrency
        self._way = Way(proxies, leads_back)
        self._system = LazyTls(verifying_context)
        self._others = Servers(self._system, self._way)
        self._slots = self._new_slots()
        self._urls: dict[str, Url] = {}
        self.endpoints: dict[str, NamedEndpoint] = {}

    def _new_slots(self) -> Slots | None:
        return Slots(self._max_concurrency) if self._max_concurrency > 0 else None

    def replace(self, endpoints: Mapping[str, HttpEndpoint]) -> None:
        """Take other endpoints. Those that are as before keep their connections; no call in progress is disturbed."""
        old = dict(self.endpoints)
        self.endpoints.clear()
        for name, spec in endpoints.items():
            kept = old.get(name)
            if kept is not None and kept.spec == spec:
                kept.spec = spec  # it may stand elsewhere now
                self.endpoints[name] = old.pop(name)
                continue
            if "." in name:
                log.warning(
                    "HTTPEndpoint %s (%s:%d) cannot be called: in a target, what follows a dot is a namespace",
                    name, spec.file, spec.line,
                )  # fmt: skip
            slots = kept.slots if kept is not None else self._new_slots()
            self.endpoints[name] = NamedEndpoint(
                spec, slots=slots, system=self._system, others=self._others, way=self._way
            )
        for gone in old.values():
            gone.close()

    async def call_url(self, call: Invocation) -> Reply:
        """Call a target that is itself a URL; redirects are the caller's business (H-66).

        Raises:
            AppUnreachable, AppBroken: See there.
            BadRequest: It is no URL that can be called.
        """
        addressed = call.target.addressed
        base = self._urls.get(addressed)
        if base is None:
            try:
                base = parse_url(addressed)
            except BadUrl as error:
                raise _bad_url(
                    error, addressed, call, "address a whole URL: http://host:port or https://host"
                ) from error
            if len(addressed) <= MAX_URL_LENGTH:
                if len(self._urls) >= MAX_URLS:
                    self._urls.clear()
                self._urls[addressed] = base
        call.record.external = base.origin
        request = first_request(call, base, _to_endpoint(call))
        transport = self._others.to(base, call.protocol)
        try:
            return await hold(self._slots, call, lambda: exchange(transport, request, call.record))
        except TielineError as error:
            _add_hint(error, f"is the server at {base.origin} up?")
            raise

    def close(self) -> None:
        """Let go of all connections that nobody uses."""
        self.replace({})
        self._others.close()


# ── one request ──


def first_request(call: Invocation, base: Url, headers: Headers) -> Request:
    """Return the request that a call begins with.

    Raises:
        BadRequest: The method cannot be written into a URL (H-34).
    """
    if _PERCENT in call.encoded:
        problem = check_percent(call.method, base.shown + base.path.decode("ascii"), call.query)
        if problem is not None:
            raise BadRequest(problem, hint="write a literal percent sign as %25 followed by two hex digits")
    if base.authorization and not any(name == b"authorization" for name, _ in headers):
        headers.append((b"authorization", base.authorization))
    query = call.query if call.rpc is None else encode_query(call.query)
    return Request(call.verb, base, base.target(call.encoded, query), headers, call.body, call.length)


def _to_endpoint(call: Invocation) -> Headers:
    """Return the fields of the request.

    Raises:
        BadRequest: A gRPC client made the call, with no verb that HTTP has (G-13).
    """
    headers = fields.to_endpoint(call.headers)
    rpc = call.rpc
    if rpc is not None:
        http_verb(rpc.verb)
        headers += content_type_field(rpc.content_type, rpc.type_url)
    return headers


async def hold(slots: Slots | None, call: Invocation, send: Callable[[], Awaitable[Reply]]) -> Reply:
    """Send while holding a slot, which is given back when the answer is relayed or dropped."""
    record = call.record
    if slots is not None:
        waited_from = perf_counter()
        await slots.acquire()
        record.waited_s = perf_counter() - waited_from
    began = perf_counter()
    try:
        reply = await send()
    except BaseException:
        if slots is not None:
            slots.release()
        raise
    record.app_s = perf_counter() - began
    reply.headers = kept = fields.from_app(reply.headers)
    if reply.status != 101 and any(name == b"content-encoding" and value.lower() == b"gzip" for name, value in kept):
        unpack_unasked(reply, call.verb, call.headers)
    if slots is not None:
        if isinstance(reply.body, bytes):
            slots.release()
        elif isinstance(reply, Opened):
            reply.tunnel.when_over(slots.release)
        else:
            reply.body = HeldBody(reply.body, slots)
    return reply


async def exchange(transport: Transport, request: Request, record: CallRecord) -> Reply:
    """Send one request and return its answer.

    Raises:
        AppUnreachable, AppBroken, BadRequest: In the words of Go's HTTP client, which users know (H-85).
    """
    verb, url, target, headers, body, length = request
    attempt = Attempt(Endpoint(url.host, url.port), perf_counter())
    record.attempts += (attempt,)
    sent: Exchange | None = None
    try:
        sent = transport.begin(verb, target, headers, body, length)
        if sent is None:
            sent = await _open(transport, request, record)
        try:
            reply = await sent.answer
        except (Unanswered, PeerRefused) as error:
            if not may_go_again(error, verb, body):
                raise
            sent = None
            sent = await _open(transport, request, record)
            reply = await sent.answer
    except asyncio.CancelledError:
        if sent is not None:
            sent.cancel()
        attempt.outcome = Cause.CANCELLED
        raise
    except Exception as error:
        explained = _explained(error, request)
        attempt.outcome = explained.cause if explained is not None else getattr(error, "cause", "failed")
        if explained is None:
            raise
        raise explained from error
    attempt.outcome = "ok"
    return reply


async def _open(transport: Transport, request: Request, record: CallRecord) -> Exchange:
    verb, _, target, headers, body, length = request
    began = perf_counter()
    try:
        return await transport.open(verb, target, headers, body, length)
    finally:
        record.connecting_s += perf_counter() - began


# ── failures ──

_REFUSED_HINT: Final = "the server refused us: it may ask for another client certificate"


def _explained(error: Exception, request: Request) -> TielineError | None:
    """Return a failure of the target's side in Go's words; ``None`` for one of ours or the caller's.

    Always a new one: several calls may have waited for the same connection.
    """
    if isinstance(error, ValueError):
        return BadRequest(f"a header cannot be sent to {request.url.origin}: {error}")
    kind: type[TielineError] = AppBroken
    hint, cause, hop = "", None, Hop.APP
    if isinstance(error, Unanswered):
        if error.by_tls:
            hint, cause = _REFUSED_HINT, Cause.PEER_TLS
    elif isinstance(error, PeerLost):
        pass
    elif isinstance(error, PeerUnreachable):
        kind = AppUnreachable
        cause = error.cause if error.cause is Cause.PEER_TLS else None
    elif isinstance(error, (AppUnreachable, AppBroken, TooLarge)):
        kind, hint, cause, hop = type(error), error.hint, error.cause, error.hop
    else:
        return None
    return kind(f"{_asked(request.verb, request.url, request.target)}: {error.text}", hint=hint, cause=cause, hop=hop)


def _asked(verb: bytes, url: Url, target: bytes) -> str:
    return f'{verb.decode("latin-1").capitalize()} "{url.shown}{target.decode("latin-1")}"'


def _bad_url(error: BadUrl, text: str, call: Invocation, hint: str) -> BadRequest:
    if not error.parsed:
        return BadRequest(error.text, hint=hint)
    method = call.method.decode("utf-8", "surrogateescape")
    return BadRequest(f'{call.verb.decode("latin-1").capitalize()} "{text}/{method}": {error.text}', hint=hint)


def _add_hint(error: TielineError, hint: str) -> None:
    """Say what to do where the failure itself does not; the caller's own failures need no look at the server."""
    if not error.hint and error.hop is Hop.APP:
        error.hint = hint


def _next(here: Url, target: bytes, location: bytes, verb: bytes, *, last: bool) -> Url:
    """Return where a redirect leads.

    Raises:
        AppBroken: There were too many, or it leads nowhere.
    """
    asked = f'{"Head" if verb == b"HEAD" else "Get"} "{location.decode("utf-8", "backslashreplace")}"'
    if last:
        text = f"{asked}: stopped after {redirects.MAX_REQUESTS} redirects"
        raise AppBroken(text, hint="the endpoint redirects in a circle: check its base URL")
    try:
        return here.join(target, location)
    except BadUrl as error:
        raise AppBroken(f"{asked}: {error.text}", hint="the endpoint redirects to what is no URL") from error
