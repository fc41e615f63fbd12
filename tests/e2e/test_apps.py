"""Between a sidecar and its app: slots, trailers, framing, and apps that behave oddly."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.support.app import App, Exchange, echo
from tests.support.h2peer import H2Client, H2Server, ask_h2
from tests.support.http1 import Broken, Client
from tests.support.mesh import Mesh, Sidecar, invoke_path, start_pair, until
from tests.support.tls import self_signed

PATH = invoke_path("callee", "work")
WAYS = pytest.mark.parametrize("way", ["self", "remote"])


# ── how many calls at a time ──────────────────────────────────────────────────────────────────────


class Turnstile:
    """An app that answers a call when it is told to, and counts those inside."""

    def __init__(self, *, stream: bool = False) -> None:
        self.inside = 0
        self.most = 0
        self.entered = 0
        self.go_on = asyncio.Semaphore(0)
        self._stream = stream

    async def __call__(self, exchange: Exchange) -> None:
        self.inside += 1
        self.entered += 1
        self.most = max(self.most, self.inside)
        if self._stream:
            exchange.begin_chunked()
            exchange.chunk(b"begun")
        await self.go_on.acquire()
        self.inside -= 1
        if self._stream:
            exchange.end_chunks()
        else:
            exchange.answer(200, b"done")


@WAYS
@pytest.mark.rule("H-115")
async def test_calls_over_the_limit_wait_and_none_is_refused(mesh: Mesh, way: str) -> None:
    app = Turnstile()
    pair = await start_pair(mesh, app, "--app-max-concurrency", "2")
    calls = [asyncio.create_task(pair.entry(way).call("callee", "work")) for _ in range(6)]
    await until(lambda: app.entered == 2)

    for entered in (3, 4, 5, 6):
        app.go_on.release()
        await until(lambda entered=entered: app.entered == entered)
    app.go_on.release()
    app.go_on.release()
    answers = await asyncio.gather(*calls)

    assert [answer.status for answer in answers] == [200] * 6
    assert app.most == 2
    assert 'level=info msg="app max concurrency set to 2"' in pair.callee.log()


@WAYS
@pytest.mark.rule("H-115")
@pytest.mark.parametrize("version", [1, 2])
async def test_a_waiting_call_whose_caller_leaves_takes_no_slot(mesh: Mesh, way: str, version: int) -> None:
    app = Turnstile()
    pair = await start_pair(mesh, app, "--app-max-concurrency", "1")
    entry = pair.entry(way)
    first = asyncio.create_task(entry.call("callee", "first"))
    await until(lambda: app.entered == 1)

    if version == 1:
        leaving = await Client.open(entry.port)
        leaving.send("GET", invoke_path("callee", "leaving"))
        await entry.ask("GET", "/v1.0/healthz")  # by now it waits, or it never will
        leaving.close()
    else:
        h2 = await H2Client.open(entry.port)
        stream = await h2.request("GET", invoke_path("callee", "leaving"))
        await (await h2.request("GET", "/v1.0/healthz")).whole()
        await stream.cancel()
        h2.close()
    await until(lambda: "method=leaving" in pair.callee.log())  # else the slot may still come to it first
    last = asyncio.create_task(entry.call("callee", "last"))
    await entry.ask("GET", "/v1.0/healthz")
    app.go_on.release()
    app.go_on.release()

    assert [(await first).status, (await last).status] == [200, 200]
    assert [exchange.target for exchange in pair.app.seen] == ["/first", "/last"]


@WAYS
@pytest.mark.rule("H-115")
async def test_a_slot_is_held_while_the_answer_streams_and_freed_by_a_cancel(mesh: Mesh, way: str) -> None:
    app = Turnstile(stream=True)
    pair = await start_pair(mesh, app, "--app-max-concurrency", "1")
    entry = pair.entry(way)
    first = await Client.open(entry.port)
    first.send("GET", invoke_path("callee", "first"))
    await first.head()
    second = await Client.open(entry.port)
    second.send("GET", invoke_path("callee", "second"))
    await entry.ask("GET", "/v1.0/healthz")
    assert app.entered == 1

    first.close()

    assert (await asyncio.wait_for(second.head(), 5)).status == 200
    assert app.entered == 2
    second.close()


@WAYS
@pytest.mark.rule("H-115")
@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_a_call_that_fails_frees_its_slot(mesh: Mesh, way: str, verb: str) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        match exchange.target:
            case "/closes":
                exchange.close()
            case "/garbage":
                exchange.writer.write(b"this is no HTTP\r\n\r\n")
            case "/cut":
                exchange.answer(200, b"half", length=8)
                exchange.close()
            case _:
                exchange.answer(500, b"the app's own")

    pair = await start_pair(mesh, handler, "--app-max-concurrency", "1")

    for method in ("closes", "garbage", "cut", "fails") * 2:
        client = await Client.open(pair.entry(way).port)
        client.send(verb, invoke_path("callee", method), (), b"x" if verb == "POST" else b"")
        with contextlib.suppress(Broken):
            await client.answer()
        client.close()

    assert (await pair.entry(way).call("callee", "fine", verb)).body == b"the app's own"


# ── framing ───────────────────────────────────────────────────────────────────────────────────────


@WAYS
async def test_trailers_pass_both_ways(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        exchange.begin_chunked()
        exchange.chunk(b"data")
        exchange.end_chunks([("X-Sum", "42"), *((f"X-Saw-{name}", value) for name, value in exchange.trailers)])

    pair = await start_pair(mesh, handler)
    client = await Client.open(pair.entry(way).port)
    client.send("POST", PATH, [("Transfer-Encoding", "chunked"), ("Trailer", "X-Up")])
    client.chunk(b"up")
    client.end_chunks([("X-Up", "7")])

    answer = await client.answer()
    client.close()
    h2 = await H2Client.open(pair.entry(way).port)
    stream = await h2.request("POST", PATH, end=False)
    await stream.send(b"up")
    await stream.send_trailers([("x-up", "8")])
    await stream.whole()
    h2.close()

    assert answer.whole
    assert sorted(answer.trailers) == [("x-saw-x-up", "7"), ("x-sum", "42")]
    assert sorted(stream.trailers) == [("x-saw-x-up", "8"), ("x-sum", "42")]


@WAYS
@pytest.mark.rule("H-69")
async def test_answers_without_a_body_have_none(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.verb == "HEAD":
            exchange.begin(200, [("Content-Length", "1000"), ("X-App", "head")])
        else:
            exchange.begin(int(exchange.target.lstrip("/")), [("X-App", "none")])

    pair = await start_pair(mesh, handler)
    entry = pair.entry(way)

    client = await Client.open(entry.port)  # all on one connection: bytes too many would show
    got = []
    for verb, method in (("HEAD", "204"), ("GET", "204"), ("GET", "304"), ("HEAD", "304"), ("POST", "204")):
        client.send(verb, invoke_path("callee", method), (), b"" if verb == "POST" else None)
        answer = await client.answer(verb)
        assert answer.header("transfer-encoding") is None
        got.append((verb, answer.status, answer.header("content-length")))
    client.close()
    over_2 = [await ask_h2(entry.port, verb, invoke_path("callee", "204")) for verb in ("HEAD", "GET")]

    assert got == [
        ("HEAD", 200, None), ("GET", 204, None), ("GET", 304, None), ("HEAD", 200, None), ("POST", 204, None),
    ]  # fmt: skip
    assert [(stream.status, stream.ended, bytes(stream.data)) for stream in over_2] == [
        (200, True, b""),
        (204, True, b""),
    ]


@WAYS
@pytest.mark.rule("H-53")
async def test_a_client_that_waits_for_100_gets_it(mesh: Mesh, way: str) -> None:
    pair = await start_pair(mesh, echo)
    client = await Client.open(pair.entry(way).port)
    client.writer.write(
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n".encode()
    )

    go_on = await asyncio.wait_for(client.head(), 5)
    client.writer.write(b"body")
    answer = await client.answer()

    assert (go_on.status, answer.status, answer.body) == (100, 200, b"body")
    client.close()


@WAYS
async def test_pipelined_requests_are_answered_in_order(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        if exchange.target == "/0":
            await asyncio.sleep(0.05)  # the later ones could overtake it, if anything could
        exchange.answer(200, exchange.target.encode())

    pair = await start_pair(mesh, handler)
    client = await Client.open(pair.entry(way).port)
    for number in range(20):
        client.send("POST", invoke_path("callee", str(number)), (), b"x" * number)

    answers = [await client.answer() for _ in range(20)]

    assert [answer.body for answer in answers] == [f"/{number}".encode() for number in range(20)]
    client.close()


@WAYS
async def test_an_answer_before_the_end_of_the_request_arrives_and_ends_the_upload(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.answer(413, b"too much", [("Connection", "close")])
        await exchange.writer.drain()
        exchange.writer.write_eof()
        await exchange.gone()

    size = ["--max-body-size", "512Mi"]
    pair = await start_pair(mesh, handler, *size, caller_flags=size)
    client = await Client.open(pair.entry(way).port)
    client.send("POST", PATH, [("Transfer-Encoding", "chunked")])
    client.chunk(b"begun")

    answer = await asyncio.wait_for(client.answer(), 5)
    client.close()
    h2 = await H2Client.open(pair.entry(way).port)
    stream = await h2.request("POST", PATH, end=False)
    await stream.send(b"begun")
    await stream.whole()
    h2.close()

    assert (answer.status, answer.body) == (413, b"too much")
    assert (stream.status, bytes(stream.data), stream.ended) == (413, b"too much", True)


# ── odd apps ──────────────────────────────────────────────────────────────────────────────────────


NO_ANSWERS = {
    "nothing": b"",
    "garbage": b"garbage\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "unasked-upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "broken-header": b"HTTP/1.1 200 OK\r\nBroken Header\r\n\r\n",
    "endless-header": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
}


@WAYS
@pytest.mark.rule("H-85", "H-157")
async def test_an_app_that_answers_no_http_is_called_broken_and_called_once(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.body()
        exchange.writer.write(NO_ANSWERS[exchange.target.lstrip("/")])
        exchange.close()

    pair = await start_pair(mesh, handler)

    answers = {how: await pair.entry(way).call("callee", how, "POST", body=b"x", within_s=5) for how in NO_ANSWERS}

    told = {how: (a.status, a.header("tieline-cause"), a.header("tieline-hop")) for how, a in answers.items()}
    assert told == dict.fromkeys(NO_ANSWERS, (500, "app-broken", "app"))
    assert all(b"ERR_DIRECT_INVOKE" in answer.body for answer in answers.values())
    assert [exchange.target.lstrip("/") for exchange in pair.app.seen] == list(NO_ANSWERS)


@WAYS
async def test_an_app_that_takes_nothing_holds_up_nobody_else(mesh: Mesh, way: str) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/deaf":
            exchange.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.Event().wait()
        exchange.answer(200, b"fine")

    size = ["--max-body-size", "512Mi"]
    pair = await start_pair(mesh, handler, *size, caller_flags=size)
    client = await Client.open(pair.entry(way).port)
    client.send("POST", invoke_path("callee", "deaf"), [("Content-Length", str(256 << 20))])

    async def flood() -> None:
        while True:
            client.writer.write(b"x" * 65536)
            await client.writer.drain()

    flooding = asyncio.create_task(flood())
    answers = [await pair.entry(way).call("callee", "fine", within_s=2) for _ in range(20)]
    flooding.cancel()

    assert [answer.body for answer in answers] == [b"fine"] * 20
    client.reset()


@WAYS
@pytest.mark.rule("H-111")
async def test_an_app_that_speaks_http2_is_called(mesh: Mesh, way: str) -> None:
    server = H2Server(b"over two")
    await server.start()
    callee, caller = await asyncio.gather(
        mesh.sidecar("callee", server.port, "--app-protocol", "h2c"), mesh.sidecar("caller")
    )
    entry = callee if way == "self" else caller

    answer = await entry.call("callee", "work?a=1", "POST", body=b"body")
    other = await ask_h2(entry.port, "POST", PATH, (), b"body")

    assert (answer.status, answer.body, answer.header("x-app")) == (200, b"over two", "h2")
    assert answer.trailers == [("x-end", "yes")]
    assert bytes(other.data) == b"over two"
    assert server.bodies == [b"body", b"body"]
    assert (":path", "/work?a=1") in server.requests[0]
    await server.aclose()


@WAYS
@pytest.mark.rule("H-95")
async def test_a_cancelled_call_resets_the_stream_of_an_http2_app(mesh: Mesh, way: str) -> None:
    server = H2Server()
    await server.start()
    callee, caller = await asyncio.gather(
        mesh.sidecar("callee", server.port, "--app-protocol", "h2c"), mesh.sidecar("caller")
    )
    client = await Client.open((callee if way == "self" else caller).port)
    client.send("GET", invoke_path("callee", "hold"))
    await until(lambda: len(server.bodies) == 1)

    client.close()

    await until(lambda: server.resets == 1)
    await server.aclose()


@WAYS
@pytest.mark.rule("H-111")
async def test_an_app_behind_tls_is_called_whatever_its_certificate(mesh: Mesh, tmp_path: Path, way: str) -> None:
    app = App(echo)
    await app.start(tls=self_signed(tmp_path, "somebody.example"))
    callee, caller = await asyncio.gather(
        mesh.sidecar("callee", app, "--app-protocol", "https"), mesh.sidecar("caller")
    )
    entry: Sidecar = callee if way == "self" else caller

    small = await entry.call("callee", "work", "POST", body=b"secret")
    large = await entry.call("callee", "work", "POST", body=b"x" * 1_000_000)

    assert (small.status, small.body) == (200, b"secret")
    assert (large.status, len(large.body)) == (200, 1_000_000)
    await app.aclose()


@pytest.mark.rule("H-116", "H-117")
async def test_calls_are_taken_and_outbound_health_is_good_while_the_app_is_awaited(mesh: Mesh) -> None:
    other = await mesh.sidecar("other", await mesh.app(echo))
    app = App(echo)
    await app.start()
    port = app.port
    await app.aclose()
    waiting = await mesh.sidecar("waiting", port, wait="/v1.0/healthz/outbound")

    health = await waiting.ask("GET", "/v1.0/healthz")
    called = await waiting.call("other", "work", "POST", body=b"out")
    own = await waiting.call("waiting", "work")
    unknown = await other.call("waiting", "work")
    await waiting.says("waiting on port")
    await app.start(port)
    await waiting.healthy()
    found = await other.call("waiting", "work", "POST", body=b"in")

    assert (health.status, b"dapr is not ready: [runtime]" in health.body) == (500, True)
    assert called.body == b"out"
    assert (own.status, own.header("tieline-cause")) == (500, "app-unreachable")
    assert (unknown.status, unknown.header("tieline-cause")) == (500, "name-unknown")
    assert found.body == b"in"
    await waiting.says(f"application discovered on port {port}")
    await app.aclose()


@pytest.mark.rule("H-117")
async def test_the_app_is_asked_for_its_configuration_before_the_sidecar_is_healthy(mesh: Mesh) -> None:
    app = await mesh.app(echo)

    await mesh.sidecar("orders", app, quiet=False)

    first = app.seen[0]
    assert (first.verb, first.target, first.header("dapr-app-id")) == ("GET", "/dapr/config", "orders")
    assert first.header("content-type") == "application/json"


@WAYS
@pytest.mark.rule("H-112")
async def test_connections_to_the_app_are_used_again(mesh: Mesh, way: str) -> None:
    pair = await start_pair(mesh, echo)
    before = pair.app.accepted

    for _ in range(20):
        await pair.entry(way).call("callee", "work", "POST", body=b"x")

    assert pair.app.accepted - before == 1
