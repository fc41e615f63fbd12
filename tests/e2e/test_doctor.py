"""``tieline doctor`` finds a planted problem of each kind, says what to do, changes nothing and never hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import command
from tests.support.app import echo
from tests.support.mesh import Mesh, free_port, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who listens where is read from /proc")

Row = dict[str, Any]


async def doctor(mesh: Mesh, *argv: str, **variables: str) -> list[Row]:
    """Return what it finds; the exit code must agree."""
    kept = {name: value for name, value in mesh.environ.items() if "proxy" not in name.lower()}
    result = await command.run({**kept, **variables}, "doctor", *argv, "-o", "json")
    document = result.json()
    assert result.err == ""
    failed = [row for row in document["findings"] if row["level"] == "fail"]
    assert (result.code, document["ok"]) == (1 if failed else 0, not failed)
    for row in document["findings"]:
        if row["level"] != "ok":
            assert row["why"], row
            assert row["todo"], row
    rows: list[Row] = document["findings"]
    return rows


def told(rows: list[Row], subject: str, level: str) -> str:
    """Return the lines on a subject."""
    return "\n".join(row["line"] for row in rows if row["subject"] == subject and row["level"] == level)


def registry(mesh: Mesh) -> Path:
    return mesh.state / "tieline" / "registry.db"


async def test_where_all_is_well_nothing_fails_and_nothing_is_touched(mesh: Mesh) -> None:
    nothing = await doctor(mesh)
    assert list(mesh.state.iterdir()) == []
    app = await mesh.app(echo)
    await mesh.sidecar("orders", app)
    await mesh.sidecar("shop")
    mode = registry(mesh).stat().st_mode

    rows = await doctor(mesh)

    assert told(nothing, "registry", "ok").endswith("is not there yet; the first sidecar makes it")
    assert [row["line"] for row in rows if row["level"] == "fail"] == []
    assert "uvloop" in told(rows, "python", "ok")
    assert told(rows, "registry", "ok").endswith("can be read and written")
    assert told(rows, "sidecar of orders", "ok") == f"sidecar of orders: healthy, app on port {app.port}"
    assert told(rows, "sidecar of shop", "ok") == "sidecar of shop: healthy, without an app"
    assert registry(mesh).stat().st_mode == mode


# --- names ---


async def test_a_name_is_known_or_the_known_ones_are_told(mesh: Mesh) -> None:
    orders = await mesh.sidecar("orders", environ={"NAMESPACE": "staging"})

    rows = await doctor(mesh, "orders", "Orders", "xyzzy", "orders.prod")

    assert f"known in namespace staging, at 127.0.0.1:{orders.internal}" in told(rows, "name orders", "ok")
    assert 'did you mean "orders"? Names are case-sensitive' in told(rows, "name Orders", "fail").replace("Did", "did")
    assert "it is not known here, known are orders.staging" in told(rows, "name xyzzy", "fail")
    assert "tieline run --app-id xyzzy" in told(rows, "name xyzzy", "fail")
    assert told(rows, "name orders.prod", "fail")


async def test_a_sidecar_that_was_killed_is_told(mesh: Mesh) -> None:
    orders = await mesh.sidecar("orders")
    orders.kill()
    with sqlite3.connect(registry(mesh)) as db:
        db.execute("UPDATE hosts SET last_update = last_update - 60")
    db.close()

    rows = await doctor(mesh, "orders")

    assert f"process {orders.pid} has ended" in told(rows, "name orders", "fail")
    assert "Start it again" in told(rows, "sidecar of orders", "warn")


# --- apps ---


async def test_an_app_that_does_not_listen_is_told(mesh: Mesh) -> None:
    port = free_port()
    await mesh.sidecar("orders", port, wait="/v1.0/healthz/outbound")

    rows = await doctor(mesh, "orders")

    assert f"nobody listens on 127.0.0.1:{port} (connection refused)" in told(rows, "app of orders", "fail")
    assert f"nobody listens on 127.0.0.1:{port}, where its app should" in told(rows, "sidecar of orders", "fail")
    assert "See the line on its app" in told(rows, "sidecar of orders", "fail")
    assert "its sidecar is there, but not ready" in told(rows, "name orders", "fail")


async def test_an_app_that_speaks_no_tls_is_told_when_tls_was_asked_for(mesh: Mesh) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sidecar = await mesh.sidecar("orders", port, "--app-protocol", "https", wait="/v1.0/healthz/outbound")
        rows = await doctor(mesh, "orders")
        await sidecar.says(f"what listens on port {port} speaks no TLS (")

    assert f"127.0.0.1:{port} speaks no TLS" in told(rows, "app of orders", "fail")
    assert "--app-protocol http, or" in told(rows, "app of orders", "fail")
    assert "speaks no TLS, and --app-protocol is https" in told(rows, "sidecar of orders", "fail")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.2")])
async def test_an_app_that_listens_on_another_address_is_told(mesh: Mesh, family: int, host: str) -> None:
    with socket.socket(family) as app:
        app.bind((host, 0))
        app.listen()
        port = app.getsockname()[1]
        await mesh.sidecar("orders", port, wait="/v1.0/healthz/outbound")

        line = told(await doctor(mesh, "orders"), "app of orders", "fail")

    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert f"(process {os.getpid()}) listens on {shown}, but the sidecar calls 127.0.0.1:{port}" in line
    assert f"--app-channel-address {host}" in line


async def test_the_port_on_which_an_app_listens_instead_is_told(mesh: Mesh) -> None:
    wrong, right = free_port(), free_port()
    script = f"import socket; s = socket.create_server(('127.0.0.1', {right})); s.accept()"
    run = mesh.process(
        "run",
        [sys.executable, "-m", "tieline", "run", "--app-id", "orders", "--app-port", str(wrong), "--",
         sys.executable, "-c", script],
    )  # fmt: skip
    await run.says("You're up and running!", 20)

    async def seen() -> bool:
        return f"listens on port {right}" in told(await doctor(mesh, "orders"), "app of orders", "fail")

    await until(seen, 15)
    run.signal(signal.SIGTERM)
    await run.wait()


async def test_a_sidecar_whose_app_is_a_sidecar_is_told(mesh: Mesh) -> None:
    shop = await mesh.sidecar("shop")
    await mesh.sidecar("orders", shop.port)

    rows = await doctor(mesh, "orders")

    assert f"127.0.0.1:{shop.port} is the port of a sidecar" in told(rows, "app of orders", "fail")


async def test_a_sidecar_that_is_suspended_is_told(mesh: Mesh) -> None:
    orders = await mesh.sidecar("orders")
    orders.signal(signal.SIGSTOP)
    try:
        rows = await doctor(mesh, "orders")
    finally:
        orders.signal(signal.SIGCONT)

    assert f"process {orders.pid} is suspended" in told(rows, "sidecar of orders", "fail")
    assert f"kill -CONT {orders.pid}" in told(rows, "sidecar of orders", "fail").replace("Kill", "kill")


async def test_a_sidecar_that_keeps_its_registry_elsewhere_is_told(mesh: Mesh, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    orders = await mesh.sidecar("elsewhere-7", environ={"XDG_STATE_HOME": str(other)})

    line = told(await doctor(mesh, "elsewhere-7"), "registry", "warn")

    assert f"sidecars of elsewhere-7 (process {orders.pid}) keep theirs in {other}/tieline/registry.db" in line
    assert "Start all with the same HOME and XDG_STATE_HOME" in line


# --- ports ---


async def test_who_has_a_usual_port_is_told(mesh: Mesh) -> None:
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", 3500))
        except OSError:
            pytest.skip("somebody has it already")
        other.listen()

        line = told(await doctor(mesh), "ports", "warn")

    assert f"(process {os.getpid()}) listens on 127.0.0.1:3500" in line
    assert "Give another --dapr-http-port" in line


# --- variables ---


@pytest.mark.parametrize(
    ("variables", "level", "line"),
    [
        ({"HTTP_PROXY": "http://p:1"}, "warn", "NO_PROXY does not exempt localhost and 127.0.0.1"),
        ({"all_proxy": "http://p:1", "no_proxy": "x,localhost"}, "warn", "Set NO_PROXY=x,localhost,127.0.0.1."),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "localhost, 127.0.0.0/8"}, "ok", "no proxy, endpoint or token"),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"}, "ok", "no proxy, endpoint or token"),
        ({"DAPR_HTTP_ENDPOINT": "http://x"}, "warn", "DAPR_HTTP_ENDPOINT is http://x"),
        ({"DAPR_HTTP_PORT": "1"}, "warn", "DAPR_HTTP_PORT is 1, but 127.0.0.1:1: connection refused"),
        ({"DAPR_HTTP_PORT": "many"}, "fail", "DAPR_HTTP_PORT is 'many', which is no port"),
        ({"DAPR_API_TOKEN": "s3cret"}, "ok", "DAPR_API_TOKEN is set"),
        ({"DAPR_API_TOKEN": "s3cret\n"}, "fail", "DAPR_API_TOKEN has a control character"),
        ({"DAPR_API_TOKEN": "s3cret "}, "warn", "DAPR_API_TOKEN begins or ends with a blank"),
        ({"APP_API_TOKEN": ""}, "warn", "APP_API_TOKEN is set to nothing"),
        ({"NAMESPACE": "staging"}, "ok", "NAMESPACE is staging"),
    ],
)
async def test_variables_that_lead_calls_astray_are_told(
    mesh: Mesh, variables: dict[str, str], level: str, line: str
) -> None:
    """A token's value is never shown."""
    rows = await doctor(mesh, **variables)

    assert line in told(rows, "variables", level)
    assert not any("s3cret" in row["line"] for row in rows)


# --- the registry ---


async def test_a_damaged_registry_is_told(mesh: Mesh) -> None:
    registry(mesh).parent.mkdir(mode=0o700)
    registry(mesh).write_bytes(b"\xff" * 5000)

    assert "is damaged (file is not a database (26))" in told(await doctor(mesh), "registry", "fail")


async def test_a_registry_with_other_tables_is_told(mesh: Mesh) -> None:
    registry(mesh).parent.mkdir(mode=0o700)
    with sqlite3.connect(registry(mesh)) as db:
        db.execute("CREATE TABLE hosts (name TEXT)")
    db.close()

    assert "its table hosts lacks address, app_id" in told(await doctor(mesh), "registry", "fail")


async def test_a_locked_registry_is_told_with_who_has_it(mesh: Mesh) -> None:
    await mesh.sidecar("orders")
    holder = sqlite3.connect(registry(mesh), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    try:
        line = told(await doctor(mesh), "registry", "fail")
    finally:
        holder.execute("ROLLBACK")
        holder.close()

    assert "has been locked for 1 s" in line
    assert f"(process {os.getpid()})" in line
    assert time.monotonic() - began < 20


async def test_a_registry_that_others_may_read_is_told_and_left_as_it_is(mesh: Mesh) -> None:
    await mesh.sidecar("orders")
    registry(mesh).parent.chmod(0o755)
    registry(mesh).chmod(0o644)

    line = told(await doctor(mesh), "registry", "warn")

    assert f"{registry(mesh).parent} is open to others (mode 0755)" in line
    assert f"chmod 600 {registry(mesh)}" in line.replace("Chmod", "chmod")
    assert registry(mesh).parent.stat().st_mode & 0o777 == 0o755


async def test_a_registry_that_is_no_file_or_somebody_elses_is_told(mesh: Mesh, tmp_path: Path) -> None:
    folder = mesh.state / "tieline"
    folder.symlink_to(tmp_path)
    link = told(await doctor(mesh), "registry", "fail")
    folder.unlink()
    folder.mkdir(mode=0o700)
    registry(mesh).mkdir()
    no_file = told(await doctor(mesh), "registry", "fail")
    registry(mesh).rmdir()
    registry(mesh).touch(0o600)
    foreign = ""
    if os.getuid() == 0:
        os.chown(registry(mesh), 12345, -1)
        foreign = told(await doctor(mesh), "registry", "fail")

    assert "is a link or a file" in link
    assert "is a link or no file" in no_file
    assert os.getuid() != 0 or "belongs to user 12345, not to you (0)" in foreign


async def test_a_heartbeat_from_the_future_is_told(mesh: Mesh) -> None:
    await mesh.sidecar("orders")
    with sqlite3.connect(registry(mesh)) as db:
        db.execute("INSERT INTO hosts VALUES ('x', '127.0.0.1:1', 'ahead', '', ?)", (int(time.time()) + 1000,))
    db.close()

    assert "ahead sent a heartbeat that is in the future" in told(await doctor(mesh), "clock", "warn")


async def test_a_state_folder_that_cannot_be_made_is_told(mesh: Mesh) -> None:
    (mesh.state / "file").touch()

    relative = await doctor(mesh, XDG_STATE_HOME="not/absolute", HOME=str(mesh.state))
    impossible = await doctor(mesh, XDG_STATE_HOME=str(mesh.state / "file"))

    assert "no absolute path" in told(relative, "registry", "warn")
    assert told(impossible, "registry", "fail")


# --- files ---


async def test_files_that_the_user_names_are_looked_at(mesh: Mesh, tmp_path: Path) -> None:
    good, bad, folder = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "resources"
    good.write_text("apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec: {}\n")
    bad.write_text("kind: Configuration\nspec: [\n")
    folder.mkdir()
    (folder / "endpoint.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: maths}\nspec: {baseUrl: 'http://x.test'}\n"
    )

    well = await doctor(mesh, "--config", str(good), "--resources-path", str(folder))
    ill = await doctor(mesh, "--config", str(bad), "--resources-path", str(tmp_path / "none"))
    absent = await doctor(mesh, "--config", str(tmp_path / "absent.yaml"))

    assert told(well, "files", "ok") == f"files: {good}, {folder} can be used"
    assert "bad.yaml" in told(ill, "files", "fail")
    assert f"{tmp_path}/none: cannot be read" in told(ill, "files", "fail")
    (line,) = (row["line"] for row in absent if row["subject"] == "files")
    assert line.startswith("files: error loading configuration: stat ")
    assert "check --config" in line


# --- how it is shown ---


async def test_on_a_terminal_lines_wrap_and_elsewhere_each_finding_is_one(mesh: Mesh) -> None:
    await mesh.sidecar("orders", free_port(), wait="/v1.0/healthz/outbound")

    shown = await command.on_terminal(mesh.environ, 60, ["doctor", "orders"])
    piped = await command.run(mesh.environ, "doctor", "orders")

    assert max(len(line) for line in shown.splitlines() if "/" not in line) <= 60
    assert "\n    " in shown
    assert piped.code == 1
    assert all(line[0] in "✅⚠❌" for line in piped.out.splitlines())


async def test_a_sidecar_that_answers_never_holds_it_up(mesh: Mesh) -> None:
    """Nor does one that says something else than HTTP."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await mesh.sidecar("orders")
    with sqlite3.connect(registry(mesh)) as db:
        db.execute("UPDATE tieline_sidecars SET facts = json_set(facts, '$.http_port', ?)", (port,))
    db.close()
    began = time.monotonic()

    rows = await doctor(mesh, "orders")

    server.close()
    assert time.monotonic() - began < 15
    assert "did not answer within 1 s" in told(rows, "sidecar of orders", "fail")
    assert f"(process {os.getpid()}) has its port" in told(rows, "sidecar of orders", "fail")
