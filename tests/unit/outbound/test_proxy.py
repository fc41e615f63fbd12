"""Proxied calls between grpcio's client and server: through two sidecars, and to one's own app."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.support.daprd import Daprd, Script
from tests.support.h2peer import H2Client
from tests.support.mesh import until
from tests.support.proxied import Client, EchoApp, Ends
from tieline.app.slots import Slots
from tieline.errors import AppUnhealthy
from tieline.model import Cause, Endpoint, Hop
from tieline.wire.grpc.timeout import parse_timeout

MANY_S = 180.0
"""How long many calls at once may take, on a busy machine."""
IDENTITY = {"dapr-caller-app-id", "dapr-caller-namespace", "dapr-callee-app-id"}


class House:
    """The app, the ends of two sidecars, and clients."""

    def __init__(self) -> None:
        self.app = EchoApp()
        self.ends: Ends
        self._clients: list[Client] = []

    async def open(self, *app_options: tuple[str, Any], **changes: Any) -> House:
        await self.app.start(0, *app_options)
        self.ends = Ends(changes.pop("app_port", self.app.port), **changes)
        await self.ends.start()
        return self

    def client(self, port: int = 0, **changes: Any) -> Client:
        client = Client(port or self.ends.api, **changes)
        self._clients.append(client)
        return client

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()
        await self.ends.aclose()
        await self.app.stop()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    await made.aclose()


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def trailers(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    return dict(error.trailing_metadata() or ())


# ── what passes ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-72")
@pytest.mark.rule("G-87")
@pytest.mark.parametrize("own", [False, True])
async def test_calls_of_any_shape_pass(house: House, own: bool) -> None:
    await house.open()
    client = house.client(house.ends.own_api if own else house.ends.api)

    unary = await client.call("Unary", b"one")
    client_stream = await client.call("ClientStream", [b"a", b"b", b"c"])
    nothing = await client.call("ClientStream", [])
    server_stream = [message async for message in client.call("ServerStream", b"3x100000")]
    bidi = client.call("Bidi", None)
    answers = []
    for message in (b"1", b"2", b"3"):
        await bidi.write(message)
        answers.append(await bidi.read())
    await bidi.done_writing()
    rest = await bidi.read()
    unknown = await failure(client.call("/test.Echo/Nothing", b""))

    assert (unary, client_stream, nothing) == (b"one", b"a|b|c", b"")
    assert server_stream == [bytes(100000)] * 3
    assert answers == [b"1", b"2", b"3"]
    assert rest is grpc.aio.EOF
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.rule("G-76")
async def test_status_details_and_metadata_pass_unchanged(house: House) -> None:
    await house.open()
    client = house.client()

    error = await failure(client.call("Error", b"9"))
    call = client.call("Headers", b"x")
    await call

    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "status 9 ü")
    assert trailers(error) == {"app-trailer": "t", "end-bin": b"\xff\xfe"}  # and what the app forged is gone
    assert list(await call.initial_metadata()) == [("x-one", "a"), ("x-one", "b"), ("thing-bin", b"\0\1")]
    assert list(await call.trailing_metadata()) == [("app-trailer", "t"), ("end-bin", b"\xff\xfe")]


@pytest.mark.rule("G-76")
async def test_header_metadata_pass_before_any_message(house: House) -> None:
    await house.open()
    call = house.client().call("HeadersThenWait", None)

    async with asyncio.timeout(5):
        headers = await call.initial_metadata()

    assert ("x-early", "1") in list(headers)
    house.app.gate.set()
    await call.done_writing()


@pytest.mark.rule("G-73")
@pytest.mark.rule("G-50")
async def test_the_app_learns_from_the_sidecars_alone_who_calls(house: House) -> None:
    await house.open(app_token="of-the-app", drop_token=True)
    forged = (
        ("dapr-caller-app-id", "liar"), ("dapr-caller-namespace", "lies"), ("dapr-callee-app-id", "omega"),
        ("tieline-hop", "app"), ("tieline-x-bin", b"x"), ("dapr-api-token", "secret"),
        ("x-a", "1"), ("x-a", "2"), ("thing-bin", b"\0\xff"),
        ("dapr-stream", "true"), ("authorization", "B x"), ("x-empty", ""),
    )  # fmt: skip

    await house.client().call("Unary", b"x", *forged)

    path, metadata = house.app.seen[-1]
    assert path == "/test.Echo/Unary"
    seen = sorted((name, value) for name, value in metadata if name not in ("user-agent", "traceparent"))
    assert seen == [
        ("authorization", "B x"),
        ("dapr-api-token", "of-the-app"),
        ("dapr-callee-app-id", "gamma"),
        ("dapr-caller-app-id", "alpha"),
        ("dapr-caller-namespace", "default"),
        ("dapr-stream", "true"),
        ("thing-bin", b"\0\xff"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("x-empty", ""),
    ]


@pytest.mark.rule("G-73", "G-110")
@pytest.mark.parametrize("ours", [True, False])
async def test_the_token_of_a_sidecar_goes_to_no_other_and_one_that_it_does_not_know_does(
    house: House, ours: bool
) -> None:
    await house.open(drop_token=ours)
    other = Daprd(Script(messages=[b"x"]))
    await other.start()
    house.ends.names.known_names["gamma"] = [Endpoint("127.0.0.1", other.port)]

    await house.client().call("Unary", b"x", ("dapr-api-token", "secret"))

    assert other.rpcs[0].header("dapr-api-token") == (None if ours else "secret")
    assert other.rpcs[0].header("dapr-app-id") is None
    await other.aclose()


@pytest.mark.rule("G-73", "G-87")
async def test_of_what_a_daprd_appended_to_a_forgery_the_app_sees_the_last(house: House) -> None:
    await house.open()

    await house.client(house.ends.internal, target="").call(
        "Unary", b"x",
        ("dapr-caller-app-id", "liar"), ("dapr-caller-app-id", "delta"), ("dapr-callee-app-id", "gamma"),
        ("traceparent", f"00-{1:032x}-{1:016x}-01"), ("traceparent", f"00-{2:032x}-{2:016x}-01"),
    )  # fmt: skip

    seen = house.app.seen[-1][1]
    assert [value for name, value in seen if name == "dapr-caller-app-id"] == ["delta"]
    assert [value for name, value in seen if name == "traceparent"] == [f"00-{2:032x}-{2:016x}-01"]
    assert house.ends.records[-1].caller == "delta"


@pytest.mark.rule("G-74")
@pytest.mark.rule("G-111")
async def test_to_the_own_app_nobody_is_named_and_no_foreign_token_travels(house: House) -> None:
    await house.open()

    await house.client(house.ends.own_api).call(
        "Unary", b"x", ("dapr-caller-app-id", "liar"), ("dapr-api-token", "secret"), ("x-a", "1")
    )

    names = {name for name, _ in house.app.seen[-1][1]}
    assert names == {"user-agent", "traceparent", "x-a"}


@pytest.mark.rule("G-117")
async def test_one_trace_context_travels_the_clients_if_it_has_one(house: House) -> None:
    await house.open()
    trace = "0af7651916cd43dd8448eb211c80319c"
    client = house.client()

    await client.call("Unary", b"x", ("traceparent", f"00-{trace}-b7ad6b7169203331-01"), ("tracestate", "a=b"))
    await client.call("Unary", b"x")

    told = [[value for name, value in seen[1] if name == "traceparent"] for seen in house.app.seen]
    assert told[0] == [f"00-{trace}-b7ad6b7169203331-01"]
    assert ("tracestate", "a=b") in house.app.seen[0][1]
    assert len(told[1]) == 1
    assert len(told[1][0]) == 55


@pytest.mark.rule("G-73")
@pytest.mark.rule("G-117")
async def test_calls_whose_heads_repeat_are_each_a_call_of_its_own(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short way of what is known must not tell calls apart less well than the long one."""
    await house.open()
    short_ways = 0
    repeat = house.ends.calls.repeat

    def counted(*arguments: Any) -> bool:
        nonlocal short_ways
        short_ways += 1
        return repeat(*arguments)

    monkeypatch.setattr(house.ends.calls, "repeat", counted)
    client = house.client()
    heads: list[tuple[tuple[str, str], ...]] = [(("x-a", "1"),), (("x-a", "2"), ("x-b", "3"))]
    order = [0] * 8 + [1] * 8 + [0, 1] * 8

    for number, which in enumerate(order):
        path = f"/test.Echo/{('Unary', 'Headers')[number % 5 == 0]}"
        call = client.call(path, b"%d" % number, *heads[which], timeout=None)
        assert await call == b"%d" % number
        assert (house.app.seen[-1][0], await call.code()) == (path, grpc.StatusCode.OK)
        assert [field for field in house.app.seen[-1][1] if field[0].startswith("x-")] == list(heads[which])
        assert ("dapr-caller-app-id", "alpha") in house.app.seen[-1][1]

    traces = [value for _, metadata in house.app.seen for name, value in metadata if name == "traceparent"]
    assert len(set(traces)) == len(order)
    assert short_ways > len(order) // 4
    done = [record for record in house.ends.records if record.inbound]
    assert len(done) == len(order)
    assert {record.trace_id.decode() for record in done} == {str(trace).split("-")[1] for trace in traces}
    assert all(record.rpc_code == 0 and record.response_bytes for record in done)


@pytest.mark.rule("G-20", "G-77")
@pytest.mark.parametrize("own", [False, True])
async def test_calls_alike_have_each_its_own_deadline(house: House, own: bool) -> None:
    """Clients write it into the head, and some have the table remember it."""
    await house.open()
    client = house.client(house.ends.own_api if own else house.ends.api)
    timeouts: list[float | None] = [20, 20, 20, 40, None, 80, 20, None, None, None, 160, 160, 160, 20, None, 60, 61, 62]

    for timeout in timeouts:
        assert await client.call("Unary", b"x", timeout=timeout) == b"x"

    for timeout, left in zip(timeouts, house.app.times, strict=True):
        if timeout is None:
            assert left is None
        else:
            assert left is not None
            assert timeout - 10 < left < timeout * 1.1 + 1


async def test_a_head_that_is_known_means_nothing_to_whoever_takes_calls_next(house: House) -> None:
    """As after a reload, on connections that stay open."""
    await house.open(app_token="old")
    client = house.client()
    for _ in range(6):
        await client.call("Unary", b"x", timeout=None)

    successor = house.ends.make_calls(app_token="new")
    for member in house.ends.members:
        if member.taker is house.ends.calls:
            member.taker = successor
    for _ in range(3):
        await client.call("Unary", b"x", timeout=None)

    tokens = [value for _, metadata in house.app.seen for name, value in metadata if name == "dapr-api-token"]
    assert tokens == ["old"] * 6 + ["new"] * 3


@pytest.mark.rule("G-120")
@pytest.mark.rule("G-130")
async def test_baggage_is_checked_and_told_once(house: House) -> None:
    await house.open()
    client = house.client()

    call = client.call("Unary", b"x", ("baggage", "a=1,b=2"))
    await call
    error = await failure(client.call("Unary", b"x", ("baggage", "no baggage")))

    assert list(await call.initial_metadata()) == [("baggage", "a=1,b=2")]
    assert ("baggage", "a=1,b=2") in house.app.seen[-1][1]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.details()).startswith("invalid baggage header: ")


# ── who is called ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-68")
@pytest.mark.rule("G-69")
@pytest.mark.rule("G-67")
@pytest.mark.parametrize(
    ("method", "metadata", "text"),
    [
        ("Unary", [], "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata"),
        (
            "/dapr.proto.runtime.v1.Dapr/NoSuchThing",
            [],
            "failed to proxy request: required metadata dapr-callee-app-id or dapr-app-id not found",
        ),
        (
            "Unary",
            [("dapr-callee-app-id", "gamma")],
            "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata",
        ),
        ("Unary", [("dapr-app-id", "")], "app id is empty"),
        ("Unary", [("dapr-app-id", "a.b.c")], "invalid app id a.b.c"),
        ("Unary", [("dapr-app-id", "nobody")], "couldn't find service: nobody"),
    ],
)
async def test_a_target_that_cannot_be_is_unknown(
    house: House, method: str, metadata: list[tuple[str, str]], text: str
) -> None:
    await house.open()

    error = await failure(house.client(target="").call(method, b"x", *metadata))

    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, text)
    assert "tieline-cause" in trailers(error)
    assert house.app.seen == []


@pytest.mark.rule("G-67")
async def test_what_the_app_says_of_the_callee_counts_for_nothing(house: House) -> None:
    await house.open()

    await house.client().call("Unary", b"x", ("dapr-callee-app-id", "omega"))

    assert ("dapr-callee-app-id", "gamma") in house.app.seen[-1][1]


@pytest.mark.rule("G-70")
async def test_the_own_id_in_another_namespace_is_another_app(house: House) -> None:
    await house.open()

    await house.client(house.ends.own_api, target="gamma.other").call("Unary", b"x")

    # It was looked for, and another sidecar was called; that of this test knows no namespaces.
    assert house.ends.names.asked == 1
    assert ("dapr-caller-app-id", "gamma") in house.app.seen[-1][1]


@pytest.mark.rule("G-75")
@pytest.mark.rule("G-129")
async def test_the_internal_port_relays_to_no_other_app_and_to_no_sidecar(house: House) -> None:
    await house.open()
    direct = house.client(house.ends.internal, target="")

    other = await failure(direct.call("Unary", b"x", ("dapr-callee-app-id", "alpha")))
    nobody = await failure(direct.call("Unary", b"x"))
    service = await failure(house.client().call("/dapr.proto.internals.v1.ServiceInvocation/CallLocal", b""))
    mine = await direct.call("Unary", b"x", ("dapr-app-id", "gamma"))

    assert other.code() is grpc.StatusCode.PERMISSION_DENIED
    assert nobody.details() == "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata"
    assert service.code() is grpc.StatusCode.PERMISSION_DENIED
    assert mine == b"x"
    assert [path for path, _ in house.app.seen] == ["/test.Echo/Unary"]


@pytest.mark.rule("G-71")
async def test_a_name_is_asked_for_once_and_instances_take_turns(house: House) -> None:
    await house.open()
    house.ends.names.known_names["gamma"] *= 2
    client = house.client()

    for _ in range(10):
        await client.call("Unary", b"x")

    assert house.ends.names.asked <= 2  # the second in the background, if the test is slow


@pytest.mark.rule("G-84")
@pytest.mark.rule("G-14")
async def test_a_method_with_a_forbidden_character_never_reaches_the_app(house: House) -> None:
    await house.open()

    error = await failure(house.client().call("/test.Echo/Un#ary", b"x"))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == 'invalid method: method contains forbidden character: "/test.Echo/Un#ary"'
    assert house.app.seen == []


# ── what fails ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-86")
@pytest.mark.rule("G-78")
async def test_an_app_that_is_down_or_missing_is_unavailable(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        closed = sock.getsockname()[1]
    await house.open(app_port=closed)

    error = await failure(house.client().call("Unary", b"x"))
    own = await failure(house.client(house.ends.own_api).call("Unary", b"x"))

    assert error.code() is own.code() is grpc.StatusCode.UNAVAILABLE
    assert f"dial tcp 127.0.0.1:{closed}: connect: connection refused" in str(error.details())
    assert trailers(error)["tieline-cause"] == "app-unreachable"
    assert trailers(error)["tieline-hop"] == "app"
    callee, caller = house.ends.records[:2]
    assert (callee.inbound, callee.cause, callee.hop) == (True, Cause.APP_UNREACHABLE, Hop.APP)
    assert (caller.inbound, caller.cause, caller.hop) == (False, Cause.APP_UNREACHABLE, Hop.APP)
    assert caller.rpc_code == 14


@pytest.mark.rule("G-86")
async def test_an_app_that_speaks_http1_is_unavailable(house: House) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(24)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    await house.open(app_port=server.sockets[0].getsockname()[1])

    error = await failure(house.client().call("Unary", b"x"))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    server.close()


async def test_a_sidecar_without_an_app_says_so(house: House) -> None:
    await house.open(channel=None)

    error = await failure(house.client().call("Unary", b"x"))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert trailers(error)["tieline-cause"] == "app-missing"
    assert "--app-port" in str(trailers(error)["tieline-hint"])


@pytest.mark.rule("G-79")
async def test_an_unhealthy_app_gets_no_calls(house: House) -> None:
    channel = Limited(1)
    channel.unhealthy = lambda: AppUnhealthy("app is not in a healthy state")
    await house.open(channel=channel)

    error = await failure(house.client().call("Unary", b"x"))

    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "app is not in a healthy state")
    assert house.app.seen == []


class Limited:
    """A channel that lets so many calls through at a time."""

    def __init__(self, limit: int) -> None:
        self.unhealthy: Any = None
        self.slots = Slots(limit)


@pytest.mark.rule("G-79")
@pytest.mark.rule("G-122")
async def test_no_more_calls_at_a_time_than_the_app_may_get_and_no_slot_is_lost(house: House) -> None:
    channel = Limited(2)
    await house.open(channel=channel)
    client = house.client()

    calls = [asyncio.ensure_future(client.call("Gate", b"x")) for _ in range(5)]
    await until(lambda: house.app.live == 2 and channel.slots.waiting == 3)
    late = await failure(client.call("Unary", b"x", timeout=0.2))
    house.app.gate.set()
    await asyncio.gather(*calls)

    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert house.app.most == 2
    await until(lambda: channel.slots.take() and channel.slots.take())


@pytest.mark.rule("G-82")
async def test_a_sidecar_that_moved_is_found_again(house: House) -> None:
    await house.open()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        closed = sock.getsockname()[1]
    good = house.ends.names.known_names["gamma"]
    house.ends.names.known_names["gamma"] = [Endpoint("127.0.0.1", closed), *good]

    answers = [await house.client().call("Unary", b"x") for _ in range(4)]

    assert answers == [b"x"] * 4


@pytest.mark.rule("G-82")
async def test_a_sidecar_that_is_down_is_unavailable_in_the_end(house: House) -> None:
    await house.open()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        closed = sock.getsockname()[1]
    house.ends.names.known_names["gamma"] = [Endpoint("127.0.0.1", closed)]

    error = await failure(house.client().call("Unary", b"x"))
    late = await failure(house.client().call("Unary", b"x", timeout=0.3))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert f"dial tcp 127.0.0.1:{closed}: connect: connection refused" in str(error.details())
    assert trailers(error)["tieline-cause"] == "peer-unreachable"
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_port_with_a_new_owner_is_looked_up_again(house: House) -> None:
    """The sidecar at a known address is another app's: nothing was processed, so the name is asked for anew."""
    await house.open()
    house.ends.names.known_names["delta"] = [Endpoint("127.0.0.1", house.ends.internal)]

    error = await failure(house.client(target="delta").call("Unary", b"x"))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "this is the sidecar of gamma, not of delta"
    assert trailers(error)["tieline-cause"] == "name-unknown"
    assert house.ends.names.asked > 1


# ── deadlines and cancelling ───────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-77")
async def test_deadlines_and_cancelling_reach_the_app(house: House) -> None:
    await house.open()
    client = house.client()
    await client.call("Unary", b"x")  # so that the way is open, and no deadline passes before the app hears of a call
    await until(lambda: len(house.ends.records) == 2)
    house.ends.records.clear()

    error = await failure(client.call("Sleep", b"x", timeout=1))
    await until(lambda: house.app.cancelled == 1)
    waiting = client.call("HeadersThenWait", None)
    await waiting.initial_metadata()
    waiting.cancel()
    await until(lambda: house.app.cancelled == 2)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # grpcio reads two clocks to tell, and may be interrupted in between.
    assert 0 < house.app.left[0] < 1.3
    await until(lambda: len(house.ends.records) == 4)
    # The app may notice first that the time is up, and say so itself.
    assert {record.cause for record in house.ends.records} <= {Cause.CANCELLED, Cause.TIMEOUT, None}


@pytest.mark.rule("G-77")
async def test_a_client_that_does_not_watch_its_deadline_is_told(house: House) -> None:
    await house.open()
    client = await H2Client.open(house.ends.api)

    headers = [("content-type", "application/grpc"), ("te", "trailers"), ("dapr-app-id", "gamma")]
    first = await client.request("POST", "/test.Echo/Unary", headers, b"\0\0\0\0\1x")
    await first.whole()  # the way is open: the app hears of the next call before its deadline
    call = await client.request("POST", "/test.Echo/Sleep", [*headers, ("grpc-timeout", "1000m")], b"\0\0\0\0\1x")
    none = await client.request("POST", "/test.Echo/Sleep", [*headers, ("grpc-timeout", "0S")], b"\0\0\0\0\1x")
    await call.whole()
    await none.whole()

    assert call.header("grpc-status") == "4"
    assert (none.header("grpc-status"), none.header("grpc-message")) == ("4", "context deadline exceeded")
    await until(lambda: house.app.cancelled == 1)
    client.close()


@pytest.mark.rule("G-77")
async def test_the_app_is_never_told_more_time_than_is_left(house: House) -> None:
    app = Daprd(Script(messages=[b"answer"]))
    await app.start()
    await house.open(app_port=app.port)
    client = await H2Client.open(house.ends.api)
    headers = [("content-type", "application/grpc"), ("te", "trailers"), ("dapr-app-id", "gamma")]

    call = await client.request("POST", "/test.Echo/Unary", [*headers, ("grpc-timeout", "30S")], b"\0\0\0\0\1x")
    await call.whole()

    told = app.rpcs[0].header("grpc-timeout")
    assert told is not None
    assert 0 < parse_timeout(told.encode()) < 30
    client.close()
    await app.aclose()


async def test_trailers_of_a_request_go_no_further(house: House) -> None:
    # No gRPC client sends any, and some servers close the connection for them, with all calls on it.
    app = Daprd(Script(messages=[b"answer"]))
    await app.start()
    await house.open(app_port=app.port)
    client = await H2Client.open(house.ends.api)
    headers = [("content-type", "application/grpc"), ("te", "trailers"), ("dapr-app-id", "gamma")]

    call = await client.request("POST", "/test.Echo/ClientStream", headers, b"\0\0\0\0\1x", end=False)
    await call.send_trailers([("dapr-caller-app-id", "forged"), ("tieline-cause", "forged")])
    await call.whole()

    assert bytes(call.data) == b"\0\0\0\0\6answer"
    assert [(rpc.messages, rpc.ended, rpc.trailers) for rpc in app.rpcs] == [([b"x"], True, None)]
    client.close()
    await app.aclose()


async def test_an_answer_before_the_request_has_ended_ends_the_call(house: House) -> None:
    await house.open()
    call = house.client().call("Early", None)

    await call.write(b"x")
    messages = [message async for message in _until_error(call)]

    assert messages == [b"early"]
    assert await call.code() is grpc.StatusCode.ALREADY_EXISTS


async def _until_error(call: Any) -> AsyncIterator[bytes]:
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            yield message
    except grpc.aio.AioRpcError:
        pass


# ── sizes ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-2")
async def test_no_message_is_longer_than_allowed(house: House) -> None:
    await house.open(limit=8192, callee_limit=4096)
    alpha, gamma = house.client(), house.client(house.ends.own_api)

    at_caller = await failure(alpha.call("Unary", bytes(9000)))
    at_callee = await failure(alpha.call("Unary", bytes(6000)))
    answer = await failure(gamma.call("Big", b"5000"))
    many = await alpha.call("ClientStream", [bytes(400)] * 10)

    expected = [(9000, 8192), (6000, 4096), (5000, 4096)]
    for error, (size, limit) in zip((at_caller, at_callee, answer), expected, strict=True):
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == f"grpc: received message larger than max ({size} vs. {limit})"
    assert len(many) == 10 * 400 + 9


async def test_a_long_message_passes_both_ways(house: House) -> None:
    await house.open(("grpc.max_receive_message_length", -1), limit=None)
    client = house.client(options=[("grpc.max_receive_message_length", -1)])
    message = bytes(range(256)) * 65536

    assert await client.call("Unary", message) == message


async def test_a_slow_app_stops_the_client_and_what_waits_is_bounded(house: House) -> None:
    """The app reads nothing: what a client can put on its way is the windows and the sockets, no more."""
    await house.open(("grpc.http2.lookahead_bytes", 65536))
    call = house.client().call("Deaf", None)
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(2000):
            await call.write(bytes(10000))
            written += 10000
        await call.done_writing()

    writing = asyncio.ensure_future(write())
    await until(lambda: house.app.live == 1)
    before = -1
    while before != written:
        before = written
        await asyncio.sleep(0.3)
    stopped_at = written
    house.app.gate.set()
    await writing

    assert stopped_at < 12_000_000
    assert await call.read() == b"20000000"


async def test_a_slow_client_stops_the_app_and_nobody_else(house: House) -> None:
    await house.open()
    slow = await H2Client.open(house.ends.api, reads=False)
    headers = [("content-type", "application/grpc"), ("te", "trailers"), ("dapr-app-id", "gamma")]

    call = await slow.request(
        "POST", "/test.Echo/ServerStream", headers, b"\0\0\0\0\x0b1000x100000"[:4] + b"\x0b" + b"1000x100000"
    )
    await call.until(lambda: len(call.data) >= 60000)
    others = [await house.client().call("Unary", b"x") for _ in range(20)]
    waiting = sum(stream.unread for member in [*house.ends.members] for stream in member.h2.streams.values())

    assert others == [b"x"] * 20
    assert len(call.data) <= 65535
    assert waiting <= 1 << 20
    await call.cancel()
    await until(lambda: len(house.ends.records) == 42)
    slow.close()


# ── many ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(MANY_S)
async def test_a_thousand_streams_on_one_connection(house: House) -> None:
    await house.open()
    client = house.client()
    calls = [client.call("Bidi", None, timeout=MANY_S) for _ in range(1000)]

    await asyncio.gather(*(call.write(b"%d" % number) for number, call in enumerate(calls)))
    answers = await asyncio.gather(*(call.read() for call in calls))
    for call in calls:
        await call.done_writing()
    ends = await asyncio.gather(*(call.read() for call in calls))

    assert answers == [b"%d" % number for number in range(1000)]
    assert set(ends) == {grpc.aio.EOF}
    assert house.ends.peers.size == 1


@pytest.mark.rule("G-6")
@pytest.mark.timeout(MANY_S)
async def test_an_app_that_takes_few_streams_gets_no_more_of_them(house: House) -> None:
    await house.open(("grpc.max_concurrent_streams", 100))
    client = house.client()

    calls = [asyncio.ensure_future(client.call("Gate", b"%d" % number, timeout=MANY_S)) for number in range(2149)]
    await until(lambda: house.app.live == 200, MANY_S / 2)
    house.app.gate.set()
    answers = await asyncio.gather(*calls)

    assert answers == [b"%d" % number for number in range(2149)]
    assert house.app.most == 200
    assert house.ends.apps.size == 2


async def test_a_call_leaves_nothing_to_the_garbage_collector(house: House) -> None:
    await house.open()
    client = await H2Client.open(house.ends.api)
    headers = [("content-type", "application/grpc"), ("te", "trailers"), ("dapr-app-id", "gamma")]

    async def call(method: str, body: bytes) -> None:
        await (await client.request("POST", f"/test.Echo/{method}", headers, body)).whole()

    await call("Unary", b"\0\0\0\0\1x")
    gc.collect()
    gc.disable()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        for _ in range(20):
            await call("Unary", b"\0\0\0\0\1x")
            await call("Error", b"\0\0\0\0\x019")
            await call("Nothing", b"")
        gc.collect()
        ours = {type(one).__name__ for one in gc.garbage if type(one).__module__.startswith("tieline")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    client.close()

    assert ours == set()
