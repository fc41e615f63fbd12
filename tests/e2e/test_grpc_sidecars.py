"""gRPC between sidecars as a whole: who waits for whom, how calls end before their time, and peers that are no good."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from tests.support.app import Exchange
from tests.support.daprd import STREAM, UNARY, Daprd, Script, call, framed, messages_in, register, status_of
from tests.support.h2peer import H2Client, H2Stream
from tests.support.http1 import Client
from tests.support.mesh import Mesh, Sidecar, invoke_path, until
from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb

HELLO = pb.InternalInvokeResponseStream()
HELLO.response.status.code = 200
HELLO.response.message.content_type = "text/plain"
HELLO.payload.data = b"hello"
HEADERS = [("content-type", "application/grpc"), ("te", "trailers")]


def asked(method: str = "work", body: bytes = b"", *, verb: int = 3, **metadata: str) -> bytes:
    """Return the first message of a request."""
    message = pb.InternalInvokeRequestStream()
    message.request.ver = pb.V1
    message.request.metadata["X-A"].values.append("1")
    for name, value in metadata.items():
        message.request.metadata[name.replace("_", "-")].values.append(value)
    message.request.message.method = method
    message.request.message.http_extension.verb = verb  # type: ignore[assignment]
    if body:
        message.payload.data = body
    return message.SerializeToString()


def payload(data: bytes, seq: int) -> bytes:
    """Return a later message."""
    message = pb.InternalInvokeRequestStream()
    message.payload.data = data
    message.payload.seq = seq
    return message.SerializeToString()


def body_of(stream: H2Stream) -> bytes:
    """Return the body of an answer that is whole."""
    found = [pb.InternalInvokeResponseStream.FromString(one) for one in messages_in(bytes(stream.data))]
    assert [one.payload.seq for one in found if one.HasField("payload")] == list(range(len(found)))
    return b"".join(one.payload.data for one in found)


@pytest_asyncio.fixture
async def daprd(mesh: Mesh) -> AsyncIterator[Daprd]:
    """A daprd that a sidecar ``caller`` finds under that name."""
    made = Daprd(Script(messages=[HELLO.SerializeToString()]))
    await made.start()
    await mesh.sidecar("caller")
    register(mesh, "daprd", made.port)
    yield made
    await made.aclose()


def caller_of(mesh: Mesh) -> Sidecar:
    """Return the sidecar that calls the daprd."""
    return next(one for one in mesh._processes if isinstance(one, Sidecar) and one.app_id == "caller")


# ── a daprd is called ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-51", "G-77")
async def test_a_client_that_leaves_cancels_the_call(mesh: Mesh, daprd: Daprd) -> None:
    daprd.script = Script(silent=True)
    client = await Client.open(caller_of(mesh).port)

    client.send("POST", invoke_path("daprd", "work"), body=b"x")
    await daprd.until(lambda: daprd.rpcs and daprd.rpcs[0].ended)
    client.close()

    await daprd.until(lambda: daprd.rpcs[0].reset is not None)
    assert daprd.rpcs[0].reset == 8
    assert daprd.rpcs[0].header("grpc-timeout") is None


@pytest.mark.rule("G-17", "G-20", "G-51")
@pytest.mark.parametrize("begun", [False, True])
async def test_a_deadline_travels_and_ends_the_call_at_both_ends(mesh: Mesh, daprd: Daprd, begun: bool) -> None:
    daprd.script = Script(silent=True)
    if begun:
        daprd.script = Script(messages=[HELLO.SerializeToString()], stays=True)
    async with mesh.grpc_client(caller_of(mesh)) as client:
        started = time.monotonic()
        outcome = await client.invoke("daprd", "work", b"x", timeout=0.4)

    assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    (rpc,) = daprd.rpcs
    assert (rpc.header("grpc-timeout") or "")[-1:] in ("n", "u", "m")
    await daprd.until(lambda: rpc.reset is not None)
    assert rpc.reset == 8


@pytest.mark.rule("G-35")
async def test_a_daprd_that_takes_no_more_stops_the_client(mesh: Mesh, daprd: Daprd) -> None:
    daprd.windows = False
    caller = caller_of(mesh)
    before = caller.resident()
    client = await Client.open(caller.port)

    client.send("POST", invoke_path("daprd", "work"), [("Transfer-Encoding", "chunked")])
    sent = 0

    async def send_all() -> None:
        nonlocal sent
        while sent < 64 << 20:
            client.chunk(b"x" * 65536)
            sent += 65536
            await client.writer.drain()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send_all(), 1.5)

    assert sent < 32 << 20
    assert caller.resident() - before < 16 << 20
    client.reset()


@pytest.mark.rule("G-34", "G-35")
async def test_a_body_reaches_a_daprd_while_it_is_sent(mesh: Mesh, daprd: Daprd) -> None:
    client = await Client.open(caller_of(mesh).port)

    client.send("POST", invoke_path("daprd", "work"), [("Transfer-Encoding", "chunked")])
    await daprd.until(lambda: daprd.rpcs)  # the head does not wait for the body
    for size in (1, 5000, 2048):
        got = len(daprd.rpcs[0].data)
        client.chunk(b"y" * size)
        await daprd.until(lambda got=got, size=size: len(daprd.rpcs[0].data) >= got + size)
    client.end_chunks()
    answer = await client.answer()

    assert answer.body == b"hello"
    messages = [pb.InternalInvokeRequestStream.FromString(one) for one in daprd.rpcs[0].messages]
    pieces = [one.payload for one in messages if one.HasField("payload")]
    assert [len(piece.data) for piece in pieces] == [1, 2048, 2048, 904, 2048]
    assert [piece.seq for piece in pieces] == [0, 1, 2, 3, 4]
    client.close()


@pytest.mark.rule("G-6", "H-77")
async def test_an_idle_connection_to_a_daprd_is_closed_as_the_environment_says(mesh: Mesh) -> None:
    daprd = Daprd(Script(messages=[HELLO.SerializeToString()]))
    await daprd.start()
    environ = {"DAPR_GRPC_MAX_CONN_IDLE": "300ms", "DAPR_GRPC_CONN_COLLECTOR_INTERVAL": "50ms"}
    caller = await mesh.sidecar("caller", None, "--log-level", "debug", environ=environ)
    register(mesh, "daprd", daprd.port)

    assert (await caller.call("daprd", "work")).body == b"hello"
    await daprd.until(lambda: daprd.open == 0)
    assert "expired gRPC connection(s) to" in caller.log()
    assert (await caller.call("daprd", "work")).body == b"hello"

    assert daprd.connections == 2
    await daprd.aclose()


@pytest.mark.rule("G-6")
async def test_a_sweep_that_is_no_duration_stops_the_start(mesh: Mesh) -> None:
    environ = {"DAPR_GRPC_MAX_CONN_IDLE": "soon"}
    sidecar = await mesh.sidecar("caller", environ=environ, wait=None)

    assert await sidecar.wait() == 1
    assert 'DAPR_GRPC_MAX_CONN_IDLE is no duration: time: invalid duration "soon"' in sidecar.log()


@pytest.mark.rule("G-36", "G-17")
@pytest.mark.parametrize("code", [-1, -(2**31), 100, 199, 1000, 2**31 - 1])
async def test_a_status_that_is_none_fails_its_call_and_no_other(mesh: Mesh, daprd: Daprd, code: int) -> None:
    odd = pb.InternalInvokeResponseStream()
    odd.CopyFrom(HELLO)
    odd.response.status.code = code
    missing = pb.InternalInvokeResponseStream()
    missing.response.status.code = 5
    daprd.script = Script(messages=[odd.SerializeToString()])
    caller = caller_of(mesh)
    client = mesh.grpc_client(caller)
    text = f"failed to invoke, id: daprd, err: rpc error: code = Internal desc = the peer answered with status {code}"

    by_http = await caller.call("daprd", "work")
    by_rpc = await client.invoke("daprd", "work")
    daprd.script = Script(messages=[missing.SerializeToString()])
    after = await client.invoke("daprd", "work")

    assert (by_http.status, by_http.header("tieline-cause")) == (500, "peer-protocol")
    assert text in by_http.body.decode()
    assert (by_rpc.code, by_rpc.text) == (grpc.StatusCode.INTERNAL, text)
    assert after.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.rule("G-17")
async def test_an_answer_that_is_no_http_2_is_the_sidecars_fault_and_not_the_apps(mesh: Mesh, daprd: Daprd) -> None:
    daprd.script = Script(messages=[HELLO.SerializeToString()], head=[("x-a", "a\r\nb: c")])

    answer = await caller_of(mesh).call("daprd", "work")

    assert answer.status == 500
    assert b"malformed answer: PROTOCOL_ERROR" in answer.body
    assert (answer.header("tieline-cause"), answer.header("tieline-hop")) == ("peer-protocol", "peer")


# ── a daprd calls ──────────────────────────────────────────────────────────────────────────────────


async def answer(exchange: Exchange) -> None:
    """Answer as the target says."""
    if exchange.target.startswith("/hang"):
        await exchange.gone()
    elif exchange.target == "/echo":
        exchange.begin_chunked(200, [("Content-Type", "text/plain")])
        async for piece in exchange.pieces():
            exchange.chunk(piece)
        exchange.end_chunks()
    elif exchange.target == "/endless":
        exchange.begin_chunked()
        try:
            while True:
                exchange.chunk(b"z" * 65536)
                await exchange.writer.drain()
        except ConnectionError:
            pass
    else:
        exchange.answer(200, await exchange.body(), [("Content-Type", "text/plain")])


@pytest_asyncio.fixture
async def callee(mesh: Mesh) -> Sidecar:
    """A sidecar with an app."""
    return await mesh.sidecar("callee", await mesh.app(answer))


@pytest.mark.rule("G-20", "G-27", "G-77")
async def test_the_deadline_of_a_daprd_ends_the_call_at_the_app(mesh: Mesh, callee: Sidecar) -> None:
    stream = await call(callee.internal, [asked("hang")], metadata=[("grpc-timeout", "300m")])

    assert status_of(stream) == (4, "context deadline exceeded")
    await call(callee.internal, [asked("work")])  # the app has time again
    await until(lambda: "cause=" in callee.log())


@pytest.mark.rule("G-77")
async def test_a_daprd_that_cancels_ends_the_call_at_the_app(mesh: Mesh) -> None:
    gone = asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        await exchange.gone()
        gone.set()

    app = await mesh.app(hang)
    callee = await mesh.sidecar("callee", app)
    client = await H2Client.open(callee.internal)
    stream = await client.request("POST", STREAM, HEADERS, framed(asked("hang")), end=True)
    await until(lambda: len(app.seen) > 0)

    await stream.cancel()

    async with asyncio.timeout(5):
        await gone.wait()
    client.close()


@pytest.mark.rule("G-35", "G-43", "G-44")
async def test_request_and_answer_overlap(callee: Sidecar) -> None:
    client = await H2Client.open(callee.internal)
    stream = await client.request("POST", STREAM, HEADERS, framed(asked("echo", b"first")), end=False)
    await stream.until(lambda: b"first" in stream.data)

    await stream.send(framed(payload(b"second", 1)))
    await stream.until(lambda: b"second" in stream.data)
    await stream.send(framed(payload(b"third", 2)), end=True)
    await stream.whole()

    assert status_of(stream) == (0, "")
    assert body_of(stream) == b"firstsecondthird"
    client.close()


@pytest.mark.rule("G-34", "G-43", "G-44")
async def test_long_bodies_pass_both_ways(callee: Sidecar) -> None:
    body = bytes(range(256)) * 20_000
    pieces = [body[at : at + 2048] for at in range(0, len(body), 2048)]

    stream = await call(
        callee.internal, [asked("echo", pieces[0]), *[payload(piece, at + 1) for at, piece in enumerate(pieces[1:])]]
    )

    assert status_of(stream) == (0, "")
    assert body_of(stream) == body


@pytest.mark.rule("G-44")
async def test_a_daprd_that_reads_nothing_stops_the_app(callee: Sidecar) -> None:
    before = callee.resident()
    client = await H2Client.open(callee.internal, reads=False)
    stream = await client.request("POST", STREAM, HEADERS, framed(asked("endless")), end=True)
    await stream.until(lambda: len(stream.data) > 60_000)
    await asyncio.sleep(0.5)  # nothing tells that nothing happens

    assert len(stream.data) < 70_000
    assert callee.resident() - before < 16 << 20
    client.close()


UNREADABLE = "grpc: error unmarshalling request: "
NO_HEAD = "parsing InternalInvokeRequest error: request does not contain the required fields in the leading chunk"
BAD_UNIT = 'malformed grpc-timeout: transport: timeout unit is not recognized: "5x"'
MALFORMED = {
    "half a message": (b"\0\0\0\1\0abc", 2, "unexpected EOF"),
    "half a prefix": (b"\0\0", 2, "unexpected EOF"),
    "a length beyond the limit": (
        b"\0\xff\xff\xff\xff", 8, "grpc: received message larger than max (4294967295 vs. 4194304)",
    ),
    "no protobuf": (framed(b"\xff" * 20), 13, UNREADABLE + "proto: cannot parse invalid wire-format data"),
    "no UTF-8": (
        framed(b"\x0a\x07\x12\x05\x0a\x03\xff\xfe\xfd"), 13,
        UNREADABLE + "string field contains invalid UTF-8",
    ),
    "packed, but not said so": (b"\1\0\0\0\1a", 13, "grpc: compressed flag set with identity or empty encoding"),
    "another flag": (b"\2\0\0\0\1a", 13, "grpc: received unexpected payload format 2"),
    "nothing": (b"", 2, "EOF"),
    "only empty messages": (framed(b"") * 3, 3, NO_HEAD),
}  # fmt: skip


@pytest.mark.rule("G-42", "G-124", "G-2")
@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_call_is_told_as_grpc_tells_it(callee: Sidecar, name: str) -> None:
    data, code, text = MALFORMED[name]
    client = await H2Client.open(callee.internal)

    stream = await client.request("POST", STREAM, HEADERS, data, end=True)
    await stream.whole()
    after = await (await client.request("POST", STREAM, HEADERS, framed(asked("work", b"fine")), end=True)).whole()

    assert status_of(stream) == (code, text)
    assert stream.header("tieline-cause") == ("too-large" if code == 8 else "bad-request")
    assert body_of(after) == b"fine"
    client.close()


@pytest.mark.rule("G-125")
@pytest.mark.parametrize(
    ("headers", "status", "code", "text"),
    [
        ([("content-type", "text/html")], 415, 3, 'invalid gRPC request content-type "text/html"'),
        ([("content-type", "application/grpcx")], 415, 3, 'invalid gRPC request content-type "application/grpcx"'),
        ([*HEADERS, ("grpc-timeout", "5x")], 400, 13, BAD_UNIT),
        ([*HEADERS, ("grpc-timeout", "0S")], 200, 4, "context deadline exceeded"),
        ([*HEADERS, ("grpc-encoding", "br")], 200, 12, 'grpc: Decompressor is not installed for grpc-encoding "br"'),
    ],
)  # fmt: skip
async def test_what_is_no_rpc_is_refused(
    callee: Sidecar, headers: list[tuple[str, str]], status: int, code: int, text: str
) -> None:
    client = await H2Client.open(callee.internal)

    stream = await (await client.request("POST", STREAM, headers, framed(asked()), end=True)).whole()

    assert (stream.status, status_of(stream)) == (status, (code, text))
    client.close()


@pytest.mark.rule("G-125")
@pytest.mark.parametrize(
    ("verb", "path", "status", "code", "text"),
    [
        ("POST", "/alone", 200, 12, 'malformed method name: "/alone"'),
        ("GET", "/test.Echo/Unary", 405, 13, 'Received a HEADERS frame with :method "GET" which should be POST'),
        ("GET", STREAM, 405, 13, 'Received a HEADERS frame with :method "GET" which should be POST'),
    ],
)
async def test_what_is_no_method_is_refused(
    callee: Sidecar, verb: str, path: str, status: int, code: int, text: str
) -> None:
    client = await H2Client.open(callee.internal)

    stream = await (await client.request(verb, path, [*HEADERS, ("dapr-app-id", "callee")], framed(asked()))).whole()

    assert (stream.status, status_of(stream)) == (status, (code, text))
    client.close()


@pytest.mark.rule("G-7")
async def test_a_packed_message_is_unpacked(callee: Sidecar) -> None:
    packed = gzip.compress(asked("work", b"fine"))
    client = await H2Client.open(callee.internal)
    data = b"\1" + len(packed).to_bytes(4, "big") + packed

    stream = await (await client.request("POST", STREAM, [*HEADERS, ("grpc-encoding", "gzip")], data, end=True)).whole()

    assert body_of(stream) == b"fine"
    client.close()


@pytest.mark.rule("G-60", "G-59")
@pytest.mark.parametrize("length", ["3", "10"])
async def test_a_body_that_is_not_as_long_as_it_says_never_reaches_the_app_as_whole(
    callee: Sidecar, length: str
) -> None:
    stream = await call(callee.internal, [asked("work", b"12345", Content_Length=length)])

    code, text = status_of(stream)
    assert code == 13
    assert text.endswith("the body is not as long as its content-length says")


@pytest.mark.rule("G-48")
async def test_a_call_that_means_another_app_is_refused(callee: Sidecar) -> None:
    stream = await call(callee.internal, [asked("work", dapr_callee_app_id="other")])

    assert status_of(stream) == (14, "this is the sidecar of callee, not of other")


@pytest.mark.rule("G-41")
@pytest.mark.parametrize("path", [STREAM, UNARY])
async def test_a_peer_that_breaks_off_is_forgotten(mesh: Mesh, callee: Sidecar, path: str) -> None:
    await call(callee.internal, [asked("work")])
    before = callee.descriptors()
    for data in (b"", b"\0\0", framed(asked("hang"))[:-3], framed(asked("hang", b"x"))):
        client = await H2Client.open(callee.internal)
        stream = await client.request("POST", path, HEADERS, data or None, end=False)
        await stream.cancel()
        again = await client.request("POST", path, HEADERS, data or None, end=False)
        assert again.reset_code is None
        client.close()

    await until(lambda: callee.descriptors() <= before)
    assert "Traceback" not in callee.log()


# ── Tieline to Tieline ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.rule("G-12", "G-32", "G-65")
async def test_a_grpc_client_calls_an_http_app_through_two_sidecars(mesh: Mesh, callee: Sidecar) -> None:
    caller = await mesh.sidecar("caller")
    async with mesh.grpc_client(caller) as client:
        small = await client.invoke("callee", "work", b"x" * 100, content_type="text/plain")
        large = await client.invoke("callee", "work", b"y" * 1_000_000)
        missing = await client.invoke("callee", "work", verb=None)

    assert (small.code, len(small.invoked.data.value)) == (grpc.StatusCode.OK, 100)
    assert small.invoked.content_type == "text/plain"
    assert large.invoked.data.value == b"y" * 1_000_000
    assert missing.code is grpc.StatusCode.INTERNAL
    assert "missing HTTP extension field" in missing.text


@pytest.mark.rule("G-42")
async def test_a_failure_of_the_other_sidecar_explains_itself(mesh: Mesh) -> None:
    caller = await mesh.sidecar("caller")
    await mesh.sidecar("bare")
    async with mesh.grpc_client(caller) as client:
        outcome = await client.invoke("bare", "work")

    assert outcome.code is grpc.StatusCode.INTERNAL
    assert (
        outcome.text
        == "failed to invoke, id: bare, err: rpc error: code = Internal desc = app channel is not initialized"
    )
    said = dict(outcome.trailers)
    assert (said["tieline-cause"], said["tieline-hop"]) == ("app-missing", "app")


@pytest.mark.rule("G-2", "G-34")
async def test_a_body_over_the_callers_limit_is_told_as_ever(mesh: Mesh) -> None:
    daprd = Daprd(Script(messages=[HELLO.SerializeToString()]))
    await daprd.start()
    caller = await mesh.sidecar("caller", None, "--max-body-size", "8Ki")
    register(mesh, "daprd", daprd.port)

    answer = await caller.call("daprd", "work", "POST", body=b"x" * 100_000)
    after = await caller.call("daprd", "work", "POST", body=b"x" * 8000)

    assert answer.status == 500
    assert b"failed to invoke, id: daprd, err: stream too large" in answer.body
    assert after.body == b"hello"
    await daprd.aclose()
