"""The metrics port of real sidecars."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.app import App, Exchange, echo
from tests.support.http1 import Client, ask
from tests.support.mesh import Mesh, Sidecar, free_port, invoke_path, start_pair, until
from tests.support.prometheus import Exposed, read
from tieline.telemetry.families import MAX_CHILDREN, MAX_OVERFLOW, OVERFLOW

PATHS = 1500
"""Distinct paths of the test for bounds: more than a family has children."""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """Sidecars with a registry of their own."""
    made = Mesh(tmp_path)
    try:
        yield made
    finally:
        await made.aclose()


def port_of(sidecar: Sidecar) -> int:
    """Return the metrics port that a sidecar says it has."""
    said = re.search(r"metrics server started on [^ ]*?:(\d+)/", sidecar.log())
    assert said is not None, sidecar.log()
    return int(said[1])


async def scrape(sidecar: Sidecar) -> dict[str, Exposed]:
    """Return its metrics."""
    return read((await ask(port_of(sidecar), "GET", "/metrics")).body.decode())


@pytest.mark.rule("H-139", "O-20")
async def test_any_path_and_any_verb_is_answered_with_the_metrics(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("me", None, "--metrics-port", "0")
    port = port_of(sidecar)

    for verb, path in [("GET", "/"), ("GET", "/metrics"), ("GET", "/any/path?x=1"), ("POST", "/metrics")]:
        answer = await ask(port, verb, path, headers=[("Accept", "application/openmetrics-text")])
        assert answer.status == 200
        assert answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
        assert "process_resident_memory_bytes" in read(answer.body.decode())
    head = await ask(port, "HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.rule("O-21", "H-131")
async def test_what_has_not_happened_is_not_shown_and_what_happens_at_all_apis_is(mesh: Mesh) -> None:
    public = free_port()
    sidecar = await mesh.sidecar(
        "me", None, "--dapr-public-port", str(public), "--dapr-public-listen-address", "127.0.0.1", wait=None
    )
    await sidecar.says("dapr initialized")
    before = await scrape(sidecar)

    await sidecar.ask("GET", "/v1.0/healthz")
    await ask(public, "GET", "/v1.0/healthz")
    await sidecar.ask("PUT", "/v1.0/metadata/k", body=b"x")
    await sidecar.ask("GET", "/nowhere")
    after = await scrape(sidecar)

    assert not [name for name in before if name.startswith("dapr_")]
    assert after["dapr_http_server_request_count"].numbers("method", "path", "status") == {
        ("GET", "/v1.0/healthz", "204"): 2,
        ("PUT", "/v1.0/metadata/k", "204"): 1,
        ("GET", "/nowhere", "404"): 1,
    }
    assert after["dapr_http_server_request_bytes"].distributions[(("app_id", "me"),)].sum == 1


async def test_every_byte_of_an_answer_counts_errors_included(mesh: Mesh) -> None:
    """Those of a sidecar and those of an app."""
    app = await mesh.app(echo)
    sidecar = await mesh.sidecar("me", app, wait=None)
    await sidecar.says("dapr initialized")

    answers = [
        await sidecar.ask("GET", "/v1.0/invoke/nobody/method/x"),
        await sidecar.ask("POST", "/v1.0/invoke/me/method/x", body=b"12345"),
        await sidecar.ask("GET", "/v1.0/nothing"),
        await sidecar.ask("GET", "/v1.0/metadata"),
    ]

    (sizes,) = (await scrape(sidecar))["dapr_http_server_response_bytes"].distributions.values()
    assert (sizes.count, sizes.sum) == (4, sum(len(answer.body) for answer in answers))


@pytest.mark.rule("H-88", "O-28")
async def test_errors_of_apps_count_by_their_code_only_where_the_request_was_no_stream(
    mesh: Mesh, tmp_path: Path
) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.body()
        exchange.answer(404)

    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\n"
        "spec: {metrics: {recordErrorCodes: true}}\n"
    )
    sidecar = await mesh.sidecar("me", await mesh.app(refuse), "--config", str(config))

    async def codes() -> float:
        found = (await scrape(sidecar)).get("dapr_error_code_total")
        return found.numbers("error_code").get(("ERR_DIRECT_INVOKE",), 0) if found is not None else 0

    counted = []
    for app_id in ("me", "nobody"):
        for is_stream in (False, True):
            client = await Client.open(sidecar.port)
            if is_stream:
                client.send("POST", invoke_path(app_id, "x"), [("Transfer-Encoding", "chunked")])
                client.writer.write(b"1\r\nx\r\n0\r\n\r\n")
            else:
                client.send("POST", invoke_path(app_id, "x"), body=b"x")
            assert (await asyncio.wait_for(client.head(), 10)).status >= 400
            client.close()
            counted.append(await codes())

    assert counted == [1, 1, 2, 3]


@pytest.mark.rule("H-139", "O-20")
async def test_without_metrics_nothing_listens(mesh: Mesh) -> None:
    port = free_port()
    sidecar = await mesh.sidecar("me", None, "--metrics-port", str(port), "--enable-metrics=false")

    with pytest.raises(ConnectionRefusedError):
        await ask(port, "GET", "/")
    assert "metrics server" not in sidecar.log()
    assert "no effect" not in sidecar.log()


@pytest.mark.rule("H-139", "C-13", "O-20")
async def test_the_configuration_only_stops_what_is_recorded(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "off.yaml"
    config.write_text("spec: {metric: {enabled: false}}")
    sidecar = await mesh.sidecar("me", None, "--config", str(config))

    await sidecar.ask("GET", "/v1.0/invoke/nobody/method/x")
    found = await scrape(sidecar)

    assert "process_resident_memory_bytes" in found
    assert {name.partition("_")[0] for name in found} == {"process", "python"}
    assert "metric spec" not in sidecar.log()


@pytest.mark.rule("C-91")
async def test_a_port_that_is_taken_ends_the_start_at_once(mesh: Mesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sidecar = await mesh.sidecar("me", None, "--metrics-port", str(port), wait=None)
        assert await sidecar.wait(within_s=8) == 1

    where = f"127.0.0.1:{port}"
    text = f"failed to listen on {where}: listen tcp {where}: bind: address already in use"
    assert f"Fatal error from runtime: {text}" in sidecar.log()
    assert "--metrics-port" in sidecar.log()


async def test_by_default_only_this_host_can_ask(mesh: Mesh) -> None:
    """An address that is given is taken as it is, an empty one for all of them."""
    by_default, open_to_all = await asyncio.gather(
        mesh.sidecar("one", None), mesh.sidecar("two", None, "--metrics-listen-address", "")
    )

    assert "metrics server started on 127.0.0.1:" in by_default.log()
    assert "metrics server started on :" in open_to_all.log()
    assert listening(by_default, port_of(by_default)) <= {"127.0.0.1", "::1"}
    assert listening(open_to_all, port_of(open_to_all)) <= {"::", "0.0.0.0"}


def listening(sidecar: Sidecar, port: int) -> set[str]:
    """Return the addresses at which something listens on a port, as the kernel has them."""
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        path = Path(f"/proc/{sidecar.pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                raw = bytes.fromhex(address)
                words = [raw[at : at + 4][::-1] for at in range(0, len(raw), 4)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


@pytest.mark.rule("C-10")
async def test_a_pattern_without_meaning_ends_the_start_with_its_place(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("spec:\n  metric:\n    http:\n      pathMatching: ['/a/{']\n")
    sidecar = await mesh.sidecar("me", None, "--config", str(config), wait=None)

    assert await sidecar.wait() == 1
    assert "Fatal error from runtime: spec.metric.http.pathMatching" in sidecar.log()
    assert f"{config} line 4" in sidecar.log()
    assert "Traceback" not in sidecar.log()


async def test_however_many_paths_are_called_the_metrics_stay_of_one_size(mesh: Mesh) -> None:
    """Nor do calls wait for a scrape of all of them."""
    pair = await start_pair(mesh, echo)
    port = pair.caller.port

    async def call_some(numbers: range) -> None:
        for number in numbers:
            answer = await ask(port, "GET", f"/v1.0/invoke/callee/method/orders/{number}")
            assert answer.status == 200

    await asyncio.gather(*(call_some(range(first, PATHS, 10)) for first in range(10)))

    for sidecar, name in [(pair.caller, "dapr_http_server_latency"), (pair.callee, "dapr_http_client_sent_bytes")]:
        found = await scrape(sidecar)
        counts = found[name].numbers("path")
        assert len(counts) <= MAX_CHILDREN + MAX_OVERFLOW
        assert sum(counts.values()) >= PATHS
        assert counts[OVERFLOW,] >= PATHS - MAX_CHILDREN
        assert sidecar.log().count("MAX_CHILDREN") == 1


async def test_what_goes_on_now_is_shown(mesh: Mesh) -> None:
    """Requests in progress, connections, and calls that wait for the app."""
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go_on.wait()
        exchange.answer(200)

    pair = await start_pair(mesh, slow, "--app-max-concurrency", "1")
    calls = [asyncio.create_task(pair.caller.ask("GET", "/v1.0/invoke/callee/method/x")) for _ in range(3)]

    async def all_came() -> bool:
        found = await scrape(pair.callee)
        return found["tieline_app_calls_waiting"].values[(("app_id", "callee"),)] == 2

    await until(all_came)
    callee, caller = await scrape(pair.callee), await scrape(pair.caller)
    go_on.set()
    await asyncio.gather(*calls)
    after = await scrape(pair.callee)

    assert callee["tieline_requests_in_progress"].numbers("listener")["internal",] == 3
    assert callee["tieline_connections"].numbers("listener")["internal",] == 1
    assert caller["tieline_requests_in_progress"].numbers("listener")["http",] == 3
    assert caller["tieline_connections"].numbers("listener")["http",] == 3
    assert caller["tieline_peer_connections"].values[(("app_id", "caller"),)] == 1
    assert after["tieline_requests_in_progress"].numbers("listener")["internal",] == 0
    assert after["tieline_app_calls_waiting"].values[(("app_id", "callee"),)] == 0
    assert after["dapr_http_client_completed_count"].numbers("status") == {("200",): 3}


async def test_metrics_can_be_asked_for_while_calls_are_drained(mesh: Mesh) -> None:
    """And a scraper that does not read does not keep the process from ending."""
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go_on.wait()
        exchange.answer(200)

    app: App = await mesh.app(slow)
    sidecar = await mesh.sidecar("me", app)
    call = asyncio.create_task(sidecar.ask("GET", "/v1.0/invoke/me/method/x"))
    await until(lambda: bool(app.seen))
    port = port_of(sidecar)
    _, idle = await asyncio.open_connection("127.0.0.1", port)
    sidecar.signal(signal.SIGTERM)
    await sidecar.says("beginning shutdown")

    found = await scrape(sidecar)
    go_on.set()

    assert found["tieline_requests_in_progress"].numbers("listener")["http",] == 1
    assert (await call).status == 200
    assert await sidecar.wait() == 0
    idle.close()


@pytest.mark.rule("C-71", "O-43")
async def test_a_hang_up_puts_changed_settings_in_force(mesh: Mesh, tmp_path: Path) -> None:
    """What does not change goes on counting; a change starts from zero, and switches off and on as well."""
    config = tmp_path / "config.yaml"
    config.write_text("spec: {metric: {http: {increasedCardinality: false}}}")
    sidecar = await mesh.sidecar("me", None, "--config", str(config), wait=None)
    await sidecar.says("dapr initialized")

    async def paths_after(text: str, reloads: int) -> dict[tuple[str, ...], float]:
        config.write_text(text)
        sidecar.signal(signal.SIGHUP)
        await until(lambda: sidecar.log().count("Reloaded; nothing was restarted") == reloads)
        await sidecar.ask("GET", "/v1.0/metadata")
        found = await scrape(sidecar)
        shown = found.get("dapr_http_server_request_count")
        assert ("tieline_info" in found) == (shown is not None)
        return shown.numbers("path") if shown is not None else {}

    await sidecar.ask("GET", "/v1.0/metadata")
    same = "spec: {metric: {http: {increasedCardinality: false}}, features: [{name: X, enabled: true}]}"
    assert await paths_after(same, 1) == {("",): 2}
    assert await paths_after("spec: {metric: {http: {increasedCardinality: true}}}", 2) == {("/v1.0/metadata",): 1}
    assert await paths_after("spec: {metric: {enabled: false}}", 3) == {}
    assert await paths_after("spec: {metrics: {http: {pathMatching: ['/v1.0/']}}}", 4) == {("/v1.0/",): 1}
    assert r"increasedCardinality\":true" in sidecar.log()
    assert "only after the next start" not in sidecar.log()


async def test_probes_of_the_app_are_counted(mesh: Mesh) -> None:
    """And the first call to it."""
    app = await mesh.app(echo)
    sidecar = await mesh.sidecar("me", app, "--enable-app-health-check", quiet=False)

    async def has_greeted() -> bool:
        return "dapr_http_client_completed_count" in await scrape(sidecar)

    await until(has_greeted)

    found = await scrape(sidecar)
    assert found["dapr_http_healthprobes_completed_count"].numbers("status")["200",] >= 1
    assert found["dapr_http_client_completed_count"].numbers("path", "status") == {("/dapr/config", "200"): 1}
