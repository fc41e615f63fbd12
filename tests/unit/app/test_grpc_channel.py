"""Calls to apps that speak gRPC: real ones made with grpcio, and odd ones made by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.support.app import App, echo
from tests.support.grpc_app import HEALTH_CHECK, ON_INVOKE, Answer, GrpcApp, invoke_response
from tests.support.grpc_app import Exchange as RpcExchange
from tests.support.mesh import until
from tests.support.tls import Authority
from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeRequest
from tieline._generated.google.rpc.error_details_pb2 import ErrorInfo
from tieline._generated.google.rpc.status_pb2 import Status
from tieline.app.grpc_channel import GrpcChannel
from tieline.errors import AppUnhealthy, BadRequest, TielineError
from tieline.model import CallRecord, Cause, Headers, Hop, Invocation, Reply, Request, Rpc, RpcReply, Target
from tieline.net.http2_server import Handler, Http2Server
from tieline.net.listener import Listener
from tieline.wire.grpc.messages import frame
from tieline.wire.headers import identity
from tieline.wire.http2 import Limits

MANY_S = 180.0
"""How long many calls at once may take, on a busy machine."""
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_BIN = b"AAAK92UZFs1D3YRI6yEcgDGcAbeta3FpIDMxAgE"
WHO = identity("caller", "default", "me")


def channel_to(
    port: int,
    *,
    secure: bool = False,
    max_concurrency: int = 0,
    max_message: int | None = 4 << 20,
    token: str | None = None,
) -> GrpcChannel:
    return GrpcChannel(
        secure=secure,
        host="127.0.0.1",
        port=port,
        max_concurrency=max_concurrency,
        max_message=max_message,
        token=token,
    )


def a_call(
    method: bytes = b"work",
    headers: Headers | None = None,
    body: bytes = b"",
    *,
    verb: bytes = b"POST",
    query: bytes = b"",
    rpc: Rpc | None = None,
) -> Invocation:
    target = Target("me", "", "me")
    return Invocation(target, verb, method, method, query, headers or [], body, len(body), CallRecord(), rpc=rpc)


async def outcome(channel: GrpcChannel, call: Invocation) -> RpcReply:
    reply = await asyncio.wait_for(channel.call(call, WHO), 15)
    assert isinstance(reply, RpcReply)
    return reply


@pytest.fixture
async def app() -> AsyncIterator[GrpcApp]:
    async with GrpcApp() as made:
        yield made


@pytest.fixture
async def channel(app: GrpcApp) -> AsyncIterator[GrpcChannel]:
    made = channel_to(app.port)
    yield made
    await made.aclose()


# ── what the app gets ──────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-24", "H-82", "G-25")
async def test_an_http_call_reaches_the_app_as_daprd_sends_it(app: GrpcApp, channel: GrpcChannel) -> None:
    headers: Headers = [
        (b"content-type", b"text/plain"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"dapr-caller-app-id", b"liar"),
    ]
    await outcome(channel, a_call(b"a/b", headers, b"hello", query=b"q=1"))
    await outcome(channel, a_call(b"status/0", verb=b"GET"))

    assert app.seen[0].path == ON_INVOKE
    assert app.seen[0].messages == [
        InvokeRequest.FromString(
            b'\n\x03a/b\x12\x07\x12\x05hello\x1a\ntext/plain"\x07\x08\x03\x12\x03q=1'
        ).SerializeToString()
    ]
    # As recorded: an empty body is there all the same.
    assert app.seen[1].messages == [b'\n\x08status/0\x12\x00"\x02\x08\x01']
    shown = [(name, value) for name, value in app.seen[0].metadata if name != "user-agent"]
    assert sorted(shown) == [
        ("dapr-callee-app-id", "me"),
        ("dapr-caller-app-id", "caller"),
        ("dapr-caller-namespace", "default"),
        ("dapr-content-length", "5"),
        ("dapr-content-type", "text/plain"),
        ("x-a", "1"),
        ("x-a", "2"),
    ]
    assert app.seen[0].time_left_s is None


@pytest.mark.rule("G-13", "G-24", "G-65", "G-62")
@pytest.mark.parametrize("verb", [None, 0, 1, 6, 99])
async def test_a_grpc_call_reaches_the_app_with_any_verb_or_none(
    app: GrpcApp, channel: GrpcChannel, verb: int | None
) -> None:
    metadata: Headers = [(b"x-a", b"1"), (b"thing-bin", b"AP8"), (b"accept", b"*/*"), (b"user-agent", b"client")]
    rpc = Rpc(verb, "text/x", "type.googleapis.com/test.Thing", None)

    await outcome(channel, a_call(b"", metadata, b"z", verb=b"", query=b"a b", rpc=rpc))

    invoked = app.seen[0].invoked
    assert (invoked.method, invoked.data.type_url, invoked.data.value) == ("", "type.googleapis.com/test.Thing", b"z")
    assert invoked.content_type == "text/x"
    assert invoked.HasField("http_extension") == (verb is not None)
    if verb is not None:
        assert invoked.http_extension.verb == verb
        assert invoked.http_extension.querystring == "a b"
    assert app.seen[0].values("thing-bin") == [b"\0\xff"]
    assert app.seen[0].values("accept") == ["*/*"]
    assert app.seen[0].values("dapr-accept") == []


@pytest.mark.rule("G-25", "G-111")
async def test_the_app_gets_its_own_token_and_no_other(app: GrpcApp) -> None:
    headers: Headers = [(b"dapr-api-token", b"of the caller")]
    with_token, without = channel_to(app.port, token="mine"), channel_to(app.port)

    await outcome(with_token, a_call(headers=headers))
    await outcome(without, a_call())

    assert [seen.values("dapr-api-token") for seen in app.seen] == [["mine"], []]
    await with_token.aclose()
    await without.aclose()


@pytest.mark.rule("G-27", "G-20")
async def test_a_deadline_that_passes_takes_the_call_from_the_app(app: GrpcApp, channel: GrpcChannel) -> None:
    async def hold(exchange: RpcExchange) -> None:
        await asyncio.Event().wait()

    await outcome(channel, a_call())  # the way is open: the app hears of the next call before its deadline
    app.answers["work"] = hold
    deadline = asyncio.get_running_loop().time() + 0.5

    reply = await outcome(channel, a_call(rpc=Rpc(None, "", "", deadline)))
    await asyncio.wait_for(app.seen[1].over.wait(), 5)

    assert reply.rpc_status.code == 4
    assert app.seen[1].cancelled
    assert app.seen[1].time_left_s is None  # told of no deadline, as by daprd


@pytest.mark.rule("G-27")
async def test_a_caller_that_goes_away_takes_the_call_from_the_app(app: GrpcApp, channel: GrpcChannel) -> None:
    async def hold(exchange: RpcExchange) -> None:
        await asyncio.Event().wait()

    app.answers["work"] = hold
    calling = asyncio.create_task(channel.call(a_call(), WHO))
    seen = await app.arrived()

    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await asyncio.wait_for(seen.over.wait(), 5)

    assert seen.cancelled


async def test_a_method_that_is_no_text_is_refused(channel: GrpcChannel) -> None:
    with pytest.raises(BadRequest, match="invalid UTF-8"):
        await channel.call(a_call(b"\xff"), WHO)


# ── what comes back ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-26", "G-58", "H-81")
async def test_an_answer_comes_back_with_its_metadata_and_trailers(app: GrpcApp, channel: GrpcChannel) -> None:
    app.answers["work"] = Answer(
        [invoke_response(b"data", "text/x", "type/x")],
        headers=[("x-one", "a"), ("x-one", "b"), ("thing-bin", b"\0\1"), ("tieline-cause", "forged")],
        trailers=[("app-trailer", "t"), ("end-bin", b"\xff"), ("cookie", "a=1"), ("tieline-hop", "forged")],
    )

    call = a_call()
    reply = await outcome(channel, call)

    assert (reply.status, reply.rpc_status.code, reply.body) == (200, 0, b"data")
    assert (reply.content_type, reply.type_url) == ("text/x", "type/x")
    assert reply.headers == [(b"x-one", b"a"), (b"x-one", b"b"), (b"thing-bin", b"AAE")]
    assert reply.trailers == [(b"app-trailer", b"t"), (b"end-bin", b"/w"), (b"cookie", b"a=1")]
    assert call.record.rpc_code == 0
    assert call.record.app_s > 0


@pytest.mark.rule("G-26", "G-16")
async def test_an_error_of_the_app_is_an_answer_with_code_text_and_details(app: GrpcApp, channel: GrpcChannel) -> None:
    app.answers["work"] = Answer(
        code=grpc.StatusCode.NOT_FOUND, text="nö: 100%", details=[ErrorInfo(reason="BECAUSE")], trailers=[("x-t", "t")]
    )

    call = a_call()
    reply = await outcome(channel, call)

    assert (reply.status, reply.rpc_status.code, reply.rpc_status.message) == (500, 5, "nö: 100%")
    assert Status.FromString(reply.rpc_status.details).details[0].type_url.endswith("google.rpc.ErrorInfo")
    assert reply.headers == []
    assert reply.trailers == [(b"x-t", b"t")]
    assert (call.record.rpc_code, call.record.cause) == (5, None)


@pytest.mark.rule("H-83", "G-42", "G-2")
async def test_what_does_not_fit_is_an_answer_of_the_app_by_the_calls_record_it_is_not(app: GrpcApp) -> None:
    app.answers["big"] = Answer([invoke_response(b"x" * 2000)])
    channel = channel_to(app.port, max_message=1000)

    too_long, too_long_answer = a_call(body=b"x" * 1000), a_call(b"big")
    sent = await outcome(channel, too_long)
    received = await outcome(channel, too_long_answer)

    assert sent.rpc_status.code == received.rpc_status.code == 8
    assert sent.rpc_status.message.startswith("trying to send message larger than max (10")
    assert received.rpc_status.message.startswith("grpc: received message larger than max (20")
    assert too_long.record.cause is Cause.TOO_LARGE
    assert "--max-body-size" in too_long.record.hint
    assert [seen.invoked.method for seen in app.seen] == ["big"]
    await channel.aclose()


@pytest.mark.rule("G-24", "H-58")
async def test_a_body_that_comes_in_pieces_is_one_message_and_bounded(app: GrpcApp) -> None:
    channel = channel_to(app.port, max_message=1000)
    fits, does_not = a_call(), a_call()
    fits.body, does_not.body = Pieces(9), Pieces(1000)

    reply = await outcome(channel, fits)
    refused = await outcome(channel, does_not)

    assert reply.body == b"x" * 900
    assert refused.rpc_status.code == 8
    assert does_not.body.given < 20
    assert fits.body.abandoned
    assert does_not.body.abandoned
    await channel.aclose()


class Pieces:
    """A body of so many pieces of 100 bytes."""

    def __init__(self, count: int) -> None:
        self.trailers: Headers = []
        self._left = count
        self.given = 0
        self.abandoned = False

    async def read(self) -> bytes:
        if not self._left:
            return b""
        self._left -= 1
        self.given += 1
        return b"x" * 100

    def abandon(self) -> None:
        self.abandoned = True


@pytest.mark.rule("H-83", "G-42")
async def test_an_app_that_is_not_there_is_unavailable(app: GrpcApp) -> None:
    await app.aclose()
    channel = channel_to(app.port)
    call = a_call()

    reply = await outcome(channel, call)

    assert reply.rpc_status.code == 14
    assert "connection refused" in reply.rpc_status.message
    record = call.record
    assert (record.rpc_code, record.cause, record.hop) == (14, Cause.APP_UNREACHABLE, Hop.APP)
    assert record.detail == f"rpc error: code = Unavailable desc = {reply.rpc_status.message}"
    assert "--app-port" in record.hint
    await channel.aclose()


# ── how many at a time ─────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-122", "H-115")
async def test_no_more_calls_at_a_time_than_allowed_and_a_waiter_leaves_in_time(app: GrpcApp) -> None:
    go_on = asyncio.Event()

    async def held(exchange: RpcExchange) -> None:
        await go_on.wait()
        await exchange.answer(Answer([invoke_response(b"ok")], at_once=True))

    app.answers["work"] = held
    channel = channel_to(app.port, max_concurrency=1)
    first = asyncio.create_task(outcome(channel, a_call()))
    await app.arrived()
    second = asyncio.create_task(outcome(channel, a_call()))
    loop = asyncio.get_running_loop()

    waiter = a_call(rpc=Rpc(None, "", "", loop.time() + 0.05))
    timed_out = await outcome(channel, waiter)
    leaver = asyncio.create_task(outcome(channel, a_call()))
    while channel.waiting != 2:  # noqa: ASYNC110 - nothing else tells that it waits
        await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    go_on.set()
    bodies = [(await first).body, (await second).body, (await outcome(channel, a_call())).body]

    assert timed_out.rpc_status == (4, "context deadline exceeded", b"")
    assert waiter.record.cause is Cause.TIMEOUT
    assert bodies == [b"ok"] * 3
    assert app.most == 1
    assert len(app.seen) == 3
    assert channel.waiting == 0
    await channel.aclose()


@pytest.mark.rule("G-6")
async def test_an_app_that_allows_few_streams_never_sees_more() -> None:
    async with GrpcApp(max_streams=5) as app:
        channel = channel_to(app.port)

        replies = await asyncio.gather(*[outcome(channel, a_call(body=b"%d" % n)) for n in range(60)])

        assert [reply.body for reply in replies] == [b"%d" % n for n in range(60)]
        assert app.most <= 5
        await channel.aclose()


@pytest.mark.rule("G-6")
@pytest.mark.timeout(MANY_S)
async def test_another_connection_is_opened_for_more_calls_than_one_may_carry() -> None:
    """2,149 at once to an app that takes 100 on a connection: it sees 200, and all are answered."""
    both_full, go_on = asyncio.Event(), asyncio.Event()

    async def held(exchange: RpcExchange) -> None:
        if busy.in_progress == 200:
            both_full.set()
        await go_on.wait()
        await exchange.answer(Answer([invoke_response(b"ok")], at_once=True))

    async with GrpcApp({"work": held}, max_streams=100) as busy:
        channel = channel_to(busy.port)
        calls = [asyncio.create_task(channel.call(a_call(), WHO)) for _ in range(2149)]

        await asyncio.wait_for(both_full.wait(), MANY_S / 2)
        go_on.set()
        replies = await asyncio.gather(*calls)

        assert {reply.body for reply in replies} == {b"ok"}
        assert busy.most == 200
        assert channel.pool.size == 2
        await channel.aclose()


# ── the way there ──────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-30")
async def test_an_app_behind_tls_is_not_asked_who_it_is() -> None:
    pair = Authority().issue("somebody.example")
    app = GrpcApp()
    await app.start(credentials=grpc.ssl_server_credentials([(pair.key.encode(), pair.certificate.encode())]))
    channel, plain = channel_to(app.port, secure=True), channel_to(app.port)

    reply = await outcome(channel, a_call(body=b"hello"))
    refused = await outcome(plain, a_call())

    assert reply.body == b"hello"
    assert refused.rpc_status.code == 14
    connection = channel.pool.ready(("127.0.0.1", app.port))
    assert connection is not None
    await channel.aclose()
    await plain.aclose()
    await app.aclose()
    await until(lambda: connection.lost)  # TLS waits for the app's good-bye


@pytest.mark.rule("G-30")
async def test_an_app_without_tls_where_it_should_speak_it_is_unavailable_and_says_so(app: GrpcApp) -> None:
    channel = channel_to(app.port, secure=True)
    call = a_call()

    reply = await outcome(channel, call)

    assert reply.rpc_status.code == 14
    assert "authentication handshake failed" in reply.rpc_status.message
    assert call.record.cause is Cause.PEER_TLS
    await channel.aclose()


@pytest.mark.rule("G-30")
async def test_an_app_may_accept_long_before_it_speaks() -> None:
    """Calls wait for its SETTINGS, and fail with no word of a preface."""
    accepted = asyncio.Event()
    speak = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await speak.wait()
        writer.close()

    server = await asyncio.start_server(late, "127.0.0.1", 0)
    channel = channel_to(server.sockets[0].getsockname()[1])
    calling = asyncio.create_task(outcome(channel, a_call()))
    await asyncio.wait_for(accepted.wait(), 5)
    done, _ = await asyncio.wait([calling], timeout=0.1)
    speak.set()
    reply = await calling

    assert not done
    assert reply.rpc_status.code == 14
    assert "error reading server preface" not in reply.rpc_status.message
    server.close()
    await channel.aclose()


async def a_server(answer: Handler) -> Listener:
    """An app made by hand, for answers that grpcio would not give."""
    listener = Listener("test", logging.getLogger("test"))
    listener.bind_now("127.0.0.1", 0)
    await listener.accept(lambda: Http2Server(answer, limits=Limits(), native=False, members=listener.members))
    return listener


GRPC: Headers = [(b"content-type", b"application/grpc")]
DONE: Headers = [(b"grpc-status", b"0")]


@pytest.mark.parametrize(
    ("reply", "code", "text", "cause"),
    [
        (Reply(404, [(b"content-type", b"text/html")], b"<p>"), 12, "unexpected HTTP status code", Cause.APP_BROKEN),
        (Reply(200, [(b"content-type", b"text/html")], b"<p>"), 2, "unexpected HTTP status code", Cause.APP_BROKEN),
        (Reply(200, GRPC, b""), 13, "without sending trailers", Cause.APP_BROKEN),
        (Reply(200, GRPC, frame(b"")), 13, "without sending trailers", Cause.APP_BROKEN),
        (Reply(200, [*GRPC, (b"grpc-status", b"0")], b""), 13, "no message", Cause.APP_BROKEN),
        (Reply(200, [*GRPC, (b"grpc-status", b"20"), (b"grpc-message", b"odd")], b""), 20, "odd", None),
        (Reply(200, GRPC, frame(b"\xff\xff"), DONE), 13, "failed to unmarshal", Cause.APP_BROKEN),
        (Reply(200, GRPC, frame(b"\x12\x01\xff"), DONE), 13, "invalid UTF-8", Cause.APP_BROKEN),
        (Reply(200, GRPC, b"\0\xff\xff\xff\xff", DONE), 8, "larger than max", Cause.TOO_LARGE),
        (Reply(200, GRPC, b"\x05", DONE), 13, "no message", Cause.APP_BROKEN),
        (Reply(200, GRPC, b"\x05\0\0\0\0", DONE), 13, "unexpected payload format 5", Cause.APP_BROKEN),
        (Reply(200, [*GRPC, (b"grpc-encoding", b"br")], frame(b""), DONE), 12, "br", Cause.APP_BROKEN),
        (Reply(200, GRPC, frame(b"\x12\x01x") + frame(b"more"), DONE), 0, "", None),
        (Reply(200, [(b"content-type", b"application/grpc+proto")], frame(b"\x12\x01x"), DONE), 0, "", None),
    ],
)
async def test_an_answer_that_is_none_is_told_in_grpcs_words(
    reply: Reply, code: int, text: str, cause: Cause | None
) -> None:
    async def answer(request: Request) -> Reply:
        return Reply(reply.status, reply.headers, Trailing(reply), None) if reply.trailers else reply

    listener = await a_server(answer)
    channel = channel_to(listener.port)

    call = a_call()
    got = await outcome(channel, call)

    assert got.rpc_status.code == code
    assert text in got.rpc_status.message
    assert call.record.cause is cause
    if code == 0:
        assert got.content_type == "x"
    await channel.aclose()
    await asyncio.wait_for(listener.members.wait_empty(), 5)
    listener.abort()


class Trailing:
    """The body of a reply, followed by its trailers."""

    def __init__(self, reply: Reply) -> None:
        assert isinstance(reply.body, bytes)
        self._pieces = [reply.body]
        self.trailers = reply.trailers or []

    async def read(self) -> bytes:
        return self._pieces.pop() if self._pieces else b""

    def abandon(self) -> None:
        pass


@pytest.mark.rule("H-83")
async def test_an_app_that_speaks_http_1_is_unavailable_and_the_hint_says_what_to_check() -> None:
    http1 = App(echo)
    await http1.start()
    channel = channel_to(http1.port)
    call = a_call()

    reply = await outcome(channel, call)

    assert reply.rpc_status.code == 14
    assert "--app-protocol" in call.record.hint
    await channel.aclose()
    await http1.aclose()


@pytest.mark.rule("H-83")
async def test_an_app_that_dies_in_a_call_is_unavailable() -> None:
    entered = asyncio.Event()

    async def held(request: Request) -> Reply:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    listener = await a_server(held)
    channel = channel_to(listener.port)
    call = a_call()
    calling = asyncio.create_task(outcome(channel, call))
    await entered.wait()
    listener.abort()

    reply = await calling

    assert reply.rpc_status == (14, "error reading from server: connection lost", b"")
    assert call.record.cause is Cause.APP_BROKEN
    await channel.aclose()


@pytest.mark.rule("G-117", "G-115")
async def test_all_three_trace_fields_carry_one_context() -> None:
    seen: list[Headers] = []

    async def answer(request: Request) -> Reply:
        seen.append([field for field in request.headers if b"trace" in field[0]])
        return Reply(200, [*GRPC, (b"grpc-status", b"5")])

    listener = await a_server(answer)
    channel = channel_to(listener.port)
    of_http: Headers = [(b"traceparent", TRACEPARENT), (b"tracestate", b"a=b")]
    of_rpc: Headers = [(b"grpc-trace-bin", TRACE_BIN)]

    await outcome(channel, a_call(headers=of_http))
    await outcome(channel, a_call(headers=of_rpc, rpc=Rpc(None, "", "", None)))
    await outcome(channel, a_call(headers=[(b"traceparent", b"nonsense"), (b"grpc-trace-bin", TRACE_BIN)]))

    assert seen == [
        [(b"traceparent", TRACEPARENT), (b"tracestate", b"a=b"), (b"grpc-trace-bin", TRACE_BIN)],
        [(b"traceparent", TRACEPARENT), (b"grpc-trace-bin", TRACE_BIN)],
        [],
    ]
    await channel.aclose()
    await asyncio.wait_for(listener.members.wait_empty(), 5)
    listener.abort()


# ── health ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("G-29")
async def test_a_probe_is_an_rpc_of_its_own_without_a_token(app: GrpcApp) -> None:
    channel = channel_to(app.port, token="mine", max_concurrency=1)

    well = await channel.probe(b"/ignored", 5)
    app.healthy = False
    with pytest.raises(TielineError) as ill:
        await channel.probe(b"/ignored", 5)
    app.answers[HEALTH_CHECK] = Answer(code=grpc.StatusCode.UNIMPLEMENTED)
    with pytest.raises(TielineError) as unimplemented:
        await channel.probe(b"/ignored", 5)
    app.answers[HEALTH_CHECK] = Answer([b""], delay_s=5)
    with pytest.raises(TielineError) as late:
        await channel.probe(b"/ignored", 0.05)

    assert well == 0
    assert [raised.value.grpc_code for raised in (ill, unimplemented, late)] == [14, 12, 4]
    assert late.value.cause is Cause.TIMEOUT
    assert app.seen[0].values("dapr-api-token") == []
    await channel.aclose()


@pytest.mark.rule("G-29")
async def test_an_app_that_is_ill_gets_no_calls(app: GrpcApp, channel: GrpcChannel) -> None:
    channel.unhealthy = lambda: AppUnhealthy("app is not in a healthy state")

    with pytest.raises(AppUnhealthy):
        await channel.call(a_call(), WHO)

    assert app.seen == []


async def test_a_websocket_cannot_go_to_an_app_that_speaks_grpc(app: GrpcApp, channel: GrpcChannel) -> None:
    call = a_call()
    call.protocol = b"websocket"

    with pytest.raises(TielineError) as refused:
        await channel.call(call, WHO)

    assert refused.value.http_status == 501
