"""What every RPC to the gRPC API passes before its handler."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.rpc import GET_METADATA, INVOKE, call_rpc, error_info
from tieline.api.grpc.answers import RpcAnswer, succeeded
from tieline.api.grpc.calls import RpcCall
from tieline.api.grpc.server import GrpcApi, not_built, told_its_trace
from tieline.api.http.tracing import Tracer
from tieline.config.api_lists import GrpcLists
from tieline.config.grpc_apis import ALL_PATHS, path_of
from tieline.errors import GrpcCode, TielineError
from tieline.model import Cause, Headers, Shape
from tieline.wire.trace_context import IdSource

TRACED = b"AAAK92UZFs1D3YRI6yEcgDGcAbeta3FpIDMxAgE"
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Ledger:
    """A handler that writes down what it was called with, and the metrics that it is told of."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, Headers]] = []
        self.contexts: list[bytes | None] = []
        self.counted: list[tuple[bytes, int, int | None, int]] = []
        self.errors: list[tuple[str, str]] = []

    async def __call__(self, rpc: RpcCall, message: bytes) -> RpcAnswer:
        self.calls.append((message, rpc.headers))
        self.contexts.append(None if rpc.context is None else rpc.context.traceparent)
        return succeeded(b"answer", [])

    def record_rpc(self, path: bytes, code: int, seconds: float, received: int | None, sent: int) -> None:
        assert seconds >= 0
        self.counted.append((path, code, received, sent))

    def count_error(self, code: str, category: str) -> None:
        self.errors.append((code, category))


def api(
    ledger: Ledger, *, traced: bool = True, token: str | None = None, lists: dict[str, object] | None = None
) -> GrpcApi:
    return GrpcApi(
        own={
            **dict.fromkeys(ALL_PATHS, told_its_trace(not_built)),
            GET_METADATA.encode(): told_its_trace(ledger),
            INVOKE.encode(): ledger,
        },
        shared={},
        streams={},
        tracer=Tracer(enabled=traced, new_ids=IdSource()),
        limit=1024,
        lists=None if lists is None else GrpcLists(lists),
        token=token,
        metrics=lambda: ledger,
    )


# ── is it an RPC ──


@pytest.mark.rule("G-8", "G-125")
@pytest.mark.parametrize(
    ("content_type", "answered"),
    [
        (b"application/grpc", b"application/grpc"),
        (b"application/grpc+proto", b"application/grpc+proto"),
        (b"application/grpc+json", b"application/grpc+json"),
        (b"application/grpc;charset=utf-8", b"application/grpc+charset=utf-8"),
        (b"application/grpc+", b"application/grpc"),
    ],
)
async def test_the_subtype_of_the_content_type_is_answered(content_type: bytes, answered: bytes) -> None:
    got = await call_rpc(api(Ledger()).handle, GET_METADATA, b"", content_type=content_type)

    assert got.status.code == GrpcCode.OK
    assert got.initial[0] == (b"content-type", answered)


@pytest.mark.rule("G-125")
@pytest.mark.parametrize("content_type", [b"Application/GRPC", b"text/plain", b"application/grpc-web", b""])
async def test_another_content_type_is_refused_in_http_and_in_grpc(content_type: bytes) -> None:
    ledger = Ledger()

    got = await call_rpc(api(ledger, token="secret").handle, GET_METADATA, b"", content_type=content_type)

    assert (got.http_status, got.status.code) == (415, GrpcCode.INVALID_ARGUMENT)
    assert got.status.message == f'invalid gRPC request content-type "{content_type.decode()}"'
    assert got.initial == [(b"content-type", b"application/grpc")]
    assert not ledger.calls


@pytest.mark.rule("G-125")
async def test_another_verb_is_refused() -> None:
    got = await call_rpc(api(Ledger()).handle, GET_METADATA, b"", verb=b"PUT")

    assert (got.http_status, got.status.code) == (405, GrpcCode.INTERNAL)
    assert got.status.message == 'Received a HEADERS frame with :method "PUT" which should be POST'


@pytest.mark.rule("G-125")
@pytest.mark.parametrize(
    ("field", "text"),
    [
        ((b"grpc-timeout", b"10"), 'malformed grpc-timeout: transport: timeout unit is not recognized: "10"'),
        ((b"grpc-timeout", b"-1S"), 'malformed grpc-timeout: strconv.ParseUint: parsing "-1": invalid syntax'),
        ((b"grpc-timeout", b"S"), 'malformed grpc-timeout: transport: timeout string is too short: "S"'),
        (
            (b"thing-bin", b"!!"),
            'malformed binary metadata "!!" in header "thing-bin": illegal base64 data at input byte 0',
        ),
        (
            (b"thing-bin", b"AP8,AAE"),
            'malformed binary metadata "AP8,AAE" in header "thing-bin": illegal base64 data at input byte 3',
        ),
    ],
)
async def test_malformed_metadata_make_a_bad_request(field: tuple[bytes, bytes], text: str) -> None:
    got = await call_rpc(api(Ledger()).handle, GET_METADATA, b"", field)

    assert (got.http_status, got.status.code, got.status.message) == (400, GrpcCode.INTERNAL, text)


@pytest.mark.rule("G-125")
@pytest.mark.parametrize("path", ["/", "/x", "*"])
async def test_a_path_without_two_parts_is_no_method(path: str) -> None:
    got = await call_rpc(api(Ledger()).handle, path, b"")

    assert (got.http_status, got.status.code) == (200, GrpcCode.UNIMPLEMENTED)
    assert got.status.message == f'malformed method name: "{path}"'
    assert got.initial == [(b"content-type", b"application/grpc")]


@pytest.mark.rule("G-125")
async def test_time_that_is_up_before_it_began_ends_the_rpc() -> None:
    ledger = Ledger()

    got = await call_rpc(api(ledger).handle, GET_METADATA, b"", (b"grpc-timeout", b"0S"))

    assert (got.status.code, got.status.message) == (GrpcCode.DEADLINE_EXCEEDED, "context deadline exceeded")
    assert not ledger.calls


@pytest.mark.rule("G-124", "G-125", "G-2")
@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", GrpcCode.UNKNOWN, "EOF"),
        (b"\0\0\0\0\5ab", GrpcCode.UNKNOWN, "unexpected EOF"),
        (b"\1\0\0\0\0", GrpcCode.INTERNAL, "grpc: compressed flag set with identity or empty encoding"),
        (b"\2\0\0\0\0", GrpcCode.INTERNAL, "grpc: received unexpected payload format 2"),
        (
            b"\0\0\0\4\1" + b"x" * 1025,
            GrpcCode.RESOURCE_EXHAUSTED,
            "grpc: received message larger than max (1025 vs. 1024)",
        ),
    ],
)
async def test_what_is_no_message_is_told(body: bytes, code: GrpcCode, text: str) -> None:
    got = await call_rpc(api(Ledger()).handle, GET_METADATA, None, body=body)

    assert (got.status.code, got.status.message) == (code, text)


@pytest.mark.rule("G-125")
async def test_an_encoding_that_nobody_knows_is_told() -> None:
    for body in (b"\1\0\0\0\0", b"\0\0\0\0\0"):
        got = await call_rpc(api(Ledger()).handle, GET_METADATA, b"", (b"grpc-encoding", b"br"), body=body)

        assert got.status.code == GrpcCode.UNIMPLEMENTED
        assert got.status.message == 'grpc: Decompressor is not installed for grpc-encoding "br"'


@pytest.mark.rule("G-124")
async def test_a_second_message_of_a_unary_call_is_ignored() -> None:
    ledger = Ledger()

    got = await call_rpc(api(ledger).handle, GET_METADATA, None, body=b"\0\0\0\0\1a\0\0\0\0\1b")

    assert got.message == b"answer"
    assert ledger.calls[0][0] == b"a"


# ── who may call ──


@pytest.mark.rule("G-110")
@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ([], "missing api token in request metadata"),
        ([b""], "authentication error: api token mismatch"),
        ([b"nope"], "authentication error: api token mismatch"),
        ([b"nope", b"secret"], "authentication error: api token mismatch"),
    ],
)
@pytest.mark.parametrize("path", [GET_METADATA, "/dapr.proto.runtime.v1.Dapr/GetState", "/test.Echo/Unary"])
async def test_without_the_token_nothing_may_be_called(shown: list[bytes], reason: str, path: str) -> None:
    ledger = Ledger()

    got = await call_rpc(api(ledger, token="secret").handle, path, b"", *[(b"dapr-api-token", one) for one in shown])

    assert (got.status.code, got.status.message) == (GrpcCode.UNAUTHENTICATED, "Unauthorized")
    assert error_info(got.status) == {
        "reason": "Unauthorized",
        "domain": "dapr.io",
        "metadata": {"http.code": "401", "http.error_message": reason},
    }
    assert got.trailer(b"tieline-cause") == b"denied"
    assert b"dapr-api-token" in (got.trailer(b"tieline-hint") or b"")
    assert not ledger.calls
    assert not ledger.counted  # the token stands before the metrics


@pytest.mark.rule("G-110")
async def test_the_token_lets_in_and_goes_no_further() -> None:
    ledger = Ledger()
    metadata = ((b"dapr-api-token", b"secret"), (b"dapr-api-token", b"other"), (b"x-a", b"1"))

    got = await call_rpc(api(ledger, token="secret").handle, GET_METADATA, b"", *metadata)

    assert got.status.code == GrpcCode.OK
    assert ledger.calls[0][1] == [(b"x-a", b"1")]


@pytest.mark.rule("G-112", "G-113", "S-56", "S-57", "S-58")
async def test_what_no_list_allows_is_not_there_even_with_the_wrong_token() -> None:
    ledger = Ledger()
    only_invoke = api(
        ledger, token="secret", lists={"allowed": [{"name": "invoke", "version": "v1", "protocol": "grpc"}]}
    )

    for path in (GET_METADATA, "/dapr.proto.runtime.v1.Dapr/NoSuchThing"):
        got = await call_rpc(only_invoke.handle, path, b"")
        assert (got.status.code, got.status.message) == (GrpcCode.UNIMPLEMENTED, "Not Implemented")
        assert error_info(got.status) == {
            "reason": "Not Implemented",
            "domain": "dapr.io",
            "metadata": {"http.code": "501", "http.error_message": "requested endpoint is not available"},
        }
    allowed = await call_rpc(only_invoke.handle, INVOKE, b"", (b"dapr-api-token", b"secret"))
    app = await call_rpc(only_invoke.handle, "/test.Echo/Unary", b"", (b"dapr-api-token", b"secret"))

    assert allowed.message == b"answer"
    assert app.status.code == GrpcCode.UNKNOWN  # let in; but nobody to take it


# ── trace and baggage ──


@pytest.mark.rule("G-115", "G-116", "G-119", "O-8", "O-9")
async def test_the_binary_context_counts_before_the_other() -> None:
    ledger = Ledger()
    other = (b"traceparent", TRACEPARENT.replace(b"0af7", b"ffff"))

    got = await call_rpc(api(ledger).handle, GET_METADATA, b"", other, (b"grpc-trace-bin", TRACED))

    assert ledger.contexts == [TRACEPARENT]
    assert got.header(b"grpc-trace-bin") == TRACED


@pytest.mark.rule("G-116", "O-9")
async def test_a_traceparent_is_continued_and_a_broken_one_begun_anew() -> None:
    ledger = Ledger()
    handle = api(ledger).handle

    await call_rpc(handle, GET_METADATA, b"", (b"traceparent", TRACEPARENT))
    await call_rpc(handle, GET_METADATA, b"", (b"grpc-trace-bin", b"AAAA"))

    first, second = ledger.contexts
    assert first == TRACEPARENT
    assert second is not None
    assert second.endswith(b"-00")


@pytest.mark.rule("O-1")
async def test_where_nobody_traces_there_is_no_context_and_baggage_is_not_looked_at() -> None:
    ledger = Ledger()

    got = await call_rpc(api(ledger, traced=False).handle, GET_METADATA, b"", (b"baggage", b"no equals sign"))

    assert ledger.contexts == [None]
    assert got.header(b"grpc-trace-bin") is None
    assert got.header(b"baggage") is None
    assert (b"baggage", b"no equals sign") in ledger.calls[0][1]


@pytest.mark.rule("G-120", "O-10")
async def test_baggage_is_checked_forwarded_and_repeated_in_order() -> None:
    ledger = Ledger()
    handle = api(ledger).handle

    good = await call_rpc(handle, GET_METADATA, b"", (b"baggage", b"b=1"), (b"baggage", b"a=2"))
    bad = await call_rpc(handle, GET_METADATA, b"", (b"baggage", b"no equals sign"))
    failed = await call_rpc(handle, "/dapr.proto.runtime.v1.Dapr/GetState", b"", (b"baggage", b"a=2"))

    assert good.header(b"baggage") == b"b=1,a=2"
    assert ledger.calls[0][1] == [(b"baggage", b"b=1"), (b"baggage", b"a=2")]
    assert bad.status.code == GrpcCode.INVALID_ARGUMENT
    assert bad.status.message == 'invalid baggage header: invalid baggage list-member: "no equals sign"'
    assert failed.header(b"baggage") == b"a=2"


# ── handlers ──


@pytest.mark.rule("G-11")
@pytest.mark.parametrize("name", ["GetState", "SubscribeConfiguration", "ConverseAlpha2", "SubtleSignAlpha1"])
async def test_building_blocks_that_are_not_here_say_so(name: str) -> None:
    got = await call_rpc(api(Ledger()).handle, path_of(name).decode(), b"")

    assert got.status.code == GrpcCode.UNIMPLEMENTED
    assert got.status.message == "this API is currently not implemented"


@pytest.mark.rule("G-11", "G-68")
async def test_what_is_nobodys_rpc_wants_a_target() -> None:
    traced, untraced = api(Ledger()).handle, api(Ledger(), traced=False).handle
    missing = "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata"
    not_found = "failed to proxy request: required metadata dapr-callee-app-id or dapr-app-id not found"

    for handle, path, text in (
        (traced, "/test.Echo/Unary", missing),
        (untraced, "/test.Echo/Unary", not_found),
        (traced, "/dapr.proto.runtime.v1.Dapr/NoSuchThing", not_found),
    ):
        got = await call_rpc(handle, path, b"")
        assert (got.status.code, got.status.message) == (GrpcCode.UNKNOWN, text)


@pytest.mark.rule("O-26", "O-27", "G-113")
async def test_unary_rpcs_are_counted_with_their_sizes() -> None:
    ledger = Ledger()
    handle = api(ledger).handle

    await call_rpc(handle, GET_METADATA, b"abc")
    await call_rpc(handle, GET_METADATA, None)
    await call_rpc(handle, "/test.Echo/Unary", b"abc")

    path = GET_METADATA.encode()
    assert ledger.counted == [(path, GrpcCode.OK, 3, 6), (path, GrpcCode.UNKNOWN, 0, 0)]


async def test_a_failure_of_a_handler_is_explained_in_the_trailers() -> None:
    ledger = Ledger()

    async def fail(rpc: RpcCall, message: bytes) -> RpcAnswer:
        raise TielineError("no", hint="do it", cause=Cause.OVERLOADED, grpc_code=GrpcCode.ABORTED)

    handle = GrpcApi(
        own={INVOKE.encode(): fail},
        shared={},
        streams={},
        tracer=Tracer(enabled=False, new_ids=IdSource()),
        limit=None,
        metrics=lambda: ledger,
    ).handle

    got = await call_rpc(handle, INVOKE, b"")

    assert (got.status.code, got.status.message) == (GrpcCode.ABORTED, "no")
    assert got.trailers == [
        (b"tieline-cause", b"overloaded"),
        (b"tieline-hop", b"caller"),
        (b"tieline-hint", b"do it"),
    ]


def test_what_one_api_found_out_about_a_head_is_nothing_to_its_successor() -> None:
    """A reload may have closed the RPC, or changed the token that the head shows."""
    connection: Any = None

    assert not api(Ledger()).repeat(connection, connection, (api(Ledger()), object(), None), b"", None)


async def test_a_request_like_one_that_was_let_in_is_let_in_by_none_but_the_same_api() -> None:
    """A reload may have brought a token; connections, and what is known of their requests, stay."""
    before, after = api(Ledger()), api(Ledger(), token="secret")
    shape = Shape()
    got = [await call_rpc(one.handle, GET_METADATA, b"", shape=shape) for one in (before, before, after, before)]

    assert [one.status.code for one in got] == [0, 0, GrpcCode.UNAUTHENTICATED, 0]
    assert [field for field in got[1].initial if field[0] != b"grpc-trace-bin"] == [
        field for field in got[0].initial if field[0] != b"grpc-trace-bin"
    ]
