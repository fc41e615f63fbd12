"""The API as an operator guards and watches it: tokens, web pages, the public port, the API log."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.app import Exchange, echo
from tests.support.mesh import Mesh, Sidecar, free_port, invoke_path, start_pair, until

INFO = "dapr.runtime.http-info"


def configuration(folder: Path, spec: dict[str, Any]) -> str:
    """Write a Configuration and return its path."""
    file = folder / "config.yaml"
    file.write_text(json.dumps({"kind": "Configuration", "spec": spec}))
    return str(file)


async def api_lines(sidecar: Sidecar, count: int) -> list[dict[str, Any]]:
    """Return the lines of the API log once there are so many."""

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in sidecar.log().splitlines() if line.startswith("{")]
        return [line for line in found if line["scope"] == INFO]

    await until(lambda: len(lines()) >= count)
    return lines()


# ── web pages ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-138", "H-137")
@pytest.mark.parametrize("page", [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")])
async def test_a_web_page_can_neither_stop_a_sidecar_nor_write_its_metadata(mesh: Mesh, page: tuple[str, str]) -> None:
    sidecar = await mesh.sidecar("cart", None, "--allowed-origins", "https://mine.example")

    for verb, path in (("POST", "/v1.0/shutdown"), ("PUT", "/v1.0/metadata/key")):
        refused = await sidecar.ask(verb, path, headers=[page], body=b"x")

        assert refused.status == 403
        assert b"--allowed-origins" in refused.body
    assert (await sidecar.ask("GET", "/v1.0/healthz")).status == 204


async def test_a_page_of_an_allowed_origin_may(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("cart", None, "--allowed-origins", "https://mine.example")
    mine = ("Origin", "https://mine.example")

    assert (await sidecar.ask("PUT", "/v1.0/metadata/key", headers=[mine], body=b"x")).status == 204
    assert (await sidecar.ask("POST", "/v1.0/shutdown", headers=[mine])).status == 204
    assert await sidecar.wait() == 0


# ── the public port ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-131")
async def test_the_public_port_shows_health_and_metadata_and_takes_nothing(mesh: Mesh) -> None:
    public = free_port()
    flags = ["--dapr-public-port", str(public), "--dapr-public-listen-address", "127.0.0.1"]
    sidecar = await mesh.sidecar("cart", None, *flags, environ={"DAPR_API_TOKEN": "secret"})
    token = ("dapr-api-token", "secret")
    there = Sidecar.__new__(Sidecar)
    there.port = public

    shown = await there.ask("GET", "/v1.0/metadata")
    written = await there.ask("PUT", "/v1.0/metadata/key", headers=[token], body=b"x")

    assert (await there.ask("GET", "/v1.0/healthz")).status == 204
    assert shown.body == (await sidecar.ask("GET", "/v1.0/metadata", headers=[token])).body
    assert written.status == 403
    assert b"key" not in (await there.ask("GET", "/v1.0/metadata")).body
    assert (await there.ask("POST", "/v1.0/shutdown")).status == 404
    assert (await there.ask("GET", invoke_path("cart", "x"))).status == 404


@pytest.mark.rule("H-8")
async def test_a_public_port_that_is_taken_ends_the_start(mesh: Mesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ["--dapr-public-port", str(port), "--dapr-public-listen-address", "127.0.0.1"]

        sidecar = await mesh.sidecar("cart", None, *flags, wait=None)

        assert await sidecar.wait() == 1
    assert f"listen tcp 127.0.0.1:{port}: bind: address already in use" in sidecar.log()
    assert "--dapr-public-port" in sidecar.log()


# ── tokens ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-124")
async def test_the_token_of_the_api_goes_to_nobody_else(mesh: Mesh) -> None:
    app = await mesh.app(echo)
    await mesh.sidecar("callee", app)
    caller = await mesh.sidecar("caller", None, environ={"DAPR_API_TOKEN": "secret"})
    app.seen.clear()

    answer = await caller.call("callee", "work", headers=[("Dapr-Api-Token", "secret")])

    assert answer.status == 200
    assert [name for name, _ in app.seen[0].headers if name == "dapr-api-token"] == []


# ── the API log ────────────────────────────────────────────────────────────────────────────────────
async def ten_pieces(exchange: Exchange) -> None:
    exchange.begin_chunked()
    for _ in range(10):
        exchange.chunk(b"x" * 100)
    exchange.end_chunks()


@pytest.mark.rule("H-132", "O-44")
async def test_each_call_of_the_api_is_a_line_whatever_the_log_level_is(mesh: Mesh) -> None:
    pair = await start_pair(mesh, echo, caller_flags=["--enable-api-logging", "--log-as-json", "--log-level", "error"])
    before = len(await api_lines(pair.caller, 1))

    await pair.caller.call("callee", "a/b?secret=1", "POST", headers=[("User-Agent", "probe/1")], body=b"hello")
    await pair.caller.ask("GET", "/nope")
    lines = (await api_lines(pair.caller, before + 2))[before:]

    shown = [(line["level"], line["method"], line["code"], line.get("useragent")) for line in lines]
    assert shown == [
        ("info", "POST /v1.0/invoke/callee/method/a/b", 200, "probe/1"),
        ("info", "GET /nope", 404, None),
    ]
    assert all(isinstance(line["duration"], int) for line in lines)
    assert lines[1]["size"] == 118


@pytest.mark.rule("H-132", "O-44")
async def test_paths_can_be_hidden_and_health_left_out(mesh: Mesh, tmp_path: Path) -> None:
    logging = {"enabled": True, "obfuscateURLs": True, "omitHealthChecks": True}
    file = configuration(tmp_path, {"logging": {"apiLogging": logging}})
    sidecar = await mesh.sidecar("cart", None, "--log-as-json", "--config", file)

    await sidecar.ask("GET", "/v1.0/healthz")
    await sidecar.ask("GET", "/v1.0/metadata")
    await sidecar.ask("PUT", "/v1.0/metadata/key", body=b"v")
    await sidecar.ask("GET", invoke_path("cart.default", "private"))
    await sidecar.ask("GET", "/private", headers=[("dapr-app-id", "other.ns")])
    await sidecar.ask("GET", "/private")

    assert [line["method"] for line in await api_lines(sidecar, 5)] == [
        "GetMetadata",
        "PutMetadata",
        "InvokeService/cart.default",
        "InvokeService/other.ns",
        "InvokeService",
    ]


@pytest.mark.rule("H-132")
async def test_a_streamed_answer_is_logged_with_its_size_when_it_has_ended(mesh: Mesh) -> None:
    app = await mesh.app(ten_pieces)
    sidecar = await mesh.sidecar("cart", app, "--log-as-json", "--enable-api-logging")
    before = len(await api_lines(sidecar, 1))

    await sidecar.call("cart", "stream")

    assert (await api_lines(sidecar, before + 1))[before]["size"] == 1000


@pytest.mark.rule("H-132")
async def test_who_is_refused_is_not_logged_and_the_flag_has_the_last_word(mesh: Mesh, tmp_path: Path) -> None:
    file = configuration(tmp_path, {"logging": {"apiLogging": {"enabled": True}}})
    flags = ["--log-as-json", "--config", file]
    token = {"DAPR_API_TOKEN": "secret"}
    silent = await mesh.sidecar("silent", None, *flags, "--enable-api-logging=false")
    guarded = await mesh.sidecar("guarded", None, *flags, environ=token)
    before = len(await api_lines(guarded, 1))

    await silent.ask("GET", "/v1.0/metadata")
    assert (await guarded.ask("GET", "/v1.0/metadata")).status == 401
    await guarded.ask("GET", "/v1.0/metadata", headers=[("dapr-api-token", "secret")])

    assert [line["code"] for line in (await api_lines(guarded, before + 1))[before:]] == [200]
    assert INFO not in silent.log()
