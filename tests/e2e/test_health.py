"""Health checks of an app by its sidecar: who is let through when, and what else they decide."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support import command
from tests.support.app import App, Exchange
from tests.support.http1 import Answer, Client
from tests.support.mesh import Mesh, Sidecar, free_port, invoke_path, start_pair, until
from tests.support.tls import self_signed

CHECKS = (
    "--enable-app-health-check", "--app-health-check-path", "/up", "--app-health-probe-interval", "1",
    "--app-health-probe-timeout", "1000", "--app-health-threshold", "1",
)  # fmt: skip
WELL = 'msg="App entered healthy status"'
ILL = 'msg="App entered un-healthy status: Health check failed with status code: 503"'
OPENED = "Blocking graceful shutdown for 1h0m0s or until app reports unhealthy..."


class Patient:
    """An app whose health a test decides.

    Attributes:
        status: Of the answers to probes.
    """

    def __init__(self, status: int = 200) -> None:
        self.status = status

    async def __call__(self, exchange: Exchange) -> None:
        body = await exchange.body()
        if exchange.target == "/up":
            exchange.answer(self.status)
        else:
            exchange.answer(200, b"fine" + body)


async def turns(sidecar: Sidecar, what: str, times: int = 1) -> None:
    """Return once the app's health has turned so often."""
    await until(lambda: sidecar.log().count(what) >= times)


def probes(app: App) -> list[Exchange]:
    return [exchange for exchange in app.seen if exchange.target == "/up"]


def told(answer: Answer) -> tuple[int, str | None, str | None]:
    return answer.status, answer.header("tieline-cause"), answer.header("tieline-hop")


@pytest.mark.rule("H-85", "H-118", "H-119", "H-120")
async def test_only_a_healthy_app_gets_calls_as_often_as_it_turns(mesh: Mesh) -> None:
    app = Patient()
    pair = await start_pair(mesh, app, *CHECKS)
    await turns(pair.callee, WELL)

    for round_ in (1, 2):
        for way in ("self", "remote"):
            assert (await pair.entry(way).call("callee", "work", "POST", body=b"!")).body == b"fine!"
        app.status = 503
        await turns(pair.callee, ILL, round_)
        calls = len(pair.app.seen) - len(probes(pair.app))

        own = await pair.callee.call("callee", "work", "POST", body=b"x")
        remote = await pair.caller.call("callee", "work")

        assert told(own) == told(remote) == (500, "app-unhealthy", "app")
        text = "rpc error: code = Internal desc = app is not in a healthy state"
        assert f"failed to invoke, id: callee, err: {text}" in own.body.decode()
        assert (
            "failed to invoke, id: callee, err: rpc error: code = Internal desc = error invoking app channel: " + text
        ) in remote.body.decode()
        for answer in (own, remote):
            assert (answer.header("tieline-hint") or "").startswith("/up answered 503, ")
            assert answer.header("retry-after") is None
        assert len(pair.app.seen) - len(probes(pair.app)) == calls
        assert (await pair.callee.ask("GET", "/v1.0/healthz")).status == 204
        app.status = 204
        await turns(pair.callee, WELL, round_ + 1)

    assert (await pair.caller.call("callee", "work")).body == b"fine"


@pytest.mark.rule("H-114", "H-118")
async def test_probes_carry_no_token_and_wait_for_no_slot(mesh: Mesh) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def app(exchange: Exchange) -> None:
        await exchange.body()
        if exchange.target != "/up":
            entered.set()
            await go_on.wait()
        exchange.answer(200, b"done")

    server = await mesh.app(app)
    sidecar = await mesh.sidecar(
        "callee", server, *CHECKS, "--app-max-concurrency", "1", environ={"APP_API_TOKEN": "secret"}
    )
    await turns(sidecar, WELL)
    call = asyncio.create_task(sidecar.call("callee", "work"))
    await entered.wait()
    before = len(probes(server))

    await until(lambda: len(probes(server)) >= before + 2)
    go_on.set()

    assert (await call).body == b"done"
    assert "un-healthy" not in sidecar.log()
    (work,) = (exchange for exchange in server.seen if exchange.target == "/work")
    assert work.header("dapr-api-token") == "secret"
    for probe in probes(server):
        assert (probe.verb, probe.header("dapr-api-token"), probe.header("content-length")) == ("GET", None, None)
        assert (probe.header("user-agent") or "").startswith("tieline/")


@pytest.mark.rule("H-117", "H-119", "H-121", "H-133")
async def test_the_first_call_to_an_app_waits_for_its_first_good_probe_and_health_does_not(mesh: Mesh) -> None:
    app = Patient(503)
    server = await mesh.app(app)
    sidecar = await mesh.sidecar("callee", server, *CHECKS, quiet=False)

    await until(lambda: len(probes(server)) >= 2)
    assert {exchange.target for exchange in server.seen} == {"/up"}
    assert told(await sidecar.call("callee", "work")) == (500, "app-unhealthy", "app")
    app.status = 200
    await until(lambda: any(exchange.target == "/dapr/config" for exchange in server.seen))
    app.status = 503
    await turns(sidecar, ILL)
    app.status = 200
    await turns(sidecar, WELL, 2)

    assert (await sidecar.call("callee", "work")).body == b"fine"
    (asked,) = (exchange for exchange in server.seen if exchange.target == "/dapr/config")
    assert asked.header("dapr-app-id") == "callee"


@pytest.mark.rule("H-119", "H-133")
async def test_an_app_that_is_well_may_be_called_as_soon_as_its_sidecar_is_ready(mesh: Mesh) -> None:
    async def slowly_well(exchange: Exchange) -> None:
        await exchange.body()
        if exchange.target == "/up":
            await asyncio.sleep(0.2)
        exchange.answer(200, b"fine")

    sidecar = await mesh.sidecar("callee", await mesh.app(slowly_well), *CHECKS)

    assert (await sidecar.call("callee", "work")).body == b"fine"


@pytest.mark.rule("H-133")
async def test_an_app_that_never_answers_its_probe_keeps_no_sidecar_from_being_ready(mesh: Mesh) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.gone()

    checks = [*CHECKS, "--app-health-probe-interval", "60", "--app-health-probe-timeout", "60000"]
    sidecar = await mesh.sidecar("callee", await mesh.app(silent), *checks, wait="/v1.0/healthz/outbound")

    await sidecar.healthy(within_s=5)

    assert told(await sidecar.call("callee", "work")) == (500, "app-unhealthy", "app")


@pytest.mark.rule("H-116", "H-121")
async def test_calls_are_tried_while_the_app_is_awaited_and_its_return_is_noticed(mesh: Mesh) -> None:
    port = free_port()
    sidecar = await mesh.sidecar("callee", port, *CHECKS, wait="/v1.0/healthz/outbound")
    assert told(await sidecar.call("callee", "work")) == (500, "app-unreachable", "app")

    app = await mesh.app(Patient(), port=port)
    await turns(sidecar, WELL)
    await app.aclose()
    await sidecar.says("App entered un-healthy status: Network error: ")
    gone = await sidecar.call("callee", "work")
    await mesh.app(Patient(), port=port)
    await turns(sidecar, WELL, 2)

    assert told(gone) == (500, "app-unhealthy", "app")
    assert (await sidecar.call("callee", "work")).body == b"fine"


@pytest.mark.rule("H-118")
async def test_an_app_that_is_late_is_not_well_and_is_not_asked_twice_at_a_time(mesh: Mesh) -> None:
    at_a_time, most, hanging = 0, 0, True

    async def app(exchange: Exchange) -> None:
        nonlocal at_a_time, most
        at_a_time += 1
        most = max(most, at_a_time)
        if hanging:
            await exchange.gone()
        else:
            # The head in time, the body whenever it likes.
            exchange.begin_chunked()
            exchange.chunk(b"well")
            await exchange.gone()
        at_a_time -= 1

    server = await mesh.app(app)
    sidecar = await mesh.sidecar("callee", server, *CHECKS)
    await until(lambda: len(probes(server)) >= 2)
    late = await sidecar.call("callee", "work")
    hanging = False
    await turns(sidecar, WELL)
    await until(lambda: len(probes(server)) >= 5, 10)

    assert told(late) == (500, "app-unhealthy", "app")
    assert (late.header("tieline-hint") or "").startswith("/up gave no answer in 1 s, ")
    assert most == 1
    assert "un-healthy" not in sidecar.log()


async def test_an_app_that_breaks_off_in_the_handshake_is_told_in_a_line(mesh: Mesh, tmp_path: Path) -> None:
    app = App(Patient())
    await app.start(tls=self_signed(tmp_path, "anybody"))
    sidecar = await mesh.sidecar("callee", app, *CHECKS, "--app-protocol", "https")
    await turns(sidecar, WELL)
    await app.aclose()

    async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.close()

    server = await asyncio.start_server(breaks_off, "127.0.0.1", app.port)
    await sidecar.says("App entered un-healthy status: Network error: Get ")
    server.close()

    assert "Traceback" not in sidecar.log()
    assert "scope=asyncio" not in sidecar.log()


# ── the blocking phase of a shutdown ───────────────────────────────────────────────────────────────
BLOCKED = ("--dapr-block-shutdown-duration", "1h")


@pytest.mark.rule("H-146", "H-150")
async def test_a_blocked_shutdown_ends_when_the_app_turns_unhealthy(mesh: Mesh) -> None:
    app = Patient()
    pair = await start_pair(mesh, app, *CHECKS, *BLOCKED)
    await turns(pair.callee, WELL)
    in_progress = await Client.open(pair.callee.port)

    pair.callee.signal(signal.SIGTERM)
    await pair.callee.says(OPENED)
    seen = len(probes(pair.app))
    await until(lambda: len(probes(pair.app)) >= seen + 2)
    in_progress.send("GET", invoke_path("callee", "work"), ())
    answers = [
        await in_progress.answer(),
        await pair.caller.call("callee", "work"),
        await pair.callee.call("callee", "work"),
    ]
    health = await pair.callee.ask("GET", "/v1.0/healthz")
    app.status = 503
    code = await pair.callee.wait(5)

    assert [answer.body for answer in answers] == [b"fine"] * 3
    assert health.status == 204
    assert code == 0
    log = pair.callee.log()
    assert log.index(ILL) < log.index('msg="App reported unhealthy, entering shutdown..."')
    assert "Block shutdown period expired" not in log
    in_progress.close()


@pytest.mark.rule("H-146")
@pytest.mark.parametrize("was_well", [False, True])
async def test_a_blocked_shutdown_of_an_app_that_is_unhealthy_ends_at_once(mesh: Mesh, was_well: bool) -> None:
    app = Patient(200 if was_well else 503)
    server = await mesh.app(app)
    sidecar = await mesh.sidecar("callee", server, *CHECKS, *BLOCKED)
    if was_well:
        await turns(sidecar, WELL)
        app.status = 503
        await turns(sidecar, ILL)

    began = time.monotonic()
    sidecar.signal(signal.SIGTERM)
    code = await sidecar.wait(3)

    assert code == 0
    assert time.monotonic() - began < 2
    log = sidecar.log()
    assert OPENED in log
    assert "App reported unhealthy, entering shutdown..." in log


@pytest.mark.rule("H-146")
async def test_a_blocked_shutdown_of_a_healthy_app_lasts_its_time(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar(
        "callee", await mesh.app(Patient()), *CHECKS, "--dapr-block-shutdown-duration", "1500ms"
    )
    await turns(sidecar, WELL)

    began = time.monotonic()
    sidecar.signal(signal.SIGTERM)
    code = await sidecar.wait(5)

    assert code == 0
    assert time.monotonic() - began >= 1.5
    assert "Block shutdown period expired, entering shutdown..." in sidecar.log()


@pytest.mark.rule("H-146")
async def test_a_second_signal_ends_a_block_that_waits_for_the_app(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("callee", await mesh.app(Patient()), *CHECKS, *BLOCKED)
    await turns(sidecar, WELL)
    sidecar.signal(signal.SIGTERM)
    await sidecar.says(OPENED)

    sidecar.signal(signal.SIGTERM)

    assert await sidecar.wait(2) == 1


async def test_health_metadata_and_commands_tell_how_the_app_is(mesh: Mesh) -> None:
    well = True

    async def app_of(exchange: Exchange) -> None:
        exchange.answer(200 if well else 503, b"")

    app = await mesh.app(app_of)
    flags = ("--enable-app-health-check", "--app-health-probe-interval", "1", "--app-health-threshold", "1")
    checked = await mesh.sidecar("checked", app, *flags)
    unchecked = await mesh.sidecar("unchecked", app)
    waiting = await mesh.sidecar("waiting", free_port(), wait="/v1.0/healthz/outbound")
    alone = await mesh.sidecar("alone")

    async def told(sidecar: Sidecar, path: str = "/v1.0/healthz") -> str | None:
        return (await sidecar.ask("GET", path)).header("tieline-app")

    assert await told(checked) == "healthy; /healthz is well"
    assert (await told(unchecked) or "").startswith("unknown; ")
    assert (await told(waiting) or "").startswith("waiting; ")
    assert await told(alone) is None
    well = False
    await checked.says("App entered un-healthy status")

    for path in ("/v1.0/healthz", "/v1.0/metadata"):
        assert re.match(r"unhealthy; /healthz answered 503, ", await told(checked, path) or "")
    listed = await command.run(mesh.environ, "list")
    doctor = await command.run(mesh.environ, "doctor", "checked")
    assert "its app is unhealthy: /healthz answered 503" in listed.out
    assert "unhealthy: /healthz answered 503" in doctor.out
    assert doctor.code == 1
