"""Apps that speak gRPC behind real sidecars, called over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.grpc_app import ON_INVOKE, UNARY, Answer, GrpcApp, Handler, invoke_response, values
from tests.support.http1 import ask
from tests.support.mesh import Mesh, Sidecar, free_port, until
from tests.support.prometheus import Exposed, read
from tests.support.tls import Authority
from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeResponse
from tieline._generated.google.rpc.error_details_pb2 import ErrorInfo
from tieline._generated.google.rpc.status_pb2 import Status


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """Sidecars with a registry of their own."""
    made = Mesh(tmp_path)
    try:
        yield made
    finally:
        await made.aclose()


async def scrape(sidecar: Sidecar) -> dict[str, Exposed]:
    """Return its metrics."""
    said = re.search(r"metrics server started on [^ ]*?:(\d+)/", sidecar.log())
    assert said is not None, sidecar.log()
    return read((await ask(int(said[1]), "GET", "/metrics")).body.decode())


async def a_pair(mesh: Mesh, app: GrpcApp | int, *flags: str, caller: tuple[str, ...] = ()) -> tuple[Sidecar, Sidecar]:
    """Return the sidecar of a caller without an app, and the one of ``cart``."""
    return await mesh.sidecar("caller", None, *caller), await mesh.sidecar("cart", app, *flags)


@pytest.mark.rule("H-81", "H-82", "G-65", "A-5", "A-8", "G-55", "G-58")
async def test_a_call_reaches_the_app_and_its_answer_the_caller_from_afar_and_from_its_own_side(mesh: Mesh) -> None:
    answer = Answer(
        [invoke_response(b'{"n":1}', "application/json")],
        headers=[("x-one", "a"), ("x-one", "b"), ("thing-bin", b"\0\1"), ("set-cookie", "c=1")],
        trailers=[("app-trailer", "t")],
    )
    app = await mesh.grpc_app({"items/add": answer})
    caller, own = await a_pair(mesh, app)
    headers = [("Content-Type", "text/plain"), ("X-A", "1"), ("X-A", "2"), ("Dapr-Caller-App-Id", "liar")]
    headers += [("Connection", "x-hop"), ("X-Hop", "h")]

    answers = [
        await sidecar.call("cart", "items/add?q=1%202", "PUT", headers=headers, body=b"hello")
        for sidecar in (caller, own)
    ]

    for got in answers:
        assert (got.status, got.body) == (200, b'{"n":1}')
        assert got.header("content-type") == "application/json"
        assert [value for name, value in got.headers if name == "x-one"] == ["a", "b"]
        assert got.header("set-cookie") == "c=1"
        assert got.header("traceparent") is not None
        assert [got.header(name) for name in ("thing-bin", "app-trailer", "grpc-status", "tieline-grpc-status")] == [
            None
        ] * 4
    for seen, who in zip(app.seen, ("caller", "cart"), strict=True):
        invoked = seen.invoked
        assert (invoked.method, invoked.data.value, invoked.content_type) == ("items/add", b"hello", "text/plain")
        assert (invoked.http_extension.verb, invoked.http_extension.querystring) == (4, "q=1%202")
        assert seen.values("x-a") == ["1", "2"]
        assert seen.values("dapr-content-length") == ["5"]
        assert (seen.values("dapr-connection"), seen.values("x-hop")) == (["x-hop"], ["h"])
        assert seen.values("dapr-caller-app-id") == [who]
        assert seen.values("dapr-callee-app-id") == ["cart"]
        assert len(seen.values("traceparent")) == 1
    assert app.seen[0].values("x-forwarded-for") != []


@pytest.mark.rule("A-11", "H-79", "H-80", "H-87")
async def test_an_error_of_the_app_is_a_500_with_the_status_as_json(mesh: Mesh) -> None:
    error = Answer(code=grpc.StatusCode.NOT_FOUND, text="no <such> ü", details=[ErrorInfo(reason="BECAUSE")])
    app = await mesh.grpc_app({"gone": error})
    caller, own = await a_pair(mesh, app)

    for sidecar in (caller, own):
        got = await sidecar.call("cart", "gone")

        assert got.status == 500
        assert json.loads(got.body) == {
            "code": 5,
            "message": "no <such> ü",
            "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "BECAUSE"}],
        }
        assert got.header("content-type") == "application/json"
        assert got.header("grpc-status") == "5"
        assert got.header("tieline-cause") is None


@pytest.mark.rule("A-11", "H-79")
async def test_the_finer_statuses_are_the_callers_choice_by_flag_or_feature(mesh: Mesh, tmp_path: Path) -> None:
    app = await mesh.grpc_app({"gone": Answer(code=grpc.StatusCode.NOT_FOUND)})
    feature = tmp_path / "feature.yaml"
    feature.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\n"
        "spec: {features: [{name: MapGRPCStatusToHTTP, enabled: true}]}\n"
    )
    await mesh.sidecar("cart", app)
    by_flag = await mesh.sidecar("one", None, "--map-grpc-status")
    by_feature = await mesh.sidecar("two", None, "--config", str(feature))

    for sidecar in (by_flag, by_feature):
        got = await sidecar.call("cart", "gone")
        assert (got.status, got.body, got.header("grpc-status")) == (404, b'{"code":5}', "5")
        assert "of no effect" not in sidecar.log()


@pytest.mark.rule("H-83", "H-60")
async def test_an_app_that_is_away_and_a_body_that_does_not_fit_are_told_as_statuses_with_the_reason(
    mesh: Mesh,
) -> None:
    app = await mesh.grpc_app()
    caller, own = await a_pair(mesh, app, "--max-body-size", "1000")

    too_large = await caller.call("cart", "work", "POST", body=b"x" * 1001)
    await app.aclose()
    away = [await sidecar.call("cart", "work", "POST", body=b"x") for sidecar in (caller, own)]

    assert (too_large.status, json.loads(too_large.body)["code"]) == (500, 8)
    assert (too_large.header("grpc-status"), too_large.header("tieline-cause")) == ("8", "too-large")
    for got in away:
        assert (got.status, json.loads(got.body)["code"]) == (500, 14)
        assert got.header("grpc-status") == "14"
        assert (got.header("tieline-cause"), got.header("tieline-hop")) == ("app-unreachable", "app")
        assert "--app-port" in (got.header("tieline-hint") or "")
    for sidecar in (caller, own):
        await sidecar.says("code = Unavailable")


@pytest.mark.rule("G-29", "H-120", "H-118")
async def test_the_apps_health_is_asked_by_an_rpc_and_decides_over_calls(mesh: Mesh) -> None:
    app = await mesh.grpc_app()
    app.healthy = False
    flags = ["--enable-app-health-check", "--app-health-probe-interval", "1", "--app-health-threshold", "1"]
    caller, own = await a_pair(mesh, app, *flags)

    ill = [await sidecar.call("cart", "work") for sidecar in (own, caller)]
    app.healthy = True

    async def is_well() -> bool:
        return (await caller.call("cart", "work")).status == 200

    await until(is_well, 10)
    metrics = await scrape(own)

    prefix = "failed to invoke, id: cart, err: "
    unwell = "rpc error: code = Internal desc = app is not in a healthy state"
    assert [json.loads(got.body)["message"] for got in ill] == [
        prefix + unwell,
        f"{prefix}rpc error: code = Internal desc = error invoking app channel: {unwell}",
    ]
    assert "AppCallbackHealthCheck" in (ill[0].header("tieline-hint") or "")
    assert app.seen
    assert app.checked >= 2
    probes = metrics["dapr_grpc_io_healthprobes_completed_count"]
    assert set(probes.numbers("grpc_client_status")) == {("Unavailable",), ("OK",)}
    assert "dapr_http_healthprobes_completed_count" not in metrics


@pytest.mark.rule("O-27", "G-16")
async def test_codes_are_counted_where_rpcs_are_and_statuses_where_http_is(mesh: Mesh) -> None:
    app = await mesh.grpc_app({"gone": Answer(code=grpc.StatusCode.NOT_FOUND)})
    caller, own = await a_pair(mesh, app, caller=("--map-grpc-status",))

    await caller.call("cart", "gone")
    await caller.call("cart", "work")
    at_caller, at_own = await scrape(caller), await scrape(own)

    def statuses(metrics: dict[str, Exposed], name: str, label: str = "status") -> set[str]:
        return {value for (value,) in metrics[name].numbers(label)}

    assert statuses(at_caller, "dapr_http_server_request_count") >= {"404", "200"}
    assert statuses(at_caller, "dapr_runtime_service_invocation_res_recv_total") == {"5", "0"}
    assert statuses(at_own, "dapr_runtime_service_invocation_res_sent_total") == {"5", "0"}
    assert statuses(at_own, "dapr_grpc_io_client_completed_rpcs", "grpc_client_status") == {"NotFound", "OK"}
    assert "dapr_http_client_completed_count" not in at_own


@pytest.mark.rule("G-30", "G-28", "H-116", "H-117")
async def test_an_app_behind_tls_is_waited_for_and_called_and_never_asked_for_http(mesh: Mesh) -> None:
    port = free_port()
    pair = Authority().issue("somebody.example")
    app = GrpcApp()
    sidecar = await mesh.sidecar("cart", port, "--app-protocol", "grpcs", quiet=False, wait=None)
    await sidecar.says(f"application protocol: grpcs. waiting on port {port}.")
    await app.start(port, credentials=grpc.ssl_server_credentials([(pair.key.encode(), pair.certificate.encode())]))

    await sidecar.healthy()
    got = await sidecar.call("cart", "work", "POST", body=b"hello")

    assert (got.status, got.body) == (200, b"hello")
    assert [(seen.path, seen.invoked.method) for seen in app.seen] == [(ON_INVOKE, "work")]
    assert "of no effect" not in sidecar.log()
    await app.aclose()


@pytest.mark.rule("G-122")
async def test_calls_wait_for_a_slot_at_the_app(mesh: Mesh) -> None:
    app = await mesh.grpc_app({"work": Answer([invoke_response(b"ok")], delay_s=0.02)})
    caller, _ = await a_pair(mesh, app, "--app-max-concurrency", "2")

    answers = await asyncio.gather(*[caller.call("cart", "work") for _ in range(12)])

    assert [got.body for got in answers] == [b"ok"] * 12
    assert app.most == 2


@pytest.mark.rule("H-58")
async def test_bodies_of_megabytes_go_both_ways(mesh: Mesh) -> None:
    app = await mesh.grpc_app()
    caller, own = await a_pair(mesh, app)
    body = bytes(range(256)) * 8192

    for sidecar in (caller, own):
        got = await sidecar.call("cart", "work", "POST", body=body)
        assert (got.status, got.body == body) == (200, True)


@pytest.mark.rule("G-65", "G-15", "G-16", "G-19", "G-26")
async def test_a_grpc_client_gets_what_the_app_said_from_afar_and_from_its_own_side(mesh: Mesh) -> None:
    answers: dict[str, Answer | Handler] = {
        "items/add": Answer(
            [invoke_response(b"data", "text/x", "type/x")],
            headers=[("x-one", "a"), ("thing-bin", b"\0\1"), ("tieline-cause", "forged")],
            trailers=[("app-trailer", "t"), ("end-bin", b"\xff"), ("cache-control", "no-store")],
        ),
        "gone": Answer(code=grpc.StatusCode.NOT_FOUND, text="gone", details=[ErrorInfo(reason="BECAUSE")]),
    }
    app = await mesh.grpc_app(answers)
    caller, own = await a_pair(mesh, app)
    metadata: list[tuple[str, str | bytes]]
    metadata = [("x-a", "1"), ("x-a", "2"), ("thing-bin", b"\0\xff"), ("dapr-caller-app-id", "liar")]

    for sidecar, who in ((caller, "caller"), (own, "cart")):
        client = mesh.grpc_client(sidecar)
        good = await client.invoke("cart", "items/add", b"hello", verb=None, type_url="type/y", metadata=metadata)
        bad = await client.invoke("cart", "gone")

        answer = InvokeResponse.FromString(good.message)
        assert (answer.data.value, answer.data.type_url, answer.content_type) == (b"data", "type/x", "text/x")
        assert values(good.headers, "x-one") == ["a"]
        assert values(good.headers, "thing-bin") == [b"\0\1"]
        assert values(good.headers, "tieline-cause") == []
        assert values(good.trailers, "app-trailer") == ["t"]
        assert values(good.trailers, "end-bin") == [b"\xff"]
        assert values(good.trailers, "cache-control") == ["no-store"]  # no HTTP trailer may have the name
        assert (bad.code, bad.text) == (grpc.StatusCode.NOT_FOUND, "gone")
        details = values(bad.trailers, "grpc-status-details-bin")[0]
        assert isinstance(details, bytes)
        assert Status.FromString(details).details[0].type_url.endswith("google.rpc.ErrorInfo")
        seen = app.seen[-2]
        assert (seen.invoked.data.value, seen.invoked.data.type_url) == (b"hello", "type/y")
        assert not seen.invoked.HasField("http_extension")
        assert seen.values("x-a") == ["1", "2"]
        assert seen.values("thing-bin") == [b"\0\xff"]
        assert seen.values("dapr-caller-app-id") == [who]
        assert seen.time_left_s is None  # the caller's, which is kept for it


@pytest.mark.rule("G-15", "G-24", "G-25", "G-33", "G-50", "G-117")
async def test_calls_alike_but_for_their_data_are_told_apart(mesh: Mesh) -> None:
    """Both sidecars remember what heads mean; what is each call's own must not be taken from another."""
    app = await mesh.grpc_app()
    caller, _ = await a_pair(mesh, app)
    kinds: list[dict[str, Any]] = [
        {"method": "work", "content_type": "text/x", "metadata": [("x-a", "1"), ("thing-bin", b"\0\xff")]},
        {"method": "work", "content_type": "text/x", "metadata": [("x-a", "2")], "verb": None},
        {"method": "other/work", "type_url": "type/y", "query": "a=b&c=%20"},
    ]
    order = [0] * 5 + [1] * 5 + [2] * 5 + [0, 1, 2] * 5
    sizes = [0, 1, 127, 128, 1000, 2048, 2049, 9000]

    async with mesh.grpc_client(caller) as client:
        for number, which in enumerate(order):
            kind = {**kinds[which]}
            data = b"%d" % number + b"d" * sizes[number % len(sizes)]
            outcome = await client.invoke("cart", kind.pop("method"), data, **kind, timeout=None)

            answer = InvokeResponse.FromString(outcome.message)
            assert answer.data.value == data
            assert answer.content_type == kind.get("content_type", "")
            assert answer.data.type_url == kind.get("type_url", "")
            seen = app.seen[-1]
            assert seen.invoked.method == kinds[which]["method"]
            assert seen.invoked.data.value == data
            assert seen.invoked.data.type_url == kind.get("type_url", "")
            assert seen.invoked.HasField("http_extension") == (which != 1)
            assert seen.invoked.http_extension.querystring == kind.get("query", "")
            passed = [(name, value) for name, value in seen.metadata if name in ("x-a", "thing-bin")]
            assert sorted(passed) == sorted(kind.get("metadata", []))
            assert seen.values("dapr-caller-app-id") == ["caller"]
            told = values(outcome.headers, "traceparent")
            assert told == seen.values("traceparent")
            assert len(told) == 1

    traces = {str(one.values("traceparent")[0]).split("-")[1] for one in app.seen}
    assert len(app.seen) == len(traces) == len(order)


@pytest.mark.rule("H-83", "G-42", "G-16")
async def test_a_grpc_client_is_told_that_the_app_is_away_as_if_the_app_had_said_so(mesh: Mesh) -> None:
    app = await mesh.grpc_app()
    caller, own = await a_pair(mesh, app)
    await app.aclose()

    for sidecar in (caller, own):
        got = await mesh.grpc_client(sidecar).invoke("cart", "work")
        assert got.code is grpc.StatusCode.UNAVAILABLE
        assert "connection refused" in got.text
        assert (values(got.trailers, "tieline-cause"), values(got.trailers, "tieline-hop")) == (
            ["app-unreachable"],
            ["app"],
        )
        assert "--app-port" in str(values(got.trailers, "tieline-hint"))


@pytest.mark.rule("G-30")
async def test_an_app_that_comes_back_is_called_again(mesh: Mesh) -> None:
    app = await mesh.grpc_app()
    caller, _ = await a_pair(mesh, app)
    before = await caller.call("cart", "work")
    await app.aclose()
    await app.start(app.port)

    async def is_back() -> bool:
        return (await caller.call("cart", "work")).status == 200

    await until(is_back, 10)
    assert before.status == 200


@pytest.mark.rule("G-30", "G-86")
async def test_proxied_calls_of_an_app_behind_tls_share_its_connections(mesh: Mesh) -> None:
    pair = Authority().issue("somebody.example")
    app = GrpcApp()
    await app.start(credentials=grpc.ssl_server_credentials([(pair.key.encode(), pair.certificate.encode())]))
    sidecar = await mesh.sidecar("cart", app.port, "--app-protocol", "grpcs")

    got = await mesh.grpc_client(sidecar).call(UNARY, b"hello", metadata=[("dapr-app-id", "cart")])

    assert (got.code, got.messages) == (grpc.StatusCode.OK, [b"hello"])
    await app.aclose()
