"""Calls of gRPC clients to an app that speaks HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.app import App, Exchange, echo
from tieline.app.http_channel import HttpChannel
from tieline.errors import BadRequest, GrpcCode
from tieline.model import CallRecord, Headers, Invocation, Rpc, Target
from tieline.wire.headers import identity
from tieline.wire.method_path import encode_escaped

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_BIN = b"AAAK92UZFs1D3YRI6yEcgDGcAbeta3FpIDMxAgE"
POST = 3


def a_call(
    rpc: Rpc, method: bytes = b"work", metadata: Headers | None = None, *, query: bytes = b"", body: bytes = b"x"
) -> Invocation:
    target = Target("me", "", "me")
    encoded = encode_escaped(method)
    return Invocation(
        target, b"POST", method, encoded, query, metadata or [], body, len(body), CallRecord(), rpc=rpc
    )  # fmt: skip


@pytest.fixture
async def app() -> AsyncIterator[App]:
    made = App(echo)
    await made.start()
    yield made
    await made.aclose()


async def seen(app: App, call: Invocation, token: str | None = None) -> Exchange:
    """Make a call, and return it as the app saw it."""
    channel = HttpChannel(
        protocol="http", host="127.0.0.1", port=app.port, max_concurrency=0, read_buffer=4096, token=token
    )
    await channel.call(call, identity("caller", "default", "me"))
    await channel.aclose()
    return app.seen[-1]


@pytest.mark.rule("G-13")
@pytest.mark.parametrize(
    ("number", "verb"),
    [(1, "GET"), (2, "HEAD"), (3, "POST"), (4, "PUT"), (5, "DELETE"), (7, "OPTIONS"), (8, "TRACE"), (9, "PATCH")],
)
async def test_the_verb_is_that_of_the_extension(app: App, number: int, verb: str) -> None:
    call = a_call(Rpc(number, "", "", None), body=b"")

    assert (await seen(app, call)).verb == verb
    assert call.record.verb == verb.encode()


@pytest.mark.rule("G-13")
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "missing HTTP extension field"),
        (0, "invalid HTTP verb"),
        (6, "invalid HTTP verb"),
        (99, "invalid HTTP verb"),
    ],
)
async def test_without_a_verb_an_http_app_is_not_called(app: App, number: int | None, text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await seen(app, a_call(Rpc(number, "", "", None)))

    assert (refused.value.text, refused.value.grpc_code) == (text, GrpcCode.INVALID_ARGUMENT)
    assert app.seen == []


@pytest.mark.rule("G-59", "G-60", "G-25")
async def test_metadata_become_headers_and_the_type_is_the_messages(app: App) -> None:
    metadata: Headers = [
        (b":authority", b"127.0.0.1:1"),
        (b"content-type", b"application/grpc"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"thing-bin", b"AP8"),
        (b"dapr-caller-app-id", b"liar"),
        (b"grpc-foo", b"f"),
        (b"proxy-authorization", b"p"),
        (b"user-agent", b"client"),
    ]

    got = await seen(app, a_call(Rpc(POST, "text/x", "", None), metadata=metadata), token="mine")
    typed = await seen(app, a_call(Rpc(POST, "text/x", "type/x", None)))

    shown = sorted((name.lower(), value) for name, value in got.headers)
    assert shown == [
        ("content-length", "1"),
        ("content-type", "text/x"),
        ("dapr-api-token", "mine"),
        ("dapr-authority", "127.0.0.1:1"),
        ("dapr-callee-app-id", "me"),
        ("dapr-caller-app-id", "caller"),
        ("dapr-caller-namespace", "default"),
        ("dapr-grpc-foo", "f"),
        ("host", f"127.0.0.1:{app.port}"),
        ("user-agent", "client"),
        ("x-a", "1"),
        ("x-a", "2"),
    ]
    assert typed.header("content-type") == "application/x-protobuf"


@pytest.mark.rule("G-118")
async def test_the_trace_is_the_binary_one_if_there_is_one(app: App) -> None:
    rpc = Rpc(POST, "", "", None)
    other = b"00-11111111111111111111111111111111-2222222222222222-00"

    both = await seen(app, a_call(rpc, metadata=[(b"traceparent", other), (b"grpc-trace-bin", TRACE_BIN)]))
    text = await seen(app, a_call(rpc, metadata=[(b"traceparent", other), (b"tracestate", b"a=b")]))

    assert [both.header("traceparent"), both.header("tracestate")] == [TRACEPARENT.decode(), None]
    assert [text.header("traceparent"), text.header("tracestate")] == [other.decode(), "a=b"]


@pytest.mark.rule("G-66")
@pytest.mark.parametrize(
    ("method", "query", "target"),
    [
        (b"a%2Fb", b"", "/a%2Fb"),
        (b'a *"\\b', b"", "/a%20%2A%22%5Cb"),
        ("é世".encode(), b"", "/%C3%A9%E4%B8%96"),
        (b"/root", b"", "/root"),
        (b"", b"", "/"),
        (b"x", b"a=b c&d=%20", "/x?a=b%20c&d=%20"),
        (b"x", "q=é\r\nX-Injected: 1".encode(), "/x?q=%C3%A9%0D%0AX-Injected:%201"),
    ],
)
async def test_method_and_query_are_written_so_that_they_cannot_end_the_line(
    app: App, method: bytes, query: bytes, target: str
) -> None:
    got = await seen(app, a_call(Rpc(POST, "", "", None), method, query=query))

    assert got.target == target
    assert got.header("x-injected") is None


@pytest.mark.rule("G-66")
async def test_a_percent_sign_that_escapes_nothing_is_refused(app: App) -> None:
    with pytest.raises(BadRequest, match="invalid URL escape"):
        await seen(app, a_call(Rpc(POST, "", "", None), b"100%"))
