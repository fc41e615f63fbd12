"""What goes between a daprd and a Tieline, as recorded between two daprd sidecars: either end is played."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.contract.harness.grpc_wire import (
    Call,
    answer_as_recorded,
    answer_of,
    body_of,
    invoked_as_recorded,
    load,
    recorded,
    request_of,
)
from tests.support.app import App
from tests.support.daprd import UNARY, Daprd, Script, b64, call, messages_in, register, status_of
from tests.support.grpc_app import ON_INVOKE, GrpcApp
from tests.support.http1 import Answer, Client
from tests.support.mesh import Mesh, Sidecar, free_port
from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeRequest

CASES = load("grpc-wire.json")
CALLS = [case for case in CASES if case["callee"] != "old" and case["rpcs"][0]["code"] is not None]
HTTP_CALLS = [case for case in CALLS if case["app"] in ("http", "http-down", None)]
RPC_CALLS = [
    case
    for case in CALLS
    if case["app"] in ("grpc", "grpc-down") and "callee_flags" not in case
    and not case["name"].endswith("-20")  # a code that grpcio cannot send
]  # fmt: skip
FROM_HTTP = [case for case in CASES if case["client"]["kind"] == "http"]

# What one machine, or one HTTP library, puts there.
VOLATILE = {
    "host", "date", "traceparent", "tracestate", "accept-encoding", "content-length", "transfer-encoding",
    "forwarded", "x-forwarded-for", "x-forwarded-host", "dapr-callee-app-id", "dapr-authority",
    "dapr-grpc-accept-encoding", "grpc-accept-encoding", "grpc-trace-bin",
}  # fmt: skip
# Fields of the hop, which daprd hands on and its callee drops.
OF_HOP = {"Connection", "Te", "X-Hop"}


class Callees:
    """The sidecars that are called."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.app: App
        self.rpc_app = GrpcApp({ON_INVOKE: invoked_as_recorded})
        self.down = free_port()
        self._sidecars: dict[str, Sidecar] = {}

    async def start(self) -> None:
        self.app = await self.mesh.app(answer_as_recorded)
        await self.rpc_app.start()

    async def of(self, case: dict[str, Any]) -> Sidecar:
        """Return the one of a case; what its app saw before is forgotten."""
        app_id = case["callee"]
        self.app.seen.clear()
        self.rpc_app.seen.clear()
        if app_id not in self._sidecars:
            kind = case["app"] or ""
            app = self.app if kind == "http" else self.rpc_app.port if kind == "grpc" else None
            flags = ["--app-protocol", "grpc"] if kind.startswith("grpc") else []
            is_down = kind.endswith("-down")
            flags += ["--app-port", str(self.down)] if is_down else []
            wait = "/v1.0/healthz/outbound" if is_down else "/v1.0/healthz"
            self._sidecars[app_id] = await self.mesh.sidecar(app_id, app, *flags, wait=wait)
        return self._sidecars[app_id]


class Caller:
    """A sidecar that calls, and the daprds that it finds under the names of those of the recordings."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.sidecar: Sidecar
        self._daprds: dict[str, Daprd] = {}

    async def start(self) -> None:
        self.sidecar = await self.mesh.sidecar("alpha")

    async def daprd(self, app_id: str) -> Daprd:
        """Return the daprd of an app."""
        if app_id not in self._daprds:
            made = self._daprds[app_id] = Daprd()
            await made.start()
            register(self.mesh, app_id, made.port, like="alpha")
        return self._daprds[app_id]

    async def aclose(self) -> None:
        for daprd in self._daprds.values():
            await daprd.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callees(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callees]:
    """Sidecars for all cases."""
    mesh = Mesh(tmp_path_factory.mktemp("callees"))
    made = Callees(mesh)
    try:
        await made.start()
        yield made
    finally:
        await made.rpc_app.aclose()
        await mesh.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    """One sidecar for all cases."""
    mesh = Mesh(tmp_path_factory.mktemp("caller"))
    made = Caller(mesh)
    try:
        await made.start()
        yield made
    finally:
        await made.aclose()
        await mesh.aclose()


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
    callee = await callees.of(case)
    rpc = case["rpcs"][0]
    expected = {"code": rpc["code"], "message": rpc["message"], **DEVIATIONS.get(case["name"], {})}

    stream = await call(callee.internal, recorded(rpc, "asked"), path=rpc["path"])

    code, text = status_of(stream)
    assert code == expected["code"]
    if expected["code"]:
        port = callees.down if case["app"] == "http-down" else callees.app.port
        assert text == re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", expected["message"])
    if "status" in expected:
        assert answer_of(messages_in(bytes(stream.data))).head["status"] == expected["status"]
    elif rpc["answered"]:
        unary = rpc["path"] == UNARY
        check_answer(
            answer_of(messages_in(bytes(stream.data)), unary=unary), answer_of(recorded(rpc, "answered"), unary=unary)
        )


def check_answer(got: Call, meant: Call) -> None:
    """Compare two answers."""
    date = {"Date"} if meant.head["headers"].get("Date") is None else set()
    got.head["headers"] = {name: value for name, value in got.head["headers"].items() if name not in date}
    assert got.head == meant.head
    assert got.body == meant.body


@pytest.mark.asyncio(loop_scope="module")
@named([case for case in HTTP_CALLS if case["saw"]])
async def test_a_daprd_that_calls_reaches_the_app_as_through_a_daprd(case: dict[str, Any], callees: Callees) -> None:
    callee = await callees.of(case)
    rpc = case["rpcs"][0]
    (saw,) = case["saw"]

    await call(callee.internal, recorded(rpc, "asked"), path=rpc["path"])

    if case["name"] in ("direct-stream-seq", "direct-stream-second-head"):
        return  # the app may have seen the beginning of what was broken off
    # What an earlier case broke off may arrive late.
    (seen,) = [one for one in callees.app.seen if one.target == saw["path"]]
    assert seen.verb == saw["verb"]
    assert shown(seen.headers) == [field for field in shown(saw["headers"]) if field != ("dapr-caller-app-id", "liar")]


# ── a daprd calls, and the app speaks gRPC ──

# One entry that cannot be sent does not fail the call (G-63).
LEFT_OUT = {"direct-stream-bad-name", "direct-stream-bad-value", "http-header-utf-8-grpc"}
# Asked for events, it is an app like any other (G-46).
NO_EVENTS = {"http-grpc-sse"}
NAMES_OF_HOP = {"grpc-accept-encoding", "grpc-status-details-bin", "Grpc-Accept-Encoding"}


@pytest.mark.asyncio(loop_scope="module")
@named(RPC_CALLS)
async def test_a_daprd_that_calls_a_grpc_app_gets_what_a_daprd_answers(case: dict[str, Any], callees: Callees) -> None:
    callee = await callees.of(case)
    rpc = case["rpcs"][0]
    unary = rpc["path"] == UNARY

    stream = await call(callee.internal, recorded(rpc, "asked"), path=rpc["path"])

    code, text = status_of(stream)
    if case["name"] in LEFT_OUT | NO_EVENTS:
        assert code == 0
        assert answer_of(messages_in(bytes(stream.data))).head["status"] == 0
        return
    assert (code, text) == (rpc["code"], rpc["message"])
    if rpc["answered"]:
        got = answer_of(messages_in(bytes(stream.data)), unary=unary)
        meant = answer_of(recorded(rpc, "answered"), unary=unary)
        for one in (got.head, meant.head):
            for part in ("headers", "trailers"):
                one[part] = {name: values for name, values in one[part].items() if name not in NAMES_OF_HOP}
            one["text"] = re.sub(r"127\.0\.0\.1:\d+", "", one["text"])
        assert got == meant


@pytest.mark.asyncio(loop_scope="module")
@named([case for case in RPC_CALLS if case["saw"]])
async def test_a_daprd_that_calls_reaches_the_grpc_app_as_through_a_daprd(
    case: dict[str, Any], callees: Callees
) -> None:
    callee = await callees.of(case)
    rpc = case["rpcs"][0]
    (saw,) = case["saw"]

    await call(callee.internal, recorded(rpc, "asked"), path=rpc["path"])

    (seen,) = callees.rpc_app.seen
    assert seen.path == ON_INVOKE
    got, meant = InvokeRequest.FromString(seen.messages[0]), InvokeRequest.FromString(b64(saw["messages"][0]))
    assert got == meant
    if case["name"] not in LEFT_OUT:
        assert shown(plain(seen.metadata)) == shown(plain(meant_metadata(saw["metadata"])))


def meant_metadata(pairs: list[list[Any]]) -> list[tuple[str, str | bytes]]:
    """Return metadata of a recording; binary values are marked there."""
    return [(name, b64(value["b64"]) if isinstance(value, dict) else value) for name, value in pairs]


def plain(pairs: Any) -> list[tuple[str, str]]:
    """Return metadata as text."""
    return [(name, value.hex() if isinstance(value, bytes) else value) for name, value in pairs if name != "user-agent"]


# ── a daprd is called ──


async def ask(sidecar: Sidecar, client: dict[str, Any]) -> Answer:
    """Make the request of a client."""
    headers = [tuple(field) for field in client["headers"] if field[0] not in ("Content-Length", "Transfer-Encoding")]
    body = body_of(client)
    if "chunks" in client["body"]:
        made = await Client.open(sidecar.port)
        made.send(client["verb"], client["path"], [*headers, ("Transfer-Encoding", "chunked")])
        made.chunk(body[:6])
        await asyncio.sleep(0.05)  # pieces of their own, as in the recording
        made.chunk(body[6:])
        made.end_chunks()
        answer = await made.answer()
        made.close()
        return answer
    has_body = body or any(field[0] == "Content-Length" for field in client["headers"])
    return await sidecar.ask(client["verb"], client["path"], headers=headers, body=body if has_body else None)


@pytest.mark.rule("G-32", "G-33", "G-34", "G-39", "G-49", "G-50", "G-53", "G-55")
@pytest.mark.asyncio(loop_scope="module")
@named([case for case in FROM_HTTP if "caller_flags" not in case])
async def test_a_daprd_that_is_called_gets_what_a_daprd_asks(case: dict[str, Any], caller: Caller) -> None:
    daprd = await caller.daprd(case["callee"])
    play(daprd, case)

    await ask(caller.sidecar, case["client"])

    assert [rpc.path for rpc in daprd.rpcs] == [rpc["path"] for rpc in case["rpcs"]]
    for rpc, meant in zip(daprd.rpcs, case["rpcs"], strict=True):
        unary = rpc.path == UNARY
        got, expected = request_of(rpc.messages, unary=unary), request_of(recorded(meant, "asked"), unary=unary)
        got.head["metadata"] = common(got.head["metadata"])
        expected.head["metadata"] = common(expected.head["metadata"])
        assert got == expected


def common(metadata: dict[str, list[str]]) -> dict[str, Any]:
    """Return what two machines, and two HTTP clients, have in common of a request's metadata."""
    left_out = {"Traceparent", "Dapr-Caller-App-Id", "Host", *OF_HOP}
    kept: dict[str, Any] = {name: value for name, value in metadata.items() if name not in left_out}
    if kept.get("Accept-Encoding") == ["identity"]:
        del kept["Accept-Encoding"]  # by the library of the recording's client
    for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host"):
        kept[name] = kept[name][:-1]  # the last one is this machine's
    return kept


def play(daprd: Daprd, case: dict[str, Any]) -> None:
    """Let the daprd answer as the recorded one."""
    daprd.rpcs.clear()
    last = case["rpcs"][-1]
    daprd.script = Script(
        messages=recorded(last, "answered"),
        status=(str(last["code"]), re.sub("%", "%25", last["message"])),
        unimplemented=[rpc["path"] for rpc in case["rpcs"] if rpc["code"] == 12],
    )


@pytest.mark.asyncio(loop_scope="module")
@named([case for case in FROM_HTTP if case["app"] not in ("grpc", "grpc-down") and "caller_flags" not in case])
async def test_the_answer_of_a_daprd_reaches_the_client_as_through_a_daprd(
    case: dict[str, Any], caller: Caller
) -> None:
    daprd = await caller.daprd(case["callee"])
    play(daprd, case)
    got = case["got"]

    answer = await ask(caller.sidecar, case["client"])

    assert answer.status == got["status"]
    assert answer.body == b64(got["body"]) or answer.status == 500
    if answer.status == 500 and got["body"]:
        assert re.sub(rb"127.0.0.1:\d+", b"", answer.body) == re.sub(
            rb"127.0.0.1:(<[a-z.]+>|\d+)", b"", b64(got["body"])
        )
    assert common_answer(answer.headers) == common_answer(got["headers"])


def common_answer(fields: Any) -> list[tuple[str, str]]:
    """Return what two HTTP servers have in common of an answer's fields."""
    guessed = ("content-type", "text/plain; charset=utf-8")  # daprd guesses a type where there is none (H-72)
    return [field for field in shown(fields) if field != guessed and field[0] not in ("connection", "cache-control")]


# ── daprds that misbehave ──

PEERS = {case["name"]: case for case in load("grpc-peers.json")}
# What daprd hides by ending the answer well: here the client learns that it broke off (G-37, H-74).
TRUNCATED = {"second-status", "wrong-seq", "error-after-body", "cut-after-body"}
# Known before the head of the answer was passed on, so that it is an error.
REFUSED = {"first-seq-one": "invalid sequence number received: 1 (expected: 0)"}
# Text of the library that reads what is no HTTP/2.
OWN_TEXT = {"close", "http-1"}
# Shown with shorter times in tests of one connection.
ELSEWHERE = {"peek", "idle", "no-pong", "close", "http-1", "big-payload"}


def script_of(case: dict[str, Any]) -> Script:
    """Return what a recorded callee does."""
    callee = case["callee"]
    status = callee.get("status", ["0", ""])
    return Script(
        messages=[b64(one) for one in case["callee_messages"]],
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
        if name in REFUSED:
            assert (answer.status, REFUSED[name].encode() in answer.body) == (500, True)
        elif name in TRUNCATED:
            # Cut off after its head, or known to be broken before that.
            assert (answer.status, answer.whole) == (200, False) or answer.status == 500
        else:
            assert (answer.status, answer.body.decode()) == (got["status"], got["body"])
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
