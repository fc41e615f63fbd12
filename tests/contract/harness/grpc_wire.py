"""Recorded calls between two daprd sidecars, and what playing one side of them needs.

``cases/grpc-wire.json`` holds one call a line:

| member | meaning |
|---|---|
| ``client``, ``got`` | the request at the caller's API, and its answer; ``direct-…``: the caller is made by hand |
| ``callee``, ``app`` | app ID of the called sidecar, and what its app speaks |
| ``rpcs`` | the RPCs between the two: messages either way in base64, and how they ended |
| ``saw`` | what the called app saw |
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from tests.support.app import Exchange
from tests.support.daprd import b64
from tests.support.grpc_app import Answer, echoed
from tests.support.grpc_app import Exchange as Rpc
from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeRequest, InvokeResponse
from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb
from tieline._generated.google.rpc.error_details_pb2 import ErrorInfo
from tieline._generated.google.rpc.status_pb2 import Status

FOLDER = Path(__file__).parents[1] / "cases"


def load(name: str) -> list[dict[str, Any]]:
    """Return the cases of a file."""
    cases: list[dict[str, Any]] = json.loads((FOLDER / name).read_text())["cases"]
    return cases


class Call(NamedTuple):
    """The request of an RPC, or its answer, put together from its messages."""

    head: dict[str, Any]
    body: bytes
    payloads: int


def _entries(source: Any) -> dict[str, list[str]]:
    return {name: list(one.values) for name, one in sorted(source.items())}


def request_of(messages: Iterable[bytes], *, unary: bool = False) -> Call:
    """Put a request together."""
    raw = list(messages)
    body, payloads = b"", 0
    if unary:
        request = pb.InternalInvokeRequest.FromString(raw[0])
        body = request.message.data.value
    else:
        streamed = [pb.InternalInvokeRequestStream.FromString(one) for one in raw]
        request = streamed[0].request
        assert not any(one.HasField("request") for one in streamed[1:])
        body, payloads = _joined(streamed)
    message = request.message
    head = {
        "ver": request.ver,
        "metadata": _entries(request.metadata),
        "method": message.method,
        "content_type": message.content_type,
        "has_data": message.HasField("data"),
        "type_url": message.data.type_url,
        "verb": message.http_extension.verb if message.HasField("http_extension") else None,
        "query": message.http_extension.querystring,
    }
    return Call(head, body, payloads)


def answer_of(messages: Iterable[bytes], *, unary: bool = False) -> Call:
    """Put an answer together."""
    raw = list(messages)
    if unary:
        response = pb.InternalInvokeResponse.FromString(raw[0])
        body, payloads = response.message.data.value, 0
    else:
        streamed = [pb.InternalInvokeResponseStream.FromString(one) for one in raw]
        response = streamed[0].response
        body, payloads = _joined(streamed)
    message = response.message
    head = {
        "has_status": response.HasField("status"),
        "status": response.status.code,
        "text": response.status.message,
        "details": [(one.type_url, one.value) for one in response.status.details],
        "headers": _entries(response.headers),
        "trailers": _entries(response.trailers),
        "has_message": response.HasField("message"),
        "content_type": message.content_type,
        "type_url": message.data.type_url,
    }
    return Call(head, body, payloads)


def _joined(messages: Iterable[Any]) -> tuple[bytes, int]:
    pieces = [one.payload for one in messages if one.HasField("payload")]
    assert [piece.seq for piece in pieces] == list(range(len(pieces)))
    assert all(len(piece.data) <= 2048 for piece in pieces)
    return b"".join(piece.data for piece in pieces), len(pieces)


def recorded(rpc: dict[str, Any], side: str) -> list[bytes]:
    """Return the messages of an RPC that one side sent: ``asked`` or ``answered``."""
    return [b64(one) for one in rpc[side]]


def body_of(client: dict[str, Any]) -> bytes:
    """Return the body of a client's request."""
    text = client.get("body") or ""
    return b"first,second" if text.startswith("<12 bytes in 2 chunks") else b64(text)


async def answer_as_recorded(exchange: Exchange, name: str = "beta") -> None:
    """Be the HTTP app of the recordings, with its app ID: the path says what is answered."""
    body = await exchange.body()
    word, _, rest = exchange.target.split("?")[0].lstrip("/").partition("/")
    given = exchange.header("content-type")
    kind = [("Content-Type", given)] if given else []
    if word == "echo":
        _send(exchange, 200, body, kind)
    elif word == "status":
        status = int(rest.split("/")[0])
        _send(exchange, status, b'{"status": %d}' % status, [("Content-Type", "application/json"), ("X-App", name)])
    elif word == "headers":
        _send(exchange, 200, b"ok", HEADERS)
    elif word == "empty":
        _send(exchange, 200, b"", [])
    elif word == "untyped":
        _send(exchange, 200, b'{"a":1}', [])
    elif word == "cut":
        exchange.answer(200, b"y" * 100, [("Content-Type", "text/plain")], length=1000)
        exchange.close()
    elif word in ("stream", "sse", "cut-stream"):
        exchange.begin_chunked(200, [("Content-Type", "text/event-stream" if word == "sse" else "text/plain")])
        for number in range(3):
            exchange.chunk(b"data: %d\n\n" % number)
            await asyncio.sleep(0.05)  # pieces of their own, as in the recording
        if word == "cut-stream":
            exchange.close()
        else:
            exchange.end_chunks()
    else:
        _send(exchange, 404, b'{"error":"no such path"}', [("Content-Type", "application/json")])


HEADERS = [
    ("Content-Type", "text/plain"), ("X-One", "a"), ("X-One", "b"), ("Set-Cookie", "c=1"), ("Set-Cookie", "d=2"),
    ("Cache-Control", "no-store"), ("Thing-Bin", "AAEC"), ("Grpc-Foo", "bar"), ("Connection", "x-hop"),
    ("X-Hop", "gone"), ("Date", "Mon, 01 Jan 2024 00:00:00 GMT"), ("Location", "/elsewhere"), ("Via", "1.1 app"),
    ("Dapr-Thing", "t"), ("Server", "app"),
]  # fmt: skip


def _send(exchange: Exchange, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
    if status in (204, 304) or exchange.verb == "HEAD":
        exchange.begin(status, headers if status in (204, 304) else [*headers, ("Content-Length", str(len(body)))])
    else:
        exchange.answer(status, body, headers)


async def invoked_as_recorded(exchange: Rpc) -> None:
    """Be the gRPC app of the recordings: the method says what is answered."""
    message = await exchange.read() or b""
    request = InvokeRequest.FromString(message)
    word, _, rest = request.method.lstrip("/").partition("/")
    if word == "status" and not rest.startswith("0"):
        number, _, details = rest.partition("/")
        trailers: list[tuple[str, str | bytes]] = [("app-trailer", "t")]
        if details:
            status = Status(code=int(number), message=f"status {number}")
            status.details.add().Pack(ErrorInfo(reason="BECAUSE", domain="app.test", metadata={"k": "v"}))
            trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        code: Any = next((one for one in grpc.StatusCode if one.value[0] == int(number)), int(number))
        await exchange.context.abort(code, f"status {number}", tuple(trailers))
    elif word == "headers":
        await exchange.answer(Answer([echoed(message)], headers=RPC_HEADERS, trailers=RPC_TRAILERS))
    elif word == "empty":
        await exchange.answer(Answer([b""]))
    elif word == "typed":
        response = InvokeResponse()
        response.data.type_url, response.data.value = "type.googleapis.com/test.Thing", b"\x0a\x01z"
        await exchange.answer(Answer([response.SerializeToString()]))
    else:
        await exchange.answer(Answer([echoed(message)]))


RPC_HEADERS = (
    ("x-one", "a"), ("x-one", "b"), ("thing-bin", b"\x00\x01\x02"), ("cache-control", "no-store"),
    ("set-cookie", "c=1"), ("location", "/elsewhere"), ("dapr-thing", "t"),
)  # fmt: skip
RPC_TRAILERS = (("app-trailer", "t"), ("end-bin", b"\xff"))
