"""What goes between a daprd and a Tieline, as recorded between two daprd sidecars: either end is played."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import grpc
import pytest
import pytest_asyncio

from tests.contract.harness.grpc_wire import (
    PROXIED,
    Call,
    answer_as_recorded,
    answer_of,
    bytes_of,
    invoked_as_recorded,
    load,
    request_of,
    rpcs_of,
    wire_of,
)
from tests.contract.harness.played import Half, PlayedServer, Side, Wire, is_internal, play_client
from tests.support.app import App, Exchange
from tests.support.daprd import Daprd, Script, b64, register
from tests.support.grpc_app import (
    DETAILS,
    ON_INVOKE,
    GrpcApp,
    GrpcClient,
    Outcome,
    Seen,
    begin,
    finish,
    read_details,
    values,
)
from tests.support.http1 import Answer, Broken, Client
from tests.support.mesh import Mesh, Sidecar, free_port, until
from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeRequest
from tieline._generated.dapr.proto.internals.v1.service_invocation_pb2 import InternalInvokeResponseStream

CASES = load("grpc-wire.json")
RPCS = {case["name"]: rpcs_of(case) for case in CASES}
# The callee is a sidecar, and no program made by hand.
CALLS = [case for case in CASES if case["callee"] not in ("old", "app")]
LOCAL = [case for case in CALLS if is_internal(RPCS[case["name"]][0].asked)]
ENDED = [case for case in LOCAL if RPCS[case["name"]][0].asked.reset_code is None]
BROKEN_OFF = [case for case in CALLS if RPCS[case["name"]][0].asked.reset_code is not None and case["saw"]]
HTTP_CALLS = [case for case in ENDED if case["app"] in ("http", "http-down", None)]
RPC_CALLS = [
    case
    for case in ENDED
    if case["app"] in ("grpc", "grpc-down") and not case["name"].endswith("-20")  # a code that grpcio cannot send
]  # fmt: skip
PROXIED_CALLS = [case for case in CALLS if case not in LOCAL]
FROM_HTTP = [case for case in CASES if case["client"]["kind"] == "http" and case["callee"] != "app"]
FROM_GRPC = [case for case in CASES if case["client"]["kind"] == "grpc" and case["callee"] != "app"]

CANCEL = 8

# What one machine, or one HTTP library, puts there.
VOLATILE = {
    "host", "date", "traceparent", "tracestate", "accept-encoding", "content-length", "transfer-encoding",
    "forwarded", "x-forwarded-for", "x-forwarded-host", "dapr-callee-app-id", "dapr-authority",
    "dapr-grpc-accept-encoding", "grpc-accept-encoding", "grpc-trace-bin",
}  # fmt: skip
# What a client says of itself; daprd passes it on beside its own (G-50, G-73).
FORGED = ("dapr-caller-app-id", "liar")
# Fields of the hop, which daprd hands on and its callee drops.
OF_HOP = {"Connection", "Te", "X-Hop", ":authority", "grpc-accept-encoding", "user-agent", "grpc-trace-bin"}


class Callees:
    """The sidecars that are called."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.app: App
        self.rpc_app = GrpcApp({ON_INVOKE: invoked_as_recorded, **PROXIED})
        self.down = free_port()
        self.over = asyncio.Event()
        self._sidecars: dict[str, Sidecar] = {}

    async def start(self) -> None:
        self.app = await self.mesh.app(self._answer)
        await self.rpc_app.start()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await answer_as_recorded(exchange)
        except Broken:
            exchange.close()
        self.over.set()

    async def of(self, case: dict[str, Any]) -> Sidecar:
        """Return the one of a case; what its app saw before is forgotten."""
        app_id = case["callee"]
        self.app.seen.clear()
        self.rpc_app.seen.clear()
        self.over.clear()
        key = f"{app_id} {case.get('callee_flags')} {case.get('callee_env')}"
        if key not in self._sidecars:
            kind = case["app"] or ""
            app = self.app if kind == "http" else self.rpc_app.port if kind == "grpc" else None
            flags = ["--app-protocol", "grpc"] if kind.startswith("grpc") else []
            is_down = kind.endswith("-down")
            flags += ["--app-port", str(self.down)] if is_down else []
            flags += flags_of(case, "callee")
            wait = "/v1.0/healthz/outbound" if is_down else "/v1.0/healthz"
            self._sidecars[key] = await self.mesh.sidecar(
                app_id, app, *flags, wait=wait, environ=case.get("callee_env")
            )
        return self._sidecars[key]

    async def aclose(self) -> None:
        await self.rpc_app.aclose()

    async def called(self, case: dict[str, Any]) -> Half:
        """Call as the recorded caller did, byte for byte, and return what came back."""
        callee = await self.of(case)
        return await play_client(callee.internal, wire_of(case), self._arrived if case["saw"] else None)

    async def _arrived(self) -> None:
        """Return when the app has been reached."""
        await until(lambda: bool(self.app.seen or self.rpc_app.seen))


def unanswered(wire: Wire) -> Wire:
    """Return a recording without what the server says on streams."""
    server = Side(is_client=False)
    return [(who, data) for who, data in wire if who == "c" or not server.feed(data)]


def flags_of(case: dict[str, Any], side: str) -> list[str]:
    """Return the flags of a sidecar."""
    return [part for name, value in case.get(f"{side}_flags", {}).items() for part in (f"--{name}", value)]


class Caller:
    """Sidecars that call, and the daprds that they find under the names of those of the recordings."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.sidecar: Sidecar
        self._sidecars: dict[str, Sidecar] = {}
        self._daprds: dict[str, PlayedServer] = {}
        self._clients: dict[Sidecar, GrpcClient] = {}

    async def start(self) -> None:
        self.sidecar = self._sidecars["None None"] = await self.mesh.sidecar("alpha")

    async def of(self, case: dict[str, Any]) -> Sidecar:
        """Return the one that calls in a case."""
        key = f"{case.get('caller_flags')} {case.get('caller_env')}"
        if key not in self._sidecars:
            self._sidecars[key] = await self.mesh.sidecar(
                "alpha", None, *flags_of(case, "caller"), environ=case.get("caller_env")
            )
        return self._sidecars[key]

    async def daprd(self, case: dict[str, Any]) -> PlayedServer:
        """Return the daprd that is called, which will answer as the recorded one."""
        app_id = case["callee"]
        if app_id not in self._daprds:
            made = self._daprds[app_id] = PlayedServer()
            await made.start()
            register(self.mesh, app_id, made.port, like="alpha")
        wire = wire_of(case)
        if "deadline" in case["name"]:  # it was a race; here the daprd does not answer
            wire = unanswered(wire)
        await self._daprds[app_id].play(wire)
        return self._daprds[app_id]

    async def asks(self, case: dict[str, Any]) -> Outcome:
        """Make the RPC of a client."""
        sidecar = await self.of(case)
        if sidecar not in self._clients:
            self._clients[sidecar] = GrpcClient(sidecar.grpc)
        return await ask_rpc(self._clients[sidecar], case["client"])

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()
        for daprd in self._daprds.values():
            await daprd.aclose()


class Started(Protocol):
    """What a mesh of the module holds for all cases."""

    async def start(self) -> None: ...
    async def aclose(self) -> None: ...


_S = TypeVar("_S", bound=Started)


@asynccontextmanager
async def started(kind: Callable[[Mesh], _S], folders: pytest.TempPathFactory) -> AsyncIterator[_S]:
    """Start it in a mesh of its own, and end both."""
    mesh = Mesh(folders.mktemp(kind.__name__))
    made = kind(mesh)
    try:
        await made.start()
        yield made
    finally:
        await made.aclose()
        await mesh.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callees(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callees]:
    """Sidecars for all cases."""
    async with started(Callees, tmp_path_factory) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    """Sidecars for all cases."""
    async with started(Caller, tmp_path_factory) as made:
        yield made


def named(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Return the parameters of a test."""
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case["name"], marks=pytest.mark.rule(*case["rules"])) for case in cases]
    )


def shown(fields: Any) -> list[tuple[str, str]]:
    """Return what two machines have in common of the fields of a message."""
    return sorted(
        (name.lower(), value)
        for name, value in fields
        if name.lower() not in VOLATILE and not name.lower().startswith("tieline-")
        and (name.lower(), value) != ("user-agent", "Go-http-client/1.1")
    )  # fmt: skip


# ── a daprd calls ──

# Where Tieline does otherwise: what daprd loses or breaks.
DEVIATIONS: dict[str, dict[str, Any]] = {
    # The app's own answer, which daprd does not pass on for want of events in it (G-46).
    "http-sse-404": {"status": 404, "code": 0},
    "direct-stream-sse-lower": {"status": 200, "code": 0},
    "invoke-sse": {"status": 200, "code": 0},
    # A body without its end is told (G-44, H-74).
    "http-app-cuts-chunked": {"code": 2, "message": "unexpected EOF"},
}


@pytest.mark.rule("G-13", "G-14", "G-33", "G-34", "G-36", "G-38", "G-42", "G-44", "G-45", "G-46", "G-47", "G-57")
@pytest.mark.asyncio(loop_scope="module")
@named(HTTP_CALLS)
async def test_a_daprd_that_calls_gets_what_a_daprd_answers(case: dict[str, Any], callees: Callees) -> None:
    (rpc,) = RPCS[case["name"]]
    assert rpc.status is not None
    expected = {"code": rpc.status[0], "message": rpc.status[1], **DEVIATIONS.get(case["name"], {})}

    got = await callees.called(case)

    assert got.status is not None
    code, text = got.status
    assert code == expected["code"]
    if expected["code"]:
        port = callees.down if case["app"] == "http-down" else callees.app.port
        assert text == re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", expected["message"])
    if "status" in expected:
        assert answer_of(got.messages).head["status"] == expected["status"]
    elif rpc.answered.messages:
        check_answer(answer_of(got.messages, unary=rpc.unary), answer_of(rpc.answered.messages, unary=rpc.unary))


def check_answer(got: Call, meant: Call) -> None:
    """Compare two answers."""
    date = {"Date"} if meant.head["headers"].get("Date") is None else set()
    got.head["headers"] = {name: value for name, value in got.head["headers"].items() if name not in date}
    assert got.head == meant.head
    assert got.body == meant.body


@pytest.mark.asyncio(loop_scope="module")
@named([case for case in HTTP_CALLS if case["saw"]])
async def test_a_daprd_that_calls_reaches_the_app_as_through_a_daprd(case: dict[str, Any], callees: Callees) -> None:
    (saw,) = case["saw"]

    await callees.called(case)

    if case["name"] in ("direct-stream-seq", "direct-stream-second-head"):
        return  # the app may have seen the beginning of what was broken off
    # What an earlier case broke off may arrive late.
    (seen,) = [one for one in callees.app.seen if one.target == saw["path"]]
    assert seen.verb == saw["verb"]
    assert shown(seen.headers) == [field for field in shown(saw["headers"]) if field != FORGED]


# ── a daprd calls, and the app speaks gRPC ──

# One entry that cannot be sent does not fail the call (G-63).
LEFT_OUT = {"direct-stream-bad-name", "direct-stream-bad-value", "http-header-utf-8-grpc"}
# Asked for events, it is an app like any other (G-46).
NO_EVENTS = {"http-grpc-sse"}
NAMES_OF_HOP = {"grpc-accept-encoding", "grpc-status-details-bin", "Grpc-Accept-Encoding"}


@pytest.mark.asyncio(loop_scope="module")
@named(RPC_CALLS)
async def test_a_daprd_that_calls_a_grpc_app_gets_what_a_daprd_answers(case: dict[str, Any], callees: Callees) -> None:
    (rpc,) = RPCS[case["name"]]

    half = await callees.called(case)

    if case["name"] in LEFT_OUT | NO_EVENTS:
        assert half.status == (0, "")
        assert answer_of(half.messages).head["status"] == 0
        return
    assert half.status == rpc.status
    if rpc.answered.messages:
        got = answer_of(half.messages, unary=rpc.unary)
        meant = answer_of(rpc.answered.messages, unary=rpc.unary)
        left_out = NAMES_OF_HOP | ({"content-type"} if case["name"] == "small-grpc-answer" else set())
        for one in (got.head, meant.head):
            for part in ("headers", "trailers"):
                one[part] = {name: values for name, values in one[part].items() if name not in left_out}
            one["text"] = re.sub(r"127\.0\.0\.1:\d+", "", one["text"])
        assert got == meant


@pytest.mark.asyncio(loop_scope="module")
@named([case for case in RPC_CALLS if case["saw"]])
async def test_a_daprd_that_calls_reaches_the_grpc_app_as_through_a_daprd(
    case: dict[str, Any], callees: Callees
) -> None:
    (saw,) = case["saw"]

    await callees.called(case)

    (seen,) = callees.rpc_app.seen
    check_seen(seen, saw, metadata=case["name"] not in LEFT_OUT)


def check_seen(seen: Seen, saw: dict[str, Any], *, metadata: bool = True) -> None:
    """Compare what two apps saw of an RPC."""
    assert seen.path == saw["path"]
    meant = list(map(bytes_of, saw["messages"]))
    if seen.path == ON_INVOKE:  # fields have no order
        assert list(map(InvokeRequest.FromString, seen.messages)) == list(map(InvokeRequest.FromString, meant))
    else:
        assert seen.messages == meant
    if metadata:
        meant_fields = shown(plain(meant_metadata(saw["metadata"])))
        assert shown(plain(seen.metadata)) == [field for field in meant_fields if field != FORGED]


def meant_metadata(pairs: list[list[Any]]) -> list[tuple[str, str | bytes]]:
    """Return metadata of a recording; binary values are marked there."""
    return [(name, b64(value["b64"]) if isinstance(value, dict) else value) for name, value in pairs]


def plain(pairs: Any) -> list[tuple[str, str]]:
    """Return metadata as text."""
    return [(name, value.hex() if isinstance(value, bytes) else value) for name, value in pairs if name != "user-agent"]


# ── a daprd calls, and its call is for the app as it is ──

# Where daprd shows what its library says of a connection, or of an address that is none.
OWN_TEXTS = {
    "proxy-deadline": "Deadline Exceeded",
    "proxy-http-app": "what listens there speaks no HTTP/2: no HTTP/2: the first frame is no SETTINGS",
    "proxy-no-app": "app channel is not initialized",
}


@pytest.mark.asyncio(loop_scope="module")
@named(PROXIED_CALLS)
async def test_a_daprd_that_proxies_gets_what_a_daprd_answers(case: dict[str, Any], callees: Callees) -> None:
    (rpc,) = RPCS[case["name"]]

    got = await callees.called(case)

    if rpc.asked.reset_code is None:
        assert rpc.status is not None
        expected = OWN_TEXTS.get(case["name"], rpc.status[1])
        assert got.status == (rpc.status[0], re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{callees.down}", expected))
    assert got.frames == rpc.answered.frames
    if case["name"] == "proxy-error-headers":  # which daprd loses
        assert ("x-early", "1") in got.headers
        assert common_fields([*got.headers, *got.trailers]) == sorted(
            [("x-early", "1"), *common_fields(rpc.answered.headers)]
        )
        return
    assert common_fields(got.headers) == common_fields(rpc.answered.headers)
    assert common_fields(got.trailers) == common_fields(rpc.answered.trailers)


@pytest.mark.asyncio(loop_scope="module")
@named([case for case in PROXIED_CALLS if case["saw"]])
async def test_a_daprd_that_proxies_reaches_the_app_as_through_a_daprd(case: dict[str, Any], callees: Callees) -> None:
    (saw,) = case["saw"]

    await callees.called(case)

    (seen,) = callees.rpc_app.seen
    check_seen(seen, saw)
    assert (seen.time_left_s is not None) == saw["deadline"]


def common_fields(fields: Any) -> list[tuple[str, str]]:
    """Return what two machines, and two libraries, have in common of the fields of an RPC."""
    return [
        field for field in shown(fields)
        if field[0] not in (":authority", "user-agent", "grpc-timeout", "grpc-message", "grpc-status", "content-type")
    ]  # fmt: skip


@pytest.mark.rule("G-77")
@pytest.mark.asyncio(loop_scope="module")
@named(BROKEN_OFF)
async def test_an_app_hears_that_a_daprd_has_broken_off(case: dict[str, Any], callees: Callees) -> None:
    await callees.called(case)

    over = callees.rpc_app.seen[0].over if case["app"] == "grpc" else callees.over
    async with asyncio.timeout(5):
        await over.wait()


# ── a daprd is called ──


async def ask(sidecar: Sidecar, client: dict[str, Any]) -> Answer:
    """Make the request of a client."""
    headers = [tuple(field) for field in client["headers"] if field[0] not in ("Content-Length", "Transfer-Encoding")]
    body = bytes_of(client["body"])
    if "chunks of" in client["body"] or "in 2 chunks" in client["body"]:
        made = await Client.open(sidecar.port)
        made.send(client["verb"], client["path"], [*headers, ("Transfer-Encoding", "chunked")])
        size = 6 if len(body) == 12 else 16384
        for at in range(0, len(body), size):
            made.chunk(body[at : at + size])
            await asyncio.sleep(0.05 if size == 6 else 0)  # pieces of their own, as in the recording
        made.end_chunks()
        answer = await made.answer()
        made.close()
        return answer
    has_body = body or any(field[0] == "Content-Length" for field in client["headers"])
    return await sidecar.ask(client["verb"], client["path"], headers=headers, body=body if has_body else None)


@pytest.mark.rule("G-32", "G-33", "G-34", "G-39", "G-49", "G-50", "G-53", "G-55")
@pytest.mark.asyncio(loop_scope="module")
@named([case for case in FROM_HTTP if "closed_after" not in case["client"]])
async def test_a_daprd_that_is_called_gets_what_a_daprd_asks(case: dict[str, Any], caller: Caller) -> None:
    daprd = await caller.daprd(case)

    await ask(await caller.of(case), case["client"])

    await check_asked(daprd, case)


async def check_asked(daprd: PlayedServer, case: dict[str, Any]) -> None:
    """Compare what a daprd was asked with what it was by a daprd."""
    asked = (await daprd.done()).streams
    if "deadline" in case["name"]:
        await daprd.heard(lambda said: said.reset_code is not None)
    for got, rpc in zip(asked.values(), RPCS[case["name"]], strict=True):
        meant = rpc.asked
        assert got.header(":path") == rpc.path
        assert got.reset_code == (CANCEL if "deadline" in case["name"] else meant.reset_code)
        if is_internal(meant):
            if meant.ended:
                call, expected = (request_of(half.messages, unary=rpc.unary) for half in (got, meant))
                if "wire" not in case:  # how the body was cut is not written down
                    call = call._replace(payloads=expected.payloads)
                check_request(call, expected)
        else:
            assert plain_frames(got) == plain_frames(meant)
            assert asked_fields(got) == asked_fields(meant)


def plain_frames(half: Half) -> list[bytes]:
    """Return messages without their compression: daprd undoes it on the way (G-7)."""
    return [gzip.decompress(message) if flag else message for flag, message in half.frames]


def asked_fields(
    half: Half, added: Sequence[str] = ("dapr-caller-namespace", "grpc-encoding")
) -> list[tuple[str, str]]:
    """Return what two sidecars have in common of the head of a proxied call; daprd leaves out what is ``added``."""
    return [field for field in common_fields(half.headers) if field != FORGED and field[0] not in added]


def check_request(got: Call, expected: Call) -> None:
    """Compare two requests."""
    got.head["metadata"] = common(got.head["metadata"])
    expected.head["metadata"] = common(expected.head["metadata"])
    if not got.body:  # none or an empty one: an app gets an empty one
        got.head["has_data"] = expected.head["has_data"]
    assert got == expected


def common(metadata: dict[str, list[str]]) -> dict[str, Any]:
    """Return what two machines, and two HTTP clients, have in common of a request's metadata."""
    left_out = {"Traceparent", "traceparent", "Dapr-Caller-App-Id", "Host", *OF_HOP}
    kept: dict[str, Any] = {name: value for name, value in metadata.items() if name not in left_out}
    if kept.get("Accept-Encoding") == ["identity"]:
        del kept["Accept-Encoding"]  # by the library of the recording's client
    for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host"):
        kept[name] = kept[name][:-1]  # the last one is this machine's
    return kept


@pytest.mark.asyncio(loop_scope="module")
@named(
    [case for case in FROM_HTTP if case["app"] not in ("grpc", "grpc-down") and "closed_after" not in case["client"]]
)
async def test_the_answer_of_a_daprd_reaches_the_client_as_through_a_daprd(
    case: dict[str, Any], caller: Caller
) -> None:
    await caller.daprd(case)
    got = case["got"]

    answer = await ask(await caller.of(case), case["client"])

    assert answer.status == got["status"]
    meant = bytes_of(got["body"])
    assert answer.body == meant or answer.status == 500
    if answer.status == 500 and meant:
        assert re.sub(rb"127.0.0.1:\d+", b"", answer.body) == re.sub(rb"127.0.0.1:(<[a-z.]+>|\d+)", b"", meant)
    assert common_answer(answer.headers) == common_answer(got["headers"])


def common_answer(fields: Any) -> list[tuple[str, str]]:
    """Return what two HTTP servers have in common of an answer's fields."""
    guessed = ("content-type", "text/plain; charset=utf-8")  # daprd guesses a type where there is none (H-72)
    return [field for field in shown(fields) if field != guessed and field[0] not in ("connection", "cache-control")]


@pytest.mark.asyncio(loop_scope="module")
@named([case for case in FROM_HTTP if "closed_after" in case["client"]])
async def test_a_daprd_hears_that_the_client_has_gone(case: dict[str, Any], caller: Caller) -> None:
    daprd = await caller.daprd(case)
    sidecar, client = await caller.of(case), case["client"]
    body = bytes_of(client["body"])

    made = await Client.open(sidecar.port)
    made.send(
        client["verb"],
        client["path"],
        [*map(tuple, client["headers"]), ("Content-Length", str(len(body)))],
    )
    made.writer.write(body[: client["closed_after"]])
    await daprd.heard(lambda said: len(said.data) > client["closed_after"])
    made.close()

    await check_asked(daprd, case)


# ── a daprd is called for a client that speaks gRPC ──


async def ask_rpc(client: GrpcClient, given: dict[str, Any]) -> Outcome:
    """Make the RPC of a client."""
    messages = list(map(bytes_of, given["messages"]))
    metadata, timeout = meant_metadata(given["metadata"]), given.get("timeout", 20.0)
    if not given.get("lockstep"):
        compression = grpc.Compression.Gzip if given.get("gzip") else None
        return await finish(begin(client.channel, given["path"], messages, metadata, timeout, compression))
    rpc = client.open(given["path"], metadata=metadata, timeout=timeout)
    answers: list[Any] = []
    for message in messages[: given.get("cancel_after")]:
        await rpc.write(message)
        answers.append(await rpc.read())
    if "cancel_after" in given:
        rpc.cancel()
    else:
        await rpc.done_writing()
    headers: Any = await rpc.initial_metadata()
    trailers: Any = await rpc.trailing_metadata()
    return Outcome(await rpc.code(), await rpc.details() or "", answers, list(headers), list(trailers))


# Too large for the caller's own limit: nothing of it goes out.
REFUSED_BEFORE = {"small-proxy"}


@pytest.mark.rule("G-32", "G-33", "G-51", "G-72", "G-73", "G-77")
@pytest.mark.asyncio(loop_scope="module")
@named(FROM_GRPC)
async def test_a_daprd_that_is_called_for_an_rpc_gets_what_a_daprd_asks(case: dict[str, Any], caller: Caller) -> None:
    daprd = await caller.daprd(case)

    await caller.asks(case)

    if case["name"] in REFUSED_BEFORE:
        assert not daprd.is_asked
    else:
        await check_asked(daprd, case)


@pytest.mark.asyncio(loop_scope="module")
@named(FROM_GRPC)
async def test_the_answer_of_a_daprd_reaches_an_rpc_as_through_a_daprd(case: dict[str, Any], caller: Caller) -> None:
    await caller.daprd(case)

    outcome = await caller.asks(case)

    check_outcome(outcome, case)


def check_outcome(outcome: Outcome, case: dict[str, Any]) -> None:
    """Compare what two clients got."""
    got = case["got"]
    if "deadline" in case["name"]:  # the client's own is over as well
        assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED
        return
    text = re.sub(r"<gdown\.app>", "23045", got["message"])
    assert (outcome.code.value[0], outcome.text) == (got["code"], text)
    assert outcome.messages == list(map(bytes_of, got["messages"]))
    for fields, recorded in ((outcome.headers, got["initial"]), (outcome.trailers, got["trailers"])):
        meant = meant_metadata(recorded)
        assert shown(plain(undetailed(fields))) == shown(plain(undetailed(meant)))
        assert details_of(fields) == details_of(meant)


def undetailed(fields: Any) -> list[tuple[str, str | bytes]]:
    """Return metadata without the details of a status."""
    return [field for field in fields if field[0] != DETAILS]


def details_of(fields: Any) -> list[Any]:
    """Return the details of a status; their maps have no order."""
    return list(map(read_details, values(fields, DETAILS)))


# ── an app that speaks gRPC is called ──


class Leg:
    """An app that answers as the recorded one, its sidecar, and one that calls it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.app = PlayedServer()
        self.caller: Sidecar
        self.client: GrpcClient

    async def start(self) -> None:
        await self.app.start()
        await self.mesh.sidecar("gamma", self.app.port, "--app-protocol", "grpc")
        self.caller = await self.mesh.sidecar("alpha")
        self.client = self.mesh.grpc_client(self.caller)

    async def aclose(self) -> None:
        await self.app.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def leg(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Leg]:
    """Two sidecars for all cases."""
    async with started(Leg, tmp_path_factory) as made:
        yield made


@pytest.mark.rule("G-131")
@pytest.mark.asyncio(loop_scope="module")
@named([case for case in CASES if case["callee"] == "app"])
async def test_an_app_is_called_as_by_a_daprd_and_its_answer_arrives(case: dict[str, Any], leg: Leg) -> None:
    wire, got, is_cut = wire_of(case), case["got"], "deadline" in case["name"]
    await leg.app.play(unanswered(wire) if is_cut else wire)

    if case["client"]["kind"] == "http":
        answer = await ask(leg.caller, case["client"])
        assert (answer.status, answer.body) == (got["status"], bytes_of(got["body"]))
        assert common_answer(answer.headers) == common_answer(got["headers"])
    else:
        check_outcome(await ask_rpc(leg.client, case["client"]), case)

    (asked,) = (await leg.app.done()).streams.values()
    if is_cut:
        await leg.app.heard(lambda said: said.reset_code is not None)
    meant = RPCS[case["name"]][0].asked
    assert asked.header(":path") == meant.header(":path")
    if asked.header(":path") == ON_INVOKE:  # fields have no order
        assert [InvokeRequest.FromString(one) for one in asked.messages] == [
            InvokeRequest.FromString(one) for one in meant.messages
        ]
    else:
        assert asked.frames == meant.frames
    own = ("dapr-caller-namespace",) if "proxy" in case["name"] else ()
    assert asked_fields(asked, own) == asked_fields(meant, own)
    assert bool(asked.header("grpc-timeout")) == bool(meant.header("grpc-timeout"))
    # What grpcio would hide.
    assert len(asked.header("grpc-trace-bin")) == len(meant.header("grpc-trace-bin"))
    assert (asked.header("grpc-trace-bin") == meant.header("grpc-trace-bin")) == ("-from-" in case["name"])
    if is_cut:  # by daprd only where it proxies (G-27)
        assert asked.reset_code == CANCEL


# ── daprds that misbehave ──

PEERS = {case["name"]: case for case in load("grpc-peers.json")}
# What daprd hides by ending the answer well: here the client learns that it broke off (G-37, H-74).
TRUNCATED = {"second-status", "wrong-seq", "error-after-body", "cut-after-body"}
# Known before the head of the answer was passed on, so that it is an error.
REFUSED = {"first-seq-one": "invalid sequence number received: 1 (expected: 0)"}
# What speaks no HTTP/2; daprd tells the text of its library.
NO_HTTP_2 = {"close": b"", "http1": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"}
# What takes half a minute; shown with shorter times in tests of one connection.
ELSEWHERE = {"peek", "idle", "no-pong"}


def _payload(size: int) -> bytes:
    """Return an answer in one message."""
    message = InternalInvokeResponseStream.FromString(b64("ChUKAwjIASIOCgASCnRleHQvcGxhaW4="))
    message.payload.data = b"x" * size
    return message.SerializeToString()


def script_of(case: dict[str, Any]) -> Script:
    """Return what a recorded callee does."""
    callee = case["callee"]
    status = callee.get("status", ["0", ""])
    return Script(
        messages=[_payload(16000) if one == "<16029 bytes>" else b64(one) for one in case["callee_messages"]],
        head=[tuple(one) for one in callee.get("head", ())],
        tail=[tuple(one) for one in callee.get("tail", ())],
        http=callee.get("http", "200"),
        type=callee.get("type", "application/grpc"),
        status=None if status is None else (status[0], status[1]),
        only_trailers=callee.get("trailers_only", False),
        reset=callee.get("reset"),
        at_once=callee.get("reply") == "at once",
        cut=callee.get("cut", False),
        goaway=callee.get("goaway", False),
        slow=callee.get("slow", 0.0),
    )


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.rule("G-5", "G-8", "G-35", "G-36", "G-37", "G-38", "G-39", "G-40", "G-127")
@pytest.mark.parametrize("name", [name for name in PEERS if name not in ELSEWHERE])
async def test_a_daprd_of_any_kind_is_borne_with(name: str, caller: Caller) -> None:
    case = PEERS[name]
    callee = case["callee"]
    daprd = Daprd(script_of(case))
    daprd.settings = {int(code): value for code, value in callee.get("settings", {}).items()}
    daprd.late = callee.get("late", 0.0)
    daprd.windows = callee.get("windows", True)
    daprd.extra = b64(callee.get("extra", ""))
    daprd.instead = NO_HTTP_2.get(callee.get("mode", ""))
    await daprd.start()
    register(caller.mesh, name, daprd.port, like="alpha")
    verb = "POST" if "body" in callee else "GET"
    body = b"x" * callee["body"] if "body" in callee else None

    answers = [
        await one
        for one in [
            asyncio.create_task(caller.sidecar.call(name, "work", verb, body=body))
            for _ in range(callee.get("parallel", 1))
        ]
    ]
    answers += [await caller.sidecar.call(name, "work", verb, body=body) for _ in range(callee.get("calls", 1) - 1)]

    for answer, got in zip(answers, case["client_got"], strict=True):
        if daprd.instead is not None:
            assert answer.status == got["status"]
            assert json.loads(answer.body)["errorCode"] == json.loads(got["body"])["errorCode"]
            assert f"failed to invoke, id: {name}".encode() in answer.body
        elif name in REFUSED:
            assert (answer.status, REFUSED[name].encode() in answer.body) == (500, True)
        elif name in TRUNCATED:
            # Cut off after its head, or known to be broken before that.
            assert (answer.status, answer.whole) == (200, False) or answer.status == 500
        else:
            meant = got["body"].replace("<16000 bytes>", "x" * 16000)
            assert (answer.status, answer.body.decode()) == (got["status"], meant)
    assert daprd.most_at_once <= case["most_calls_at_once"] or case["most_calls_at_once"] == 0
    await daprd.aclose()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.rule("G-39")
async def test_nothing_is_left_of_calls_to_what_is_no_sidecar_and_says_much(caller: Caller) -> None:
    page = Daprd(Script(messages=[b"x" * (4 << 20)], http="404", type="text/html"))
    await page.start()
    register(caller.mesh, "page", page.port, like="alpha")

    answer = await caller.sidecar.call("page", "work", "GET")

    assert answer.status == 500
    await page.until(lambda: len(page.rpcs) == 2 and all(rpc.reset is not None for rpc in page.rpcs))
    await page.aclose()
