"""The commands for people against real sidecars: list, invoke and stop, with processes that live, hang and die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import command
from tests.support.app import Exchange, echo
from tests.support.command import Result
from tests.support.http1 import ask
from tests.support.mesh import Mesh, Pair, Process, Sidecar, free_port, until
from tieline.cli.wait import is_listening

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by /proc")


async def tieline(mesh: Mesh, *argv: str, **variables: str) -> Result:
    """Run a command with the mesh's registry."""
    return await command.run({**mesh.environ, **variables}, *argv)


async def listed(mesh: Mesh) -> dict[str, dict[str, Any]]:
    """Return what ``list -o json`` says, by app ID."""
    result = await tieline(mesh, "list", "-o", "json")
    assert result.code == 0, result.err
    return {row["appId"]: row for row in result.json()}


@pytest_asyncio.fixture
async def pair(mesh: Mesh) -> Pair:
    """A caller without an app, and a callee."""
    app = await mesh.app(echo)
    callee = await mesh.sidecar("callee", app)
    return Pair(await mesh.sidecar("caller"), callee, app)


def registry(mesh: Mesh) -> Path:
    return mesh.state / "tieline" / "registry.db"


async def running(mesh: Mesh, app_id: str, *argv: str) -> Process:
    """Start ``tieline run`` and return once it is up."""
    process = mesh.process(app_id, [sys.executable, "-m", "tieline", "run", "--no-mdns", "--app-id", app_id, *argv])
    await process.says("You're up and running!", 20)
    return process


# --- list ---


@pytest.mark.rule("K-30")
async def test_list_shows_who_runs_and_what_is_known_of_them(mesh: Mesh) -> None:
    app = await mesh.app(echo)
    orders = await mesh.sidecar("orders", app, environ={"NAMESPACE": "staging"})
    shop = await mesh.sidecar("shop")

    rows = await listed(mesh)
    table = await tieline(mesh, "list")
    yaml = await tieline(mesh, "list", "-o", "yaml")

    assert list(rows) == ["orders", "shop"]
    row = rows["orders"]
    assert (row["httpPort"], row["appPort"], row["daprdPid"]) == (orders.port, app.port, orders.pid)
    assert (row["namespace"], row["status"], row["announced"], row["kind"]) == ("staging", "healthy", True, "tieline")
    assert row["internalAddress"] == f"127.0.0.1:{orders.internal}"
    assert (row["maxRequestBodySize"], row["httpReadBufferSize"]) == (4 << 20, 4096)
    assert re.fullmatch(r"\d+s", row["age"])
    assert rows["shop"]["appPort"] == 0
    assert re.search(rf"metrics server started on \S*:{row['metricsPort']}\b", orders.log())
    lines = table.out.splitlines()
    assert lines[0].split("  ")[0] == "APP ID"
    assert re.split(r"  +", lines[1])[:2] == ["orders", str(orders.port)]
    assert re.split(r"  +", lines[2])[:2] == ["shop", str(shop.port)]
    assert yaml.out.startswith(f"- appId: orders\n  httpPort: {orders.port}\n")


@pytest.mark.rule("K-30")
async def test_with_nobody_there_list_says_what_to_do(mesh: Mesh) -> None:
    table, as_json = await tieline(mesh, "list"), await tieline(mesh, "list", "-o", "json")
    yaml, other = await tieline(mesh, "list", "-o", "yaml"), await tieline(mesh, "list", "-o", "xml")

    assert (table.code, table.out) == (0, "No Dapr instances found.\n")
    assert "tieline run --app-id" in table.err
    assert (as_json.code, as_json.out, as_json.err) == (0, "[]\n", "")
    assert (yaml.code, yaml.out) == (0, "[]\n")
    assert (other.code, other.out) == (2, "")


async def test_a_sidecar_tells_of_another_with_its_app_id(mesh: Mesh) -> None:
    """It may be an instance of the same app, or a slip: nobody else would notice."""
    first = await mesh.sidecar("orders")
    second = await mesh.sidecar("orders")
    await mesh.sidecar("orders", environ={"NAMESPACE": "blue"})

    await second.says(f"app ID orders has another sidecar, process {first.pid}: calls take turns")
    assert "another sidecar" not in first.log()


async def test_invoke_tells_of_a_called_app_whose_sidecar_hangs(mesh: Mesh) -> None:
    await mesh.sidecar("caller")
    hanging = await mesh.sidecar("node")
    hanging.signal(signal.SIGSTOP)
    try:
        result = await tieline(mesh, "invoke", "node", "m", "--timeout", "2")
    finally:
        hanging.signal(signal.SIGCONT)

    assert result.code == 4
    assert "no answer through 127.0.0.1:" in result.err
    assert "seen here:   the sidecar of node is there, but no answer" in result.err


async def test_list_shows_a_sidecar_that_waits_for_its_app_and_one_that_drains(mesh: Mesh) -> None:
    """Neither can be called, so neither is announced; but both run."""
    hold, entered = asyncio.Event(), asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        entered.set()
        await hold.wait()
        exchange.answer(200)

    draining = await mesh.sidecar("draining", await mesh.app(slow))
    await mesh.sidecar("waiting", free_port(), wait="/v1.0/healthz/outbound")
    call = asyncio.create_task(draining.call("draining", "m"))
    await entered.wait()
    draining.signal(signal.SIGTERM)
    await draining.says("beginning shutdown")

    async def seen() -> bool:
        rows = await listed(mesh)
        shown = {name: (row["status"], row["announced"]) for name, row in rows.items()}
        leaving = shown.get("draining") in (("not ready", False), ("no answer", False))
        return leaving and shown.get("waiting") == ("not ready", False)

    await until(seen, 10)
    hold.set()
    await call
    await draining.wait()
    assert list(await listed(mesh)) == ["waiting"]


async def test_list_tells_dead_and_hanging_ones_from_living_ones_at_once(mesh: Mesh) -> None:
    killed = await mesh.sidecar("killed")
    hanging = await mesh.sidecar("hanging")
    await mesh.sidecar("living")

    killed.kill()
    hanging.signal(signal.SIGSTOP)
    try:
        rows = await listed(mesh)
        table = await tieline(mesh, "list")
    finally:
        hanging.signal(signal.SIGCONT)

    assert {name: row["status"] for name, row in rows.items()} == {
        "killed": "dead",
        "hanging": "no answer",
        "living": "healthy",
    }
    assert rows["killed"]["detail"] == f"process {killed.pid} has ended"
    assert "did not answer within 1 s" in table.out


@pytest.mark.rule("K-14", "K-30")
async def test_list_knows_what_run_started(mesh: Mesh) -> None:
    run = await running(mesh, "orders", "--", "sleep", "1000.000000000000001")

    async def told() -> bool:
        return bool((await listed(mesh))["orders"]["command"])

    await until(told, 10)
    row = (await listed(mesh))["orders"]
    table = await tieline(mesh, "list")

    assert (row["command"], row["cliPid"]) == ("sleep 1000.000000000000001", run.pid)
    assert Path(f"/proc/{row['appPid']}/cmdline").read_bytes().startswith(b"sleep\0")
    assert "sleep 1000.000000..." in table.out
    run.signal(signal.SIGTERM)
    await run.wait()


async def test_a_sidecar_with_a_resolver_of_the_users_own_is_listed_too(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n  nameResolution:\n"
        f"    component: sqlite\n    configuration: {{connectionString: {tmp_path}/names.db}}\n"
    )
    await mesh.sidecar("orders", None, "--config", str(config))

    row = (await listed(mesh))["orders"]

    assert (row["status"], row["resolver"], row["announced"]) == ("healthy", "sqlite", False)


async def test_list_finds_an_api_on_a_unix_domain_socket(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.sidecar("orders", None, "--unix-domain-socket", str(tmp_path), wait=None)

    async def healthy() -> bool:
        return (await listed(mesh)).get("orders", {}).get("status") == "healthy"

    await until(healthy, 15)
    row = (await listed(mesh))["orders"]
    assert row["httpSocket"] == str(tmp_path / "dapr-orders-http.socket")


@pytest.mark.parametrize("columns", [40, 80, 200])
async def test_a_table_fits_its_terminal(mesh: Mesh, columns: int) -> None:
    await mesh.sidecar("orders", await mesh.app(echo))

    shown = await command.on_terminal(mesh.environ, columns, ["list"])

    assert max(map(len, shown.splitlines())) <= columns
    assert "APP ID  HTTP PORT" in shown
    assert "healthy" in shown
    assert ("CREATED" in shown) == (columns == 200)


async def test_list_into_head_is_silent(mesh: Mesh) -> None:
    await mesh.sidecar("orders")
    script = f"{sys.executable} -m tieline list | head -c 3; echo ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=mesh.environ
    )
    out, err = await process.communicate()

    assert err == b""
    assert out.startswith(b"APP")


# --- the registry on bad days ---


async def test_a_registry_that_is_deleted_while_sidecars_run_comes_back(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("orders")
    for file in registry(mesh).parent.iterdir():
        file.unlink()

    await until(lambda: registry(mesh).exists(), 15)

    async def back() -> bool:
        return (await listed(mesh)).get("orders", {}).get("status") == "healthy"

    await until(back, 10)
    assert (await listed(mesh))["orders"]["maxRequestBodySize"] == 4 << 20
    assert (await tieline(mesh, "stop", "orders")).code == 0
    assert await sidecar.wait() == 0


async def test_a_registry_that_is_damaged_is_a_line_and_1(mesh: Mesh) -> None:
    registry(mesh).parent.mkdir(mode=0o700)
    registry(mesh).write_bytes(b"\xff" * 5000)

    for argv in (["list"], ["list", "-o", "json"], ["stop", "--all"], ["stop", "orders"]):
        result = await tieline(mesh, *argv)
        assert (result.code, result.out) == (1, ""), argv
        assert "file is not a database (26)" in result.err
        assert '"tieline doctor" looks closer' in result.err
        assert result.err.count("\n") == 1
    call = await tieline(mesh, "invoke", "orders", "m")
    assert call.code == 3
    assert "file is not a database (26)" in call.err


async def test_a_registry_that_is_locked_is_read_or_told_in_a_bounded_time(mesh: Mesh) -> None:
    await mesh.sidecar("orders")
    holder = sqlite3.connect(registry(mesh), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        rows = await listed(mesh)
    finally:
        holder.execute("ROLLBACK")
        holder.close()

    assert rows["orders"]["status"] == "healthy"


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only for root")
async def test_a_registry_in_a_folder_that_is_read_only_can_be_read(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("orders")
    sidecar.kill()
    registry(mesh).parent.chmod(0o500)
    try:
        rows = await listed(mesh)
    finally:
        registry(mesh).parent.chmod(0o700)

    assert rows["orders"]["status"] == "dead"


# --- invoke ---


@pytest.mark.rule("K-32")
async def test_invoke_goes_through_the_sidecar_of_another_app_and_says_so(pair: Pair, mesh: Mesh) -> None:
    given = await tieline(mesh, "invoke", "callee", "a/b?c=1", "-d", "hello", "-H", "X-A: 1")
    flags = await tieline(mesh, "invoke", "--app-id", "callee", "--method", "m", "--from", "callee", "-q")

    assert (given.code, given.out) == (0, "hello")
    assert f"Calling callee through the sidecar of caller, 127.0.0.1:{pair.caller.port}" in given.err
    request = pair.app.seen[0]
    assert (request.verb, request.target) == ("POST", "/a/b?c=1")
    assert (request.header("x-a"), request.header("dapr-caller-app-id")) == ("1", "caller")
    assert request.header("content-type") == "application/json"
    assert (flags.code, flags.err) == (0, "")
    assert pair.app.seen[1].header("dapr-caller-app-id") == "callee"


async def test_invoke_uses_the_apps_own_sidecar_when_there_is_no_other(mesh: Mesh) -> None:
    await mesh.sidecar("alone", await mesh.app(echo))

    result = await tieline(mesh, "invoke", "alone", "m", "-d", "x")

    assert (result.code, result.out) == (0, "x")
    assert "through the sidecar of alone" in result.err


async def test_invoke_passes_over_sidecars_that_are_dead_or_hang(mesh: Mesh) -> None:
    await mesh.sidecar("orders", await mesh.app(echo))
    dead, hanging = await mesh.sidecar("a-dead"), await mesh.sidecar("b-hanging")
    await mesh.sidecar("c-living")
    dead.kill()
    hanging.signal(signal.SIGSTOP)
    try:
        result = await tieline(mesh, "invoke", "orders", "m", "-d", "x")
    finally:
        hanging.signal(signal.SIGCONT)

    assert (result.code, result.out) == (0, "x")
    assert "through the sidecar of c-living" in result.err


async def test_invoke_explains_a_failure_and_what_is_known_of_the_app(mesh: Mesh) -> None:
    await mesh.sidecar("caller")
    port = free_port()
    await mesh.sidecar("waiting", port, wait="/v1.0/healthz/outbound")

    unknown = await tieline(mesh, "invoke", "nobody", "m")
    waiting = await tieline(mesh, "invoke", "waiting", "m")
    absent = await tieline(mesh, "invoke", "nobody", "m", "--from", "zzz")

    assert unknown.code == 1
    assert "error invoking app nobody: 500 Internal Server Error" in unknown.err
    assert "message:     failed to invoke, id: nobody, err: couldn't find service: nobody" in unknown.err
    assert "why:         name-unknown" in unknown.err
    assert "what to do:" in unknown.err
    assert "couldn't find service: nobody" in unknown.out
    assert f"not ready: nobody listens on 127.0.0.1:{port}, where its app should" in waiting.err
    assert absent.code == 3
    assert "no sidecar of zzz runs here; running: caller, waiting" in absent.err


async def test_invoke_over_a_unix_domain_socket(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.sidecar("orders", await mesh.app(echo))
    await mesh.sidecar("shop", None, "--unix-domain-socket", str(tmp_path), wait=None)
    await until((tmp_path / "dapr-shop-http.socket").exists, 15)

    folder = await tieline(mesh, "invoke", "orders", "m", "-d", "1", "-u", str(tmp_path))
    file = await tieline(mesh, "invoke", "orders", "m", "-d", "2", "-u", str(tmp_path / "dapr-shop-http.socket"))
    found = await tieline(mesh, "invoke", "orders", "m", "-d", "3", "--from", "shop")

    assert [(result.code, result.out) for result in (folder, file, found)] == [(0, "1"), (0, "2"), (0, "3")]


async def test_a_sidecar_that_is_killed_in_the_middle_of_an_answer_is_told(pair: Pair, mesh: Mesh) -> None:
    begun = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        exchange.begin_chunked()
        exchange.chunk(b"first")
        begun.set()
        await exchange.gone()

    await mesh.sidecar("streams", await mesh.app(stream))
    process = await command.start(mesh.environ, "invoke", "streams", "m", "--from", "caller", "-q")
    assert process.stdout is not None
    assert await process.stdout.readexactly(5) == b"first"
    pair.caller.kill()
    _, err = await process.communicate()

    assert process.returncode == 1
    assert b"the answer broke off before its end" in err


# --- stop ---


@pytest.mark.rule("K-31")
async def test_stop_ends_a_sidecar_gracefully(mesh: Mesh) -> None:
    hold, entered = asyncio.Event(), asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        entered.set()
        await hold.wait()
        exchange.answer(200, b"whole")

    sidecar = await mesh.sidecar("orders", await mesh.app(slow))
    call = asyncio.create_task(sidecar.call("orders", "m"))
    await entered.wait()
    stop = asyncio.create_task(tieline(mesh, "stop", "orders"))
    await sidecar.says("beginning shutdown")
    hold.set()

    result = await stop
    assert (result.code, result.out) == (0, "✅  app stopped successfully: orders\n")
    assert (await call).body == b"whole"
    assert sidecar.code == 0


@pytest.mark.rule("K-31")
async def test_stop_tells_each_name_that_it_could_not_stop_and_ends_with_1(mesh: Mesh) -> None:
    """Dapr's ends with 0."""
    one, two, other = await mesh.sidecar("one"), await mesh.sidecar("two"), await mesh.sidecar("other")

    result = await tieline(mesh, "stop", "one", "zzz", "-a", "two")
    nothing = await tieline(mesh, "stop")
    near = [
        await tieline(mesh, *words)
        for words in (("stop", "Other"), ("stop", "otther"), ("invoke", "x", "m", "--from", "Other"))
    ]

    assert [result.code for result in near] == [1, 1, 3]
    assert near[0].err.endswith('; running: other. Did you mean "other"? Names are case-sensitive.\n')
    assert near[1].err.endswith('; running: other. Did you mean "other"?\n')
    assert 'Did you mean "other"? Names are case-sensitive.' in near[2].err
    assert result.code == 1
    assert result.out == "✅  app stopped successfully: one\n✅  app stopped successfully: two\n"
    assert result.err == "❌  failed to stop app id zzz: couldn't find app id zzz; running: one, other, two\n"
    assert (one.code, two.code, other.code) == (0, 0, None)
    assert nothing.code == 2
    assert (await tieline(mesh, "stop", "--pid", str(other.pid))).code == 0
    assert other.code == 0
    assert (await tieline(mesh, "stop", "--all")).code == 0


@pytest.mark.rule("K-31")
async def test_stop_ends_what_run_started_with_it(mesh: Mesh) -> None:
    run = await running(mesh, "orders", "--", "sleep", "1000")

    async def told() -> bool:
        return bool((await listed(mesh))["orders"]["appPid"])

    await until(told, 10)
    row = (await listed(mesh))["orders"]

    result = await tieline(mesh, "stop", "orders")

    assert result.code == 0, result.err
    assert await run.wait() == 0
    assert "terminated signal received: shutting down" in run.log()
    assert not Path(f"/proc/{row['appPid']}").exists()
    assert await listed(mesh) == {}


async def test_stop_finds_the_run_without_the_token_that_metadata_asks_for(mesh: Mesh) -> None:
    """By the kernel: it is the sidecar's parent."""
    run = mesh.process(
        "run",
        [
            "env",
            "DAPR_API_TOKEN=secret",
            sys.executable,
            "-m",
            "tieline",
            "run",
            "--app-id",
            "orders",
            "--",
            "sleep",
            "1000",
        ],
    )
    await run.says("You're up and running!", 20)

    async def told() -> bool:
        rows = await tieline(mesh, "list", "-o", "json", DAPR_API_TOKEN="secret")
        return bool(rows.json()[0]["command"])

    await until(told, 10)
    row = (await listed(mesh))["orders"]
    call = await tieline(mesh, "invoke", "orders", "m")
    result = await tieline(mesh, "stop", "orders")

    assert (row["cliPid"], row["command"], row["needsToken"]) == (run.pid, "", True)
    assert call.code == 1
    assert "set DAPR_API_TOKEN or give --api-token" in call.err
    assert result.code == 0
    assert run.code == 0


async def test_a_sidecar_of_another_container_is_stopped_by_its_api(mesh: Mesh) -> None:
    """Its process id means nothing here."""
    sidecar = await mesh.sidecar("orders")
    guarded = await mesh.sidecar("guarded", environ={"DAPR_API_TOKEN": "secret"})
    with sqlite3.connect(registry(mesh)) as db:
        db.execute("UPDATE tieline_sidecars SET facts = json_set(facts, '$.process_space', 'pid:[1]', '$.pid', 1)")
        db.execute("UPDATE tieline_instances SET pid = 1")
    db.close()

    refused = await tieline(mesh, "stop", "guarded")
    result = await tieline(mesh, "stop", "orders")

    assert (refused.code, guarded.code) == (1, None)
    assert "its API asks for a token; set DAPR_API_TOKEN" in refused.err
    assert (result.code, result.err) == (0, "")
    assert await sidecar.wait() == 0
    assert (await tieline(mesh, "stop", "guarded", DAPR_API_TOKEN="secret")).code == 0


async def test_invoke_through_a_sidecar_that_hangs_is_3_and_not_a_wait_without_end(mesh: Mesh) -> None:
    hanging = await mesh.sidecar("hanging")
    hanging.signal(signal.SIGSTOP)
    try:
        result = await tieline(mesh, "invoke", "orders", "m", "--from", "hanging")
    finally:
        hanging.signal(signal.SIGCONT)

    assert result.code == 3
    assert "the sidecar of hanging does not answer" in result.err


async def test_names_that_a_terminal_cannot_show_are_shown_as_far_as_they_can(mesh: Mesh) -> None:
    await mesh.sidecar("日本")

    for argv in (["list"], ["list", "-o", "json"], ["doctor"], ["stop", "日本"]):
        result = await tieline(mesh, *argv, PYTHONIOENCODING="latin-1")
        assert result.code == 0, argv
        assert "??" in result.out


async def test_a_sidecar_that_is_stopped_alone_takes_its_run_along(mesh: Mesh) -> None:
    """So it does not matter if its metadata, which names the run, cannot be read for want of a token."""
    run = await running(mesh, "orders", "--", "sleep", "1000")
    row = (await listed(mesh))["orders"]
    os.kill(row["daprdPid"], signal.SIGTERM)

    assert await run.wait() == 0


async def test_a_sidecar_that_does_not_end_is_told_and_killed_by_force(mesh: Mesh) -> None:
    hanging = await mesh.sidecar("hanging")
    hanging.signal(signal.SIGSTOP)

    late = await tieline(mesh, "stop", "hanging", "--timeout", "0.2")
    forced = await tieline(mesh, "stop", "hanging", "--timeout", "0", "--force")

    assert late.code == 1
    assert f"process {hanging.pid} still runs" in late.err
    assert (forced.code, forced.out) == (0, f"✅  app killed: hanging (process {hanging.pid})\n")
    assert hanging.code == -signal.SIGKILL


async def test_ctrl_c_ends_stop_at_once_while_it_waits(mesh: Mesh) -> None:
    hanging = await mesh.sidecar("hanging")
    hanging.signal(signal.SIGSTOP)
    try:
        process = await command.start(mesh.environ, "stop", "hanging", "--timeout", "60")

        async def asked() -> bool:
            pending = Path(f"/proc/{hanging.pid}/status").read_text().partition("ShdPnd:\t")[2][:16]
            return bool(int(pending, 16) & 1 << (signal.SIGTERM - 1))

        await until(asked, 15)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            out, err = await process.communicate()
    finally:
        hanging.signal(signal.SIGCONT)

    assert (out, err.strip(), process.returncode) == (b"", b"", 130)


async def test_stop_never_touches_another_process_that_has_the_number_now(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("orders")
    bystander = mesh.process("bystander", ["sleep", "1000"])
    sidecar.kill()
    with sqlite3.connect(registry(mesh)) as db:
        sql = "UPDATE tieline_sidecars SET facts = json_set(facts, '$.pid', ?)"
        db.execute(sql, (bystander.pid,))
        db.execute("UPDATE tieline_instances SET pid = ?", (bystander.pid,))
    db.close()

    result = await tieline(mesh, "stop", "orders", "--force", "--timeout", "0")
    by_number = await tieline(mesh, "stop", "--pid", str(bystander.pid))

    assert (result.code, by_number.code) == (1, 1)
    assert "it does not run any more" in result.err
    assert bystander.code is None


async def test_what_is_no_tieline_is_not_stopped_and_that_is_said(mesh: Mesh) -> None:
    await mesh.sidecar("orders")
    with sqlite3.connect(registry(mesh)) as db:
        db.execute("INSERT INTO hosts VALUES ('x', '127.0.0.1:1', 'daprd', '', strftime('%s', 'now'))")
    db.close()

    named = await tieline(mesh, "stop", "daprd")
    rows = await listed(mesh)

    assert named.code == 1
    assert "it is no Tieline" in named.err
    assert rows["daprd"]["status"] == "announced"


async def test_all_instances_of_an_app_are_stopped_at_once(mesh: Mesh) -> None:
    sidecars: list[Sidecar] = [await mesh.sidecar("orders") for _ in range(3)]

    result = await tieline(mesh, "stop", "orders")

    assert result.code == 0
    assert [sidecar.code for sidecar in sidecars] == [0, 0, 0]


SLOW_APP = """
import http.server, sys, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            print("called", flush=True)
            time.sleep(1.5)
        self.send_response(200); self.send_header("Content-Length", "5"); self.end_headers(); self.wfile.write(b"whole")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Slow).serve_forever()
"""
STUBBORN_APP = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); signal.pause()"
)


@pytest.mark.rule("K-15", "K-31")
async def test_a_call_in_progress_finishes_although_its_run_is_stopped(mesh: Mesh) -> None:
    port, api = free_port(), free_port()
    run = await running(
        mesh, "orders", "-p", str(port), "-H", str(api), "--", sys.executable, "-c", SLOW_APP, str(port)
    )
    await until(lambda: is_listening(("127.0.0.1", port)), 10)
    call = asyncio.create_task(ask(api, "GET", "/v1.0/invoke/orders/method/slow"))
    await run.says("called")

    result = await tieline(mesh, "stop", "orders")

    assert result.code == 0, result.err
    answer = await call
    assert (answer.status, answer.body) == (200, b"whole")


async def test_stop_says_that_calls_were_cut(mesh: Mesh) -> None:
    entered = asyncio.Event()

    async def never(exchange: Exchange) -> None:
        entered.set()
        await asyncio.Event().wait()

    sidecar = await mesh.sidecar("orders", await mesh.app(never), "--dapr-graceful-shutdown-seconds", "1")
    call = asyncio.create_task(sidecar.call("orders", "m"))
    await entered.wait()

    result = await tieline(mesh, "stop", "orders")

    assert result.code == 0
    assert "app stopped: orders; calls in progress were cut" in result.out + result.err
    assert await listed(mesh) == {}
    with contextlib.suppress(Exception):
        await call


async def test_a_run_that_outlives_its_sidecar_is_shown_and_can_be_killed(mesh: Mesh) -> None:
    run = await running(mesh, "orders", "--", sys.executable, "-c", STUBBORN_APP)
    await run.says("== APP == stubborn")

    async def told() -> bool:
        return bool((await listed(mesh))["orders"]["appPid"])

    await until(told, 10)
    app_pid = (await listed(mesh))["orders"]["appPid"]

    first = await tieline(mesh, "stop", "orders", "--timeout", "1")
    row = (await listed(mesh))["orders"]
    forced = await tieline(mesh, "stop", "orders", "--timeout", "0", "--force")

    assert (first.code, row["status"], row["cliPid"]) == (1, "stopping", run.pid)
    assert (forced.code, forced.err) == (0, "")
    assert await run.wait(5) is not None
    assert not Path(f"/proc/{app_pid}").exists()
    assert await listed(mesh) == {}


async def test_a_dead_one_leaves_the_list_when_it_is_stopped(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("orders", await mesh.app(echo))
    sidecar.kill()
    before = await listed(mesh)

    result = await tieline(mesh, "stop", "orders")

    assert before["orders"]["status"] == "dead"
    assert result.code == 1
    assert "is off the list now" in result.err
    assert await listed(mesh) == {}
