"""``tieline invoke --grpc``: what goes in, what comes out, and servers on bad days. The server is the app itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf import any_pb2

from tests.support.command import Result, run, start
from tests.support.daprd import Daprd, Script
from tests.support.grpc_app import INVOKE_SERVICE, Answer, Exchange, GrpcApp, invoke_response
from tests.support.mesh import free_port
from tests.support.shop import SERVICE, Shop, descriptor_set
from tieline._generated.dapr.proto.runtime.v1 import dapr_pb2
from tieline._generated.google.rpc import error_details_pb2, status_pb2
from tieline.cli.invoke_rpc import service_and_method
from tieline.cli.main import main
from tieline.cli.rpc_report import details_of
from tieline.cli.rpc_schema import Documents, SchemaError, as_json, documents_of
from tieline.model import RpcStatus

NEW = f"{SERVICE}/New"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DAPR_")}
    return {**kept, "XDG_STATE_HOME": str(tmp_path)}


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop()


@pytest_asyncio.fixture
async def app(shop: Shop) -> AsyncIterator[GrpcApp]:
    """The shop, which describes its services."""
    made = shop.app()
    await made.start(prepare=shop.reflect)
    yield made
    await made.aclose()


@pytest.fixture
def described(tmp_path: Path) -> str:
    """A descriptor set of the shop."""
    path = tmp_path / "shop.binpb"
    path.write_bytes(descriptor_set())
    return str(path)


async def invoke(environ: dict[str, str], port: int, method: str, *argv: str, stdin: bytes | None = None) -> Result:
    return await run(environ, "invoke", "orders", method, "--grpc", "--port", str(port), *argv, stdin=stdin)


# --- arguments ---


@pytest.mark.parametrize(
    ("method", "described", "parts"),
    [
        ("shop.Orders/New", False, ("shop.Orders", "New")),
        ("/shop.Orders/New", False, ("shop.Orders", "New")),
        ("/Orders/New", False, ("Orders", "New")),
        ("Orders/New", True, ("Orders", "New")),
        ("api/new", False, ("", "")),
        ("new", True, ("", "")),
        ("api/v1/new", True, ("", "")),
        ("a.b/c?x=1", False, ("", "")),
        ("", False, ("", "")),
    ],
)
def test_a_method_of_a_service_is_told_from_one_that_an_app_knows(
    method: str, described: bool, parts: tuple[str, str]
) -> None:
    assert service_and_method(method, described=described) == parts


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["-H", "grpc-timeout: 1S"], "grpc-timeout is set by the command itself"),
        (["-H", "a-bin: *"], "the value of a-bin must be base64"),
        (["-H", "a: ü"], "gRPC takes letters, digits and _-. in names, printable ASCII in values"),
        (["--proto", "/no/such"], "--proto: /no/such: no such file or directory"),
        (["--proto", __file__], "is no descriptor set; this makes one: protoc --include_imports"),
        (["--proto", "/dev/null"], "describes nothing"),
    ],
)
def test_a_mistake_is_one_line_and_2(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["invoke", "orders", NEW, "--grpc", *argv])

    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_source_of_a_service_is_answered_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shop.proto"
    path.write_text('syntax = "proto3";')

    assert main(["invoke", "orders", NEW, "--proto", str(path)]) == 2
    wanted = f"this makes: protoc --include_imports --descriptor_set_out=app.binpb {path}"
    assert wanted in capsys.readouterr().err


def test_documents_follow_each_other_in_any_pieces() -> None:
    documents = Documents()
    found = [one for piece in ('{"a"', ': "}{"} {"b"', ":1}\n\n{}") for one in documents.feed(piece)]
    documents.check_end()

    assert found == ['{"a": "}{"}', '{"b":1}', "{}"]
    assert documents_of("\ufeff{} {}".encode()) == ["{}", "{}"]
    assert documents_of(b" ") == []
    for broken in (b"{", b"{} x", b"\xff", b"[" * 100_000):
        with pytest.raises(SchemaError, match="no JSON"):
            documents_of(broken)


# --- methods of a service ---


async def test_json_goes_in_and_comes_out(environ: dict[str, str], app: GrpcApp, shop: Shop) -> None:
    order = {"orderId": "5", "item": {"name": "ü", "amount": "1"}, "at": "2026-01-01T00:00:00Z", "raw": "AAE="}

    result = await invoke(environ, app.port, NEW, "-d", json.dumps(order), "-H", "X-A: 1", "-H", "b-bin: AAE")

    assert (result.code, json.loads(result.out)) == (0, order)
    assert "App invoked successfully: OK" in result.err
    [seen] = app.seen
    assert [shop.parse(message) for message in seen.messages] == [order]
    assert (seen.values("x-a"), seen.values("b-bin"), seen.values("dapr-app-id")) == (["1"], [b"\0\1"], ["orders"])
    assert str(seen.values("user-agent")[0]).startswith("tieline-invoke")


async def test_headers_and_trailers_are_shown_on_request(environ: dict[str, str], app: GrpcApp) -> None:
    result = await invoke(environ, app.port, NEW, "-d", '{"orderId": 5}', "-i", "-q")

    head, _, rest = result.out.partition("\r\n\r\n")
    assert "x-shop: open" in head.split("\r\n")
    assert rest == '{"orderId": "5"}\n\r\nx-till: 1\r\n'
    assert result.err == ""


async def test_an_app_without_reflection_is_called_by_a_descriptor_set(
    environ: dict[str, str], shop: Shop, described: str
) -> None:
    async with shop.app() as app:
        blind = await invoke(environ, app.port, NEW, "-d", "{}")
        told = await invoke(environ, app.port, NEW, "-d", '{"orderId": 5}', "--proto", described)

    assert blind.code == 2
    assert "it has no server reflection" in blind.err
    assert "protoc --include_imports" in blind.err
    assert (told.code, told.out) == (0, '{"orderId": "5"}\n')


async def test_a_set_without_its_imports_cannot_be_used(environ: dict[str, str], app: GrpcApp, tmp_path: Path) -> None:
    path = tmp_path / "half.binpb"
    path.write_bytes(descriptor_set(whole=False))

    result = await invoke(environ, app.port, NEW, "--proto", str(path))

    assert result.code == 2
    assert "what shop/goods.proto holds is not described; make a descriptor set with --include_imports" in result.err


async def test_what_does_not_fit_is_not_sent(environ: dict[str, str], app: GrpcApp) -> None:
    for method, data, told in (
        (f"{SERVICE}/Nix", "{}", "shop.Orders has no method Nix; methods: New, Watch, Sum, Talk"),
        ("shop.Nix/New", "{}", "the app has no service shop.Nix; it has: shop.Orders"),
        (NEW, '{"nix": 1}', 'no field named "nix"'),
        (NEW, '{"orderId": "x"}', "the data is no shop.Order"),
        (NEW, "5", "the data is no shop.Order"),
        (NEW, "{", "the data is no JSON"),
        (NEW, "{} {}", "shop.Orders.New takes one message, and 2 were given"),
    ):
        result = await invoke(environ, app.port, method, "-d", data, "-q")
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
        assert told in result.err
    assert app.seen == []


async def test_streams_are_a_line_a_message(environ: dict[str, str], app: GrpcApp) -> None:
    watched = await invoke(environ, app.port, f"{SERVICE}/Watch", "-d", '{"orderId": 5}')
    summed = await invoke(environ, app.port, f"{SERVICE}/Sum", "-d", '{"orderId": 5}{"orderId": 6}')
    none = await invoke(environ, app.port, f"{SERVICE}/Sum")

    assert watched.out.splitlines() == ['{"orderId": "5"}', '{"orderId": "6"}', '{"orderId": "7"}']
    assert (summed.out, none.out) == ('{"orderId": "11"}\n', "{}\n")
    assert (app.seen[2].messages, app.seen[2].half_closed) == ([], True)


async def test_messages_that_are_typed_go_out_at_once(environ: dict[str, str], app: GrpcApp) -> None:
    argv = ("invoke", "orders", f"{SERVICE}/Talk", "--grpc", "--port", str(app.port), "-f", "-", "-q")
    process = await start(environ, *argv, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(20):
        for number in (1, 2):
            process.stdin.write(b'{"orderId": %d}\n' % number)
            assert await process.stdout.readline() == b'{"orderId": "%d"}\n' % number
        process.stdin.write(b'{"orderId": 3]')
        process.stdin.close()
        _, err = await process.communicate()

    assert process.returncode == 1
    assert err.startswith("❌  error invoking app orders: the data is no JSON".encode())


async def test_a_failure_is_explained_with_its_details(environ: dict[str, str], app: GrpcApp) -> None:
    plain = await invoke(environ, app.port, NEW, "-q")
    told = (await invoke(environ, app.port, NEW, "-o", "json")).json()

    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "NO_SUCH_ORDER", "domain": "shop"}
    assert plain.code == told["exitCode"] == 1
    title, details = plain.err.splitlines()
    assert title == "❌  error invoking app orders: NotFound: no such order"
    assert json.loads(details.removeprefix("    details: ")) == info
    assert (told["status"], told["code"], told["messages"]) == ("NotFound", 5, [])
    assert told["error"] == {"kind": "status", "message": "no such order", "details": [info]}


async def test_a_sidecars_failure_is_explained(environ: dict[str, str], app: GrpcApp, described: str) -> None:
    trailers = [("tieline-cause", "name-unknown"), ("tieline-hop", "caller"), ("tieline-hint", "start it%E2%80%A6")]
    detail = error_details_pb2.RetryInfo()
    app.answers[f"/{NEW}"] = Answer([], grpc.StatusCode.UNKNOWN, "couldn't find\x1b", [detail], [], trailers)

    plain = await invoke(environ, app.port, NEW, "-q", "--proto", described)
    told = (await invoke(environ, app.port, NEW, "-o", "json", "--proto", described)).json()

    assert plain.err.splitlines()[:4] == [
        "❌  error invoking app orders: Unknown: couldn't find�",
        "    why:         name-unknown",
        "    where:       caller",
        "    what to do:  start it…",
    ]
    assert {name: told["error"][name] for name in ("cause", "hop", "hint")} == {
        "cause": "name-unknown", "hop": "caller", "hint": "start it…",
    }  # fmt: skip


async def test_json_holds_all_of_an_answer(environ: dict[str, str], app: GrpcApp) -> None:
    document = (await invoke(environ, app.port, f"{SERVICE}/Watch", "-d", '{"orderId": 5}', "-o", "json")).json()

    assert (document["appId"], document["status"], document["code"]) == ("orders", "OK", 0)
    assert document["messages"] == [{"orderId": "5"}, {"orderId": "6"}, {"orderId": "7"}]
    assert document["through"] == {"appId": None, "address": f"127.0.0.1:{app.port}"}
    assert ["content-type", "application/grpc"] in document["headers"]
    assert (document["error"], document["exitCode"]) == (None, 0)


# --- methods that an app knows ---


async def test_a_method_without_a_service_goes_by_invoke_service(environ: dict[str, str], app: GrpcApp) -> None:
    app.answers[INVOKE_SERVICE] = Answer([invoke_response(b"\xff\0", "x")], trailers=[("x-till", "1")])

    argv = ("-d", "[1]", "-v", "put", "-H", "content-type: text/plain", "--api-token", "secret")
    plain = await invoke(environ, app.port, "api/new?x=1", *argv)
    told = await invoke(environ, app.port, "m", "-o", "json")

    assert (plain.code, plain.raw) == (0, b"\xff\0")
    request = dapr_pb2.InvokeServiceRequest.FromString(app.seen[0].messages[0])
    assert (request.id, request.message.method, request.message.data.value) == ("orders", "api/new", b"[1]")
    assert request.message.content_type == "text/plain"
    extension = request.message.http_extension
    assert (extension.verb, extension.querystring) == (4, "x=1")
    assert app.seen[0].values("dapr-api-token") == ["secret"]
    assert app.seen[0].values("dapr-app-id") == []
    bare = dapr_pb2.InvokeServiceRequest.FromString(app.seen[1].messages[0])
    assert (bare.message.content_type, bare.message.http_extension.verb) == ("application/json", 3)
    document = told.json()
    assert (document["bodyBase64"], document["bodyBytes"], document["trailers"]) == ("/wA=", 2, [["x-till", "1"]])


# --- bad days ---


async def test_a_call_that_takes_too_long_is_4(environ: dict[str, str], app: GrpcApp, described: str) -> None:
    async def hang(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    app.answers[f"/{NEW}"] = hang
    result = await invoke(environ, app.port, NEW, "--proto", described, "--timeout", "0.3", "-q")

    assert result.code == 4
    assert app.seen[0].time_left_s is not None
    assert app.seen[0].time_left_s <= 0.3


async def test_no_sidecar_is_3(environ: dict[str, str]) -> None:
    result = await invoke(environ, free_port(), NEW, "-q")
    assert result.code == 3
    assert "no sidecar answers: 127.0.0.1:" in result.err
    assert "connection refused" in result.err

    nobody = await run(environ, "invoke", "orders", NEW, "--grpc", "-q")
    assert nobody.code == 3
    assert "no sidecar of this user runs here" in nobody.err


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 3, "is it the gRPC port of a sidecar?"),
        (b"SSH-2.0-OpenSSH_9\r\n", 3, "is it the gRPC port of a sidecar?"),
        (b"", 3, "closed before SETTINGS"),
        (b"\0\0\0\4\0\0\0\0\0", 1, "connection"),
    ],
)
async def test_what_is_no_grpc_is_told(
    said: bytes, code: int, told: str, environ: dict[str, str], described: str
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(said)
        if code == 1:
            await reader.read(65536)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        result = await invoke(environ, port, NEW, "--proto", described, "-q")

    assert result.code == code, result.err
    assert told in result.err


async def test_an_answer_of_another_kind_is_a_failure(environ: dict[str, str], app: GrpcApp, described: str) -> None:
    app.answers[f"/{NEW}"] = Answer([b"\xff\xff\xff"])
    result = await invoke(environ, app.port, NEW, "--proto", described, "-q")

    assert (result.code, result.out) == (1, "")
    assert "what the app answered is no shop.Order" in result.err


def test_an_answer_or_a_detail_that_goes_too_deep_is_shown_as_its_bytes() -> None:
    nested = any_pb2.Any()
    for _ in range(2000):
        nested = any_pb2.Any(type_url="type.googleapis.com/google.protobuf.Any", value=nested.SerializeToString())
    status = status_pb2.Status(code=5)
    status.details.add(type_url=nested.type_url, value=nested.value)

    shown = json.loads(as_json(nested))
    (detail,) = details_of(RpcStatus(5, "gone", status.SerializeToString()))

    assert base64.b64decode(shown["@bytes"]) == nested.SerializeToString()
    assert (detail["@type"], base64.b64decode(detail["@bytes"])) == (nested.type_url, nested.value)


async def test_a_reflection_that_answers_with_anything_is_told(environ: dict[str, str]) -> None:
    app = Daprd(Script(messages=[b"\xff\xff"]))
    await app.start()

    result = await invoke(environ, app.port, NEW, "-q")
    await app.aclose()

    assert (result.code, result.out) == (1, "")
    assert "what the app's reflection answered cannot be read" in result.err
    assert "Traceback" not in result.err
