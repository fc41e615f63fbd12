"""Dapr's own SDKs by gRPC, and gRPC's interop tests, unmodified, through a pair of sidecars; see `make sdk`."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from tests.e2e.sdk.conftest import TOKEN
from tests.e2e.sdk.test_sdks import HERE, program, run
from tests.support.grpc_app import Answer, Exchange, GrpcApp, Handler, invoke_response
from tests.support.mesh import Mesh, Sidecar, free_port, until
from tieline._generated.google.rpc import error_details_pb2

CHECKS = {
    *("waits for the sidecar", "adds two numbers", "carries metadata and a query", "tells the app's errors"),
    *("explains an unknown app", "echoes 2 MiB", "makes many calls at once", "reads and sets metadata"),
    "needs its token",
}
"""What every client that calls by ``InvokeService`` checks; it prints ``ok <name>`` for each."""
INTEROP = (
    *("empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream"),
    *("timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message"),
    *("special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service"),
    *("rpc_soak", "channel_soak", "orca_per_rpc"),
)
"""The cases of gRPC's interop client that take neither credentials nor load balancing."""
LOAD_REPORTS = '--service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}'
"""Has the client read the binary trailers in which a server tells its load."""
SOAK = ("--soak_iterations=20", "--soak_overall_timeout_seconds=10", "--soak_min_time_ms_between_rpcs=0")
BROKEN = Answer(
    [], grpc.StatusCode.FAILED_PRECONDITION, "none left",
    [error_details_pb2.ErrorInfo(reason="OUT_OF_STOCK", domain="shop")],
)  # fmt: skip


async def add(exchange: Exchange) -> None:
    """Add two numbers."""
    numbers = json.loads(exchange.seen.invoked.data.value)
    answer = json.dumps(numbers["arg1"] + numbers["arg2"]).encode()
    await exchange.answer(Answer([invoke_response(answer, "application/json")]))


async def tell(exchange: Exchange) -> None:
    """Tell what was asked."""
    request = exchange.seen.invoked
    told = {
        "method": request.method,
        "query": request.http_extension.querystring,
        "verb": request.http_extension.verb,
        "contentType": request.content_type,
        "length": len(request.data.value),
        "metadata": {
            name: value if isinstance(value, str) else base64.b64encode(value).decode()
            for name, value in exchange.seen.metadata
        },
    }
    answer = invoke_response(json.dumps(told).encode(), "application/json")
    await exchange.answer(Answer([answer], headers=[("x-answer", "from the app")]))


MATH: dict[str, Answer | Handler] = {"add": add, "api/v1/add": add, "told": tell, "broken": BROKEN}


@pytest_asyncio.fixture
async def caller(mesh: Mesh) -> Sidecar:
    """A sidecar that asks for a token; another has the gRPC app ``mathService``."""
    app: GrpcApp = await mesh.grpc_app(MATH)
    _, caller = await asyncio.gather(mesh.sidecar("mathService", app), mesh.sidecar("caller", environ=TOKEN))
    return caller


async def checks_of(command: Sequence[object], caller: Sidecar, **environment: str) -> set[str]:
    """Run a client beside a sidecar; return the names of the checks that held."""
    ports = {"DAPR_GRPC_PORT": str(caller.grpc)}
    return await asyncio.to_thread(run, command, caller.port, **ports, **environment)


@pytest.mark.rule("A-13", "G-12", "G-15", "G-16", "G-21", "G-22")
async def test_the_sdk_for_python_calls_an_app(python_sdk: Path, caller: Sidecar) -> None:
    command = [python_sdk / "bin/python", "-I", HERE / "grpc_client.py"]
    assert await checks_of(command, caller, DAPR_API_METHOD_INVOCATION_PROTOCOL="grpc", **TOKEN) == CHECKS


@pytest.mark.rule("A-13", "G-12", "G-21", "G-22")
async def test_the_sdk_for_node_calls_an_app(node_sdk: Path, caller: Sidecar) -> None:
    modules = str(node_sdk / "node_modules")
    command = [program("node"), HERE / "grpc_client.cjs"]
    assert await checks_of(command, caller, NODE_PATH=modules, **TOKEN) == CHECKS


@pytest.mark.rule("A-13", "G-12", "G-21", "G-22")
async def test_the_sdk_for_go_calls_an_app(go_sdk: Path, caller: Sidecar) -> None:
    assert await checks_of([go_sdk / "sdk", "client"], caller, **TOKEN) == CHECKS


@pytest.mark.rule("A-11", "A-13", "G-21", "G-72", "G-78")
async def test_the_sdk_for_java_calls_a_grpc_app(java_sdk: Path, caller: Sidecar) -> None:
    command = [program("java"), "-XX:TieredStopAtLevel=1", "-cp", f"{java_sdk / 'jars'}/*", HERE / "GrpcClient.java"]
    wanted = {"waits for the sidecar", "adds two numbers", "tells the app's errors", "needs its token"}
    assert await checks_of(command, caller, **TOKEN) == wanted | {"calls by a stub", "reads metadata"}


@pytest.mark.rule("G-23")
async def test_the_sdks_stop_a_sidecar(python_sdk: Path, node_sdk: Path, go_sdk: Path, mesh: Mesh) -> None:
    modules = {"NODE_PATH": str(node_sdk / "node_modules")}
    for command in (
        [python_sdk / "bin/python", "-I", HERE / "grpc_client.py", "stop"],
        [program("node"), HERE / "grpc_client.cjs", "stop"],
        [go_sdk / "sdk", "stop"],
    ):
        sidecar = await mesh.sidecar("stopped")
        assert await checks_of(command, sidecar, **modules) == {"stops the sidecar"}
        assert await sidecar.wait() == 0


@pytest.mark.rule("G-24", "G-29")
@pytest.mark.parametrize("language", ["python", "go"])
async def test_an_app_made_with_an_sdk_is_called(language: str, mesh: Mesh, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"{language}_sdk")
    port = free_port()
    command = {
        "python": [folder / "bin/python", "-I", HERE / "grpc_app.py", port],
        "go": [folder / "sdk", "app", port],
    }[language]

    app = mesh.process(f"{language}-app", list(map(str, command)))
    await app.says("started", 20)
    flags = ("--app-protocol", "grpc", "--enable-app-health-check", "--app-health-probe-interval", "1")
    _, caller = await asyncio.gather(mesh.sidecar("mathService", port, *flags), mesh.sidecar("caller"))
    client = mesh.grpc_client(caller)

    async def is_up() -> bool:
        return (await client.invoke("mathService", "echo", b"x")).code is grpc.StatusCode.OK

    await until(is_up, 15)
    numbers = b'{"arg1": 10, "arg2": 23}'
    answer = await client.invoke("mathService", "add", numbers, content_type="application/json")
    assert (answer.invoked.data.value, answer.invoked.content_type) == (b"33", "application/json")
    by_http = await caller.call("mathService", "add", "POST", body=numbers)
    assert (by_http.status, by_http.body) == (200, b"33")
    missing = await client.invoke("mathService", "missing")
    assert missing.code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN)
    much = os.urandom(1 << 20)
    assert (await client.invoke("mathService", "echo", much)).invoked.data.value == much


@pytest.mark.rule("G-72", "G-73", "G-76", "G-77")
@pytest.mark.parametrize("way", ["remote", "self"])
async def test_grpcs_interop_tests_pass_through_sidecars(way: str, go_sdk: Path, mesh: Mesh) -> None:
    port = free_port()
    server = mesh.process("interop", [str(go_sdk / "server"), f"--port={port}", "--use_tls=false"])
    callee = await mesh.sidecar("interop", port, "--app-protocol", "grpc")
    entry = callee if way == "self" else await mesh.sidecar("caller")
    environment = {**os.environ, "GRPC_GO_LOG_SEVERITY_LEVEL": "info"}

    failures = {}
    for case in INTEROP:
        client = await asyncio.create_subprocess_exec(
            go_sdk / "client", f"--test_case={case}", "--server_host=127.0.0.1", f"--server_port={entry.grpc}",
            "--use_tls=false", "--additional_metadata=dapr-app-id:interop", *SOAK,
            *([LOAD_REPORTS] if case.startswith("orca") else []),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
        try:
            async with asyncio.timeout(20):
                output, _ = await client.communicate()
        except TimeoutError:
            client.kill()
            output = b"not over in time"
        # That it says so tells that the case was run.
        if client.returncode != 0 or (b"done" if "soak" not in case else b"succeeded") not in output:
            failures[case] = output[-2000:].decode("utf-8", "replace")
    assert failures == {}
    assert server.code is None
