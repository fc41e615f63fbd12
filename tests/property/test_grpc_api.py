"""Whatever comes to the gRPC API is answered with a status, and what goes on is what gRPC lets pass."""

from __future__ import annotations

import asyncio
import re

from hypothesis import given
from hypothesis import strategies as st

from tests.support.rpc import INVOKE
from tieline._generated.dapr.proto.runtime.v1.dapr_pb2 import InvokeServiceRequest
from tieline.api.grpc.calls import BadMetadata, survey
from tieline.api.grpc.invoke import InvokeService
from tieline.api.grpc.own import OwnRpcs
from tieline.api.grpc.routes import own_rpcs, shared_rpcs, shared_streams
from tieline.api.grpc.server import GrpcApi
from tieline.api.health import Health
from tieline.api.http.tracing import Tracer
from tieline.api.metadata import Metadata
from tieline.middleware.observe import Observe
from tieline.model import Invocation, Reply, Request
from tieline.wire.grpc.messages import frame
from tieline.wire.grpc.status import read_status
from tieline.wire.trace_context import IdSource

PATHS = [
    INVOKE,
    *(f"/dapr.proto.runtime.v1.Dapr/{name}" for name in ("GetMetadata", "SetMetadata", "Shutdown", "GetState", "No")),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/a/b/c",
    "/",
]
NAMES = [
    "content-type", "grpc-timeout", "grpc-encoding", "grpc-trace-bin", "traceparent", "tracestate", "baggage",
    "dapr-api-token", "dapr-app-id", "dapr-caller-app-id", "x-a", "x-bin", "te", "user-agent", "tieline-cause",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([b"", b"application/grpc", b"application/grpc+proto", b"1S", b"0n", b"gzip", b"identity", b"AAAA"]),
    st.binary(max_size=40).map(lambda value: value.translate(None, bytes(range(0x20)) + b"\x7f").strip()),
)
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES).map(str.encode), VALUES), max_size=8)
BODIES = st.one_of(
    st.binary(max_size=80),
    st.binary(max_size=60).map(frame),
    st.builds(
        lambda app_id, method, query: frame(
            InvokeServiceRequest(
                id=app_id, message={"method": method, "http_extension": {"verb": 3, "querystring": query}}
            ).SerializeToString()
        ),
        st.text(max_size=10),
        st.text(max_size=10),
        st.text(max_size=10),
    ),
)


async def _answer(call: Invocation) -> Reply:
    return Reply(200, [(b"x-a", b"\xff"), (b"x-bin", b"\xff")], b"hello")


def _api() -> GrpcApi:
    health = Health("a")
    invoke = InvokeService(
        _answer,
        Observe(lambda record: None),
        app_id="a",
        namespace="default",
        drop_token=False,
        is_external=lambda target: False,
        limit=4096,
    )
    metadata = Metadata(
        app_id="a", version="1", features=(), app_port=None, app_protocol="http", channel_address="", max_concurrency=0
    )
    return GrpcApi(
        own=own_rpcs(invoke, OwnRpcs(metadata=metadata, shutdown=lambda force: None)),
        shared=shared_rpcs(health),
        streams=shared_streams(health),
        tracer=Tracer(enabled=True, new_ids=IdSource()),
        limit=4096,
    )


async def _ask(request: Request) -> Reply:
    reply = await _api().handle(request)
    body = reply.body
    if not isinstance(body, bytes):
        async with asyncio.timeout(5):
            for _ in range(20):
                # A watcher of health is never told all.
                read = asyncio.ensure_future(body.read())
                await asyncio.wait([read], timeout=0.01)
                if not read.done():
                    read.cancel()
                    break
                if not read.result():
                    break
        body.abandon()
        reply.trailers = body.trailers
    return reply


@given(st.sampled_from(PATHS), FIELDS, BODIES, st.booleans())
def test_every_request_ends_with_a_status(
    path: str, fields: list[tuple[bytes, bytes]], body: bytes, typed: bool
) -> None:
    headers = [(b"content-type", b"application/grpc"), *fields] if typed else fields

    reply = asyncio.run(_ask(Request(b"POST", path.encode(), None, headers, body, None, b"a")))

    status = read_status(reply.trailers if reply.trailers is not None else reply.headers)
    assert status is not None
    assert 0 <= status.code <= 16
    assert reply.headers[0][0] == b"content-type"
    for name, value in [*reply.headers, *(reply.trailers or [])]:
        assert re.fullmatch(rb"[0-9a-z._-]+", name)
        assert re.fullmatch(rb"[\x20-\x7e]*", value)


@given(FIELDS)
def test_what_travels_on_is_free_of_what_is_this_hops(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        kept, _, noted = survey(fields)
    except BadMetadata:
        return

    names = {name for name, _ in kept}
    assert names <= {b"x-a", b"x-bin", b"user-agent", b"baggage"}
    assert len(kept) + sum(map(len, (noted or {}).values())) <= len(fields) * 2
    assert [field for field in fields if field[0] in names] == kept
