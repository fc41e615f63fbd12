"""How a sidecar leaves: what is in progress finishes, nobody finds it any more, and it ends when it was told to."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time

import pytest

from tests.support.app import App, Exchange, echo
from tests.support.h2peer import H2Client
from tests.support.http1 import Broken, Client, ask
from tests.support.mesh import Mesh, Sidecar, free_port, invoke_path, start_pair, until

PATH = invoke_path("callee", "work")


class Gate:
    """An app that answers once it is told to."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        body = await exchange.body()
        exchange.begin_chunked()
        exchange.chunk(b"begun ")
        self.entered.set()
        await self.go_on.wait()
        exchange.chunk(body)
        exchange.end_chunks()


async def refuses(sidecar: Sidecar) -> None:
    """Return when the HTTP API takes no connection any more."""

    async def is_refused() -> bool:
        try:
            await ask(sidecar.port, "GET", "/v1.0/healthz")
        except OSError:
            return True
        return False

    await until(is_refused)


def registered(mesh: Mesh) -> list[str]:
    """Return the app IDs that the registry holds, fresh or not."""
    with sqlite3.connect(mesh.state / "tieline" / "registry.db") as db:
        rows = db.execute("SELECT app_id FROM hosts ORDER BY app_id").fetchall()
    db.close()
    return [row[0] for row in rows]


@pytest.mark.rule("H-142", "H-143", "H-144", "H-148")
@pytest.mark.parametrize(
    ("leaving", "number"),
    [("callee", signal.SIGTERM), ("caller", signal.SIGTERM), ("self", signal.SIGINT)],
)
async def test_what_is_in_progress_at_a_signal_finishes_whole(mesh: Mesh, leaving: str, number: signal.Signals) -> None:
    app = Gate()
    pair = await start_pair(mesh, app)
    entry = pair.callee if leaving == "self" else pair.caller
    sidecar = pair.caller if leaving == "caller" else pair.callee
    over_1 = await Client.open(entry.port)
    over_1.send("POST", PATH, (), b"done")
    h2 = await H2Client.open(entry.port)
    over_2 = await h2.request("POST", PATH, body=b"done")
    await until(lambda: len(pair.app.seen) == 2)

    sidecar.signal(number)
    await sidecar.says("beginning shutdown")
    app.go_on.set()
    answer = await asyncio.wait_for(over_1.answer(), 5)
    await over_2.whole(5)
    code = await sidecar.wait(3)

    assert (answer.status, answer.body, answer.whole) == (200, b"begun done", True)
    assert (over_2.status, bytes(over_2.data), over_2.ended) == (200, b"begun done", True)
    assert code == 0
    assert sidecar.log().rstrip().splitlines()[-1].find('msg="Daprd shutdown gracefully"') > 0
    await refuses(sidecar)
    over_1.close()
    h2.close()


@pytest.mark.rule("H-143", "H-144")
async def test_the_app_may_call_others_while_its_sidecar_drains(mesh: Mesh) -> None:
    go_on = asyncio.Event()
    ports: list[int] = []

    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        await go_on.wait()
        answer = await ask(ports[0], "POST", invoke_path("other", "work"), body=b"nested")
        exchange.answer(answer.status, answer.body)

    pair = await start_pair(mesh, handler)
    ports.append(pair.callee.port)
    await mesh.sidecar("other", await mesh.app(echo))
    call = asyncio.create_task(pair.caller.call("callee", "work", "POST", body=b"x"))
    await until(lambda: len(pair.app.seen) == 1)

    pair.callee.signal(signal.SIGTERM)
    await pair.callee.says("beginning shutdown")
    go_on.set()
    answer = await call

    assert (answer.status, answer.body) == (200, b"nested")
    assert await pair.callee.wait(3) == 0


@pytest.mark.rule("H-143", "H-145")
async def test_a_call_of_another_that_does_not_end_leaves_the_api_its_share_of_the_grace(mesh: Mesh) -> None:
    app = Gate()
    pair = await start_pair(mesh, app, "--dapr-graceful-shutdown-seconds", "4")
    stream = await Client.open(pair.caller.port)
    stream.send("POST", PATH, (), b"done")
    await stream.head()
    await app.entered.wait()

    pair.callee.signal(signal.SIGTERM)
    await pair.callee.says("beginning shutdown")
    await refuses(pair.callee)
    app.go_on.set()
    answer = [await stream.chunk_in(), await stream.chunk_in()]

    assert answer == [b"begun ", b"done"]
    assert await pair.callee.wait(3) == 0
    stream.close()


@pytest.mark.rule("H-145", "H-148")
@pytest.mark.parametrize("leaving", ["callee", "caller", "self"])
async def test_calls_that_outlast_the_grace_are_cut(mesh: Mesh, leaving: str) -> None:
    app = Gate()
    flags = ["--dapr-graceful-shutdown-seconds", "1"]
    pair = await start_pair(mesh, app, *flags, caller_flags=flags)
    sidecar = pair.caller if leaving == "caller" else pair.callee
    client = await Client.open((pair.callee if leaving == "self" else pair.caller).port)
    client.send("POST", PATH, (), b"x")
    await client.head()
    await client.chunk_in()

    began = time.monotonic()
    sidecar.signal(signal.SIGTERM)
    with pytest.raises(Broken):
        await asyncio.wait_for(client.chunk_in(), 5)
    took = time.monotonic() - began
    code = await sidecar.wait(2)

    assert code == 1
    assert 0.8 < took < 2.5
    assert "Graceful shutdown timeout exceeded, forcing shutdown" in sidecar.log()
    client.close()


@pytest.mark.rule("H-142", "H-148")
async def test_a_second_signal_ends_it_at_once(mesh: Mesh) -> None:
    app = Gate()
    pair = await start_pair(mesh, app)
    client = await Client.open(pair.callee.port)
    client.send("POST", PATH, (), b"x")
    await client.head()

    pair.callee.signal(signal.SIGTERM)
    await pair.callee.says("beginning shutdown")
    pair.callee.signal(signal.SIGTERM)

    assert await pair.callee.wait(2) == 1
    assert "Received signal 'terminated' during shutdown; exiting immediately" in pair.callee.log()
    client.close()


@pytest.mark.rule("H-138", "H-148")
async def test_shutdown_by_api(mesh: Mesh) -> None:
    app = Gate()
    pair = await start_pair(mesh, app, "--dapr-block-shutdown-duration", "1h")
    client = await Client.open(pair.callee.port)
    client.send("POST", PATH, (), b"done")
    await client.head()

    answer = await pair.callee.ask("POST", "/v1.0/shutdown")
    await pair.callee.says("Shutdown requested via API")
    app.go_on.set()

    assert (answer.status, answer.body) == (204, b"")
    assert await client.chunk_in() == b"begun "
    assert await client.chunk_in() == b"done"
    assert await pair.callee.wait(3) == 0
    assert "Daprd shutdown gracefully" in pair.callee.log()
    client.close()


@pytest.mark.rule("H-138", "H-148")
async def test_shutdown_by_force(mesh: Mesh) -> None:
    pair = await start_pair(mesh, Gate())
    client = await Client.open(pair.callee.port)
    client.send("POST", PATH, (), b"x")
    await client.head()

    answer = await pair.callee.ask("POST", "/v1.0/shutdown", headers=[("dapr-force-shutdown", "TRUE")])

    assert answer.status == 204
    assert await pair.callee.wait(2) == 1
    assert "Force shutdown requested, exiting immediately without graceful shutdown" in pair.callee.log()
    client.close()


@pytest.mark.rule("H-138")
async def test_a_web_page_cannot_stop_a_sidecar(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("callee")

    answers = [
        await sidecar.ask("POST", "/v1.0/shutdown", headers=[header])
        for header in (("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site"))
    ]

    assert [answer.status for answer in answers] == [403, 403]
    assert (await sidecar.ask("GET", "/v1.0/healthz")).status == 204


@pytest.mark.rule("H-146")
async def test_a_blocked_shutdown_takes_calls_until_its_time_is_over(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo, "--dapr-block-shutdown-duration", "2s")

    began = time.monotonic()
    pair.callee.signal(signal.SIGTERM)
    await pair.callee.says("Blocking graceful shutdown for 2s or until app reports unhealthy...")
    answers = [
        await pair.caller.call("callee", "work", "POST", body=b"in"),
        await pair.callee.call("callee", "work", "POST", body=b"own"),
    ]
    health = await pair.callee.ask("GET", "/v1.0/healthz")
    code = await pair.callee.wait(5)

    assert [answer.body for answer in answers] == [b"in", b"own"]
    assert health.status == 204
    assert code == 0
    assert time.monotonic() - began >= 2
    assert "Block shutdown period expired, entering shutdown..." in pair.callee.log()


@pytest.mark.rule("H-146")
async def test_a_second_signal_ends_a_blocked_shutdown(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo, "--dapr-block-shutdown-duration", "1h")
    pair.callee.signal(signal.SIGTERM)
    await pair.callee.says("Blocking graceful shutdown for 1h0m0s or until app reports unhealthy...")

    pair.callee.signal(signal.SIGTERM)

    assert await pair.callee.wait(2) == 1


@pytest.mark.rule("H-146")
async def test_an_app_that_never_came_up_ends_the_block_at_once(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar(
        "callee", free_port(), "--dapr-block-shutdown-duration", "1h", wait="/v1.0/healthz/outbound"
    )

    sidecar.signal(signal.SIGTERM)

    assert await sidecar.wait(3) == 0


async def test_a_sidecar_that_left_is_not_in_the_registry_and_its_callers_are_told_so(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo)
    await pair.caller.call("callee", "work")
    assert registered(mesh) == ["callee", "caller"]

    pair.callee.signal(signal.SIGTERM)
    await pair.callee.wait(3)
    answer = await pair.caller.call("callee", "work")

    assert registered(mesh) == ["caller"]
    assert (answer.status, answer.header("tieline-cause")) == (500, "name-unknown")
    assert b"couldn't find service: callee" in answer.body
    hint = answer.header("tieline-hint") or ""
    assert "caller" in hint
    assert "\n" not in hint


async def test_the_row_of_a_killed_sidecar_ages_out(mesh: Mesh) -> None:
    """Its last heartbeat is put into the past, where time would have put it."""
    pair = await start_pair(mesh, echo)
    pair.callee.kill()
    assert registered(mesh) == ["callee", "caller"]
    with sqlite3.connect(mesh.state / "tieline" / "registry.db") as db:
        db.execute("UPDATE hosts SET last_update = last_update - 60 WHERE app_id = 'callee'")
    db.close()

    answer = await pair.caller.call("callee", "work")

    assert (answer.status, answer.header("tieline-cause")) == (500, "name-unknown")


@pytest.mark.rule("H-1", "H-148")
@pytest.mark.parametrize("flag", ["--dapr-http-port", "--dapr-grpc-port", "--dapr-internal-grpc-port"])
async def test_a_port_that_is_taken_ends_the_start_with_a_reason(mesh: Mesh, flag: str) -> None:
    other = App(echo)
    await other.start()

    sidecar = await mesh.sidecar("callee", None, flag, str(other.port), wait=None)
    code = await sidecar.wait(20)
    await other.aclose()

    assert code == 1
    last = sidecar.log().rstrip().splitlines()[-1]
    assert str(other.port) in last
    assert flag in last
    assert "Traceback" not in sidecar.log()


@pytest.mark.rule("H-4")
async def test_a_head_that_does_not_come_in_ten_seconds_ends_the_connection(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("callee")
    nothing, half_line, half_head, idle, body = [await Client.open(sidecar.port) for _ in range(5)]
    half_line.writer.write(b"GET /v1.0/hea")
    half_head.writer.write(b"GET /v1.0/healthz HTTP/1.1\r\nHost: x\r\n")
    idle.send("GET", "/v1.0/healthz")
    assert (await idle.answer()).status == 204
    body.writer.write(b"PUT /v1.0/metadata/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12")

    began = time.monotonic()
    ends = await asyncio.gather(*(client.reader.read() for client in (nothing, half_line, half_head)))
    took = time.monotonic() - began
    idle.send("GET", "/v1.0/healthz")
    body.writer.write(b"345")

    assert 9 < took < 12
    assert [end[:12] for end in ends] == [b"", b"HTTP/1.1 400", b""]
    assert [(await client.answer()).status for client in (idle, body)] == [204, 204]
    for client in (nothing, half_line, half_head, idle, body):
        client.close()
