"""Files that change while a sidecar runs: they are in force without a restart, and a broken one harms nothing."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.app import Exchange, echo
from tests.support.h2peer import H2Client
from tests.support.http1 import Client
from tests.support.mesh import Mesh, Sidecar, free_port, invoke_path, until

WITHIN_S: Final = 8.0
"""How long a change may take, on a busy machine; the rule allows 20 s."""


def endpoint(name: str, url: str = "http://127.0.0.1:1") -> str:
    return f"apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {{name: {name}}}\nspec: {{baseUrl: '{url}'}}\n"


async def metadata(sidecar: Sidecar) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await sidecar.ask("GET", "/v1.0/metadata")).body)
    return found


async def shows(sidecar: Sidecar, *names: str) -> None:
    """Return once the metadata name exactly these endpoints."""

    async def does() -> bool:
        found = (await metadata(sidecar)).get("httpEndpoints", [])
        return sorted(item["name"] for item in found) == sorted(names)

    await until(does, WITHIN_S)


@pytest.fixture
def resources(tmp_path: Path) -> Path:
    folder = tmp_path / "resources"
    folder.mkdir()
    return folder


@pytest.mark.rule("C-68", "C-70", "H-108", "H-109")
async def test_endpoint_files_come_change_and_go_without_a_restart(mesh: Mesh, resources: Path) -> None:
    (resources / "first.yaml").write_text(endpoint("first"))
    sidecar = await mesh.sidecar("a", None, "--resources-path", str(resources))
    await shows(sidecar, "first")
    client = await Client.open(sidecar.port)

    (resources / "more.yaml").write_text(endpoint("x") + "---\n" + endpoint("y"))
    await shows(sidecar, "first", "x", "y")
    (resources / "more.yaml").write_text(endpoint("x", "http://127.0.0.1:2"))
    await shows(sidecar, "first", "x")
    (resources / "first.yaml").unlink()
    await shows(sidecar, "x")

    client.send("GET", "/v1.0/healthz")
    assert (await client.answer()).status == 204
    client.close()
    lines = [line for line in sidecar.log().splitlines() if "HTTPEndpoint " in line]
    assert ["".join(line.split('msg="')[1].split('"')[0]) for line in lines] == [
        "HTTPEndpoint added: x",
        "HTTPEndpoint added: y",
        "HTTPEndpoint updated: x",
        "HTTPEndpoint removed: y",
        "HTTPEndpoint removed: first",
    ]
    assert sidecar.log().count("dapr initialized") == 1


@pytest.mark.rule("C-70", "H-108")
async def test_an_endpoint_is_called_as_its_file_says_now_and_a_call_in_progress_ends_as_it_began(
    mesh: Mesh, resources: Path
) -> None:
    gate, go_on = asyncio.Event(), asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        gate.set()
        await go_on.wait()
        exchange.answer(200, b"one")

    async def quick(exchange: Exchange) -> None:
        exchange.answer(200, b"two")

    one, two = await mesh.app(slow), await mesh.app(quick)
    file = resources / "e.yaml"
    file.write_text(endpoint("ext", f"http://127.0.0.1:{one.port}"))
    sidecar = await mesh.sidecar("a", None, "--resources-path", str(resources))
    call = asyncio.create_task(sidecar.call("ext", "x"))
    await gate.wait()

    file.write_text(endpoint("ext", f"http://127.0.0.1:{two.port}"))
    await sidecar.says("HTTPEndpoint updated: ext", WITHIN_S)
    changed = await sidecar.call("ext", "x")
    file.unlink()
    await sidecar.says("HTTPEndpoint removed: ext", WITHIN_S)
    removed = await sidecar.call("ext", "x")
    file.write_text(endpoint("ext", f"http://127.0.0.1:{two.port}"))
    await sidecar.says("HTTPEndpoint added: ext", WITHIN_S)
    again = await sidecar.call("ext", "x")
    go_on.set()

    assert [changed.body, again.body, (await call).body] == [b"two", b"two", b"one"]
    assert removed.status == 500


@pytest.mark.rule("C-68", "H-108")
async def test_the_swap_of_a_mounted_folder_is_seen(mesh: Mesh, resources: Path) -> None:
    """As Kubernetes updates a mounted ConfigMap: only a link beside the files changes."""
    for version, url in (("..1", "http://127.0.0.1:1"), ("..2", "http://127.0.0.1:2")):
        (resources / version).mkdir()
        (resources / version / "e.yaml").write_text(endpoint("ext", url))
    (resources / "..data").symlink_to("..1")
    (resources / "e.yaml").symlink_to("..data/e.yaml")
    sidecar = await mesh.sidecar("a", None, "--resources-path", str(resources))

    (resources / "..new").symlink_to("..2")
    (resources / "..new").rename(resources / "..data")

    await sidecar.says("HTTPEndpoint updated: ext", WITHIN_S)


@pytest.mark.rule("C-69", "H-108")
async def test_a_broken_file_and_a_lost_folder_keep_what_was_there(mesh: Mesh, resources: Path) -> None:
    (resources / "e.yaml").write_text(endpoint("ext"))
    sidecar = await mesh.sidecar("a", None, "--resources-path", str(resources))

    (resources / "e.yaml").write_text("spec: [")
    await sidecar.says("error when parsing manifests yaml resource", WITHIN_S)
    await shows(sidecar, "ext")
    moved = resources.rename(resources.with_name("moved"))
    await sidecar.says("resources stay as they were", WITHIN_S)
    await shows(sidecar, "ext")
    (moved / "e.yaml").write_text(endpoint("mended"))
    moved.rename(resources)

    await shows(sidecar, "mended")
    assert sidecar.log().count("resources stay as they were") == 1


NO_RELOAD: Final = "spec: {features: [{name: HotReload, enabled: false}]}\n"


@pytest.mark.rule("C-67", "C-71", "H-142")
async def test_without_hot_reload_only_a_signal_reads_anew(mesh: Mesh, resources: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(NO_RELOAD)
    sidecar = await mesh.sidecar("a", None, "--resources-path", str(resources), "--config", str(config))
    assert "Watching directories" not in sidecar.log()

    (resources / "e.yaml").write_text(endpoint("ext"))
    sidecar.signal(signal.SIGHUP)

    await shows(sidecar, "ext")
    assert "Watching directories" not in sidecar.log()


@pytest.mark.rule("C-7", "C-71", "H-142", "O-44")
async def test_a_hang_up_puts_a_changed_configuration_in_force(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("spec: {features: [{name: One, enabled: true}]}\n")
    sidecar = await mesh.sidecar("a", None, "--config", str(config))
    client = await Client.open(sidecar.port)
    resolution = "nameResolution: {component: sqlite, configuration: {connectionString: x.db}}"
    config.write_text(
        "spec:\n  features: [{name: Two, enabled: true}]\n"
        f"  logging: {{apiLogging: {{enabled: true}}}}\n  {resolution}\n"
    )

    sidecar.signal(signal.SIGHUP)
    await sidecar.says("Reloaded; nothing was restarted")

    facts = await metadata(sidecar)
    assert "Two" in facts["enabledFeatures"]
    assert "One" not in facts["enabledFeatures"]
    await sidecar.says("HTTP API Called")
    log = sidecar.log()
    assert "Configuration changed: spec.features, spec.logging.apiLogging" in log
    assert "changed, but in force only after the next start: spec.nameResolution" in log
    client.send("GET", "/v1.0/healthz")
    assert (await client.answer()).status == 204
    client.close()


@pytest.mark.rule("C-26", "C-71")
async def test_a_hang_up_closes_and_opens_apis_on_open_connections_too(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("")
    app = await mesh.app(echo)
    public = free_port()
    sidecar = await mesh.sidecar("a", app, "--config", str(config), "--dapr-public-port", str(public))
    over_1, over_2, outside = (
        await Client.open(sidecar.port),
        await H2Client.open(sidecar.port),
        await Client.open(public),
    )

    async def statuses() -> list[int]:
        over_1.send("GET", invoke_path("a", "x"))
        outside.send("GET", "/v1.0/metadata")
        second = await (await over_2.request("GET", invoke_path("a", "x"))).whole(5)
        return [(await over_1.answer()).status, second.status, (await outside.answer()).status]

    before = await statuses()
    denied = "{name: invoke, version: v1, protocol: http}, {name: metadata, version: v1, protocol: http}"
    config.write_text(f"spec: {{api: {{denied: [{denied}]}}}}")
    sidecar.signal(signal.SIGHUP)
    await sidecar.says("Configuration changed: spec.api")
    closed = await statuses()
    config.write_text("")
    sidecar.signal(signal.SIGHUP)
    await until(lambda: sidecar.log().count("Configuration changed: spec.api") == 2)
    opened = await statuses()
    over_1.close()
    outside.close()
    over_2.close()

    assert (before, closed, opened) == ([200, 200, 200], [404, 404, 404], [200, 200, 200])


async def test_a_hang_up_warns_of_what_a_start_warns_of_and_of_an_api_that_opens(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    rules = "denied: [{name: invoke, version: v1, protocol: http}]"
    config.write_text(f"spec: {{api: {{{rules}}}}}")
    sidecar = await mesh.sidecar("a", None, "--config", str(config))
    config.write_text(f"spec: {{apis: {{{rules}}}, mtls: {{enabled: true}}}}")

    sidecar.signal(signal.SIGHUP)
    await sidecar.says("Configuration changed: spec.api")
    config.write_text("spec: {api: {denied: [{name: invok, protocol: http}]}}")
    sidecar.signal(signal.SIGHUP)
    await until(lambda: sidecar.log().count("Configuration changed: spec.api") == 2)

    log = sidecar.log()
    assert "not a key of a Configuration, so it does nothing: spec.apis" in log
    assert "did you mean" in log
    assert "spec.api.denied is gone: the 1 rules of it protect no longer" in log
    assert log.count("spec.mtls.enabled is true, but a sidecar does not switch mTLS on by it") == 1
    assert log.count("a rule without version matches nothing; such as v1") == 1
    assert "there is no API 'invok'; did you mean" in log


async def test_a_start_warns_of_rules_and_of_mtls_that_do_nothing(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("spec: {api: {allowed: [{name: invoke, version: v1}]}, mtls: {enabled: true}}")

    sidecar = await mesh.sidecar("a", None, "--config", str(config))

    warnings = [line for line in sidecar.log().splitlines() if "level=warning" in line]
    assert sum("a rule whose protocol is '' matches nothing; http, grpc" in line for line in warnings) == 1
    assert sum("spec.mtls" in line for line in warnings) == 1


@pytest.mark.rule("C-70")
async def test_an_endpoint_whose_new_url_is_none_keeps_its_former_definition(mesh: Mesh, resources: Path) -> None:
    app = await mesh.app(echo)
    file = resources / "e.yaml"
    file.write_text(endpoint("ext", f"http://127.0.0.1:{app.port}"))
    sidecar = await mesh.sidecar("a", None, "--resources-path", str(resources))
    file.write_text(endpoint("ext", f"127.0.0.1:{app.port}"))

    await sidecar.says("HTTPEndpoint ext keeps its former definition: spec.baseUrl: ", WITHIN_S)

    assert (await sidecar.call("ext", "x")).status == 200


@pytest.mark.rule("C-71")
@pytest.mark.parametrize(
    "text",
    [
        "spec: [",
        None,
        "spec: {accessControl: {defaultAction: deny}}",
        "spec: {metric: {http: {pathMatching: ['/{a}/b', '/a/{b}']}}}",
    ],
)
async def test_a_configuration_that_does_not_load_leaves_the_old_one(
    text: str | None, mesh: Mesh, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("spec: {features: [{name: One, enabled: true}]}\n")
    sidecar = await mesh.sidecar("a", None, "--config", str(config))
    if text is None:
        config.unlink()
    else:
        config.write_text(text)

    sidecar.signal(signal.SIGHUP)

    await sidecar.says("the configuration stays as it was: ")
    await sidecar.says("Reloaded, except what stays as it was; nothing was restarted")
    assert "Fatal error" not in sidecar.log()
    assert "One" in (await metadata(sidecar))["enabledFeatures"]


@pytest.mark.rule("C-71", "H-142")
async def test_calls_in_progress_and_the_wait_for_the_app_go_on_through_hang_ups(mesh: Mesh, resources: Path) -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        await echo(exchange)

    app = await mesh.app(handler)
    sidecar = await mesh.sidecar("a", app, "--resources-path", str(resources), wait="/v1.0/healthz/outbound")
    call = asyncio.create_task(sidecar.call("a", "x", "POST", body=b"b"))
    await until(lambda: len(app.seen) == 1)
    (resources / "e.yaml").write_text(endpoint("ext"))

    for _ in range(2):
        sidecar.signal(signal.SIGHUP)
    await shows(sidecar, "ext")
    gate.set()

    assert (await call).status == 200
    assert sidecar.code is None


LEADER: Final = """
import os, signal, subprocess, sys
os.setsid()
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.rule("H-142")
@pytest.mark.parametrize("nohup", [False, True])
async def test_the_end_of_its_terminal_stops_a_sidecar_unless_it_was_told_to_stay(
    nohup: bool, mesh: Mesh, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    log = tmp_path / "terminal.log"
    prefix = ["nohup"] if nohup else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LEADER, *prefix, sys.executable, "-m", "tieline", "sidecar", "--no-mdns", "--app-id", "a",
        "--dapr-http-port", "0", "--dapr-grpc-port", "0", "--log-file", str(log),
        stdin=theirs, stdout=theirs, stderr=theirs, env=mesh.environ, cwd=tmp_path,
    )  # fmt: skip
    os.close(theirs)
    try:
        await until(lambda: log.exists() and "dapr initialized" in log.read_text(), 15)

        os.close(ours)

        if nohup:
            await until(lambda: "Received signal 'hangup'; reloading" in log.read_text(), 5)
            assert process.returncode is None
        else:
            assert await asyncio.wait_for(process.wait(), 10) == 0
            assert "Received signal 'hangup'; beginning shutdown" in log.read_text()
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 10)
