"""Recorded calls to a sidecar's gRPC API, and to gRPC apps by HTTP: sidecars and apps, the calls, and the comparison.

``cases/grpc-api.json`` holds ``setups``, by name: ``sidecars`` with ``id``, ``app`` (what it speaks; ``-down``: stopped
after the start), ``flags``, ``env`` and ``spec`` (of the Configuration), and ``names``, rows of the name table; and
``cases``, one a line:

| member | meaning |
|---|---|
| ``via``, ``kind`` | the sidecar, and what is said to it: ``grpc``; ``h2`` or ``raw`` on the same port; ``http`` |
| ``call``, ``before`` | what is asked, and what before it; ``settle_before``, ``settle``: seconds before and after it |
| ``answer``, ``seen`` | what came back, and what the apps saw |
| ``loose`` | paths into these two whose value need only match, or may be any (``*``) |
| ``free``, ``trace`` | further names that are not compared; the trace is |
| ``compare_fields`` | of an answer's message, the only ones |

Binary values are ``{"b64": …}``, long ones ``{"zlib": …}``. Fields that may differ are left out, of ``*`` only the name
counts, and where Tieline means to differ, the case says so already.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import Message

from tests.contract.harness.grpc_wire import answer_as_recorded
from tests.support.app import App
from tests.support.app import Exchange as HttpExchange
from tests.support.grpc_app import (
    DETAILS,
    GET_METADATA,
    INVOKE_SERVICE,
    LIMITS,
    ON_INVOKE,
    Answer,
    Exchange,
    GrpcApp,
    invoke_response,
)
from tests.support.h2peer import ask_h2
from tests.support.http1 import ask
from tests.support.mesh import Mesh, Sidecar
from tests.support.names import DAPR_SCHEMA
from tieline._generated.dapr.proto.common.v1 import common_pb2
from tieline._generated.dapr.proto.runtime.v1 import dapr_pb2
from tieline._generated.google.rpc import error_details_pb2, status_pb2

Json = dict[str, Any]
Pairs = Iterable[tuple[str, str | bytes]]

WITHIN_S: Final = 20.0
SILENT_S: Final = 1.0
"""A peer that says nothing for so long waits for more."""
NOTICE_S: Final = 0.02
STARTS: Final = 3
"""So many sidecars start at once."""
RESET: Final = 92
TRACE: Final = frozenset({"traceparent", "tracestate", "grpc-trace-bin"})
FREE: Final = TRACE | {
    "user-agent", "accept-encoding", "server", "grpc-accept-encoding", "dapr-grpc-accept-encoding", "dapr-authority",
    "content-length", "transfer-encoding",
}  # fmt: skip
VOLATILE: Final = TRACE | {"date", "dapr-date", "x-forwarded-host", "forwarded"}
_FILE: Final[Json] = json.loads((Path(__file__).parents[1] / "cases/grpc-api.json").read_text())
SETUPS: Final[dict[str, Json]] = _FILE["setups"]


class Case(NamedTuple):
    """One recorded call."""

    name: str
    facts: Json

    @property
    def rules(self) -> list[str]:
        """The rules that it holds."""
        return list(self.facts["rules"])


CASES: Final = [Case(facts["name"], facts) for facts in _FILE["cases"]]


def raw(value: Any) -> bytes:
    """Return bytes that a case holds."""
    if isinstance(value, dict):
        return zlib.decompress(base64.b64decode(value["zlib"]))
    return base64.b64decode(value)


def text_of(value: bytes) -> str:
    """Return bytes as a case holds them."""
    return base64.b64encode(value).decode()


def meant(rows: Sequence[Any]) -> list[tuple[str, str | bytes]]:
    """Return fields that a case holds."""
    return [(name, base64.b64decode(value["b64"]) if isinstance(value, dict) else value) for name, value in rows]


# ── apps ─────────────────────────────────────────────────────────────────────────────────────────────
class _Odd:
    """A code of the user's own, in the form in which grpcio takes its own."""

    def __init__(self, code: int) -> None:
        self.value = (code, "odd")


def _failure(code: int, details: str) -> Answer:
    """Return the failure with a code, and a detail if asked: one that is known, or one that is not."""
    known = {one.value[0]: one for one in grpc.StatusCode}
    trailers: list[tuple[str, str | bytes]] = [("app-trailer", "t")]
    if details:
        info = error_details_pb2.ErrorInfo(reason="BECAUSE", domain="app.test", metadata={"k": "v"})
        status = status_pb2.Status(code=code, message=f"status {code}")
        status.details.add().Pack(info)
        if details != "details":
            status.details[0].type_url = "type.googleapis.com/test.Unknown"
        trailers.append((DETAILS, status.SerializeToString()))
    return Answer([], known.get(code, _Odd(code)), f"status {code}", (), (), trailers)  # type: ignore[arg-type]


async def _on_invoke(exchange: Exchange) -> None:
    """Answer as the method says."""
    asked = common_pb2.InvokeRequest.FromString(await exchange.read() or b"")
    word, _, rest = asked.method.lstrip("/").partition("/")
    echo = common_pb2.InvokeResponse(
        data=asked.data if asked.data.ByteSize() else None, content_type=asked.content_type
    ).SerializeToString()
    if word == "sleep":
        await asyncio.sleep(int(rest) / 1000)
    code, _, details = rest.partition("/")
    if word == "status" and int(code):
        await exchange.answer(_failure(int(code), details))
    elif word == "big":
        await exchange.answer(Answer([invoke_response(b"x" * int(rest), "application/octet-stream")]))
    elif word == "empty":
        await exchange.answer(Answer([b""]))
    elif word == "typed":
        await exchange.answer(Answer([invoke_response(b"\x0a\x01z", "", "type.googleapis.com/test.Thing")]))
    elif word == "headers":
        headers: list[tuple[str, str | bytes]] = [
            ("x-one", "a"), ("x-one", "b"), ("thing-bin", b"\0\1\2"), ("cache-control", "no-store"),
            ("set-cookie", "c=1"), ("location", "/elsewhere"), ("dapr-thing", "t"),
        ]  # fmt: skip
        await exchange.answer(Answer([echo], headers=headers, trailers=[("app-trailer", "t"), ("end-bin", b"\xff")]))
    elif word in ("echo", "public", "status", "sleep", ""):
        await exchange.answer(Answer([echo]))
    else:
        await exchange.answer(Answer([], grpc.StatusCode.UNKNOWN, f"app knows no method {word}"))


_ECHOES: Final = frozenset(
    {"Unary", "Sleep", "ServerStream", "Error", "HeadersThenError", "ErrorAfterMessage", "Headers", "Big"}
)


async def _echo(exchange: Exchange) -> None:
    """Be the service ``test.Echo`` of the recordings."""
    method = exchange.seen.path.rpartition("/")[2]
    if method == "ClientStream":
        await exchange.answer(Answer([b"|".join(await exchange.read_all())]))
        return
    if method == "Bidi":
        while (message := await exchange.read()) is not None:
            await exchange.write(message)
        return
    if method not in _ECHOES:
        await exchange.answer(Answer([], grpc.StatusCode.UNIMPLEMENTED, f"app knows no method {method}", at_once=True))
        return
    message = await exchange.read() or b""
    if method == "Sleep":
        await asyncio.sleep(0.6)
    if method in ("Unary", "Sleep"):
        await exchange.answer(Answer([message]))
    elif method == "ServerStream":
        await exchange.answer(Answer([message + b"%d" % number for number in range(3)]))
    elif method in ("Error", "HeadersThenError", "ErrorAfterMessage"):
        failure = _failure(int(message or b"9"), "details")
        if method == "HeadersThenError":
            failure = failure._replace(headers=[("x-early", "1")])
        await exchange.answer(failure._replace(messages=[message] if method == "ErrorAfterMessage" else []))
    elif method == "Headers":
        headers: list[tuple[str, str | bytes]] = [("x-one", "a"), ("x-one", "b"), ("thing-bin", b"\0\1\2")]
        await exchange.answer(
            Answer([message], headers=headers, trailers=[("app-trailer", "t"), ("end-bin", b"\xff\xfe")])
        )
    else:
        await exchange.answer(Answer([b"x" * int(message)]))


class RecordedGrpcApp(GrpcApp):
    """The gRPC app of the recordings."""

    async def _answer(self, exchange: Exchange) -> None:
        path = exchange.seen.path
        if path == ON_INVOKE:
            await _on_invoke(exchange)
        elif path.startswith("/test.Echo/"):
            await _echo(exchange)
        else:
            await exchange.answer(Answer([], grpc.StatusCode.UNIMPLEMENTED, f"app knows no {path}", at_once=True))

    def forget(self) -> None:
        """See nothing of what was before."""
        self.seen.clear()

    def entries(self, name: str) -> list[Json]:
        """Return what it saw, as cases hold it."""
        return [
            {
                "app": name,
                "kind": "grpc",
                "path": seen.path,
                "metadata": seen.metadata,
                "deadline": seen.time_left_s is not None,
                "messages": [text_of(message) for message in seen.messages],
            }
            for seen in self.seen
        ]


class RecordedHttpApp(App):
    """The HTTP app of the recordings."""

    def __init__(self, name: str) -> None:
        super().__init__(self._handle)
        self._name = name
        self._bodies: list[bytes] = []

    async def _handle(self, exchange: HttpExchange) -> None:
        body = await exchange.body()
        self._bodies.append(body)
        word, _, rest = exchange.target.split("?")[0].lstrip("/").partition("/")
        plain = [("Content-Type", "text/plain")]
        if word in ("", "healthz"):
            exchange.answer(200, b"root", plain)
        elif word == "public":
            exchange.answer(200, body, [("Content-Type", exchange.header("content-type") or "")])
        elif word == "long-error":
            exchange.answer(500, b"0123456789" * 20, plain)
        elif word == "sleep":
            await asyncio.sleep(int(rest) / 1000)
            exchange.answer(200, b"slept", plain)
        elif word == "big":
            exchange.answer(200, b"x" * int(rest), [("Content-Type", "application/octet-stream")])
        else:
            await answer_as_recorded(_Read(exchange, body), self._name)

    def entries(self, name: str) -> list[Json]:
        """Return what it saw, as cases hold it."""
        return [
            {
                "app": name,
                "kind": "http",
                "verb": exchange.verb,
                "path": exchange.target,
                "headers": exchange.headers,
                "body": text_of(body),
            }
            for exchange, body in zip(self.seen, self._bodies, strict=False)
            if exchange.verb != "PRI"  # HTTP/2, which this app does not know
        ]

    def forget(self) -> None:
        """See nothing of what was before."""
        self.seen.clear()
        self._bodies.clear()


class _Read(HttpExchange):
    """An exchange whose body was read."""

    def __init__(self, exchange: HttpExchange, body: bytes) -> None:
        super().__init__(exchange.verb, exchange.target, exchange.headers, exchange.reader, exchange.writer)
        self._body = body

    async def body(self) -> bytes:
        return self._body


# ── set-ups ──────────────────────────────────────────────────────────────────────────────────────────
class Stage:
    """The sidecars and apps of a set-up."""

    def __init__(self, setup: Json, folder: Path) -> None:
        self._setup = setup
        self._folder = folder
        self._mesh = Mesh(folder)
        self._sidecars: dict[str, Sidecar] = {}
        self._apps: dict[str, RecordedGrpcApp | RecordedHttpApp] = {}

    async def start(self) -> None:
        """Start all of it, and return when the sidecars are ready."""
        self._write_names()
        for facts in self._setup["sidecars"]:
            await self._start_app(facts["id"], facts.get("app", "").removesuffix("-down"))
        every = self._setup["sidecars"]
        for few in range(0, len(every), STARTS):  # a machine has few cores
            await asyncio.gather(*(self._start_sidecar(facts) for facts in every[few : few + STARTS]))
        for facts in self._setup["sidecars"]:
            if facts.get("app", "").endswith("-down"):
                await self._apps[facts["id"]].aclose()

    async def _start_app(self, name: str, kind: str) -> None:
        if kind:
            app = self._apps[name] = RecordedGrpcApp() if kind == "grpc" else RecordedHttpApp(name)
            await app.start()

    def _write_names(self) -> None:
        later = int(time.time()) + 3600
        with contextlib.closing(sqlite3.connect(self._folder / "names.db")) as database, database:
            for statement in (*DAPR_SCHEMA, "INSERT INTO metadata VALUES ('nr-migrations', '1')"):
                database.execute(statement)
            for app_id, address in self._setup.get("names", ()):
                database.execute(
                    "INSERT INTO hosts VALUES (?, ?, ?, ?, ?)", (f"row-{app_id}", address, app_id, "", later)
                )

    async def _start_sidecar(self, facts: Json) -> None:
        name = facts["id"]
        names = {"component": "sqlite", "configuration": {"connectionString": str(self._folder / "names.db")}}
        spec = {"nameResolution": names, **facts.get("spec", {})}
        config = self._folder / f"{name}.yaml"
        config.write_text(json.dumps({"apiVersion": "dapr.io/v1alpha1", "kind": "Configuration", "spec": spec}))
        given = {flag: value for flag, value in facts.get("flags", {}).items() if value != "true"}
        flags = ["--config", str(config), *(word for flag, value in given.items() for word in (f"--{flag}", value))]
        flags += [f"--{flag}" for flag, value in facts.get("flags", {}).items() if value == "true"]
        environ = {"DAPR_HOST_IP": "127.0.0.1", **facts.get("env", {})}
        app = self._apps.get(name)
        self._sidecars[name] = await self._mesh.sidecar(name, app, *flags, environ=environ)

    async def perform(self, case: Case) -> Json:
        """Make the call of a case; return what came back and what the apps saw, ports replaced by their names."""
        facts = case.facts
        sidecar = self._sidecars[facts["via"]]
        for call in facts.get("before", ()):
            await _CALLS[facts["kind"]](sidecar, call)
        await asyncio.sleep(facts.get("settle_before", 0))
        for app in self._apps.values():
            app.forget()
        answer = await _CALLS[facts["kind"]](sidecar, facts["call"])
        # For what must not come, there is nothing to wait for but time.
        await asyncio.sleep(facts.get("settle", NOTICE_S))
        seen = [entry for name, app in sorted(self._apps.items()) for entry in app.entries(name)]
        for entry in seen:
            for key in entry.keys() & {"headers", "metadata"}:
                entry[key] = fields(entry[key], case)
        for key in answer.keys() & {"headers", "initial", "trailers"}:
            answer[key] = fields(answer[key], case, answered=facts["kind"] == "http")
        named: Json = json.loads(self._named(json.dumps({"answer": answer, "seen": seen})))
        return named

    def _named(self, text: str) -> str:
        known = {str(app.port): f"<{name}.app>" for name, app in self._apps.items()}
        for name, sidecar in self._sidecars.items():
            ports = {"http": sidecar.port, "grpc": sidecar.grpc, "internal": sidecar.internal}
            known |= {str(port): f"<{name}.{what}>" for what, port in ports.items()}
        text = re.sub(r"(?<!\d)\d{5}(?!\d)", lambda found: known.get(found[0], found[0]), text)
        return re.sub(r"(127\.0\.0\.1:)\d{5}(->)", r"\1<any>\2", text)

    async def aclose(self) -> None:
        """End all of it."""
        await self._mesh.aclose()
        for app in self._apps.values():
            await app.aclose()


def fields(pairs: Pairs, case: Case, *, answered: bool = False) -> list[list[Any]]:
    """Return fields as cases hold them, without those that may differ."""
    traced = bool(case.facts.get("trace"))
    free = (FREE | set(case.facts.get("free", ()))) - (TRACE if traced else set())
    if answered:
        free = free | {"date"}  # a sidecar may add one
    found: list[list[Any]] = []
    for given, value in pairs:
        name = given.lower()
        if name in free or name.startswith("tieline-"):
            continue
        told: Any = {"b64": text_of(value)} if isinstance(value, bytes) else value
        found.append([name, "*" if name in VOLATILE and not (traced and name in TRACE) else told])
    return sorted(found, key=repr)


# ── calls ────────────────────────────────────────────────────────────────────────────────────────────
async def _call_grpc(sidecar: Sidecar, call: Json) -> Json:
    return await asyncio.to_thread(_call_in_thread, sidecar.grpc, call)


def _call_in_thread(port: int, call: Json) -> Json:
    """Make an RPC by grpcio's threads: its asyncio loses header metadata of failures now and then."""
    size = call.get("fill")
    messages = [b"\0" * size] if size else [raw(message) for message in call["messages"]]
    compression = grpc.Compression.Gzip if call.get("gzip") else None
    # With lockstep, each message is sent after the answer to the one before.
    ready = threading.Semaphore(1 if call.get("lockstep") else len(messages))

    def requests() -> Iterator[bytes]:
        for message in messages:
            ready.acquire()
            yield message

    got: list[bytes] = []
    options = [*LIMITS[:2], ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options, compression=compression) as channel:
        kind: Any = channel.stream_stream(call["path"])
        rpc = kind(requests(), metadata=tuple(meant(call.get("metadata", ()))), timeout=call.get("timeout", WITHIN_S))
        with contextlib.suppress(grpc.RpcError):
            for message in rpc:
                got.append(message)
                if len(got) == call.get("cancel_after"):
                    rpc.cancel()
                ready.release()
        ready.release(len(messages) or 1)  # lets the thread that sends end
        return {
            "initial": list(rpc.initial_metadata()),
            "messages": [text_of(message) for message in got],
            "code": rpc.code().value[0],
            "message": rpc.details() or "",
            "trailers": list(rpc.trailing_metadata()),
        }


async def _call_http(sidecar: Sidecar, call: Json) -> Json:
    body = raw(call["body"]) if call.get("body") else None
    answer = await ask(sidecar.port, call["verb"], call["path"], headers=meant(call.get("headers", ())), body=body)  # type: ignore[arg-type]
    return {"status": answer.status, "headers": answer.headers, "body": text_of(answer.body)}


async def _call_h2(sidecar: Sidecar, call: Json) -> Json:
    headers = [(name, str(value)) for name, value in meant(call["headers"])]
    stream = await ask_h2(sidecar.grpc, call["verb"], call["path"], headers, raw(call.get("body", "")))
    told = [field for field in (*stream.headers, *stream.trailers) if not field[0].startswith(":")]
    return {"status": str(stream.status), "headers": told, "exit": 0 if stream.reset_code is None else RESET}


async def _call_raw(sidecar: Sidecar, call: Json) -> Json:
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.grpc)
    writer.write(raw(call["bytes"]))
    try:
        while await asyncio.wait_for(reader.read(65536), SILENT_S):
            pass
        end = "closed"
    except TimeoutError:
        end = "open"
    except ConnectionError:
        end = "closed"
    writer.close()
    return {"end": end}


_CALLS: Final = {"grpc": _call_grpc, "http": _call_http, "h2": _call_h2, "raw": _call_raw}


# ── the comparison ───────────────────────────────────────────────────────────────────────────────────
_KINDS: Final[dict[str, tuple[type[Message], type[Message]]]] = {
    INVOKE_SERVICE: (dapr_pb2.InvokeServiceRequest, common_pb2.InvokeResponse),
    GET_METADATA: (dapr_pb2.GetMetadataRequest, dapr_pb2.GetMetadataResponse),
    ON_INVOKE: (common_pb2.InvokeRequest, common_pb2.InvokeResponse),
}
"""Messages either way, of the RPCs whose messages a sidecar writes itself."""


def differences(case: Case, got: Json) -> list[str]:
    """Return a line for each thing that is not as recorded."""
    found: list[str] = []
    _look("", {"answer": case.facts["answer"], "seen": case.facts["seen"]}, got, case, found)
    return found


def _look(path: str, want: Any, got: Any, case: Case, found: list[str]) -> None:
    loose = case.facts.get("loose", {})
    last = path.rpartition(".")[2]
    if path in loose:
        if loose[path] != "*" and not re.search(loose[path], str(got)):
            found.append(f"{path}: {got!r} does not match {loose[path]!r}")
    elif last == "messages":
        rpc = case.facts["call"].get("path", "") if path == "answer.messages" else ON_INVOKE
        left, right = (_messages(side, rpc, case, answered=path == "answer.messages") for side in (want, got))
        if left != right:
            found.append(f"{path}: wanted {left}, got {right}")
    elif last in ("headers", "metadata", "initial", "trailers"):
        left, right = ([_readable(row) for row in side or ()] for side in (want, got))
        found += [f"{path}: {row} is missing" for row in left if row not in right]
        found += [f"{path}: {row} was not wanted" for row in right if row not in left]
        if len(left) != len(right):
            found.append(f"{path}: wanted {len(left)} fields, got {len(right)}: {right}")
    elif isinstance(want, dict) and isinstance(got, dict):
        for name in sorted({*want, *got}):
            _look(f"{path}.{name}".lstrip("."), want.get(name), got.get(name), case, found)
    elif last == "seen" and len(want) == len(got):
        for number, (left, right) in enumerate(zip(want, got, strict=True)):
            _look(f"{path}.{number}", left, right, case, found)
    elif last == "body":
        if _body(want) != _body(got):
            found.append(f"{path}: wanted {_body(want)!r}, got {_body(got)!r}")
    elif want != got:
        found.append(f"{path}: wanted {want!r}, got {got!r}")


def _readable(row: list[Any]) -> list[Any]:
    name, value = row
    if name == DETAILS and isinstance(value, dict):
        status = status_pb2.Status.FromString(raw(value["b64"]))
        return [name, status.code, status.message, [_detail(detail) for detail in status.details]]
    return row


def _detail(detail: Any) -> Any:
    # Maps have no order on the wire.
    info = error_details_pb2.ErrorInfo()
    return info if detail.Unpack(info) else detail


def _body(value: Any) -> Any:
    body = raw(value) if value else b""
    try:
        return json.loads(body)
    except ValueError:
        return body


def _messages(side: Sequence[Any], rpc: str, case: Case, *, answered: bool) -> list[Any]:
    kinds = _KINDS.get(rpc)
    if kinds is None:
        return [raw(message) for message in side]
    only = case.facts.get("compare_fields") if answered else None
    found = []
    for encoded in side:
        data = raw(encoded)
        try:
            message = kinds[answered]()
            message.ParseFromString(data)
        except Exception:  # what was proxied may be of any kind
            found.append(data)
            continue
        for field in message.DESCRIPTOR.fields if only else ():
            if field.number not in (only or ()):
                message.ClearField(field.name)
        found.append(_plain(message))
    return found


def _plain(message: Message) -> Any:
    """Return a message without what differs and means nothing: empty data in place of none, a port."""
    if isinstance(message, common_pb2.InvokeResponse | common_pb2.InvokeRequest) and not message.data.ByteSize():
        message.ClearField("data")
    if isinstance(message, dapr_pb2.GetMetadataResponse):
        message.app_connection_properties.port = 0
    return message
