"""The gRPC API of real sidecars, called by grpcio."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.support import command
from tests.support.app import Exchange, echo
from tests.support.grpc_app import GET_METADATA, INVOKE_SERVICE, SHUTDOWN, UNARY, GrpcClient
from tests.support.h2peer import H2Client
from tests.support.mesh import Mesh, Sidecar, free_port, until
from tests.support.prometheus import read
from tieline._generated.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from tieline._generated.grpc.reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
REFLECT_ALPHA = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
DAPR = "dapr.proto.runtime.v1.Dapr"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def configuration(folder: Path, spec: dict[str, Any]) -> str:
    """Write a Configuration and return its path."""
    file = folder / "config.yaml"
    file.write_text(json.dumps({"kind": "Configuration", "spec": spec}))
    return str(file)


async def document(sidecar: Sidecar) -> dict[str, Any]:
    """Return the metadata as the HTTP API tells them."""
    found: dict[str, Any] = json.loads((await sidecar.ask("GET", "/v1.0/metadata")).body)
    return found


async def next_of(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> bytes:
    """Return the next message of an RPC that was begun step by step."""
    message: Any = await call.read()
    assert isinstance(message, bytes)
    return message


async def rest(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> tuple[grpc.StatusCode, list[bytes]]:
    """Read an RPC that was begun step by step to its end."""
    messages: list[Any] = []
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
    except grpc.aio.AioRpcError:
        pass
    return await call.code(), messages


# ── where it listens ──


@pytest.mark.rule("G-1", "H-2", "G-126")
async def test_it_takes_http2_at_once_and_nothing_else(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a")

    for first in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\0\1garbage garbage garbage",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.grpc)
        settings = await reader.readexactly(9)  # before anything was sent
        assert settings[3] == 4
        writer.write(first)
        async with asyncio.timeout(5):
            rest = await reader.read()
        assert b"HTTP/1.1" not in rest
        writer.close()
    assert "API gRPC server is running on port" in sidecar.log()
    assert "Traceback" not in sidecar.log()


@pytest.mark.rule("H-2")
async def test_a_unix_domain_socket_takes_the_place_of_the_port(mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    path = folder / "dapr-a-grpc.socket"

    sidecar = await mesh.sidecar("a", None, "--unix-domain-socket", str(folder), wait=None)
    await sidecar.says(f"gRPC server listening on UNIX socket: {path}", 15)
    async with GrpcClient(f"unix:{path}") as client:
        told = await client.get_metadata()

    assert told.id == "a"
    assert stat.S_ISSOCK(path.stat().st_mode)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", sidecar.grpc)) != 0
    sidecar.signal(signal.SIGTERM)
    assert await sidecar.wait() == 0
    assert list(folder.iterdir()) == []


@pytest.mark.rule("H-17", "K-30")
async def test_any_free_port_is_told_to_tools(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a", None, "--dapr-grpc-port", "0")

    result = await command.run(mesh.environ, "list", "-o", "json")

    (row,) = result.json()
    async with GrpcClient(row["grpcPort"]) as client:
        assert (await client.get_metadata()).id == "a"
    assert f"API gRPC server is running on port {row['grpcPort']}" in sidecar.log()


@pytest.mark.rule("G-125")
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([("content-type", "text/plain")], 415, "3"),
        ([("content-type", "application/grpc"), ("grpc-timeout", "10")], 400, "13"),
        ([("content-type", "application/grpc"), ("thing-bin", "!!")], 400, "13"),
    ],
)
async def test_requests_that_are_no_rpcs_are_told_in_http_and_in_grpc(
    mesh: Mesh, headers: list[tuple[str, str]], status: int, code: str
) -> None:
    sidecar = await mesh.sidecar("a")
    client = await H2Client.open(sidecar.grpc)

    for path in (GET_METADATA, UNARY):
        stream = await client.request("POST", path, headers=[*headers, ("dapr-app-id", "b")], body=b"\0\0\0\0\0")
        await stream.whole()
        assert (stream.status, stream.header("grpc-status")) == (status, code)
        assert stream.header("content-type") == "application/grpc"
    client.close()


# ── metadata and shutdown ──


@pytest.mark.rule("G-21", "G-22")
async def test_metadata_are_those_of_the_http_api(mesh: Mesh) -> None:
    app = await mesh.app(echo)
    flags = ["--app-max-concurrency", "3", "--enable-app-health-check", "--app-health-check-path", "/x"]
    sidecar = await mesh.sidecar("cart", app, *flags)
    client = mesh.grpc_client(sidecar)

    assert (await client.set_metadata("color", "blue")).message == b""
    assert (await client.set_metadata("daprRuntimeVersion", "mine")).message == b""
    assert (await client.set_metadata("", "nothing")).message == b""
    too_long = await client.set_metadata("long", "x" * 65536)
    told = await client.get_metadata()

    expected = await document(sidecar)
    assert expected["extended"] == {"color": "blue", "daprRuntimeVersion": expected["runtimeVersion"]}
    assert told.HasField("workflows")
    assert not told.HasField("scheduler")
    shown = MessageToDict(told)
    assert shown.pop("workflows") == {}
    expected["actorRuntime"].pop("hostReady")  # false is not written
    assert shown == expected
    assert too_long.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert too_long.trailer("tieline-cause") == ["too-large"]


@pytest.mark.rule("G-23")
@pytest.mark.parametrize(("force", "code"), [("True", 1), ("no", 0)])
async def test_shutdown_is_answered_and_done(mesh: Mesh, force: str, code: int) -> None:
    sidecar = await mesh.sidecar("a")
    client = mesh.grpc_client(sidecar)

    outcome = await client.call(SHUTDOWN, b"", metadata=[("dapr-force-shutdown", force)])

    assert outcome.message == b""
    assert await sidecar.wait() == code
    if not code:
        assert "Shutdown requested via API" in sidecar.log()
        assert "Daprd shutdown gracefully" in sidecar.log()


# ── health and reflection ──


@pytest.mark.rule("G-1")
async def test_health_is_told_to_those_who_ask_and_to_those_who_watch(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a")
    client = mesh.grpc_client(sidecar)

    async def check(service: str) -> int:
        outcome = await client.call(CHECK, HealthCheckRequest(service=service).SerializeToString())
        return HealthCheckResponse.FromString(outcome.message).status

    assert await check("") == SERVING
    assert await check(DAPR) == SERVING
    assert (await client.call(CHECK, b"\x0a\x01x")).code is grpc.StatusCode.NOT_FOUND
    watch, other = client.open(WATCH), client.open(WATCH)
    await watch.write(b"")
    await other.write(HealthCheckRequest(service="other").SerializeToString())
    assert HealthCheckResponse.FromString(await next_of(watch)).status == SERVING
    assert HealthCheckResponse.FromString(await next_of(other)).status == SERVICE_UNKNOWN
    sidecar.signal(signal.SIGTERM)
    code, last = await rest(watch)
    assert [HealthCheckResponse.FromString(message).status for message in last] == [NOT_SERVING]
    assert code is grpc.StatusCode.UNAVAILABLE
    assert await rest(other) == (grpc.StatusCode.UNAVAILABLE, [])
    assert await sidecar.wait() == 0


async def test_who_watches_may_go_and_has_a_deadline(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a")
    client = mesh.grpc_client(sidecar)
    gone = client.open(WATCH)
    await gone.write(b"")
    await gone.read()
    gone.cancel()
    raw = await H2Client.open(sidecar.grpc)

    late = await raw.request(
        "POST",
        WATCH,
        headers=[("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "100m")],
        body=b"\0\0\0\0\0",
    )
    await late.whole()

    assert dict(late.trailers)["grpc-status"] == "4"
    assert bytes(late.data) == b"\0\0\0\0\2\x08\1"
    raw.close()
    assert (await client.get_metadata()).id == "a"


def reflected(port: int) -> tuple[list[str], set[str], set[str]]:
    """Return what grpcio's reflection client finds: services, methods of the Dapr service, fields of a message."""
    from google.protobuf.descriptor_pool import DescriptorPool

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        service = pool.FindServiceByName(DAPR)
        message = pool.FindMessageTypeByName("dapr.proto.common.v1.InvokeRequest")
        return (
            sorted(database.get_services()),
            {method.name for method in service.methods},
            {field.name for field in message.fields},
        )


@pytest.mark.rule("G-1", "G-11")
async def test_reflection_shows_the_services_and_their_messages(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a")

    services, methods, fields = await asyncio.to_thread(reflected, sidecar.grpc)

    assert services == [
        DAPR,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    assert {"InvokeService", "GetMetadata", "SetMetadata", "Shutdown"} <= methods
    assert fields == {"method", "data", "content_type", "http_extension"}


@pytest.mark.rule("G-1")
@pytest.mark.parametrize("path", [REFLECT, REFLECT_ALPHA])
async def test_reflection_answers_each_question_and_ends_with_the_sidecar(mesh: Mesh, path: str) -> None:
    sidecar = await mesh.sidecar("a")
    client = mesh.grpc_client(sidecar)
    questions = [
        ServerReflectionRequest(file_by_filename="dapr/proto/common/v1/common.proto"),
        ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
        ServerReflectionRequest(all_extension_numbers_of_type=f"{DAPR.rpartition('.')[0]}.InvokeServiceRequest"),
        ServerReflectionRequest(),
    ]
    call = client.open(path)

    answers = []
    for question in questions:
        await call.write(question.SerializeToString())
        answers.append(ServerReflectionResponse.FromString(await next_of(call)))
    sidecar.signal(signal.SIGTERM)

    assert await rest(call) == (grpc.StatusCode.UNAVAILABLE, [])
    assert await sidecar.wait() == 0  # it does not wait for the stream
    assert [answer.WhichOneof("message_response") for answer in answers] == [
        "file_descriptor_response",
        "error_response",
        "all_extension_numbers_response",
        "error_response",
    ]
    assert len(answers[0].file_descriptor_response.file_descriptor_proto) >= 2  # with what it imports
    assert [answers[1].error_response.error_code, answers[3].error_response.error_code] == [5, 3]


@pytest.mark.rule("G-1")
async def test_health_and_reflection_of_an_app_are_asked_for_by_its_name(mesh: Mesh) -> None:
    app = await mesh.grpc_app()
    sidecar = await mesh.sidecar("a", app)
    client = mesh.grpc_client(sidecar)

    checked = await client.call(CHECK, b"", metadata=[("dapr-app-id", "a")])
    reflection = await client.call(REFLECT, b"", metadata=[("dapr-app-id", "a")])

    assert CHECK in [seen.path for seen in app.seen]
    assert checked.code is grpc.StatusCode.UNIMPLEMENTED  # by the app
    assert reflection.code is not grpc.StatusCode.OK or REFLECT in [seen.path for seen in app.seen]


# ── invocation ──


@pytest.mark.rule("G-12", "G-13", "G-15", "G-66")
async def test_an_http_app_is_called(mesh: Mesh) -> None:
    seen: list[Exchange] = []

    async def answer(exchange: Exchange) -> None:
        seen.append(exchange)
        exchange.answer(201, await exchange.body(), [("Content-Type", "text/plain"), ("X-One", "a")])

    sidecar = await mesh.sidecar("cart", await mesh.app(answer))
    client = mesh.grpc_client(sidecar)

    outcome = await client.invoke("cart", "a/b", b"hi", verb="PUT", content_type="text/x", metadata=[("x-a", "1")])

    assert (outcome.invoked.data.value, outcome.invoked.content_type) == (b"hi", "text/plain")
    assert outcome.header("dapr-http-status") == ["201"]
    assert outcome.header("dapr-content-type") == ["text/plain"]
    assert outcome.header("x-one") == ["a"]
    (exchange,) = seen
    assert (exchange.verb, exchange.target, exchange.header("x-a")) == ("PUT", "/a/b", "1")
    assert exchange.header("dapr-caller-app-id") == "cart"


@pytest.mark.rule("H-105", "G-13")
async def test_endpoints_and_urls_outside_the_mesh_are_called(mesh: Mesh, tmp_path: Path) -> None:
    seen: list[Exchange] = []

    async def answer(exchange: Exchange) -> None:
        seen.append(exchange)
        exchange.answer(200, await exchange.body())

    web = await mesh.app(answer)
    url = f"http://127.0.0.1:{web.port}"
    resources = tmp_path / "resources"
    resources.mkdir()
    (resources / "web.yaml").write_text(
        f"apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {{name: web}}\nspec: {{baseUrl: '{url}'}}\n"
    )
    sidecar = await mesh.sidecar("a", None, "--resources-path", str(resources))
    client = mesh.grpc_client(sidecar)

    for target in ("web", url):
        outcome = await client.invoke(target, "x", b"hi", content_type="text/x", query="a=1 é", verb="POST")
        assert outcome.invoked.data.value == b"hi"
        missing = await client.invoke(target, "x", b"hi", verb=None)
        assert missing.code is grpc.StatusCode.INTERNAL
        assert missing.text.endswith("rpc error: code = InvalidArgument desc = missing HTTP extension field")

    assert [(one.verb, one.target, one.header("content-type")) for one in seen] == [
        ("POST", "/x?a=1%20%C3%A9", "text/x")
    ] * 2
    assert all(one.header("dapr-caller-app-id") is None for one in seen)


@pytest.mark.rule("G-17")
async def test_failures_of_the_sidecar_say_why(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a")
    client = mesh.grpc_client(sidecar)

    own = await client.invoke("a", "x")
    unknown = await client.invoke("nobody", "x")

    assert (own.code, own.text) == (
        grpc.StatusCode.INTERNAL,
        "failed to invoke, id: a, err: cannot invoke local endpoint: app channel not initialized",
    )
    assert own.trailer("tieline-cause") == ["app-missing"]
    assert "--app-port" in str(own.trailer("tieline-hint")[0])
    assert unknown.code is grpc.StatusCode.INTERNAL
    assert unknown.text.startswith("failed to invoke, id: nobody, err: couldn't find service: nobody")
    assert unknown.trailer("tieline-cause") == ["name-unknown"]


@pytest.mark.rule("G-20", "G-77")
@pytest.mark.parametrize("by", ["deadline", "cancel"])
async def test_an_app_whose_caller_waits_no_more_is_let_go(mesh: Mesh, by: str) -> None:
    reached, left = asyncio.Event(), asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        reached.set()
        await exchange.reader.read()
        left.set()

    sidecar = await mesh.sidecar("cart", await mesh.app(hang), "--app-max-concurrency", "1")
    client = mesh.grpc_client(sidecar)

    waiting = asyncio.create_task(client.invoke("cart", "x", verb="GET", timeout=1.0 if by == "deadline" else None))
    async with asyncio.timeout(10):
        await reached.wait()
        if by == "cancel":
            await client.aclose()
        await left.wait()

    if by == "deadline":
        outcome = await waiting
        assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        waiting.cancel()


# ── who may call, and what is told of it ──


@pytest.mark.rule("G-110")
async def test_the_token_is_asked_for_everything(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a", environ={"DAPR_API_TOKEN": "secret"})
    client = mesh.grpc_client(sidecar)

    for path in (GET_METADATA, CHECK, REFLECT, UNARY):
        outcome = await client.call(path, b"", metadata=[("dapr-app-id", "a")])
        assert (outcome.code, outcome.text) == (grpc.StatusCode.UNAUTHENTICATED, "Unauthorized")
    told = await client.get_metadata(metadata=[("dapr-api-token", "secret")])
    assert told.id == "a"


@pytest.mark.rule("G-112", "S-57", "S-58", "S-59")
async def test_the_lists_of_a_configuration_close_rpcs_and_a_reload_opens_them(mesh: Mesh, tmp_path: Path) -> None:
    denied = [{"name": "metadata", "version": "v1", "protocol": "grpc"}]
    file = configuration(tmp_path, {"api": {"denied": denied}})
    sidecar = await mesh.sidecar("a", None, "--config", file)
    client = mesh.grpc_client(sidecar)

    outcome = await client.call(GET_METADATA, b"")
    assert (outcome.code, outcome.text) == (grpc.StatusCode.UNIMPLEMENTED, "Not Implemented")
    configuration(tmp_path, {"api": {"allowed": [{"name": "invoke", "version": "v1", "protocol": "http"}]}})
    sidecar.signal(signal.SIGHUP)
    await sidecar.says("Reloaded; nothing was restarted")

    assert (await client.get_metadata()).id == "a"  # on the connection that was open
    assert (await sidecar.ask("GET", "/v1.0/metadata")).status == 404
    assert "leaves the whole gRPC API open" in sidecar.log()


@pytest.mark.rule("G-114", "O-44")
async def test_each_rpc_gets_a_line_if_that_is_wanted(mesh: Mesh) -> None:
    app = await mesh.grpc_app()
    flags = ["--enable-api-logging", "--log-level", "error", "--log-as-json"]
    sidecar = await mesh.sidecar("a", app, *flags)
    client = mesh.grpc_client(sidecar)

    await client.get_metadata()
    await client.invoke("nobody", "x")
    await client.call(UNARY, b"x", metadata=[("dapr-app-id", "a")])
    await client.call(UNARY, b"x")

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in sidecar.log().splitlines() if line.startswith("{")]
        return [line for line in found if line["scope"] == "dapr.runtime.grpc.api-info"]

    await until(lambda: len(lines()) == 4)
    assert [(line["method"], line["code"]) for line in lines()] == [
        (GET_METADATA, 0),
        (INVOKE_SERVICE, 13),
        (UNARY, 0),
        (UNARY, 2),
    ]
    for line in lines():
        assert (line["msg"], line["level"]) == ("gRPC API Called", "info")
        assert line["useragent"].startswith("grpc-python")
        assert line["duration"] >= 0
        assert "size" not in line


async def not_found(exchange: Exchange) -> None:
    exchange.answer(404)


@pytest.mark.rule("O-26", "O-27", "O-28")
async def test_rpcs_are_counted(mesh: Mesh, tmp_path: Path) -> None:
    metrics = free_port()
    app = await mesh.app(not_found)
    file = configuration(tmp_path, {"metric": {"recordErrorCodes": True}})
    sidecar = await mesh.sidecar("a", app, "--metrics-port", str(metrics), "--config", file)
    client = mesh.grpc_client(sidecar)

    await client.get_metadata()
    await client.invoke("a", "x")
    await client.call(UNARY, b"x")
    there = Sidecar.__new__(Sidecar)
    there.port = metrics
    families = read((await there.ask("GET", "/metrics")).body.decode())

    assert families["dapr_grpc_io_server_completed_rpcs"].numbers("grpc_server_method", "grpc_server_status") == {
        (GET_METADATA, "OK"): 1,
        (INVOKE_SERVICE, "NotFound"): 1,
    }
    for name in ("server_latency", "received_bytes_per_rpc", "sent_bytes_per_rpc"):
        family = families[f"dapr_grpc_io_server_{name}"]
        assert family.numbers("grpc_server_method") == {(GET_METADATA,): 1, (INVOKE_SERVICE,): 1}
    errors = families["dapr_error_code_total"].numbers("error_code", "category")
    assert errors["Not Found", "service-invocation"] == 1
    assert ("ERR_DIRECT_INVOKE", "service-invocation") not in errors
    assert ("POST", "404") in families["dapr_http_client_completed_count"].numbers("method", "status")
    # The HTTP API was asked for its health alone.
    assert set(families["dapr_http_server_request_count"].numbers("path")) == {("/v1.0/healthz",)}


# ── the end ──


@pytest.mark.rule("G-9", "H-143", "H-144")
async def test_calls_in_progress_end_well_when_the_sidecar_leaves(mesh: Mesh) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        reached.set()
        await go_on.wait()
        exchange.answer(200, b"late")

    sidecar = await mesh.sidecar("cart", await mesh.app(slow))
    client = mesh.grpc_client(sidecar)
    waiting = asyncio.create_task(client.invoke("cart", "x", verb="GET"))
    await asyncio.wait_for(reached.wait(), 10)

    sidecar.signal(signal.SIGTERM)
    await sidecar.says("beginning shutdown")
    go_on.set()

    assert (await waiting).invoked.data.value == b"late"
    assert await sidecar.wait() == 0


# ── limits ──


@pytest.mark.rule("G-2", "G-3")
async def test_messages_and_metadata_have_their_limits(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("cart", await mesh.app(echo), "--max-body-size", "64Ki")
    client = mesh.grpc_client(sidecar)

    fits = await client.invoke("cart", "x", b"x" * 60_000, metadata=[("x-long", "v" * 40_000)])
    long = await client.invoke("cart", "x", b"x" * 66_000)
    heavy = await client.invoke("cart", "x", metadata=[("x-long", "v" * 70_000)])

    assert fits.code is grpc.StatusCode.OK
    assert long.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert long.text.startswith("grpc: received message larger than max (")
    assert heavy.code is not grpc.StatusCode.OK
    assert (await client.get_metadata()).id == "cart"
