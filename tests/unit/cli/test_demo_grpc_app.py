"""The gRPC app of ``tieline demo``, called by grpcio."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest_asyncio

from tests.support.grpc_app import ON_INVOKE, UNARY, GrpcClient, Outcome
from tests.support.mesh import Mesh, free_port, until
from tieline._generated.dapr.proto.common.v1 import common_pb2
from tieline.cli.wait import is_listening


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[GrpcClient]:
    mesh = Mesh(tmp_path)
    port = free_port()
    try:
        mesh.process("app", [sys.executable, "-P", "-m", "tieline.cli.demo_grpc_app", str(port)])
        await until(lambda: is_listening(("127.0.0.1", port)), 15)
        yield mesh.grpc_client(port)
    finally:
        await mesh.aclose()


async def ask(client: GrpcClient, method: str, data: bytes) -> Outcome:
    request = common_pb2.InvokeRequest(method=method)
    request.data.value = data
    return await client.call(ON_INVOKE, request.SerializeToString())


async def test_it_adds_two_numbers_and_says_what_it_wants(client: GrpcClient) -> None:
    for method in ("add", "api/v1/add"):
        answer = (await ask(client, method, b'{"arg1": 10, "arg2": 23}')).invoked
        assert (answer.data.value, answer.content_type) == (b"33", "application/json")
    bad = await ask(client, "add", b"{}")
    assert (bad.code, bad.text) == (grpc.StatusCode.INVALID_ARGUMENT, 'send {"arg1": 10, "arg2": 23}: \'arg1\'')
    assert (await ask(client, "take", b"")).text == "mathGrpc has no take"
    assert (await client.call(UNARY, b"")).code is grpc.StatusCode.UNIMPLEMENTED
