"""Calls that leave the mesh, to servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.app import App, Exchange, Handler, echo
from tests.support.h2peer import H2Server
from tests.support.mesh import until
from tests.support.tls import EXPIRED, Authority, Pair, server_context, strict_server
from tieline.config.http_endpoint import HttpEndpoint
from tieline.config.outbound_proxy import read_proxies
from tieline.errors import AppBroken, AppUnreachable, BadRequest, TielineError
from tieline.model import AnyBody, CallRecord, Cause, Headers, Hop, Invocation, Reply, Target
from tieline.net.https_transport import CONNECTIONS_MAX
from tieline.outbound import external as module
from tieline.outbound.external import External
from tieline.wire.method_path import encode_path

HTTP2 = ("h2", "http/1.1")


class World:
    """Servers, and what calls them; all of it ends with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self._ends: list[Callable[[], Awaitable[None]]] = []
        self.externals: list[External] = []

    def ends_with(self, end: Callable[[], Awaitable[None]]) -> None:
        self._ends.append(end)

    async def app(self, handler: Handler, pair: Pair | None = None, *, asks: str | None = None) -> App:
        app = App(handler)
        tls = None if pair is None else server_context(self.folder, pair, asks=asks, alpn=["http/1.1"])
        await app.start(tls=tls)
        self._ends.append(app.aclose)
        return app

    async def h2(self, pair: Pair) -> H2Server:
        server = H2Server()
        await server.start(tls=server_context(self.folder, pair, alpn=HTTP2))
        self._ends.append(server.aclose)
        return server

    def pair(self) -> Pair:
        return self.authority.issue("localhost", "127.0.0.1")

    def external(
        self, *endpoints: HttpEndpoint, concurrency: int = 0, environ: Mapping[str, str] | None = None
    ) -> External:
        made = External(max_concurrency=concurrency, proxies=read_proxies(environ or {}))
        made.replace({endpoint.name: endpoint for endpoint in endpoints})
        self.externals.append(made)
        return made

    async def aclose(self) -> None:
        for one in self.externals:
            one.close()
        for end in self._ends:
            await end()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    try:
        yield made
    finally:
        await made.aclose()


def invocation(
    addressed: str,
    method: bytes = b"foo",
    *,
    verb: bytes = b"GET",
    query: bytes = b"",
    headers: Headers | None = None,
    body: AnyBody = b"",
) -> Invocation:
    length = len(body) if isinstance(body, bytes) else None
    target = Target(addressed, "default", addressed)
    return Invocation(target, verb, method, encode_path(method), query, headers or [], body, length, CallRecord())


async def call(external: External, call: Invocation) -> Reply:
    endpoint = external.endpoints.get(call.target.app_id)
    async with asyncio.timeout(10):
        return await (endpoint.call(call) if endpoint is not None else external.call_url(call))


async def failure(external: External, made: Invocation) -> TielineError:
    with pytest.raises(TielineError) as caught:
        await call(external, made)
    return caught.value


async def text(reply: Reply) -> bytes:
    if isinstance(reply.body, bytes):
        return reply.body
    pieces = []
    while piece := await reply.body.read():
        pieces.append(piece)
    return b"".join(pieces)


def web(port: int, *, scheme: str = "http", host: str = "127.0.0.1", **more: object) -> HttpEndpoint:
    return HttpEndpoint(name="web", base_url=f"{scheme}://{host}:{port}", file="web.yaml", line=3, **more)  # type: ignore[arg-type]


def names(exchange: Exchange) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in exchange.headers:
        found.setdefault(name, []).append(value)
    return found


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("H-99", "H-100", "H-50")
async def test_the_resource_puts_its_headers_in_place_of_the_callers(world: World) -> None:
    app = await world.app(echo)
    own = ((b"x-key", b"resource"), (b"content-type", b"a/b"), (b"host", b"other"), (b"connection", b"x-own"))
    framing = ((b"content-length", b"99"), (b"transfer-encoding", b"chunked"), (b"trailer", b"x"))
    external = world.external(web(app.port, headers=own + framing))
    sent: Headers = [(b"x-key", b"1"), (b"x-key", b"2"), (b"content-type", b"text/plain"), (b"x-other", b"o")]

    reply = await call(external, invocation("web", b"a b", verb=b"POST", query=b"q=%zz", headers=sent, body=b"hello"))

    seen = app.seen[0]
    assert (reply.status, await text(reply)) == (200, b"hello")
    assert seen.target == "/a%20b?q=%zz"
    assert names(seen) == {
        "host": [f"127.0.0.1:{app.port}"],
        "x-other": ["o"],
        "x-key": ["resource"],
        "content-type": ["a/b"],
        "connection": ["x-own"],
        "content-length": ["5"],
    }


@pytest.mark.rule("H-103", "H-27", "H-99")
async def test_a_url_is_called_with_what_the_caller_sent_and_nothing_else(world: World) -> None:
    app = await world.app(echo)
    made = invocation(f"http://127.0.0.1:{app.port}/base", verb=b"PUT", headers=[(b"x", b"1")], body=b"b")

    reply = await call(world.external(), made)

    assert (reply.status, await text(reply)) == (200, b"b")
    assert app.seen[0].target == "/base/foo"
    assert names(app.seen[0]) == {"host": [f"127.0.0.1:{app.port}"], "x": ["1"], "content-length": ["1"]}
    assert made.record.external == f"http://127.0.0.1:{app.port}"


async def test_what_happened_is_in_the_record(world: World) -> None:
    app = await world.app(echo)
    made = invocation("web")

    await call(world.external(web(app.port)), made)

    record = made.record
    assert record.external == "web"
    assert [(str(attempt.endpoint), attempt.outcome) for attempt in record.attempts] == [
        (f"127.0.0.1:{app.port}", "ok")
    ]
    assert record.app_s >= record.connecting_s > 0


@pytest.mark.rule("H-101")
async def test_connections_are_kept(world: World) -> None:
    app = await world.app(echo)
    external = world.external(web(app.port))

    for _ in range(3):
        await call(external, invocation("web"))
        await call(external, invocation(f"http://127.0.0.1:{app.port}"))

    assert app.accepted == 2  # one of the endpoint's own, one of all URLs


@pytest.mark.rule("H-52")
async def test_a_coding_that_the_caller_did_not_ask_for_is_unpacked(world: World) -> None:
    import gzip

    async def packed(exchange: Exchange) -> None:
        exchange.answer(200, gzip.compress(b"hello"), [("Content-Encoding", "gzip")])

    app = await world.app(packed)

    reply = await call(world.external(web(app.port, headers=((b"accept-encoding", b"gzip"),))), invocation("web"))

    assert await text(reply) == b"hello"
    assert (b"content-encoding", b"gzip") not in reply.headers


# ── limits ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("H-104")
async def test_each_endpoint_has_a_limit_of_its_own_and_all_urls_share_one(world: World) -> None:
    inside: list[str] = []
    go_on = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        inside.append(exchange.target)
        await go_on.wait()
        exchange.answer(200)

    app = await world.app(held)
    second = HttpEndpoint(name="second", base_url=f"http://127.0.0.1:{app.port}")
    external = world.external(web(app.port), second, concurrency=1)
    url, other_url = f"http://127.0.0.1:{app.port}", f"http://localhost:{app.port}"
    targets = [("web", "a"), ("web", "b"), ("second", "c"), (url, "d"), (other_url, "e")]

    calls = [asyncio.create_task(call(external, invocation(to, method.encode()))) for to, method in targets]
    await until(lambda: len(inside) == 3)
    assert sorted(inside) == ["/a", "/c", "/d"]
    go_on.set()
    await asyncio.gather(*calls)

    assert sorted(inside) == ["/a", "/b", "/c", "/d", "/e"]


async def test_a_slot_is_given_back_however_a_call_ends(world: World) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/hang":
            await exchange.gone()
        elif exchange.target == "/break":
            exchange.close()
        else:
            exchange.answer(200, b"x" * 200_000)

    app = await world.app(handler)
    external = world.external(web(app.port), concurrency=1)

    hanging = asyncio.create_task(call(external, invocation("web", b"hang")))
    await until(lambda: bool(app.seen))
    hanging.cancel()
    await asyncio.wait([hanging])
    await failure(external, invocation("web", b"break"))
    dropped = await call(external, invocation("web", b"long"))
    assert not isinstance(dropped.body, bytes)
    dropped.body.abandon()

    assert await text(await call(external, invocation("web", b"long"))) == b"x" * 200_000


async def test_only_so_many_servers_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SERVERS_MAX", 2)
    apps = [await world.app(echo) for _ in range(3)]
    external = world.external()

    for app in (*apps, apps[0], apps[2]):
        await call(external, invocation(f"http://127.0.0.1:{app.port}"))

    # The first made room for the third and came back for the second; the third stayed.
    assert [app.accepted for app in apps] == [2, 1, 1]


async def test_servers_that_nobody_calls_are_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SERVER_IDLE_S", 0.05)
    gone = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.answer(200)
        await exchange.gone()
        gone.set()

    app = await world.app(handler)

    await call(world.external(), invocation(f"http://127.0.0.1:{app.port}"))

    async with asyncio.timeout(3):  # an idle connection alone would last longer
        await gone.wait()


# ── failures ──────────────────────────────────────────────────────────────────────────────────────


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


@pytest.mark.rule("H-85", "H-89")
async def test_a_server_that_is_down_is_told_at_once(world: World) -> None:
    port = closed_port()
    made = invocation("web", verb=b"POST", body=b"x")

    error = await failure(world.external(web(port)), made)

    reason = f"dial tcp 127.0.0.1:{port}: connect: connection refused"
    assert error.detail == f'Post "http://127.0.0.1:{port}/foo": {reason}'
    assert (error.cause, error.hop) == (Cause.APP_UNREACHABLE, Hop.APP)
    assert error.hint == "is the server up that the HTTPEndpoint web names? See web.yaml:3"
    assert [attempt.outcome for attempt in made.record.attempts] == [Cause.APP_UNREACHABLE]


@pytest.mark.rule("H-85")
async def test_a_host_without_an_address_is_told(world: World) -> None:
    error = await failure(world.external(), invocation("http://no-such-host.invalid"))

    assert error.detail == (
        'Get "http://no-such-host.invalid/foo": dial tcp: lookup no-such-host.invalid: no such host'
    )
    assert "DNS" in error.hint


@pytest.mark.rule("H-85")
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "EOF"),
        (b"HTTP/1.1 200", "unexpected EOF"),
        (b"nonsense\r\n\r\n", ""),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", ""),
    ],
)
async def test_an_answer_that_is_none_fails_the_call(world: World, said: bytes, reason: str) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.writer.write(said)
        exchange.close()

    app = await world.app(handler)

    error = await failure(world.external(web(app.port)), invocation("web"))

    assert isinstance(error, AppBroken)
    assert error.detail.startswith(f'Get "http://127.0.0.1:{app.port}/foo": {reason}')
    assert error.cause in (Cause.APP_BROKEN, Cause.TOO_LARGE)


@pytest.mark.rule("H-101")
async def test_a_long_head_is_read(world: World) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.answer(200, b"ok", [("X-Long", "x" * 60_000)])

    app = await world.app(handler)

    reply = await call(world.external(), invocation(f"http://127.0.0.1:{app.port}"))

    assert reply.status == 200


async def test_a_server_that_does_not_answer_a_handshake_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        error = await failure(world.external(), invocation(f"https://127.0.0.1:{port}"))

    assert error.detail == f'Get "https://127.0.0.1:{port}/foo": net/http: TLS handshake timeout'
    assert error.cause is Cause.PEER_TLS


@pytest.mark.parametrize(
    ("base_url", "detail"),
    [
        ("ftp://a", 'Get "ftp://a/foo": unsupported protocol scheme "ftp"'),
        ("a.example", 'Get "a.example/foo": unsupported protocol scheme ""'),
        ("http://", 'Get "http:///foo": http: no Host in request URL'),
        ("http://a b", 'parse "http://a b": invalid character " " in host name'),
    ],
)
async def test_a_base_url_that_is_none_fails_its_calls_only(world: World, base_url: str, detail: str) -> None:
    app = await world.app(echo)
    bad = HttpEndpoint(name="bad", base_url=base_url, file="bad.yaml", line=2)
    external = world.external(web(app.port), bad)

    error = await failure(external, invocation("bad"))

    assert isinstance(error, BadRequest)
    assert (error.detail, error.hint) == (detail, "mend the HTTPEndpoint bad in bad.yaml:2")
    assert (await call(external, invocation("web"))).status == 200


@pytest.mark.rule("H-107")
async def test_a_problem_of_the_resource_is_told(world: World) -> None:
    bad = HttpEndpoint(name="bad", base_url="http://a", problem="invalid renegotiation value x for http endpoint bad")

    error = await failure(world.external(bad), invocation("bad"))

    assert error.detail == "invalid renegotiation value x for http endpoint bad"


@pytest.mark.rule("H-34")
async def test_a_bare_percent_is_refused_as_for_an_app(world: World) -> None:
    error = await failure(world.external(web(1)), invocation("web", b"test%stream", query=b"q"))

    assert error.detail == 'parse "http://127.0.0.1:1/test%stream?q": invalid URL escape "%st"'


# ── redirects ─────────────────────────────────────────────────────────────────────────────────────


def redirecting(*locations: str, status: int = 302) -> Handler:
    """Send the first requests elsewhere, answer the next."""
    left = list(locations)

    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        if left:
            exchange.answer(status, b"moved", [("Location", left.pop(0))])
        else:
            exchange.answer(200, b"arrived")

    return handler


@pytest.mark.rule("H-66", "H-159")
async def test_an_endpoint_is_followed_to_another_host_without_its_secrets(world: World) -> None:
    there = await world.app(echo)
    here = await world.app(redirecting(f"http://localhost:{there.port}/moved?x"))
    external = world.external(web(here.port, headers=((b"x-key", b"secret"),)))
    sent: Headers = [(b"authorization", b"t"), (b"cookie", b"c"), (b"x-custom", b"1"), (b"content-type", b"a/b")]
    made = invocation("web", verb=b"POST", headers=sent, body=b"hello")

    reply = await call(external, made)

    assert (reply.status, await text(reply)) == (200, b"")
    assert (there.seen[0].verb, there.seen[0].target) == ("GET", "/moved?x")
    assert names(there.seen[0]) == {
        "host": [f"localhost:{there.port}"],
        "x-custom": ["1"],
        "referer": [f"http://127.0.0.1:{here.port}/foo"],
    }
    assert len(made.record.attempts) == 2


@pytest.mark.rule("H-66", "H-159")
async def test_on_the_same_host_everything_goes_along(world: World) -> None:
    app = await world.app(redirecting("/one", "two"))
    external = world.external(web(app.port, headers=((b"x-key", b"secret"),)))

    reply = await call(external, invocation("web", headers=[(b"authorization", b"t")]))

    assert await text(reply) == b"arrived"
    assert [seen.target for seen in app.seen] == ["/foo", "/one", "/two"]
    assert [seen.header("referer") for seen in app.seen] == [
        None,
        f"http://127.0.0.1:{app.port}/foo",
        f"http://127.0.0.1:{app.port}/one",
    ]
    assert {seen.header("authorization") for seen in app.seen} == {"t"}
    assert {seen.header("x-key") for seen in app.seen} == {"secret"}


@pytest.mark.rule("H-66", "H-159")
async def test_a_circle_ends_after_ten_requests(world: World) -> None:
    app = await world.app(redirecting(*["/foo"] * 99))

    error = await failure(world.external(web(app.port), concurrency=1), invocation("web", verb=b"POST"))

    assert error.detail == 'Get "/foo": stopped after 10 redirects'
    assert "circle" in error.hint
    assert len(app.seen) == 10


@pytest.mark.rule("H-66")
@pytest.mark.parametrize("status", [307, 308, 300])
async def test_other_redirects_are_the_callers_business(world: World, status: int) -> None:
    app = await world.app(redirecting("/one", status=status))

    reply = await call(world.external(web(app.port)), invocation("web", verb=b"POST", body=b"x"))

    assert (reply.status, await text(reply)) == (status, b"moved")
    assert (b"location", b"/one") in reply.headers


@pytest.mark.rule("H-66", "H-102")
async def test_redirects_of_urls_are_the_callers_business(world: World) -> None:
    app = await world.app(redirecting("/one"))

    reply = await call(world.external(), invocation(f"http://127.0.0.1:{app.port}"))

    assert reply.status == 302


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("ftp://a/x", 'unsupported protocol scheme "ftp"'),
        ("http://a:99999/", 'parse "http://a:99999/": invalid port ":99999" after host'),
    ],
)
async def test_a_redirect_to_nowhere_fails_the_call(world: World, location: str, reason: str) -> None:
    app = await world.app(redirecting(location))

    error = await failure(world.external(web(app.port)), invocation("web"))

    assert error.detail == f'Get "{location}": {reason}'
    assert isinstance(error, AppBroken)


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("H-101", "H-106")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_private_authority_is_trusted_where_it_is_named(world: World, host: str) -> None:
    app = await world.app(echo, world.pair())
    external = world.external(web(app.port, scheme="https", host=host, root_ca=world.authority.pem))

    replies = [await call(external, invocation("web", verb=b"POST", body=b"hello")) for _ in range(2)]

    assert [await text(reply) for reply in replies] == [b"hello", b"hello"]
    assert app.accepted == 1


@pytest.mark.rule("H-85", "H-101", "H-106")
async def test_a_certificate_that_is_not_to_be_trusted_fails_the_call(world: World) -> None:
    authority = world.authority
    unknown = "certificate signed by unknown authority"
    cases = [
        (authority.issue("localhost"), None, unknown),
        (Authority().issue("localhost"), authority.pem, unknown),
        (authority.issue("localhost", days=EXPIRED), authority.pem, "certificate has expired or is not yet valid"),
        (authority.issue("other.example"), authority.pem, "certificate is not valid for localhost"),
        (authority.issue(name="localhost"), authority.pem, "certificate is not valid for localhost"),
    ]
    for pair, root_ca, reason in cases:
        app = await world.app(echo, pair)
        external = world.external(web(app.port, scheme="https", host="localhost", root_ca=root_ca))

        error = await failure(external, invocation("web"))

        asked = f'Get "https://localhost:{app.port}/foo"'
        assert error.detail.startswith(f"{asked}: tls: failed to verify certificate: x509: {reason}")
        assert (error.cause, error.hop) == (Cause.PEER_TLS, Hop.APP)
        assert error.hint
        assert app.seen == []


@pytest.mark.rule("H-102")
async def test_a_url_is_always_verified(world: World) -> None:
    app = await world.app(echo, world.pair())

    error = await failure(world.external(), invocation(f"https://localhost:{app.port}"))

    assert "tls: failed to verify certificate: x509: certificate signed by unknown authority" in error.detail


@pytest.mark.rule("H-106")
async def test_a_client_certificate_is_shown_to_who_asks(world: World) -> None:
    clients = Authority("clients")
    app = await world.app(echo, world.pair(), asks=clients.pem)
    pair = clients.issue(name="client")
    shown = {"certificate": pair.certificate, "private_key": pair.key, "root_ca": world.authority.pem}

    reply = await call(world.external(web(app.port, scheme="https", **shown)), invocation("web"))

    assert reply.status == 200


@pytest.mark.rule("H-106")
@pytest.mark.parametrize("shows", ["nothing", "another"])
async def test_the_wrong_client_certificate_fails_the_call(world: World, shows: str) -> None:
    clients = Authority("clients")
    pair = Authority("others").issue(name="client")
    shown = {"certificate": pair.certificate, "private_key": pair.key} if shows == "another" else {}
    context = server_context(world.folder, world.pair(), asks=clients.pem)
    with strict_server(context) as port:
        external = world.external(web(port, scheme="https", root_ca=world.authority.pem, **shown))

        error = await failure(external, invocation("web"))

    assert error.detail.startswith(f'Get "https://127.0.0.1:{port}/foo": remote error: tls: ')
    assert (error.cause, error.hop) == (Cause.PEER_TLS, Hop.APP)
    assert "client certificate" in error.hint


@pytest.mark.rule("H-107")
async def test_certificates_that_cannot_be_used_hurt_their_endpoint_only(world: World) -> None:
    app = await world.app(echo)
    one, other = world.pair(), world.pair()
    cases = {
        "ca": ({"root_ca": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"}, "clientTLS.rootCA holds no"),
        "pair": (
            {"certificate": one.certificate, "private_key": other.key},
            "clientTLS.certificate and clientTLS.privateKey cannot be used together: key values mismatch",
        ),
        "locked": (
            {"certificate": one.certificate, "private_key": one.key.replace("PRIVATE", "ENCRYPTED PRIVATE")},
            "clientTLS.privateKey is encrypted",
        ),
    }
    endpoints = [
        HttpEndpoint(name=name, base_url="https://localhost:1", file="x.yaml", line=9, **given)  # type: ignore[arg-type]
        for name, (given, _) in cases.items()
    ]
    external = world.external(web(app.port), *endpoints)

    for name, (_, reason) in cases.items():
        for _ in range(2):
            error = await failure(external, invocation(name))
            assert error.detail.startswith(f'Get "https://localhost:1/foo": HTTPEndpoint {name}: {reason}')
            assert (error.cause, error.hop) == (Cause.PEER_TLS, Hop.CALLER)
            assert error.hint == f"mend the HTTPEndpoint {name} in x.yaml:9"
    assert (await call(external, invocation("web"))).status == 200


async def test_half_a_client_pair_is_not_used(world: World) -> None:
    app = await world.app(echo, world.pair())
    half = web(
        app.port, scheme="https", root_ca=world.authority.pem, private_key="nonsense", renegotiation="FreelyAsClient"
    )

    assert (await call(world.external(half), invocation("web"))).status == 200


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls: first record does not look like a TLS handshake"),
        (b"", "tls: the server closed the connection during the handshake"),
    ],
)
async def test_what_speaks_no_tls_is_told(world: World, answer: bytes, reason: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        error = await failure(world.external(), invocation(url))

    assert error.detail == f'Get "{url}/foo": {reason}'
    assert error.cause is Cause.PEER_TLS


async def test_a_redirect_takes_no_trust_along(world: World) -> None:
    """Neither the endpoint's authority nor its certificate counts for another host."""
    there = await world.app(echo, world.pair())
    here = await world.app(redirecting(f"https://localhost:{there.port}/x"), world.pair())
    external = world.external(web(here.port, scheme="https", root_ca=world.authority.pem))

    error = await failure(external, invocation("web"))

    assert "x509: certificate signed by unknown authority" in error.detail
    assert there.seen == []


async def test_a_redirect_to_another_port_of_the_host_keeps_the_trust(world: World) -> None:
    there = await world.app(echo, world.pair())
    here = await world.app(redirecting(f"https://127.0.0.1:{there.port}/x"), world.pair())
    external = world.external(web(here.port, scheme="https", root_ca=world.authority.pem))

    assert (await call(external, invocation("web"))).status == 200


# ── HTTP/2 ────────────────────────────────────────────────────────────────────────────────────────


class Pieces:
    """A body that comes in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.trailers: Headers = []

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def abandon(self) -> None:
        self._pieces.clear()


@pytest.mark.rule("H-101")
async def test_http2_is_spoken_where_the_server_offers_it(world: World) -> None:
    server = await world.h2(world.pair())
    own = ((b"connection", b"x"), (b"x-key", b"1"))
    external = world.external(web(server.port, scheme="https", root_ca=world.authority.pem, headers=own))

    made = [invocation("web", verb=b"POST", query=b"q", body=body) for body in (b"hello", Pieces(b"he", b"llo"), b"")]
    replies = await asyncio.gather(*[call(external, one) for one in made])

    assert [(reply.status, await text(reply)) for reply in replies] == [(200, b"h2")] * 3
    assert sorted(server.bodies) == [b"", b"hello", b"hello"]
    assert sorted(dict(server.requests[0])) == sorted(
        [":method", ":path", ":scheme", ":authority", "x-key"]
        + (["content-length"] if "content-length" in dict(server.requests[0]) else [])
    )
    assert (dict(server.requests[0])[":scheme"], dict(server.requests[0])[":path"]) == ("https", "/foo?q")
    assert dict(server.requests[0])[":authority"] == f"127.0.0.1:{server.port}"


async def test_a_call_given_up_resets_its_stream_only(world: World) -> None:
    server = await world.h2(world.pair())
    external = world.external(web(server.port, scheme="https", root_ca=world.authority.pem))
    held = asyncio.create_task(call(external, invocation("web", b"hold")))
    await until(lambda: len(server.requests) == 1)

    held.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await held
    reply = await call(external, invocation("web"))

    assert reply.status == 200
    await until(lambda: server.resets == 1)


Speaker = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
GOAWAY = b"\0\0\x08\7\0\0\0\0\0" + bytes(8)


async def speaking(world: World, speak: Speaker) -> tuple[External, list[int]]:
    """Return what calls a server that agrees on HTTP/2 and then does as it likes, and counts its connections."""
    count = [0]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count[0] += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await speak(reader, writer)
        writer.close()

    context = server_context(world.folder, world.pair(), alpn=HTTP2)
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)

    async def end() -> None:
        server.close()

    world.ends_with(end)
    port = server.sockets[0].getsockname()[1]
    return world.external(web(port, scheme="https", root_ca=world.authority.pem)), count


async def test_a_server_that_breaks_http2_fails_the_call(world: World) -> None:
    async def says_http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(10)

    async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SETTINGS + GOAWAY)
        await reader.read()

    for speak in (says_http1, says_nothing, leaves):
        external, count = await speaking(world, speak)

        error = await failure(external, invocation("web"))

        assert isinstance(error, (AppUnreachable, AppBroken)), error.detail
        assert error.detail.startswith('Get "https://127.0.0.1:')
        assert count[0] <= 4


async def test_a_call_that_a_leaving_server_did_not_take_is_sent_again(world: World) -> None:
    """GOAWAY says which calls were processed: none of ours."""
    server = await world.h2(world.pair())
    first = True

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal first
        if first:
            first = False
            writer.write(SETTINGS)
            seen = b""
            while len(seen) < 120:  # preface, SETTINGS and the request
                seen += await reader.read(65536)
            writer.write(GOAWAY)
            await reader.read()
            return
        trust = ssl.create_default_context(cadata=world.authority.pem)
        trust.set_alpn_protocols(["h2"])
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
        await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))

    external, count = await speaking(world, forward)

    reply = await call(external, invocation("web", verb=b"POST", body=b"hello"))

    assert reply.status == 200
    assert (server.bodies, count[0]) == ([b"hello"], 2)


async def test_calls_over_what_one_connection_carries_open_more(world: World) -> None:
    server = H2Server(streams=2)
    await server.start(tls=server_context(world.folder, world.pair(), alpn=HTTP2))
    world.ends_with(server.aclose)
    external = world.external(web(server.port, scheme="https", root_ca=world.authority.pem))

    held = [asyncio.create_task(call(external, invocation("web", b"hold"))) for _ in range(5)]
    await until(lambda: len(server.requests) == 5)
    external.replace({})  # what is in progress stays
    for one in held:
        one.cancel()
    await asyncio.gather(*held, return_exceptions=True)

    await until(lambda: server.connections == 0)


async def test_calls_wait_where_connections_carry_few_and_all_are_answered(world: World) -> None:
    server = H2Server(streams=1)
    await server.start(tls=server_context(world.folder, world.pair(), alpn=HTTP2))
    world.ends_with(server.aclose)
    external = world.external(web(server.port, scheme="https", root_ca=world.authority.pem))

    replies = await asyncio.gather(*[call(external, invocation("web")) for _ in range(40)])

    assert [reply.status for reply in replies] == [200] * 40
    assert server.connections <= CONNECTIONS_MAX


async def test_a_connection_that_nobody_waits_for_any_more_is_not_kept_by_an_endpoint_that_is_gone(
    world: World,
) -> None:
    server = await world.h2(world.pair())
    external = world.external(web(server.port, scheme="https", root_ca=world.authority.pem))
    alone = asyncio.create_task(call(external, invocation("web")))
    await asyncio.sleep(0)  # on its way
    alone.cancel()
    external.replace({})

    await until(lambda: server.accepted == 1)
    await until(lambda: server.connections == 0)
    assert server.requests == []


# ── changes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("H-108")
async def test_endpoints_change_in_place(world: World) -> None:
    go_on = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/hold":
            await go_on.wait()
        exchange.answer(200, (exchange.header("x-key") or "").encode())

    app = await world.app(handler)
    stays = HttpEndpoint(name="stays", base_url=f"http://127.0.0.1:{app.port}", line=1)
    external = world.external(web(app.port, headers=((b"x-key", b"old"),)), stays)
    await call(external, invocation("stays"))
    held = asyncio.create_task(call(external, invocation("web", b"hold")))
    await until(lambda: len(app.seen) == 2)

    moved = HttpEndpoint(name="stays", base_url=f"http://127.0.0.1:{app.port}", line=7)
    external.replace({"web": web(app.port, headers=((b"x-key", b"new"),)), "stays": moved})
    replies = [await call(external, invocation(name)) for name in ("web", "stays")]
    go_on.set()

    assert [await text(reply) for reply in replies] == [b"new", b""]
    assert await text(await held) == b"old"
    assert app.accepted == 3  # "stays" kept its connection
    external.replace({})
    assert external.endpoints == {}


async def test_a_name_that_no_target_can_have_is_told(caplog: pytest.LogCaptureFixture) -> None:
    dotted = HttpEndpoint(name="api.example", base_url="http://a", file="x.yaml", line=3)

    with caplog.at_level("WARNING", logger="dapr.runtime"):
        External().replace({"api.example": dotted})

    assert "HTTPEndpoint api.example (x.yaml:3) cannot be called" in caplog.text


# ── proxies ───────────────────────────────────────────────────────────────────────────────────────


class Tunnels:
    """A proxy that connects to loopback, whatever host is asked for."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.heads: list[bytes] = []
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._tunnel(reader, writer)
        finally:
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            there_writer.close()

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def a_proxy(world: World) -> Tunnels:
    proxy = Tunnels()
    await proxy.start()
    world.ends_with(proxy.aclose)
    return proxy


@pytest.mark.rule("H-17", "H-101")
async def test_https_goes_through_a_tunnel_of_the_proxy(world: World) -> None:
    app = await world.app(echo, world.authority.issue("a.example"))
    proxy = await a_proxy(world)
    endpoint = web(app.port, scheme="https", host="a.example", root_ca=world.authority.pem)
    external = world.external(endpoint, environ={"HTTPS_PROXY": f"http://me:pw@127.0.0.1:{proxy.port}"})

    replies = [await call(external, invocation("web", verb=b"POST", body=b"hello")) for _ in range(2)]

    assert [await text(reply) for reply in replies] == [b"hello", b"hello"]
    assert proxy.heads == [
        b"CONNECT a.example:%d HTTP/1.1\r\nHost: a.example:%d\r\nProxy-Authorization: Basic bWU6cHc=\r\n\r\n"
        % (app.port, app.port)
    ]
    assert app.seen[0].header("proxy-authorization") is None


@pytest.mark.rule("H-17", "H-101")
async def test_http_is_asked_of_the_proxy_with_the_whole_url(world: World) -> None:
    proxy = await world.app(echo)
    environ = {"http_proxy": f"me:pw@127.0.0.1:{proxy.port}", "NO_PROXY": "other.example"}

    reply = await call(world.external(environ=environ), invocation("http://a.example:81/base", query=b"q"))

    assert reply.status == 200
    assert proxy.seen[0].target == "http://a.example:81/base/foo?q"
    assert names(proxy.seen[0]) == {"host": ["a.example:81"], "proxy-authorization": ["Basic bWU6cHc="]}


@pytest.mark.rule("H-17")
async def test_this_machine_is_asked_straight(world: World) -> None:
    app = await world.app(echo)

    reply = await call(
        world.external(environ={"http_proxy": "127.0.0.1:1"}), invocation(f"http://localhost:{app.port}")
    )

    assert reply.status == 200


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "the proxy refused to connect to a.example:443: 407 Proxy Authentication Required",
        ),
        (b"nonsense\r\n\r\n", "what answers there is no HTTP proxy"),
        (b"", "the proxy gave no answer that could be read"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "the proxy gave no answer that could be read"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", "the proxy spoke in the server's place"),
    ],
)
async def test_a_proxy_that_does_not_let_us_through_is_told(world: World, answer: bytes, reason: str) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.writer.write(answer)
        exchange.close()

    proxy = await world.app(handler)
    external = world.external(environ={"HTTPS_PROXY": f"127.0.0.1:{proxy.port}"})

    error = await failure(external, invocation("https://a.example"))

    assert error.detail == f'Get "https://a.example/foo": proxyconnect tcp: {reason}'
    assert (error.cause, error.hop) == (Cause.APP_UNREACHABLE, Hop.APP)
    assert "HTTPS_PROXY" in error.hint


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_down_is_told(world: World, scheme: str) -> None:
    port = closed_port()
    external = world.external(environ={f"{scheme}_proxy": f"127.0.0.1:{port}"})

    error = await failure(external, invocation(f"{scheme}://a.example"))

    assert isinstance(error, AppUnreachable)
    assert "proxyconnect tcp: dial tcp" in error.detail
