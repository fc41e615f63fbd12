"""Who is at the other end: programs that are no Tieline, ports with a new owner, and fields that nobody may forge."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.support.app import Exchange, echo
from tests.support.daprd import register
from tests.support.h2peer import H2Client, H2Server, ask_h2
from tests.support.http1 import Broken, Client, Fields
from tests.support.mesh import Mesh, invoke_path, start_pair, until

PATH = invoke_path("callee", "work")
WAYS = pytest.mark.parametrize("way", ["self", "remote"])


def rename(mesh: Mesh, app_id: str, to: str) -> None:
    """Let the registry say that the sidecar of one app is that of another."""
    with sqlite3.connect(mesh.state / "tieline" / "registry.db") as db:
        db.execute("UPDATE hosts SET app_id = ? WHERE app_id = ?", (to, app_id))
    db.close()


# ── at the other sidecar's port is something else ─────────────────────────────────────────────────


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def tcp(said: bytes, *, close: bool) -> AsyncIterator[int]:
    """Serve a program that says something whoever comes, and then closes, or not."""
    stop = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        if not close:
            await stop.wait()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        stop.set()
        server.close()


@asynccontextmanager
async def plain_h2() -> AsyncIterator[int]:
    """Serve HTTP/2 without the setting by which Tielines know each other."""
    server = H2Server()
    await server.start()
    try:
        yield server.port
    finally:
        await server.aclose()
        assert [dict(fields)[":path"].rpartition("/")[2] for fields in server.requests] == ["CallLocalStream"]


NO_TIELINES: list[tuple[Callable[[], AbstractAsyncContextManager[int]], str]] = [
    (lambda: tcp(b"", close=True), "peer-unreachable"),
    (lambda: tcp(b"HTTP/1.1 400 Bad Request\r\n\r\n", close=True), "peer-protocol"),
    (lambda: tcp(b"\0" * 4096, close=False), "peer-protocol"),
    (lambda: tcp(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", close=False), "peer-protocol"),
    (plain_h2, "peer-protocol"),
]


async def test_a_program_that_is_no_tieline_gets_no_call_and_is_named_in_the_error(mesh: Mesh) -> None:
    """All at once, since each call is tried again after a second, three times."""
    caller = await mesh.sidecar("caller")
    async with contextlib.AsyncExitStack() as stack:
        for number, (peer, _) in enumerate(NO_TIELINES):
            register(mesh, f"peer{number}", await stack.enter_async_context(peer()))

        answers = await asyncio.gather(
            *(caller.call(f"peer{number}", "work", "POST", body=b"x") for number in range(len(NO_TIELINES)))
        )

    assert [answer.header("tieline-cause") for answer in answers] == [cause for _, cause in NO_TIELINES]
    for answer in answers:
        assert (answer.status, answer.header("tieline-hop")) == (500, "peer")
        assert b"ERR_DIRECT_INVOKE" in answer.body


async def test_a_grpc_client_at_the_internal_port_gets_its_status_in_trailers_only(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo)
    client = await H2Client.open(pair.callee.internal)
    fields = [("content-type", "application/grpc"), ("te", "trailers")]
    message = b"\0\0\0\0\x02\x08\x01"

    paths = ["/dapr.proto.internals.v1.ServiceInvocation/CallOthers", "/helloworld.Greeter/SayHello"]
    calls = [await (await client.request("POST", path, fields, message)).whole() for path in paths]
    other = await (await client.request("GET", "/work", [("tieline-invoke", "1")])).whole()
    client.close()

    for call in calls:
        assert (call.status, call.ended, bytes(call.data), call.trailers) == (200, True, b"", [])
        assert call.header("content-type") == "application/grpc"
    assert [call.header("grpc-status") for call in calls] == ["12", "2"]  # the second names no app
    assert other.status == 404
    assert pair.app.seen == []


async def test_a_client_of_http1_at_the_internal_port_gets_nothing_and_hurts_nobody(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo)
    client = await Client.open(pair.callee.internal)
    client.send("GET", "/work", [("tieline-invoke", "1")])

    said = await asyncio.wait_for(client.reader.read(), 5)

    assert not said.startswith(b"HTTP/1.1 200")
    assert pair.app.seen == []
    assert (await pair.caller.call("callee", "work", "POST", body=b"x")).body == b"x"
    client.close()


# ── a port has a new owner ────────────────────────────────────────────────────────────────────────


async def test_a_stale_row_never_leads_to_the_wrong_app_and_the_right_one_is_found(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo)
    wrong_app = await mesh.app(echo)
    await mesh.sidecar("wrong", wrong_app)
    await pair.caller.call("callee", "warm")
    rename(mesh, "wrong", "callee")
    both = await pair.caller.call("wrong", "work")

    answers = [await pair.caller.call("callee", "work", "POST", body=b"%d" % number) for number in range(40)]

    assert [answer.status for answer in answers] == [200] * 40
    assert [answer.body for answer in answers] == [b"%d" % number for number in range(40)]
    assert both.header("tieline-cause") == "name-unknown"
    assert wrong_app.seen == []


async def test_a_restarted_app_on_another_apps_old_port_is_not_mistaken_for_it(mesh: Mesh) -> None:
    """The connection to the old owner is gone; the port answers, but to another name."""
    pair = await start_pair(mesh, echo)
    await pair.caller.call("callee", "warm")
    pair.callee.kill()
    wrong_app = await mesh.app(echo)
    await mesh.sidecar("wrong", wrong_app, internal=pair.callee.internal)

    failed = await pair.caller.call("callee", "work", "POST", body=b"x")
    await mesh.sidecar("callee", pair.app)
    found = await pair.caller.call("callee", "work", "POST", body=b"y")

    assert failed.status == 500
    assert found.body == b"y"
    assert wrong_app.seen == []


# ── nothing of Tieline's own passes, whoever writes it ────────────────────────────────────────────


FORGED = [
    ("tieline-invoke", "1"), ("tieline-error", "7"), ("tieline-cause", "denied"), ("tieline-hop", "peer"),
    ("Tieline-Hint", "forged"), ("tieline-grpc-status", "0"), ("dapr-caller-app-id", "boss"),
    ("Dapr-Caller-Namespace", "kube-system"), ("dapr-callee-app-id", "boss"),
]  # fmt: skip


def leaks(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [field for field in fields if field[0].startswith("tieline-") or "boss" in field[1] or "kube-" in field[1]]


@WAYS
@pytest.mark.rule("H-48")
async def test_forged_fields_of_a_client_do_not_reach_the_app(mesh: Mesh, way: str) -> None:
    pair = await start_pair(mesh, echo)
    answer = await pair.entry(way).call("callee", "work", "POST", headers=FORGED, body=b"x")
    over_2 = await ask_h2(pair.entry(way).port, "POST", PATH, [(n.lower(), v) for n, v in FORGED], b"x")

    caller = "callee" if way == "self" else "caller"
    assert (answer.status, over_2.status) == (200, 200)
    for exchange in pair.app.seen:
        assert leaks(exchange.headers) == []
        identity = sorted(field for field in exchange.headers if field[0].startswith(("dapr-caller", "dapr-callee")))
        assert identity == [
            ("dapr-callee-app-id", "callee"), ("dapr-caller-app-id", caller), ("dapr-caller-namespace", "default"),
        ]  # fmt: skip


@WAYS
async def test_forged_fields_of_an_app_do_not_reach_the_client(mesh: Mesh, way: str) -> None:
    """Above all, an app's 500 with ``tieline-error`` is not taken for its sidecar's own failure."""

    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        exchange.begin_chunked(500 if exchange.target.startswith("/fail") else 200, [*FORGED, ("X-App", "yes")])
        exchange.chunk(b"the app's own")
        if exchange.target.endswith("slowly"):
            await exchange.writer.drain()
            await asyncio.sleep(0.02)  # so that the head goes first
        exchange.end_chunks()

    pair = await start_pair(mesh, handler)
    entry = pair.entry(way)
    for method, status in (("work", 200), ("work-slowly", 200), ("fail", 500), ("fail-slowly", 500)):
        answer = await entry.call("callee", method, "POST", body=b"x")
        over_2 = await ask_h2(entry.port, "POST", invoke_path("callee", method), (), b"x")

        assert (answer.status, answer.body, answer.header("x-app")) == (status, b"the app's own", "yes")
        assert (over_2.status, bytes(over_2.data)) == (status, b"the app's own")
        for fields in (answer.headers, over_2.headers):
            assert [field for field in fields if field[0].startswith("tieline-")] == []


@WAYS
async def test_forged_fields_in_trailers_pass_in_no_direction(mesh: Mesh, way: str) -> None:
    """Whether such a message is refused or goes without them."""
    received: Fields = []
    forged = FORGED[0]

    async def handler(exchange: Exchange) -> None:
        with contextlib.suppress(Broken):
            await exchange.body()
            received.extend(exchange.trailers)
        exchange.begin_chunked(200)
        exchange.chunk(b"data")
        await exchange.writer.drain()
        await asyncio.sleep(0.01)  # so that the head goes first
        exchange.end_chunks([forged, ("x-trailer", "yes")])

    pair = await start_pair(mesh, handler)
    entry = pair.entry(way)
    for forged in FORGED:
        pair.app.seen.clear()
        client = await Client.open(entry.port)
        client.send("POST", PATH, [("Transfer-Encoding", "chunked")])
        client.chunk(b"x")
        await until(lambda: len(pair.app.seen) == 1)
        client.end_chunks([forged])
        with contextlib.suppress(Broken):
            await client.answer()
        client.close()
        h2 = await H2Client.open(entry.port)
        stream = await h2.request("POST", PATH, end=False)
        await stream.send(b"x")
        await stream.send_trailers([(forged[0].lower(), forged[1])])
        await stream.whole()
        h2.close()
        plain = await entry.call("callee", "work", "POST", body=b"x")
        over_2 = await ask_h2(entry.port, "POST", PATH, (), b"x")

        assert (plain.status, over_2.status) == (200, 200)
        assert leaks([*received, *plain.trailers, *over_2.trailers]) == []
