"""Recorded calls between two daprd sidecars, and what playing one side of them needs.

``cases/grpc-wire.json`` holds one call a line:

| member | meaning |
|---|---|
| ``client``, ``got`` | the request at the caller's API, and its answer; ``direct``: the caller is made by hand |
| ``callee``, ``app`` | app ID of the called sidecar, and what its app speaks |
| ``caller_flags``, ``caller_env``, ``callee_flags``, ``callee_env`` | what these sidecars were started with |
| ``wire`` | the bytes on the connection between the two; of ``app-leg-…``, between the called one and its app |
| ``path``, ``asked``, ``answered`` | in its place for long messages: the first one, and the body that follows |
| ``saw`` | what the called app saw |
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from tests.contract.harness.played import Half, Wire, made, sides
from tests.support.app import Exchange
from tests.support.daprd import UNARY, b64, framed
from tests.support.grpc_app import Answer, echoed
from tests.support.grpc_app import Exchange as RpcExchange
from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeRequest, InvokeResponse
from tieline._generated.dapr.proto.internals.v1 import service_invocation_pb2 as pb
from tieline._generated.google.rpc.error_details_pb2 import ErrorInfo
from tieline._generated.google.rpc.status_pb2 import Status

FOLDER = Path(__file__).parents[1] / "cases"


def load(name: str) -> list[dict[str, Any]]:
    """Return the cases of a file."""
    cases: list[dict[str, Any]] = json.loads((FOLDER / name).read_text())["cases"]
    return cases


class Rpc(NamedTuple):
    """What went between the two for one call."""

    asked: Half
    answered: Half

    @property
    def path(self) -> str:
        return self.asked.header(":path")

    @property
    def unary(self) -> bool:
        return self.path == UNARY

    @property
    def status(self) -> tuple[int, str] | None:
        """Code and text of its end; ``None`` if the callee did not say."""
        return self.answered.status


def wire_of(case: dict[str, Any]) -> Wire:
    """Return what went over the connection between the two; made, where it was too long to be written down."""
    if "wire" in case:
        return [(who, b64(text)) for who, text in case["wire"]]
    asked = _long(pb.InternalInvokeRequestStream, case["asked"])
    answered = _long(pb.InternalInvokeResponseStream, case["answered"])
    return made(case["path"], b"".join(map(framed, asked)), b"".join(map(framed, answered)))


def rpcs_of(case: dict[str, Any]) -> list[Rpc]:
    """Return the RPCs between the two."""
    client, server = sides(wire_of(case))
    return [Rpc(half, server.streams.get(number, Half())) for number, half in sorted(client.streams.items())]


def _long(kind: Any, given: dict[str, Any]) -> list[bytes]:
    """Return the messages of a body that is too long to be written down."""
    body, piece = given["body"], 2048
    if isinstance(body, dict):
        body, piece = (body["of"] * body["size"])[: body["size"]].encode(), body["piece"]
    else:
        body = b64(body)
    messages = [kind.FromString(b64(given["head"]))]
    for number in range(-(-len(body) // piece)):
        if number:
            messages.append(kind())
        messages[-1].payload.data = body[number * piece : (number + 1) * piece]
        messages[-1].payload.seq = number
    return [one.SerializeToString() for one in messages]


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


def bytes_of(text: str) -> bytes:
    """Return a body or message as it is written down: base64, or what it is made of if it is long."""
    long = re.fullmatch(r"<(?:(\S+) and )?(\d+) bytes (?:of (\w+) repeated|in \d+ chunks.*?)(?: and (\S*))?>", text)
    if long is None:
        return b64(text)
    head, size, unit, tail = long.groups()
    if size == "12":
        return b"first,second"
    body = (unit or "0123456789abcdef") * int(size)
    return b64(head or "") + body[: int(size)].encode() + b64(tail or "")


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
    elif word == "big":
        _send(exchange, 200, b"x" * int(rest), [("Content-Type", "application/octet-stream")])
    elif word == "sleep":
        await exchange.gone()
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


async def invoked_as_recorded(exchange: RpcExchange) -> None:
    """Be the gRPC app of the recordings: the method says what is answered."""
    message = await exchange.read() or b""
    request = InvokeRequest.FromString(message)
    word, _, rest = request.method.lstrip("/").partition("/")
    if word == "status" and not rest.startswith("0"):
        number, _, details = rest.partition("/")
        await _fail(exchange, int(number), details)
    elif word == "sleep":
        await asyncio.Event().wait()
    elif word == "big":
        response = InvokeResponse(content_type="application/octet-stream")
        response.data.value = b"x" * int(rest)
        await exchange.answer(Answer([response.SerializeToString()]))
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


async def _fail(exchange: RpcExchange, number: int, details: str) -> None:
    trailers: list[tuple[str, str | bytes]] = [("app-trailer", "t")]
    if details:
        status = Status(code=number, message=f"status {number}")
        status.details.add().Pack(ErrorInfo(reason="BECAUSE", domain="app.test", metadata={"k": "v"}))
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    code: Any = next((one for one in grpc.StatusCode if one.value[0] == number), number)
    await exchange.context.abort(code, f"status {number}", tuple(trailers))


async def fail_as_recorded(exchange: RpcExchange) -> None:
    """Be the recorded app's RPCs that fail; the message says with which code."""
    message = await exchange.read() or b""
    kind = exchange.seen.path.rpartition("/")[2]
    if kind == "HeadersThenError":
        await exchange.begin([("x-early", "1")])
    if kind == "ErrorAfterMessage":
        await exchange.write(message)
    await _fail(exchange, int(message or b"9"), "details")


async def tell_as_recorded(exchange: RpcExchange) -> None:
    """Be the recorded app's RPC with metadata on both ends of its answer."""
    message = await exchange.read() or b""
    trailers = (("app-trailer", "t"), ("end-bin", b"\xff\xfe"))
    await exchange.answer(Answer([message], headers=RPC_HEADERS[:3], trailers=trailers))


async def sleep_as_recorded(exchange: RpcExchange) -> None:
    """Be the recorded app's RPC that takes longer than any deadline."""
    await exchange.read()
    await asyncio.Event().wait()


async def grow_as_recorded(exchange: RpcExchange) -> None:
    """Be the recorded app's RPC that answers with so many bytes."""
    await exchange.answer(Answer([b"x" * int(await exchange.read() or b"0")]))


async def know_nothing_as_recorded(exchange: RpcExchange) -> None:
    """Be the recorded app's RPC that does not exist."""
    await exchange.context.abort(grpc.StatusCode.UNIMPLEMENTED, "app knows no method Nothing")


PROXIED: dict[str, Any] = {
    "/test.Echo/Error": fail_as_recorded,
    "/test.Echo/HeadersThenError": fail_as_recorded,
    "/test.Echo/ErrorAfterMessage": fail_as_recorded,
    "/test.Echo/Headers": tell_as_recorded,
    "/test.Echo/Sleep": sleep_as_recorded,
    "/test.Echo/Big": grow_as_recorded,
    "/test.Echo/Nothing": know_nothing_as_recorded,
}

RPC_HEADERS = (
    ("x-one", "a"), ("x-one", "b"), ("thing-bin", b"\x00\x01\x02"), ("cache-control", "no-store"),
    ("set-cookie", "c=1"), ("location", "/elsewhere"), ("dapr-thing", "t"),
)  # fmt: skip
RPC_TRAILERS = (("app-trailer", "t"), ("end-bin", b"\xff"))
