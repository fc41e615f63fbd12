"""gRPC apps and clients that break gRPC or HTTP/2, or stop: each call ends with a status, and no other call suffers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from tests.e2e.hostile.grpc_world import (
    ANSWER,
    DONE,
    HEAD,
    METHOD,
    TO_CALLEE,
    GrpcWorld,
    RawApp,
    Script,
    answer,
    cut,
    fine,
)  # fmt: skip
from tests.e2e.hostile.raw2 import Raw
from tests.e2e.hostile.world import WAYS, together
from tests.support.daprd import register
from tests.support.grpc_app import GrpcClient, Outcome
from tests.support.http2 import block, data, headers
from tests.support.mesh import Mesh
from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb
from tieline._generated.dapr.proto.runtime.v1 import dapr_pb2
from tieline.model import Headers
from tieline.wire.grpc.messages import frame as message
from tieline.wire.http2.frames import GOAWAY, HEADERS, PING, PUSH_PROMISE, frame, goaway, rst_stream, window_update

pytestmark = pytest.mark.asyncio(loop_scope="module")
Code = grpc.StatusCode


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GrpcWorld]:
    """Start both sidecars."""
    folder = tmp_path_factory.mktemp("hostile-grpc")
    mesh = Mesh(folder)
    world = GrpcWorld(mesh, folder)
    try:
        await world.start()
        yield world
    finally:
        await mesh.aclose()
        await world.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def world(shared_world: GrpcWorld) -> AsyncIterator[GrpcWorld]:
    """Lend both sidecars to one test, and see that it did them no harm."""
    yield shared_world
    await shared_world.calm()


# ── apps ───────────────────────────────────────────────────────────────────────────────────────────
ZIPPED: Headers = [*HEAD, (b"grpc-encoding", b"gzip")]
BOMB = gzip.compress(bytes(32 << 20))


def packed(body: bytes) -> bytes:
    """Return a message that says it is compressed."""
    return b"\1" + len(body).to_bytes(4, "big") + body


APPS: dict[str, tuple[Script, Code, Code]] = {
    "hangs up": (lambda n: [None], Code.UNAVAILABLE, Code.UNAVAILABLE),
    "hangs up after its head": (lambda n: [headers(n, HEAD, end=False), None], Code.UNAVAILABLE, Code.UNAVAILABLE),
    "hangs up within a message": (
        lambda n: [headers(n, HEAD, end=False) + data(n, ANSWER[:-2]), None], Code.UNAVAILABLE, Code.UNAVAILABLE,
    ),
    "hangs up before its trailers": (
        lambda n: [headers(n, HEAD, end=False) + data(n, ANSWER), None], Code.UNAVAILABLE, Code.UNAVAILABLE,
    ),
    "half a message": (lambda n: [answer(n, ANSWER[:-2])], Code.INTERNAL, Code.INTERNAL),
    "half a prefix": (lambda n: [answer(n, ANSWER[:3])], Code.INTERNAL, Code.INTERNAL),
    "half a message and an error": (
        lambda n: [answer(n, ANSWER[:-2], done=[(b"grpc-status", b"5")])], Code.NOT_FOUND, Code.NOT_FOUND,
    ),
    "no trailers": (
        lambda n: [headers(n, HEAD, end=False) + data(n, ANSWER, end=True)], Code.INTERNAL, Code.INTERNAL,
    ),
    "trailers first": (lambda n: [headers(n, DONE)], Code.INTERNAL, Code.INTERNAL),
    "data first": (lambda n: [data(n, ANSWER) + answer(n, b"")], Code.INTERNAL, Code.INTERNAL),
    "two heads": (lambda n: [headers(n, HEAD, end=False) * 2], Code.INTERNAL, Code.INTERNAL),
    "a length of 4 GiB": (
        lambda n: [headers(n, HEAD, end=False) + data(n, b"\0\xff\xff\xff\xffx")],
        Code.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED,
    ),
    "packed without an encoding": (lambda n: [answer(n, packed(b"x"))], Code.INTERNAL, Code.INTERNAL),
    "packed in no gzip": (lambda n: [answer(n, packed(b"x"), head=ZIPPED)], Code.INTERNAL, Code.INTERNAL),
    "a status that is none": (
        lambda n: [answer(n, done=[(b"grpc-status", b"one")])], Code.UNKNOWN, Code.INTERNAL,
    ),
    "a line end in metadata": (
        lambda n: [answer(n, head=[*HEAD, (b"x-a", b"a\r\nb: c")])], Code.INTERNAL, Code.INTERNAL,
    ),
    "a line end in trailers": (
        lambda n: [answer(n, done=[*DONE, (b"x-a", b"a\nb")])], Code.INTERNAL, Code.INTERNAL,
    ),
    "a name in capitals": (lambda n: [answer(n, head=[*HEAD, (b"X-A", b"1")])], Code.INTERNAL, Code.INTERNAL),
    "a length that lies": (
        lambda n: [answer(n, head=[*HEAD, (b"content-length", b"3")])], Code.INTERNAL, Code.INTERNAL,
    ),
    "a web page": (
        lambda n: [headers(n, [(b":status", b"503"), (b"content-type", b"text/html")], end=False) + data(n, b"<p>")],
        Code.UNAVAILABLE, Code.UNAVAILABLE,
    ),
    "too many interim answers": (
        lambda n: [headers(n, [(b":status", b"103")], end=False) * 9000], Code.UNAVAILABLE, Code.UNAVAILABLE,
    ),
    "a flood of PINGs": (lambda n: [frame(PING, 0, 0, bytes(8)) * 20_000], Code.UNAVAILABLE, Code.UNAVAILABLE),
    "empty DATA without end": (
        lambda n: [headers(n, HEAD, end=False), data(n) * 20_000], Code.UNAVAILABLE, Code.UNAVAILABLE,
    ),
    "more than the window": (
        lambda n: [headers(n, HEAD, end=False), cut(n, ANSWER * 9000)], Code.INTERNAL, Code.INTERNAL,
    ),
    "a window that runs over": (lambda n: [window_update(n, 2**31 - 1) * 2], Code.INTERNAL, Code.INTERNAL),
    "a promise": (
        lambda n: [frame(PUSH_PROMISE, 4, n, b"\0\0\0\2" + block(HEAD))], Code.UNAVAILABLE, Code.UNAVAILABLE,
    ),
    "another stream": (lambda n: [headers(n + 100, HEAD, end=False)], Code.UNAVAILABLE, Code.UNAVAILABLE),
    "no HPACK": (lambda n: [frame(HEADERS, 4, n, b"\xff" * 6)], Code.UNAVAILABLE, Code.UNAVAILABLE),
    "HTTP/1.1": (lambda n: [b"HTTP/1.1 200 OK\r\n\r\n" * 3], Code.UNAVAILABLE, Code.UNAVAILABLE),
    "goodbye within a message": (
        lambda n: [headers(n, HEAD, end=False) + data(n, ANSWER[:3]) + goaway(n, 2, "x"), None],
        Code.UNAVAILABLE, Code.UNAVAILABLE,
    ),
}  # fmt: skip
"""What the app does; and what ``InvokeService`` and a proxied call end with then."""


def is_explained(outcome: Outcome) -> bool:
    """Say whether a sidecar tells why."""
    return bool(outcome.trailer("tieline-cause") and outcome.trailer("tieline-hop"))


@pytest.mark.rule("G-26", "G-78", "G-124")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", APPS)
async def test_an_answer_that_is_none_ends_its_call_with_a_status(world: GrpcWorld, way: str, name: str) -> None:
    world.raw.script, by_invoke, by_proxy = APPS[name]

    invoked, proxied = await world.invoke(way), await world.proxied(way)

    assert (invoked.code, proxied.code) == (by_invoke, by_proxy), (invoked, proxied)
    if name not in ("half a message and an error", "a status that is none"):
        assert is_explained(invoked), invoked
        # A client can tell from the bytes alone what is wrong with those that are packed: nobody else looks inside.
        assert is_explained(proxied) or name.startswith("packed"), proxied


@pytest.mark.rule("G-2", "G-124")
@pytest.mark.parametrize("way", WAYS)
async def test_a_bomb_is_not_unpacked(world: GrpcWorld, way: str) -> None:
    world.raw.script = lambda n: [answer(n, packed(BOMB), head=ZIPPED)]
    before = world.callee.resident()

    outcome = await world.invoke(way)

    assert outcome.code is Code.RESOURCE_EXHAUSTED
    assert outcome.trailer("tieline-cause") == ["too-large"]
    assert world.callee.resident() - before < 24 << 20


def ending(done: Headers) -> Script:
    """Return an answer without a message."""
    return lambda number: [answer(number, b"", done=done)]


def begun_and_reset(begun: bytes, code: int) -> Script:
    """Return the beginning of an answer that is reset."""
    return lambda number: [headers(number, HEAD, end=False) + cut(number, begun) + rst_stream(number, code)]


RESETS = {0: Code.INTERNAL, 1: Code.INTERNAL, 7: Code.UNAVAILABLE, 8: Code.CANCELLED, 11: Code.RESOURCE_EXHAUSTED}
RESETS |= {12: Code.PERMISSION_DENIED, 99: Code.INTERNAL}


@pytest.mark.rule("G-78", "G-26")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", ["head", "message"])
async def test_a_reset_in_an_answer_is_a_status(world: GrpcWorld, way: str, state: str) -> None:
    begun = ANSWER if state == "message" else b""
    for code, expected in RESETS.items():
        world.raw.script = begun_and_reset(begun, code)

        invoked, proxied = await world.invoke(way), await world.proxied(way)

        assert (invoked.code, proxied.code) == (expected, expected), code
        assert is_explained(invoked)
        assert is_explained(proxied)


@pytest.mark.rule("G-16", "G-76", "G-78")
@pytest.mark.parametrize("way", WAYS)
async def test_a_malformed_entry_of_one_answer_costs_no_later_one_on_the_connection(world: GrpcWorld, way: str) -> None:
    """grpcio remembers a broken value under its name, and then fails to read the good ones."""
    gone = [(b"grpc-status", b"5"), (b"grpc-message", b"gone"), (b"thing-bin", b"QUI")]
    for broken in ([(b"grpc-status", b"x")], [(b"grpc-status", b"9"), (b"thing-bin", b"?")]):
        world.raw.script = ending(broken)
        await world.proxied(way)
        await world.invoke(way)
        world.raw.script = ending(gone)

        after = [await world.proxied(way), await world.invoke(way)]

        assert [(one.code, one.text, one.trailer("thing-bin")) for one in after] == [
            (Code.NOT_FOUND, "gone", [b"AB"])
        ] * 2


@pytest.mark.rule("G-9", "G-72")
@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_goes_on_after_the_apps_goodbye_and_new_calls_elsewhere(world: GrpcWorld, way: str) -> None:
    raw = world.raw
    raw.early = True
    raw.script = lambda n: [headers(n, HEAD, end=False) + data(n, message(b"one")) + goaway(n, 0, "leaving")]
    accepted = raw.accepted
    async with GrpcClient(world.entry(way).grpc) as client:
        call = client.open(METHOD, metadata=TO_CALLEE, timeout=20)
        first = await call.read()

        raw.script = fine
        raw.early = False
        other = await world.proxied(way)

        assert other.code is Code.OK
        assert raw.accepted > accepted
        assert first == b"one"
        assert not call.done()
        raw.hang_up()
        assert await call.code() is Code.UNAVAILABLE


@pytest.mark.rule("G-77", "G-6")
async def test_an_app_that_never_reads_costs_little_memory_and_its_calls_end_in_time(world: GrpcWorld) -> None:
    world.raw.reads = False
    before = {sidecar: sidecar.resident() for sidecar in (world.callee, world.caller)}

    async def one(client: GrpcClient) -> Code:
        call = client.open(METHOD, metadata=TO_CALLEE, timeout=2)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(bytes(100_000))
        return await call.code()

    async with GrpcClient(world.caller.grpc) as client:
        codes = await asyncio.gather(*[one(client) for _ in range(100)])
    late = await world.invoke("remote", bytes(1 << 20), timeout=0.5)

    assert Code.OK not in codes
    assert late.code is Code.DEADLINE_EXCEEDED
    for sidecar, resident in before.items():
        assert sidecar.resident() - resident < 48 << 20, sidecar.app_id


# ── clients ────────────────────────────────────────────────────────────────────────────────────────
def rpc(path: bytes, *more: tuple[bytes, bytes]) -> Headers:
    """Return the head of a request."""
    pseudo = [(b":method", b"POST"), (b":path", path), (b":scheme", b"http"), (b":authority", b"a")]
    return [*pseudo, (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]


def invocation() -> bytes:
    """Return a request of ``InvokeService``."""
    request = dapr_pb2.InvokeServiceRequest(id="callee")
    request.message.method = "method"
    return message(request.SerializeToString())


def internal() -> pb.InternalInvokeRequestStream:
    """Return the first message of a call from sidecar to sidecar."""
    first = pb.InternalInvokeRequestStream()
    first.request.ver = pb.V1
    first.request.metadata["X-A"].values.append("1")
    first.request.message.method = "method"
    first.payload.data = b"x"
    return first


SERVICE = b"/dapr.proto.internals.v1.ServiceInvocation/"
MEANT = (b"dapr-app-id", b"callee")
REQUESTS: dict[str, tuple[Headers, bytes]] = {
    "invoked": (rpc(b"/dapr.proto.runtime.v1.Dapr/InvokeService"), invocation()),
    "proxied": (rpc(METHOD.encode(), MEANT), message(bytes(70_000)) * 2),
    "from a sidecar": (rpc(METHOD.encode(), (b"dapr-callee-app-id", b"callee")), message(b"x")),
    "streamed": (rpc(SERVICE + b"CallLocalStream"), message(internal().SerializeToString())),
    "in one message": (rpc(SERVICE + b"CallLocal"), message(internal().request.SerializeToString())),
}


@pytest.mark.rule("G-77", "G-122")
@pytest.mark.parametrize("name", REQUESTS)
async def test_clients_that_stop_anywhere_leave_nothing(world: GrpcWorld, name: str) -> None:
    """They send half of it, reset, say goodbye, vanish: in any order; the app answers now and then."""
    draw = random.Random(name)
    head, body = REQUESTS[name]
    ports = [world.callee.internal]
    if name in ("invoked", "proxied"):
        ports = [world.callee.grpc, world.caller.grpc]
    world.raw.script = lambda n: fine(n) if draw.random() < 0.5 else [headers(n, HEAD, end=False)]
    world.raw.early = True

    async def attack(_: int) -> None:
        raw = await Raw.open(draw.choice(ports))
        for number in range(1, draw.choice((3, 9)), 2):
            await raw.say(headers(number, head, end=draw.random() < 0.05))
            whole = body[: draw.randrange(len(body))] if draw.random() < 0.4 else body
            await raw.say(cut(number, whole))
            end = draw.choice(("end", "end", "reset", "trailers", "goodbye", "nothing"))
            if end == "end":
                await raw.say(data(number, end=True))
            elif end == "reset":
                await raw.say(rst_stream(number, draw.choice((0, 1, 7, 8))))
            elif end == "trailers":
                await raw.say(headers(number, [(b"x-t", b"1")]))
            elif end == "goodbye":
                await raw.say(frame(GOAWAY, 0, 0, bytes(8)))
            if draw.random() < 0.5:
                with contextlib.suppress(TimeoutError):
                    await raw.until(lambda: bool(raw.heard), 0.2)
        if draw.random() < 0.5:
            raw.reset()
        else:
            raw.close()

    await together(attack, 100, at_once=20)


LIES: dict[str, tuple[bytes, str]] = {
    "4 GiB": (b"\0\xff\xff\xff\xffx", "8"),
    "a little too much": (b"\0\0\x40\0\1x", "8"),
    "too much behind a good one": (message(b"x") + b"\0\0\x40\0\1", "8"),
}


@pytest.mark.rule("G-2")
@pytest.mark.parametrize("name", LIES)
async def test_a_length_that_is_too_large_is_refused_at_each_face_before_it_comes(world: GrpcWorld, name: str) -> None:
    body, code = LIES[name]
    for number, port in enumerate((world.callee.grpc, world.caller.grpc, world.callee.internal)):
        raw = await Raw.open(port)
        await raw.say(headers(1, rpc(METHOD.encode(), MEANT), end=False), data(1, body))

        found = await raw.over(1)

        said = b"".join(one.payload for one in found)
        assert b"larger than max" in said, number
        assert b"grpc-status" in said
        assert code.encode() in said
        raw.close()


@pytest.mark.rule("G-47", "G-36", "G-37", "G-42")
async def test_what_sidecars_never_send_each_other_is_refused_or_passed_over(world: GrpcWorld) -> None:
    empty = internal()
    for name in ("traceparent", "tracestate", "grpc-trace-bin", "content-type", "Accept", "dapr-callee-app-id"):
        empty.request.metadata[name].SetInParent()
    injected = internal()
    injected.request.metadata["X\r\nY"].values.append("1")
    injected.request.metadata["X-B"].values.append("a\r\nb: c")
    odd = internal()
    odd.request.message.http_extension.verb = -7  # type: ignore[assignment]
    later = internal()
    later.payload.seq = 1

    async def call(*messages: pb.InternalInvokeRequestStream) -> Outcome:
        async with GrpcClient(world.callee.internal) as client:
            raw = [one.SerializeToString() for one in messages]
            return await client.call((SERVICE + b"CallLocalStream").decode(), *raw)

    outcomes = [await call(one) for one in (empty, injected, odd)]
    twice = await call(internal(), later)

    assert [one.code for one in outcomes] == [Code.OK] * 3
    assert (twice.code, twice.text) == (
        Code.INTERNAL, "error invoking app channel: request metadata found in non-leading chunk",
    )  # fmt: skip


# ── sidecars ───────────────────────────────────────────────────────────────────────────────────────
def first(status: int | None = 0, content_type: str = "text/x", **changes: int) -> bytes:
    """Return the message that a sidecar answers with."""
    made = pb.InternalInvokeResponseStream()
    if status is not None:
        made.response.status.code = status
        made.response.status.SetInParent()
    made.response.message.content_type = content_type
    made.payload.data = b"data"
    made.payload.seq = changes.get("seq", 0)
    return made.SerializeToString()


PEERS: dict[str, bytes] = {
    "no protobuf": b"\xff" * 9,
    "a head that is none": b"\x0a\x02\xff\xff",
    "a head that is cut": b"\x0a\x06\x0a\x00\x12\x02\xff\xff",
    "no UTF-8": first(content_type="AB").replace(b"AB", b"\xff\xfe"),
    "no status": first(None),
    "a negative status": first(-3),
    "a status of HTTP's that is none": first(150),
    "a second payload first": first(seq=1),
    "data shorter than they say": first().replace(b"\x0a\x04data", b"\x0a\x06data"),
    "nothing": b"",
}


@pytest.mark.rule("G-36", "G-37", "G-124")
@pytest.mark.parametrize("name", PEERS)
async def test_an_answer_of_a_sidecar_that_is_none_is_none_each_time(world: GrpcWorld, name: str) -> None:
    """Also when it comes again, and might be known."""
    peer = RawApp()
    await peer.start()
    peer.script = lambda n: [answer(n, message(PEERS[name]))]
    app_id = name.replace(" ", "-")
    register(world.mesh, app_id, peer.port)

    async with GrpcClient(world.caller.grpc) as client:
        outcomes = [await client.invoke(app_id, "method", b"x") for _ in range(4)]
    by_http = [await world.caller.call(app_id, "method", "POST", body=b"x") for _ in range(4)]
    await peer.aclose()

    for outcome in outcomes:
        assert outcome.code is Code.INTERNAL
        assert outcome.text.startswith(f"failed to invoke, id: {app_id}, err: ")
        assert (outcome.trailer("tieline-cause"), outcome.trailer("tieline-hop")) == (["peer-protocol"], ["peer"])
    assert {(one.status, one.header("tieline-hop")) for one in by_http} == {(500, "peer")}
