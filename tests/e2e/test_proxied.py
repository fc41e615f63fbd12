"""Proxied RPCs through real sidecars, called by grpcio, sync and asyncio."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import grpc
import pytest

from tests.support.grpc_app import BIDI, CLIENT_STREAM, SERVER_STREAM, UNARY, GrpcApp, GrpcClient
from tests.support.http1 import ask
from tests.support.mesh import Mesh, free_port, until
from tests.support.prometheus import read

TO_B = (("dapr-app-id", "b"),)


@pytest.mark.rule("G-72", "G-73", "G-74")
async def test_every_shape_passes_between_sidecars_and_to_the_own_app(mesh: Mesh) -> None:
    async with GrpcApp() as app:
        a = await mesh.sidecar("a")
        b = await mesh.sidecar("b", app.port, "--app-protocol", "grpc")
        for sidecar in (a, b):
            async with GrpcClient(sidecar.grpc) as client:
                unary = await client.call(UNARY, b"x", metadata=TO_B)
                stream = await client.call(SERVER_STREAM, b"x", metadata=TO_B)
                joined = await client.call(CLIENT_STREAM, b"1", b"2", metadata=TO_B)
                bidi = await client.call(BIDI, b"1", b"2", b"3", metadata=TO_B)
                unknown = await client.call("/test.Echo/Nothing", b"", metadata=TO_B)

            assert [outcome.code for outcome in (unary, stream, joined, bidi)] == [grpc.StatusCode.OK] * 4
            assert unary.message == b"x"
            assert len(stream.messages) == 3
            assert joined.message == b"1|2"
            assert bidi.messages == [b"1", b"2", b"3"]
            assert unknown.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.rule("G-72")
async def test_a_client_in_threads_is_served_as_well(mesh: Mesh) -> None:
    async with GrpcApp() as app:
        a = await mesh.sidecar("a")
        await mesh.sidecar("b", app.port, "--app-protocol", "grpc")

        def call() -> tuple[bytes, list[bytes], bytes]:
            channel: Any
            with grpc.insecure_channel(f"127.0.0.1:{a.grpc}") as channel:
                unary = channel.unary_unary(UNARY)(b"x", metadata=TO_B, timeout=10)
                bidi = list(channel.stream_stream(BIDI)(iter([b"1", b"2"]), metadata=TO_B, timeout=10))
                joined = channel.stream_unary(CLIENT_STREAM)(iter([b"1", b"2"]), metadata=TO_B, timeout=10)
                return unary, bidi, joined

        assert await asyncio.to_thread(call) == (b"x", [b"1", b"2"], b"1|2")


@pytest.mark.rule("G-86", "G-75")
async def test_an_app_port_that_is_the_sidecars_own_is_refused(mesh: Mesh) -> None:
    """Else a call would go round and round, a stream a round, until the connections are full."""
    internal = free_port()
    a = await mesh.sidecar("a")
    await mesh.sidecar("b", internal, "--app-protocol", "grpc", internal=internal)

    async with GrpcClient(a.grpc) as client:
        outcome = await client.call(UNARY, b"x", metadata=TO_B)

    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    assert outcome.text == f"port {internal} is this sidecar's own"
    assert outcome.trailer("tieline-hop") == ["app"]


@pytest.mark.rule("O-26", "G-78")
async def test_proxied_calls_are_counted_and_their_failures_logged(mesh: Mesh) -> None:
    async with GrpcApp() as app:
        ports = free_port(), free_port()
        a = await mesh.sidecar("a", None, "--metrics-port", str(ports[0]))
        b = await mesh.sidecar("b", app.port, "--app-protocol", "grpc", "--metrics-port", str(ports[1]))
        async with GrpcClient(a.grpc) as client:
            await client.call(UNARY, b"x", metadata=TO_B)
            await client.call(BIDI, b"x", metadata=(*TO_B, ("dapr-stream", "true")))
            await app.aclose()
            down = await client.call(UNARY, b"x", metadata=TO_B)

    assert down.code is grpc.StatusCode.UNAVAILABLE
    assert down.trailer("tieline-cause") == ["app-unreachable"]
    caller, callee = [read((await ask(port, "GET", "/")).body.decode()) for port in ports]
    rpcs = caller["dapr_grpc_io_server_completed_rpcs"].numbers("grpc_server_method", "grpc_server_status")
    assert (rpcs[UNARY, "OK"], rpcs[UNARY, "Unavailable"], rpcs[BIDI, "OK"]) == (1, 1, 1)
    prefix = "dapr_runtime_service_invocation_"
    assert caller[prefix + "req_sent_total"].numbers("dst_app_id", "type") == {("b", "unary"): 2, ("b", "streaming"): 1}
    answers = caller[prefix + "res_recv_total"].numbers("src_app_id", "status", "type")
    assert (answers["b", "0", "unary"], answers["b", "0", "streaming"]) == (1, 1)
    failures = callee["tieline_call_failures_total"].numbers("direction", "cause", "hop")
    assert failures == {("inbound", "app-unreachable", "app"): 1}
    assert prefix + "req_recv_total" not in callee
    for sidecar in (a, b):
        await sidecar.says("call failed: rpc error: code = Unavailable desc = connection error")


@pytest.mark.rule("G-82", "G-9")
async def test_calls_go_on_while_the_called_sidecar_is_replaced(mesh: Mesh) -> None:
    async with GrpcApp() as app:
        a = await mesh.sidecar("a")
        first = await mesh.sidecar("b", app.port, "--app-protocol", "grpc")
        async with GrpcClient(a.grpc) as client:
            before = await client.call(UNARY, b"1", metadata=TO_B)
            second = await mesh.sidecar("b", app.port, "--app-protocol", "grpc")
            first.signal(signal.SIGTERM)
            outcomes = [await client.call(UNARY, b"2", metadata=TO_B) for _ in range(50)]
            await until(lambda: first.code is not None, 15.0)
            after = await client.call(UNARY, b"3", metadata=TO_B)

    assert before.code is after.code is grpc.StatusCode.OK
    assert {outcome.code for outcome in outcomes} == {grpc.StatusCode.OK}
    assert second.code is None
