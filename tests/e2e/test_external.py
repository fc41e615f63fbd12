"""Through a sidecar to what lies outside the mesh: named endpoints and URLs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.app import App, Exchange, echo
from tests.support.h2peer import H2Server
from tests.support.http1 import Client
from tests.support.mesh import Mesh, Sidecar, invoke_path, until
from tests.support.tls import Authority, server_context

MIB = 1 << 20


def endpoint(name: str, base_url: str, **tls: str) -> str:
    """Return the resource as YAML."""
    lines = [
        "---",
        "apiVersion: dapr.io/v1alpha1",
        "kind: HTTPEndpoint",
        f"metadata: {{name: {name}}}",
        "spec:",
        f"  baseUrl: {base_url}",
    ]
    if tls:
        lines.append("  clientTLS:")
    for key, pem in tls.items():
        lines += [f"    {key}:", "      value: |", *(f"        {line}" for line in pem.splitlines())]
    return "\n".join([*lines, ""])


class World:
    """A web server outside, and the sidecar of ``caller``, whose app is another server."""

    def __init__(self, web: App, app: App, sidecar: Sidecar) -> None:
        self.web = web
        self.app = app
        self.sidecar = sidecar

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.web.port}"


@pytest_asyncio.fixture
async def world(mesh: Mesh, tmp_path: Path) -> AsyncIterator[World]:
    web, app = await mesh.app(echo), await mesh.app(echo)
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "web.yaml").write_text(
        endpoint("web", f"http://127.0.0.1:{web.port}")
        + endpoint("caller", f"http://127.0.0.1:{web.port}/shadow")
        + endpoint("broken", "nonsense")
    )
    sidecar = await mesh.sidecar("caller", app, "--resources-path", str(folder))
    yield World(web, app, sidecar)


@pytest.mark.rule("A-2", "A-13", "H-18", "H-27", "H-109")
async def test_every_spelling_of_a_target_outside_reaches_it(world: World) -> None:
    port = world.web.port
    spelt = [
        "web",
        "web.default",
        "web.elsewhere",
        f"http://127.0.0.1:{port}",
        f"http:%2F%2F127.0.0.1:{port}",
        f"http%253A%252F%252F127.0.0.1%253A{port}",
    ]

    answers = [await world.sidecar.call(target, "add?x=1", "POST", body=b"hello") for target in spelt]
    answers.append(await world.sidecar.ask("POST", "/add?x=1", headers=[("dapr-app-id", world.url)], body=b"hello"))

    assert [(answer.status, answer.body) for answer in answers] == [(200, b"hello")] * 7
    assert {seen.target for seen in world.web.seen} == {"/add?x=1"}


@pytest.mark.rule("H-27")
async def test_an_endpoint_goes_before_the_sidecars_own_app(world: World) -> None:
    answer = await world.sidecar.call("caller", "add")

    assert answer.status == 200
    assert [seen.target for seen in world.web.seen] == ["/shadow/add"]
    assert world.app.seen == []


@pytest.mark.rule("H-48", "H-49", "H-114", "H-124")
async def test_the_sidecar_says_nothing_of_itself_outside(mesh: Mesh, world: World) -> None:
    tokens = await mesh.sidecar("other", world.app, environ={"APP_API_TOKEN": "secret"})
    sent = [("dapr-caller-app-id", "me"), ("dapr-callee-app-id", "you"), ("tieline-x", "1"), ("te", "trailers")]

    answers = [await side.call(world.url, "x", headers=sent) for side in (world.sidecar, tokens)]

    assert [answer.status for answer in answers] == [200, 200]
    for seen in world.web.seen:
        assert sorted(name for name, _ in seen.headers if name != "traceparent") == [
            "dapr-callee-app-id",
            "dapr-caller-app-id",
            "host",
        ]
        assert (seen.header("dapr-caller-app-id"), seen.header("dapr-callee-app-id")) == ("me", "you")


@pytest.mark.rule("H-39", "H-85")
async def test_failures_explain_themselves(world: World) -> None:
    broken = await world.sidecar.call("broken", "add")
    verb = await world.sidecar.call("web", "add", "NONE")

    assert broken.status == 500
    assert b'err: Get \\"nonsense/add\\": unsupported protocol scheme \\"\\""}' in broken.body
    assert (broken.header("tieline-cause"), broken.header("tieline-hop")) == ("bad-request", "caller")
    assert "web.yaml:" in (broken.header("tieline-hint") or "")
    assert b"id: web, err: rpc error: code = InvalidArgument desc = invalid HTTP verb" in verb.body


@pytest.mark.rule("H-75", "H-76", "H-71")
@pytest.mark.parametrize("by", ["name", "url"])
async def test_events_come_one_by_one_with_the_servers_own_head(mesh: Mesh, world: World, by: str) -> None:
    go_on = asyncio.Event()

    async def events(exchange: Exchange) -> None:
        exchange.begin_chunked(206, [("Content-Type", "text/event-stream"), ("X-App", "1")])
        exchange.chunk(b"data: 1\n\n")
        await go_on.wait()
        exchange.chunk(b"data: 2\n\n")
        exchange.end_chunks()

    world.web._handler = events
    client = await Client.open(world.sidecar.port)
    target = "web" if by == "name" else world.url
    client.send("GET", invoke_path(target, "ev"), [("Accept", "TEXT/event-stream")])

    head = await client.head()
    first = await client.chunk_in()
    go_on.set()
    rest = await client.rest()

    assert (head.status, head.header("x-app"), head.header("cache-control")) == (206, "1", None)
    assert (first, rest) == (b"data: 1\n\n", b"data: 2\n\n")
    assert world.web.seen[0].header("accept") == "text/event-stream"
    client.close()


@pytest.mark.rule("H-58", "H-62")
@pytest.mark.parametrize("protocol", ["http", "https", "h2"])
async def test_long_bodies_pass_in_pieces(mesh: Mesh, tmp_path: Path, protocol: str) -> None:
    """However long a body is, and however slowly it is taken, little of it is in memory."""
    total = 32 * MIB

    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/warm":
            exchange.answer(200)
            return
        size = 0
        async for piece in exchange.pieces():
            size += len(piece)
        exchange.begin_chunked(200, [("X-Size", str(size))])
        for _ in range(total // MIB):
            exchange.chunk(b"x" * MIB)
            await exchange.writer.drain()
        exchange.end_chunks()

    authority = Authority()
    pair = authority.issue("127.0.0.1")
    web: App | H2Server
    if protocol == "h2":
        web = H2Server()
        await web.start(tls=server_context(tmp_path, pair, alpn=["h2"]))
    else:
        web = App(handler)
        await web.start(tls=server_context(tmp_path, pair) if protocol == "https" else None)
    scheme = "http" if protocol == "http" else "https"
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "web.yaml").write_text(endpoint("web", f"{scheme}://127.0.0.1:{web.port}", rootCA=authority.pem))
    sidecar = await mesh.sidecar("caller", None, "--resources-path", str(folder), "--max-body-size", "0")
    await sidecar.call("web", "warm")
    before = sidecar.resident()

    client = await Client.open(sidecar.port)
    client.send("POST", invoke_path("web", "x"), [("Transfer-Encoding", "chunked")])
    for _ in range(total // MIB):
        client.chunk(b"z" * MIB)
        await client.writer.drain()
    client.end_chunks()
    answer = await client.answer("POST")

    assert answer.status == 200
    assert answer.whole
    if isinstance(web, App):
        assert answer.header("x-size") == str(total)
        assert len(answer.body) == total
    else:
        assert [len(body) for body in web.bodies] == [0, total]
    assert sidecar.resident() - before < 16 * MIB
    client.close()
    await web.aclose()


@pytest.mark.rule("H-95")
async def test_a_caller_that_leaves_ends_the_call_outside(world: World) -> None:
    gone = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await exchange.gone()
        gone.set()

    world.web._handler = handler
    client = await Client.open(world.sidecar.port)
    client.send("GET", invoke_path("web", "x"))
    await until(lambda: len(world.web.seen) == 1)

    client.close()

    async with asyncio.timeout(5):
        await gone.wait()


@pytest.mark.rule("H-108")
async def test_a_changed_file_leads_elsewhere_while_calls_go_on(mesh: Mesh, tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def old(exchange: Exchange) -> None:
        if exchange.target == "/hold":
            await go_on.wait()
        exchange.answer(200, b"old")

    async def new(exchange: Exchange) -> None:
        exchange.answer(200, b"new")

    first, second = await mesh.app(old), await mesh.app(new)
    folder = tmp_path / "resources"
    folder.mkdir()
    file = folder / "web.yaml"
    file.write_text(endpoint("web", f"http://127.0.0.1:{first.port}"))
    sidecar = await mesh.sidecar("caller", None, "--resources-path", str(folder))
    held = asyncio.create_task(sidecar.call("web", "hold"))
    await until(lambda: len(first.seen) == 1)

    file.write_text(endpoint("web", f"http://127.0.0.1:{second.port}"))

    async def is_new() -> bool:
        return (await sidecar.call("web", "x")).body == b"new"

    await until(is_new, 20)
    go_on.set()
    assert (await held).body == b"old"


@pytest.mark.rule("H-101", "H-106")
async def test_an_endpoint_with_certificates_is_called_over_tls(mesh: Mesh, tmp_path: Path) -> None:
    authority, clients = Authority(), Authority("clients")
    client = clients.issue(name="client")
    app = App(echo)
    await app.start(tls=server_context(tmp_path, authority.issue("localhost"), asks=clients.pem))
    folder = tmp_path / "resources"
    folder.mkdir()
    shown = {"rootCA": authority.pem, "certificate": client.certificate, "privateKey": client.key}
    url = f"https://localhost:{app.port}"
    (folder / "web.yaml").write_text(endpoint("good", url, **shown) + endpoint("no-root", url))
    sidecar = await mesh.sidecar("caller", None, "--resources-path", str(folder))

    good = await sidecar.call("good", "add", "POST", body=b"hello")
    untrusted = [await sidecar.call(target, "add") for target in ("no-root", url)]

    assert (good.status, good.body) == (200, b"hello")
    for answer in untrusted:
        assert answer.status == 500
        assert b"tls: failed to verify certificate: x509: certificate signed by unknown authority" in answer.body
        assert b"ERR_DIRECT_INVOKE" in answer.body
        assert answer.header("tieline-cause") == "peer-tls"
    assert "Traceback" not in sidecar.log()
    await app.aclose()


@pytest.mark.rule("H-102")
async def test_the_systems_authorities_hold_for_urls(mesh: Mesh, tmp_path: Path) -> None:
    authority = Authority()
    server = H2Server()
    await server.start(tls=server_context(tmp_path, authority.issue("localhost"), alpn=["h2"]))
    trusted = tmp_path / "trusted.pem"
    trusted.write_text(authority.pem)
    app = await mesh.app(echo)
    environ = {"SSL_CERT_FILE": str(trusted)}
    sidecar = await mesh.sidecar("caller", app, "--app-max-concurrency", "1", environ=environ)

    answers = [await sidecar.call(f"https://{host}:{server.port}", "add") for host in ("localhost", "127.0.0.1")]

    assert [answer.status for answer in answers] == [200, 500]
    assert b"x509: certificate is not valid for 127.0.0.1" in answers[1].body
    await server.aclose()


async def test_no_call_outside_the_mesh_leads_back_to_the_sidecar(mesh: Mesh, tmp_path: Path) -> None:
    """It could go round for ever, and a server outside could make our sidecar call apps by a redirect."""
    own = [""]

    async def redirect(exchange: Exchange) -> None:
        exchange.answer(302, headers=[("Location", f"{own[0]}/v1.0/invoke/caller/method/secret")])

    web, app = await mesh.app(redirect), await mesh.app(echo)
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "web.yaml").write_text(endpoint("web", f"http://127.0.0.1:{web.port}"))
    sidecar = await mesh.sidecar("caller", app, "--resources-path", str(folder))
    own[0] = f"http://localhost:{sidecar.port}"

    answers = [await sidecar.call(own[0], "v1.0/invoke/caller/method/x"), await sidecar.call("web", "x")]

    for answer in answers:
        assert answer.status == 500
        assert b"this is the sidecar's own API" in answer.body
        assert answer.header("tieline-hop") == "caller"
    assert app.seen == []


async def test_a_server_that_closes_in_the_handshake_leaves_no_traceback(mesh: Mesh) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    sidecar = await mesh.sidecar("caller")
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        answer = await sidecar.call(url, "x")

    assert answer.status == 500
    assert b"closed the connection during the handshake" in answer.body
    assert "Traceback" not in sidecar.log()
    assert "Logging error" not in sidecar.log()
