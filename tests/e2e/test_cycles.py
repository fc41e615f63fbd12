"""Calls and connections leave nothing behind that only the garbage collector would find: its pauses show in latency."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from bench.peers import Peer
from tests.support.app import App, Exchange
from tests.support.daprd import Daprd, Script, call, register
from tests.support.grpc_app import UNARY, Answer, GrpcApp, GrpcClient, invoke_response
from tests.support.grpc_app import Handler as RpcHandler
from tests.support.h2peer import ask_h2
from tests.support.mesh import Mesh, Sidecar, invoke_path, until
from tieline._generated.dapr.proto.common.v1 import common_pb2
from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb

TIMES = 40
A_CALL = 1.0
"""Objects that one call may leave on average: some are made once for all."""


class Cycles:
    """Asks a sidecar how many objects only cycles kept."""

    def __init__(self, sidecar: Sidecar, file: Path) -> None:
        self._sidecar = sidecar
        self._file = file

    async def collect(self) -> tuple[int, str]:
        """Return their number and their kinds."""
        self._file.unlink(missing_ok=True)
        self._sidecar.signal(signal.SIGUSR1)
        await until(self._file.exists)
        number, _, kinds = self._file.read_text().partition("\n")
        return int(number), kinds


async def answer(exchange: Exchange) -> None:
    """Answer as the target says."""
    await exchange.body()
    how = exchange.target.lstrip("/")
    if how == "close":
        exchange.close()
    elif how == "short":
        exchange.begin_chunked()
        exchange.chunk(b"begun")
        exchange.close()
    elif how == "large":
        exchange.answer(200, b"x" * 300_000)
    else:
        exchange.answer(500 if how == "fail" else 200, b"x" * 2000)


async def check(
    mesh: Mesh, folder: Path, app: App | GrpcApp | int | None, do: Callable[[Sidecar], Awaitable[object]]
) -> None:
    """Do something often with a sidecar, and see what is left of it."""
    file = folder / "cycles"
    main = ("-m", "tests.support.cycles", "sidecar")
    quiet = ("--log-level", "error")
    sidecar = await mesh.sidecar("caller", app, *quiet, environ={"TIELINE_CYCLES": str(file)}, main=main, wait=None)
    await sidecar.healthy("/v1.0/healthz/outbound")
    cycles = Cycles(sidecar, file)
    for _ in range(5):
        await do(sidecar)
    await cycles.collect()

    for _ in range(TIMES):
        await do(sidecar)

    found, kinds = await cycles.collect()
    assert found <= TIMES * A_CALL, kinds


@pytest.mark.parametrize("how", ["fine", "large", "fail", "close", "short"])
@pytest.mark.parametrize("way", ["self", "remote"])
async def test_calls_leave_no_cycles(mesh: Mesh, tmp_path: Path, how: str, way: str) -> None:
    app = await mesh.app(answer)
    await mesh.sidecar("callee", app)

    async def do(sidecar: Sidecar) -> None:
        try:
            await sidecar.call("caller" if way == "self" else "callee", how, "POST", body=b"x")
        except (ConnectionError, EOFError):
            assert how == "short"

    await check(mesh, tmp_path, app, do)


async def test_calls_to_nobody_leave_no_cycles(mesh: Mesh, tmp_path: Path) -> None:
    await check(mesh, tmp_path, None, lambda sidecar: sidecar.call("nobody", "x"))


async def test_calls_to_an_app_that_is_down_leave_no_cycles(mesh: Mesh, tmp_path: Path) -> None:
    app = await mesh.app(answer)
    port = app.port
    first = True

    async def do(sidecar: Sidecar) -> None:
        nonlocal first
        if first:
            first = False
            await sidecar.healthy()
            await app.aclose()
        assert (await sidecar.call("caller", "x")).status == 500

    await check(mesh, tmp_path, port, do)


async def test_http2_connections_leave_no_cycles(mesh: Mesh, tmp_path: Path) -> None:
    app = await mesh.app(answer)

    await check(
        mesh, tmp_path, app, lambda sidecar: ask_h2(sidecar.port, "POST", invoke_path("caller", "x"), body=b"x")
    )


@pytest.mark.parametrize("how", ["fine", "large", "fail", "close", "short"])
@pytest.mark.parametrize("way", ["self", "remote", "nobody"])
async def test_rpcs_leave_no_cycles(mesh: Mesh, tmp_path: Path, how: str, way: str) -> None:
    if way == "nobody" and how != "fine":
        pytest.skip("nobody answers in one way only")
    app = await mesh.app(answer)
    await mesh.sidecar("callee", app)
    target = {"self": "caller", "remote": "callee"}.get(way, "nobody")
    clients: dict[int, GrpcClient] = {}

    async def do(sidecar: Sidecar) -> None:
        client = clients.setdefault(sidecar.grpc, mesh.grpc_client(sidecar))
        outcome = await client.invoke(target, how, b"x", timeout=10)
        assert (outcome.code is grpc.StatusCode.OK) == (way != "nobody" and how in ("fine", "large"))

    await check(mesh, tmp_path, app, do)


@pytest.mark.parametrize("how", ["fine", "large", "fail", "away"])
@pytest.mark.parametrize("way", ["self", "remote"])
async def test_calls_of_grpc_apps_leave_no_cycles(mesh: Mesh, tmp_path: Path, how: str, way: str) -> None:
    answers: dict[str, Answer | RpcHandler] = {
        "fail": Answer(code=grpc.StatusCode.NOT_FOUND),
        "large": Answer([invoke_response(b"x" * 300_000)]),
    }
    app = await mesh.grpc_app(answers)
    await mesh.sidecar("callee", app)
    is_up = True

    async def do(sidecar: Sidecar) -> None:
        nonlocal is_up
        if how == "away" and is_up:
            await sidecar.healthy()
            await app.aclose()
            is_up = False
        got = await sidecar.call("caller" if way == "self" else "callee", how, "POST", body=b"x")
        assert (got.status == 200) == (how in ("fine", "large"))

    await check(mesh, tmp_path, app, do)


@pytest.mark.parametrize("how", ["metadata", "unary", "watch", "late", "refused"])
async def test_other_rpcs_of_the_api_leave_no_cycles(mesh: Mesh, tmp_path: Path, how: str) -> None:
    clients: dict[int, GrpcClient] = {}

    async def do(sidecar: Sidecar) -> None:
        client = clients.setdefault(sidecar.grpc, mesh.grpc_client(sidecar))
        if how == "metadata":
            await client.get_metadata()
        elif how == "unary":
            await client.call(UNARY, b"x")
        elif how == "watch":
            call = client.open("/grpc.health.v1.Health/Watch")
            await call.write(b"")
            await call.read()
            call.cancel()
        elif how == "late":
            await client.call("/grpc.health.v1.Health/Watch", b"", timeout=0.02)
        else:
            await client.call("/dapr.proto.runtime.v1.Dapr/GetState", b"")

    await check(mesh, tmp_path, None, do)


async def test_restarts_of_a_peer_leave_no_cycles(mesh: Mesh, tmp_path: Path) -> None:
    number = 0

    async def do(sidecar: Sidecar) -> None:
        nonlocal number
        number += 1
        peer = Peer("peer", mesh.state)
        await peer.start()
        assert (await sidecar.call("peer", "x")).status == 200
        await peer.stop(gently=number % 2 == 0)

    await check(mesh, tmp_path, None, do)


@pytest.mark.parametrize("how", ["fine", "large", "fail", "close", "short"])
async def test_calls_as_grpc_leave_no_cycles(mesh: Mesh, tmp_path: Path, how: str) -> None:
    """At the caller, which calls a Tielines by ``InvokeService``."""
    app = await mesh.app(answer)
    await mesh.sidecar("callee", app)

    async def do(sidecar: Sidecar) -> None:
        async with mesh.grpc_client(sidecar) as client:
            await client.invoke("callee", how, b"x")

    await check(mesh, tmp_path, None, do)


@pytest.mark.parametrize("how", ["fine", "large", "fail", "close", "short"])
async def test_calls_by_grpc_leave_no_cycles(mesh: Mesh, tmp_path: Path, how: str) -> None:
    """At the callee, which a daprd calls."""
    app = await mesh.app(answer)
    message = pb.InternalInvokeRequestStream()
    message.request.ver = pb.V1
    message.request.metadata["X-A"].values.append("1")
    message.request.message.method = how
    message.request.message.http_extension.verb = common_pb2.HTTPExtension.Verb.POST
    raw = message.SerializeToString()

    async def do(sidecar: Sidecar) -> None:
        await call(sidecar.internal, [raw])

    await check(mesh, tmp_path, app, do)


@pytest.mark.parametrize("script", [Script(status=("14", "no")), Script(reset=8), Script(cut=True), Script()])
async def test_failures_of_a_daprd_leave_no_cycles(mesh: Mesh, tmp_path: Path, script: Script) -> None:
    daprd = Daprd(script)
    await daprd.start()
    registered = False

    async def do(sidecar: Sidecar) -> None:
        nonlocal registered
        if not registered:
            registered = True
            register(mesh, "daprd", daprd.port)
        await sidecar.call("daprd", "work", "POST", body=b"x")

    await check(mesh, tmp_path, None, do)
    await daprd.aclose()
