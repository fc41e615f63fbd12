"""The load generator of the bench: a wrong answer is never counted as a right one, and a late call is late."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from bench.app import App, render
from bench.errors import BenchError
from bench.load import ClosedLoop, Connection, OpenLoop, Schedule, Work, judge
from bench.rpc_app import INVOCATION, RpcApp
from bench.rpc_load import LANES_A_CONNECTION, Lane, Rpcs, invocations, open_lanes
from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeResponse
from tieline._generated.dapr.proto.runtime.v1.dapr_pb2 import InvokeServiceRequest

MS = 1_000_000


@pytest.fixture
async def app_port() -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(App, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def closed_loop(work: Work, *, connections: int, calls: int) -> ClosedLoop:
    load = ClosedLoop()
    await load.open(work, connections)
    try:
        await load.run(calls)
    finally:
        load.close()
    return load


async def test_right_answers_are_counted_once_each(app_port: int) -> None:
    work = Work(port=app_port, path="/bytes/1024", answer_bytes=1024)

    load = await closed_loop(work, connections=4, calls=50)

    assert load.outcome.right == 50
    assert not load.outcome.errors


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/status/500", "wrong status: HTTP/1.1 500 Bench"),
        ("/status/201", "wrong status: HTTP/1.1 201 Bench"),
        ("/bytes/1000", "wrong length: 1000 bytes instead of 1024"),
    ],
)
async def test_a_wrong_answer_is_an_error_with_its_reason(app_port: int, path: str, problem: str) -> None:
    work = Work(port=app_port, path=path, answer_bytes=1024)

    load = await closed_loop(work, connections=2, calls=10)

    assert load.outcome.right == 0
    assert load.outcome.errors == {problem: 10}


async def test_an_endless_answer_voids_the_run(app_port: int) -> None:
    work = Work(port=app_port, path="/stream/1", answer_bytes=1024)

    with pytest.raises(BenchError, match="of more than 1024 bytes"):
        await closed_loop(work, connections=1, calls=10)


@pytest.mark.parametrize("cut", [1, 20, 60, 100])
def test_an_answer_in_pieces_is_not_judged_before_its_end(cut: int) -> None:
    answer = render(200, b"x" * 64)

    assert judge(answer[:cut], 64) == (False, None)
    assert judge(answer, 64) == (True, None)


def test_bytes_that_nobody_asked_for_void_the_run() -> None:
    with pytest.raises(BenchError, match="3 bytes after the end"):
        judge(render(200, b"x") + b"HTT", 1)


class FakeConnection:
    """Remembers when its calls were meant to leave."""

    def __init__(self) -> None:
        self.intended_ns = 0
        self.sent: list[int] = []

    def send(self) -> None:
        self.sent.append(self.intended_ns)


def open_loop(
    clock: list[int], *, connections: int, seconds: float, warm_up_s: float
) -> tuple[OpenLoop, list[Connection]]:
    load = OpenLoop(Schedule(rate=1000, seconds=seconds, warm_up_s=warm_up_s), lambda: clock[0])
    fakes = [cast(Connection, FakeConnection()) for _ in range(connections)]
    load.use(fakes)
    load.start(0)
    return load, fakes


def test_calls_leave_when_they_are_due_and_not_before() -> None:
    clock = [0]
    load, fakes = open_loop(clock, connections=4, seconds=1, warm_up_s=0)

    load.on_tick()
    clock[0] = 2 * MS + 1
    load.on_tick()

    assert [cast(FakeConnection, fake).sent for fake in fakes] == [[0], [1 * MS], [2 * MS], []]


def test_latency_counts_from_the_intended_time_also_for_a_call_that_had_to_wait() -> None:
    clock = [0]
    load, (only,) = open_loop(clock, connections=1, seconds=1, warm_up_s=0)
    load.on_tick()

    clock[0] = 5 * MS
    load.on_tick()
    load.on_answer(only, None)
    clock[0] = 6 * MS
    load.on_answer(only, None)

    assert cast(FakeConnection, only).sent == [0, 1 * MS, 2 * MS]
    assert list(load.latencies_ns) == [5 * MS, 5 * MS]


def test_the_warm_up_is_not_measured() -> None:
    clock = [0]
    load, fakes = open_loop(clock, connections=4, seconds=0.002, warm_up_s=0.002)

    clock[0] = 100 * MS
    load.on_tick()
    for fake in fakes:
        load.on_answer(fake, None)

    assert load.outcome.right == 4
    assert list(load.latencies_ns) == [98 * MS, 97 * MS]


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_chunked_answer_is_complete_at_its_last_byte(cut: int) -> None:
    data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n"

    assert judge(data, 13) == (True, None)
    assert judge(data, 14) == (True, "wrong length: 13 bytes instead of 14")
    assert judge(data[:-cut], 13) == (False, None)


# ── gRPC ──


@pytest.fixture
async def rpc_port() -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(RpcApp, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def rpcs(work: Rpcs, *, at_a_time: int, calls: int) -> tuple[ClosedLoop, list[Lane]]:
    load = ClosedLoop()
    lanes = await open_lanes(work, load, at_a_time)
    load.use(lanes)
    try:
        await load.run(calls)
    finally:
        load.close()
    return load, lanes


async def test_calls_at_a_time_share_connections_evenly(rpc_port: int) -> None:
    work = Rpcs(port=rpc_port, path="/bench.Echo/Call", answer_bytes=1024, target="callee")

    load, lanes = await rpcs(work, at_a_time=32, calls=100)

    shares = [sum(lane.wire is wire for lane in lanes) for wire in {lane.wire for lane in lanes}]
    assert shares == [LANES_A_CONNECTION] * 4
    assert load.outcome.right == 100


async def test_an_rpc_with_another_answer_is_an_error(rpc_port: int) -> None:
    work = Rpcs(port=rpc_port, path="/bench.Echo/Call", answer_bytes=1024, target="callee", message=b"m" * 1000)

    load, _ = await rpcs(work, at_a_time=1, calls=3)

    assert load.outcome.errors == {"1005 bytes instead of 1029": 3}


def test_what_the_bench_sends_to_invoke_service_is_what_it_says() -> None:
    """Both are written by hand, so that load generator and app are quick to start."""
    request = InvokeServiceRequest.FromString(invocations(1, "callee").message or b"")
    answer = InvokeResponse.FromString(INVOCATION)

    assert (request.id, request.message.method) == ("callee", "bench-invoked")
    assert request.message.http_extension.verb == request.message.http_extension.POST
    assert len(request.message.data.value) == len(answer.data.value) == 1024
    assert request.message.content_type == answer.content_type == "application/octet-stream"
    assert InvokeServiceRequest.FromString(request.SerializeToString()) == request
