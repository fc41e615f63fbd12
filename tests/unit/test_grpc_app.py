"""What tests say about gRPC rests on apps and clients made with grpcio: they do what their texts say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest_asyncio

from tests.support.grpc_app import (
    BIDI,
    CLIENT_STREAM,
    HEALTH_CHECK,
    HOLD,
    ON_INVOKE,
    SERVER_STREAM,
    UNARY,
    Answer,
    Exchange,
    GrpcApp,
    GrpcClient,
    ThreadedGrpcApp,
    finish,
    invoke_response,
)
from tieline._generated.dapr.proto.common.v1 import common_pb2
from tieline._generated.google.rpc import error_details_pb2

FAILURE = Answer(
    [], grpc.StatusCode.NOT_FOUND, "nö", [error_details_pb2.ErrorInfo(reason="gone")], [("h", "1")], [("t-bin", b"\0")]
)


@pytest_asyncio.fixture
async def app() -> AsyncIterator[GrpcApp]:
    async with GrpcApp() as made:
        yield made


@pytest_asyncio.fixture
async def client(app: GrpcApp) -> AsyncIterator[GrpcClient]:
    async with GrpcClient(app.port) as made:
        yield made


def invoked(method: str, data: bytes = b"") -> bytes:
    """Return a message of ``ON_INVOKE``."""
    request = common_pb2.InvokeRequest(method=method, content_type="text/plain")
    request.data.value = data
    return request.SerializeToString()


async def check_shapes(client: GrpcClient) -> None:
    """Make one call of each shape."""
    assert (await client.call(UNARY, b"x")).message == b"x"
    assert (await client.call(SERVER_STREAM, b"x")).messages == [b"x0", b"x1", b"x2"]
    assert (await client.call(CLIENT_STREAM, b"x", b"y")).messages == [b"x|y"]
    assert (await client.call(BIDI, b"x", b"y")).messages == [b"x", b"y"]
    answer = (await client.call(ON_INVOKE, invoked("m", b"z"))).invoked
    assert (answer.data.value, answer.content_type) == (b"z", "text/plain")
    assert (await client.call("/a/b")).code is grpc.StatusCode.UNIMPLEMENTED


async def test_an_app_serves_all_shapes_and_writes_down_what_it_saw(app: GrpcApp, client: GrpcClient) -> None:
    await client.call(CLIENT_STREAM, b"x", b"y", metadata=[("a", "1"), ("a", "2"), ("b-bin", b"\0\1")], timeout=5)
    [seen] = app.seen
    assert (seen.path, seen.messages, seen.half_closed, seen.cancelled) == (CLIENT_STREAM, [b"x", b"y"], True, False)
    assert (seen.values("a"), seen.values("b-bin")) == (["1", "2"], [b"\0\1"])
    assert seen.time_left_s is not None
    assert 0 < seen.time_left_s < 6  # grpcio rounds it up

    await check_shapes(client)
    assert (app.in_progress, app.most) == (0, 1)


async def test_an_app_in_threads_does_the_same() -> None:
    with ThreadedGrpcApp({UNARY: FAILURE}) as app:
        async with GrpcClient(app.port) as client:
            outcome = await client.call(UNARY)
            assert (outcome.code, outcome.header("h")) == (grpc.StatusCode.NOT_FOUND, ["1"])
            del app.answers[UNARY]
            await check_shapes(client)
            await asyncio.to_thread(app.close)


async def test_an_answer_is_given_by_path_or_by_invoked_method(app: GrpcApp, client: GrpcClient) -> None:
    async def streamed(exchange: Exchange) -> None:
        await exchange.begin([("h", "2")])
        await exchange.write(b"early")
        await exchange.answer(Answer([b"late"]))

    app.answers = {"m": FAILURE, UNARY: streamed, "n": Answer([invoke_response(b"x", "y", "z")])}

    outcome = await client.call(ON_INVOKE, invoked("m"))
    assert (outcome.code, outcome.text) == (grpc.StatusCode.NOT_FOUND, "nö")
    assert (outcome.header("h"), outcome.trailer("t-bin"), outcome.messages) == (["1"], [b"\0"], [])
    detail = error_details_pb2.ErrorInfo()
    assert outcome.status.details[0].Unpack(detail)
    assert (outcome.status.code, detail.reason) == (5, "gone")
    assert (await client.call(UNARY, b"")).messages == [b"early", b"late"]
    answer = (await client.call(ON_INVOKE, invoked("n"))).invoked
    assert (answer.data.value, answer.content_type, answer.data.type_url) == (b"x", "y", "z")


async def test_cancellation_and_deadlines_reach_an_app(app: GrpcApp, client: GrpcClient) -> None:
    call = client.open(HOLD)
    await call.write(b"x")
    seen = await app.arrived()
    await call.initial_metadata()
    call.cancel()
    await seen.over.wait()
    assert (seen.cancelled, seen.messages, seen.time_left_s) == (True, [b"x"], None)

    late = client.open(HOLD, timeout=0.2)
    await late.write(b"x")
    assert (await finish(late)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await app.seen[1].over.wait()
    assert app.seen[1].cancelled


async def test_health_checks_are_answered_but_not_written_down(app: GrpcApp, client: GrpcClient) -> None:
    assert (await client.call(HEALTH_CHECK, b"")).message == b""
    app.healthy = False
    assert (await client.call(HEALTH_CHECK, b"")).code is grpc.StatusCode.UNAVAILABLE
    assert (app.seen, app.checked) == ([], 2)


async def test_an_app_may_allow_few_streams() -> None:
    async with GrpcApp() as plain, GrpcApp(max_streams=2) as strict:
        for app, wanted in ((plain, 4), (strict, 2)):
            async with GrpcClient(app.port) as client:
                # Before it knows the limit, a client may exceed it.
                await client.call(HEALTH_CHECK, b"")
                app.answers[UNARY] = hold = Held()
                # grpcio's server counts a stream a little longer than its client, and refuses then.
                await asyncio.gather(*(client.call(UNARY, b"x") for _ in range(4)), hold.let_go(app, wanted))
                assert app.most == wanted


class Held:
    """Answers once it is let go."""

    def __init__(self) -> None:
        self._go = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.read()
        await self._go.wait()
        await exchange.answer(Answer([b"x"]))

    async def let_go(self, app: GrpcApp, count: int) -> None:
        """Wait until so many have come, then let all go."""
        await app.arrived(count)
        self._go.set()
