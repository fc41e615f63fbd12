"""``InvokeService``: what becomes of an RPC on its way down, and of a reply on its way up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.rpc import INVOKE, Got, call_rpc, error_info
from tieline._generated.dapr.proto.common.v1.common_pb2 import HTTPExtension, InvokeResponse
from tieline._generated.dapr.proto.runtime.v1.dapr_pb2 import InvokeServiceRequest
from tieline.api.grpc.invoke import InvokeService
from tieline.api.grpc.server import GrpcApi
from tieline.api.http.tracing import Tracer
from tieline.errors import BadRequest, GrpcCode, PeerUnreachable, TielineError, TimedOut, TooLarge, UnknownTarget
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Cause, Headers, Hop, Invocation, Reply, RpcReply, RpcStatus, Target
from tieline.outbound.invoke import outbound
from tieline.wire.trace_context import IdSource

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BINARY = b"AAAK92UZFs1D3YRI6yEcgDGcAbeta3FpIDMxAgE"
End = Callable[[Invocation], Awaitable[Reply]]


class Path:
    """The outbound path with an end of the test's own, and all that went down it."""

    def __init__(self, answer: Reply | TielineError | End) -> None:
        self._answer = answer
        self.calls: list[Invocation] = []
        self.records: list[CallRecord] = []

    async def _end(self, call: Invocation) -> Reply:
        self.calls.append(call)
        if isinstance(self._answer, TielineError):
            raise self._answer
        return self._answer if isinstance(self._answer, Reply) else await self._answer(call)

    def api(self, *, traced: bool = True, limit: int | None = 4096, token: str | None = None) -> GrpcApi:
        observe = Observe(self.records.append)

        invoke = InvokeService(
            outbound(observe=observe, attempts=Once(), end=self._end),
            observe,
            app_id="me",
            namespace="default",
            drop_token=token is not None,
            is_external=lambda target: not target.app_id,
            limit=limit,
        )
        return GrpcApi(
            own={INVOKE.encode(): invoke},
            shared={},
            streams={},
            tracer=Tracer(enabled=traced, new_ids=IdSource()),
            limit=limit,
            token=token,
        )


class Once:
    """In place of the step that sends again."""

    async def __call__(self, call: Invocation, call_next: End) -> Reply:
        return await call_next(call)


class Pieces:
    """A body that comes in pieces, and may break off."""

    def __init__(self, *pieces: bytes, error: TielineError | None = None) -> None:
        self._pieces = list(pieces)
        self._error = error
        self.trailers: Headers = []
        self.abandoned = False

    async def read(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._error is not None:
            raise self._error
        return b""

    def abandon(self) -> None:
        self.abandoned = True


def request(
    app_id: str = "other",
    method: str = "new",
    data: bytes = b"",
    *,
    verb: int | None = HTTPExtension.POST,
    query: str = "",
    content_type: str = "",
    type_url: str = "",
) -> bytes:
    message = InvokeServiceRequest(id=app_id)
    message.message.method = method
    message.message.content_type = content_type
    message.message.data.value = data
    message.message.data.type_url = type_url
    if verb is not None:
        message.message.http_extension.verb = verb  # type: ignore[assignment]
        message.message.http_extension.querystring = query
    return message.SerializeToString()


async def invoke(path: Path, message: bytes, *metadata: tuple[bytes, bytes], traced: bool = True) -> Got:
    return await call_rpc(path.api(traced=traced).handle, INVOKE, message, *metadata)


# ── down ──


@pytest.mark.rule("G-12", "G-13", "G-24")
async def test_an_rpc_becomes_an_invocation() -> None:
    path = Path(Reply(200, []))

    got = await invoke(
        path,
        request(
            "other.ns", "a/./b", b"hi", verb=HTTPExtension.PUT, query="x=1 2", content_type="text/x", type_url="t/T"
        ),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"thing-bin", b"AP8"),
    )

    assert got.status.code == GrpcCode.OK
    (call,) = path.calls
    assert call.target == Target("other", "ns", "other.ns")
    assert (call.verb, call.method, call.encoded, call.query) == (b"PUT", b"a/b", b"a/b", b"x=1 2")
    assert (call.body, call.length) == (b"hi", 2)
    assert call.headers[:3] == [(b"x-a", b"1"), (b"x-a", b"2"), (b"thing-bin", b"AP8")]
    assert call.rpc is not None
    assert tuple(call.rpc) == (4, "text/x", "t/T", None)
    (record,) = path.records
    assert (record.caller, record.api_rpc, record.status, record.request_bytes) == ("me", INVOKE.encode(), 200, 2)


@pytest.mark.rule("G-13", "G-10")
@pytest.mark.parametrize(
    ("verb", "counts_as"), [(None, b"POST"), (0, b"POST"), (6, b"POST"), (99, b"POST"), (9, b"PATCH")]
)
async def test_any_verb_and_none_is_passed_on_for_the_callee_to_judge(verb: int | None, counts_as: bytes) -> None:
    path = Path(Reply(200, []))

    await invoke(path, request(verb=verb))

    (call,) = path.calls
    assert call.rpc is not None
    assert (call.rpc.verb, call.verb) == (verb, counts_as)


@pytest.mark.rule("G-14")
@pytest.mark.parametrize(
    ("method", "cleaned", "encoded"),
    [
        ("", b"", b""),
        (".", b"", b""),
        ("../../etc/passwd", b"etc/passwd", b"etc/passwd"),
        ("api///v1///users", b"api/v1/users", b"api/v1/users"),
        ("admin%2F..%2Fpublic", b"admin%2F..%2Fpublic", b"admin%2F..%2Fpublic"),
        ("admin\\..\\public", b"admin\\..\\public", b"admin%5C..%5Cpublic"),
        ("/admin%09/../public", b"/public", b"/public"),
        ("//a", b"/a", b"/a"),
        ("/", b"/", b"/"),
        ("/a/..", b"/", b"/"),
        ("a/..", b"", b""),
        ("a b/é", "a b/é".encode(), b"a%20b/%C3%A9"),
    ],
)
async def test_a_method_is_cleaned_but_not_decoded(method: str, cleaned: bytes, encoded: bytes) -> None:
    path = Path(Reply(200, []))

    await invoke(path, request(method=method))

    assert [(call.method, call.encoded) for call in path.calls] == [(cleaned, encoded)]


@pytest.mark.rule("G-14", "G-17")
@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("a#b", 'forbidden character: "a#b"'),
        ("echo\0x", 'forbidden character: "echo\\x00x"'),
        ("a\tb", 'control character at position 1: "a\\tb"'),
        ("a#b/../echo", 'forbidden character: "a#b/../echo"'),
    ],
)
async def test_a_method_that_may_be_misread_is_refused(method: str, reason: str) -> None:
    path = Path(Reply(200, []))

    got = await invoke(path, request("other", method))

    assert got.status.code == GrpcCode.INTERNAL
    assert got.status.message == (
        "failed to invoke, id: other, err: rpc error: code = InvalidArgument desc = "
        f"invalid method: method contains {reason}"
    )
    assert not path.calls
    (record,) = path.records
    assert (record.cause, record.hop) == (Cause.BAD_REQUEST, Hop.CALLER)


@pytest.mark.rule("G-17", "G-42")
async def test_a_request_without_a_message_is_none() -> None:
    got = await invoke(Path(Reply(200, [])), InvokeServiceRequest(id="gamma").SerializeToString())

    assert got.status.code == GrpcCode.INTERNAL
    assert got.status.message == (
        "failed to invoke, id: gamma, err: rpc error: code = InvalidArgument desc = "
        "parsing InternalInvokeRequest error: request does not contain the required fields in the leading chunk"
    )


@pytest.mark.rule("G-124")
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff\xff\xff", "proto: cannot parse invalid wire-format data"),
        (b"\x0a\x01\xff\x1a\x00", "string field contains invalid UTF-8"),
    ],
)
async def test_what_is_no_protobuf_is_told(message: bytes, reason: str) -> None:
    got = await invoke(Path(Reply(200, [])), message)

    assert (got.status.code, got.status.message) == (
        GrpcCode.INTERNAL,
        f"grpc: error unmarshalling request: {reason}",
    )


@pytest.mark.rule("G-19", "G-50", "H-48")
async def test_claims_of_identity_and_names_of_ours_go_no_further_but_out_of_the_mesh() -> None:
    path = Path(Reply(200, []))
    claims = ((b"dapr-caller-app-id", b"liar"), (b"dapr-callee-app-id", b"liar"), (b"dapr-caller-namespace", b"x"))
    others = ((b"tieline-cause", b"denied"), (b"destination-app-id", b"x"), (b"content-length", b"3"))

    await invoke(path, request("other"), *claims, *others, traced=False)
    await invoke(path, request("http://outside"), *claims, *others, traced=False)

    assert path.calls[0].headers == []
    assert sorted(path.calls[1].headers) == sorted(claims)


@pytest.mark.rule("G-110", "G-111")
async def test_a_token_that_nobody_asked_for_travels_as_metadata_do() -> None:
    path = Path(Reply(200, []))
    shown = (b"dapr-api-token", b"secret")

    await call_rpc(path.api(traced=False).handle, INVOKE, request(), shown)
    await call_rpc(path.api(traced=False, token="secret").handle, INVOKE, request(), shown)

    assert [call.headers for call in path.calls] == [[shown], []]


@pytest.mark.rule("G-116", "G-117")
async def test_the_trace_travels_as_one_context_and_is_told() -> None:
    path = Path(Reply(200, []))

    got = await invoke(path, request(), (b"grpc-trace-bin", BINARY), (b"tracestate", b"a=b"))

    assert path.calls[0].headers == [(b"traceparent", TRACEPARENT), (b"tracestate", b"a=b")]
    assert got.header(b"traceparent") == TRACEPARENT
    assert got.header(b"tracestate") == b"a=b"
    assert got.header(b"grpc-trace-bin") == BINARY
    assert path.records[0].trace_id == TRACEPARENT[3:35]


@pytest.mark.rule("O-1", "G-115")
async def test_where_nobody_traces_the_context_passes_as_it_came() -> None:
    path = Path(Reply(200, []))
    fields = [(b"traceparent", b"whatever"), (b"grpc-trace-bin", BINARY)]

    got = await invoke(path, request(), *fields, traced=False)

    assert sorted(path.calls[0].headers) == sorted(fields)
    assert got.header(b"traceparent") is None
    assert got.header(b"grpc-trace-bin") is None


@pytest.mark.rule("G-20")
async def test_the_deadline_travels_with_the_call() -> None:
    path = Path(Reply(200, []))

    await invoke(path, request(), (b"grpc-timeout", b"2S"))

    (call,) = path.calls
    assert call.rpc is not None
    assert call.rpc.deadline is not None
    assert 1.5 < call.rpc.deadline - asyncio.get_running_loop().time() <= 2


@pytest.mark.rule("G-17", "G-20", "G-122")
async def test_a_deadline_ends_the_call_and_is_told_as_what_it_is() -> None:
    cancelled = asyncio.Event()

    async def hang(call: Invocation) -> Reply:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    path = Path(hang)

    got = await invoke(path, request(), (b"grpc-timeout", b"20m"))

    assert (got.status.code, got.status.message) == (GrpcCode.DEADLINE_EXCEEDED, "context deadline exceeded")
    assert got.trailer(b"tieline-cause") == b"timeout"
    assert cancelled.is_set()
    (record,) = path.records
    assert (record.cause, record.detail) == (
        Cause.TIMEOUT,
        "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
    )


# ── up: an HTTP app ──


@pytest.mark.rule("G-15", "G-16", "G-60", "G-64")
async def test_the_answer_of_an_http_app_becomes_a_message_and_metadata() -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"x-one", b"a"),
        (b"x-one", b"b"),
        (b"date", b"D"),
        (b"x-bin", b"AAEC"),
    ]
    path = Path(Reply(201, headers, b"hello"))

    got = await invoke(path, request(), traced=False)

    assert got.status == RpcStatus(0)
    assert got.initial == [
        (b"content-type", b"application/grpc"),
        (b"dapr-http-status", b"201"),
        (b"dapr-content-type", b"text/plain"),
        (b"x-one", b"a"),
        (b"x-one", b"b"),
        (b"dapr-date", b"D"),
        (b"x-bin", b"QUFFQw"),
    ]
    assert got.message is not None
    response = InvokeResponse.FromString(got.message)
    assert (response.data.value, response.data.type_url, response.content_type) == (b"hello", "", "text/plain")


@pytest.mark.rule("G-15")
async def test_an_answer_in_pieces_is_put_together_and_an_empty_one_is_there() -> None:
    whole = await invoke(Path(Reply(200, [], Pieces(b"a", b"b" * 3000, b"c"))), request())
    empty = await invoke(Path(Reply(204, [])), request())

    assert whole.message is not None
    assert InvokeResponse.FromString(whole.message).data.value == b"a" + b"b" * 3000 + b"c"
    assert empty.message is not None
    assert InvokeResponse.FromString(empty.message).HasField("data")


@pytest.mark.rule("G-18")
@pytest.mark.parametrize(
    ("status", "code", "phrase"),
    [
        (404, GrpcCode.NOT_FOUND, "Not Found"),
        (500, GrpcCode.UNKNOWN, "Internal Server Error"),
        (599, GrpcCode.UNKNOWN, ""),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_failure_of_an_http_app_is_told_with_the_beginning_of_its_body(
    status: int, code: GrpcCode, phrase: str, streamed: bool
) -> None:
    said = b"0123456789" * 10
    body = Pieces(said[:5], said[5:]) if streamed else said
    path = Path(Reply(status, [(b"x-a", b"1")], body))

    got = await invoke(path, request())

    assert (got.status.code, got.status.message, got.message) == (code, phrase, None)
    assert got.header(b"dapr-http-status") == b"%d" % status
    assert got.header(b"x-a") == b"1"
    assert error_info(got.status) == {
        "reason": phrase,
        "domain": "dapr.io",
        "metadata": {"http.code": str(status), "http.error_message": said[:63].decode()},
    }
    assert got.trailer(b"tieline-cause") is None  # the app's own, not a sidecar's
    assert path.records[0].cause is None


async def test_an_error_whose_body_breaks_off_is_told_all_the_same() -> None:
    broken = TielineError("gone", cause=Cause.APP_BROKEN)

    got = await invoke(Path(Reply(503, [], Pieces(b"half", error=broken))), request())

    assert got.status.code == GrpcCode.UNAVAILABLE
    assert error_info(got.status)["metadata"]["http.error_message"] == "half"


class Endless(Pieces):
    """A body that stops in its middle, and breaks off never."""

    async def read(self) -> bytes:
        return await super().read() or await asyncio.get_running_loop().create_future()


async def test_an_error_whose_body_never_ends_is_let_go_of_when_time_is_up() -> None:
    body = Endless(b"half")
    path = Path(Reply(503, [], body))

    got = await invoke(path, request(), (b"grpc-timeout", b"20m"))

    assert got.status.code == GrpcCode.DEADLINE_EXCEEDED
    assert body.abandoned
    assert len(path.records) == 1


async def test_an_answer_that_breaks_off_is_a_failure() -> None:
    broken = TielineError("unexpected EOF", cause=Cause.APP_BROKEN, hop=Hop.APP)
    path = Path(Reply(200, [], Pieces(b"half", error=broken)))

    got = await invoke(path, request())

    assert got.status == RpcStatus(13, "failed to invoke, id: other, err: unexpected EOF")
    assert got.trailer(b"tieline-cause") == b"app-broken"
    assert got.trailer(b"tieline-hop") == b"app"
    assert len(path.records) == 1


@pytest.mark.rule("G-2")
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_over_the_limit_is_not_sent(streamed: bool) -> None:
    body = Pieces(*[b"x" * 1000] * 9) if streamed else b"x" * 5000
    path = Path(Reply(200, [(b"content-type", b"text/plain")], body))

    got = await invoke(path, request())

    assert got.status.code == GrpcCode.RESOURCE_EXHAUSTED
    assert got.status.message.startswith("grpc: trying to send message larger than max (")
    assert got.status.message.endswith(" vs. 4096)")
    assert got.header(b"dapr-content-type") == b"text/plain"
    assert got.trailer(b"tieline-cause") == b"too-large"
    if isinstance(body, Pieces):
        assert body.abandoned


# ── up: a gRPC app ──


@pytest.mark.rule("G-15", "G-16", "G-62")
async def test_the_answer_of_a_grpc_app_passes_with_its_trailers() -> None:
    reply = RpcReply(
        RpcStatus(0),
        [(b"x-a", b"1"), (b"thing-bin", b"AAEC"), (b"cache-control", b"no-store")],
        b"hello",
        [(b"end-bin", b"/w")],
        content_type="200",
        type_url="type.googleapis.com/test.Thing",
    )

    got = await invoke(Path(reply), request(), (b"traceparent", TRACEPARENT))

    traced = [(b"traceparent", TRACEPARENT), (b"grpc-trace-bin", BINARY)]
    assert got.initial == [
        (b"content-type", b"application/grpc"),
        (b"x-a", b"1"),
        (b"thing-bin", b"AAEC"),
        (b"cache-control", b"no-store"),
        *traced,
    ]
    assert got.trailers == [(b"end-bin", b"/w"), *traced]
    assert got.message is not None
    response = InvokeResponse.FromString(got.message)
    assert (response.data.value, response.data.type_url, response.content_type) == (
        b"hello",
        "type.googleapis.com/test.Thing",
        "200",
    )


@pytest.mark.rule("G-16")
@pytest.mark.parametrize("code", [1, 3, 16, 20])
async def test_the_status_of_a_grpc_app_passes_as_it_is(code: int) -> None:
    status = RpcStatus(code, "status é", b"\x08\x03\x12\x01x")
    reply = RpcReply(status, [(b"x-a", b"1")], b"", [(b"app-trailer", b"t")])

    got = await invoke(Path(reply), request())

    assert got.status == status
    assert got.message is None
    assert got.header(b"x-a") == b"1"
    assert got.trailer(b"app-trailer") == b"t"
    assert got.trailer(b"tieline-cause") is None


# ── up: failures of sidecars ──


@pytest.mark.rule("G-17")
@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            UnknownTarget("couldn't find service: other"),
            GrpcCode.INTERNAL,
            "failed to invoke, id: other, err: couldn't find service: other",
        ),
        (
            BadRequest("access denied", grpc_code=GrpcCode.PERMISSION_DENIED, cause=Cause.DENIED),
            GrpcCode.INTERNAL,
            "failed to invoke, id: other, err: rpc error: code = PermissionDenied desc = access denied",
        ),
        (
            PeerUnreachable("refused"),
            GrpcCode.INTERNAL,
            "failed to invoke, id: other, err: rpc error: code = Unavailable desc = refused",
        ),
        (TimedOut(), GrpcCode.DEADLINE_EXCEEDED, "context deadline exceeded"),
        (
            TielineError("stream cut", cause=Cause.TIMEOUT, grpc_code=GrpcCode.DEADLINE_EXCEEDED),
            GrpcCode.DEADLINE_EXCEEDED,
            "context deadline exceeded",
        ),
        (TielineError("open", cause=Cause.BREAKER_OPEN), GrpcCode.UNKNOWN, "circuit breaker is open"),
        (
            TooLarge("grpc: too large", grpc_code=GrpcCode.RESOURCE_EXHAUSTED),
            GrpcCode.RESOURCE_EXHAUSTED,
            "grpc: too large",
        ),
    ],
)
async def test_failures_of_sidecars_are_internal_but_for_few(error: TielineError, code: GrpcCode, text: str) -> None:
    path = Path(error)

    got = await invoke(path, request())

    assert (got.status.code, got.status.message) == (code, text)
    assert got.trailer(b"tieline-cause") == error.cause.encode()
    assert got.trailer(b"tieline-hop") == error.hop.encode()
    assert [record.cause for record in path.records] == [error.cause]


@pytest.mark.rule("G-17", "H-28")
async def test_an_id_of_three_parts_is_none() -> None:
    got = await invoke(Path(Reply(200, [])), request("a.b.c"))
    nobody = await invoke(Path(Reply(200, [])), request(""))

    assert got.status == RpcStatus(13, "failed to invoke, id: a.b.c, err: invalid app id a.b.c")
    assert nobody.status == RpcStatus(13, "failed to invoke, id: , err: app id is empty")
