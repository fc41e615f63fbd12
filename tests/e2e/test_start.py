"""How a sidecar starts: what it opens and when, what it takes from its files, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from tests.support.app import Exchange, echo
from tests.support.http1 import Answer, Client, ask
from tests.support.mesh import Mesh, Sidecar, free_port, invoke_path, start_pair, until
from tieline import __version__
from tieline.cli.wait import is_listening

BLOCKS = "This will block until the app is listening on that port."
SQLITE = "{spec: {nameResolution: {component: sqlite, configuration: {connectionString: '%s'}}}}\n"


async def ask_socket(path: Path, target: str) -> Answer:
    """Send a GET request to a Unix domain socket."""
    async with asyncio.timeout(10):
        client = Client(*await asyncio.open_unix_connection(path))
        client.send("GET", target)
        try:
            return await client.answer()
        finally:
            client.close()


async def healthy_at(path: Path) -> None:
    """Return once the sidecar behind a Unix domain socket is ready."""

    async def is_healthy() -> bool:
        try:
            return (await ask_socket(path, "/v1.0/healthz")).status == 204
        except OSError:
            return False

    await until(is_healthy, 15)


# ── where it listens ───────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-2")
async def test_a_unix_domain_socket_takes_the_place_of_the_port_of_the_api(mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    path = folder / "dapr-caller-http.socket"
    await mesh.sidecar("callee", await mesh.app(echo))

    sidecar = await mesh.sidecar("caller", None, "--unix-domain-socket", str(folder), wait=None)
    await healthy_at(path)
    answer = await ask_socket(path, invoke_path("callee", "x"))

    assert answer.status == 200
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert not is_listening(("127.0.0.1", sidecar.port))
    assert is_listening(("127.0.0.1", sidecar.internal))
    sidecar.signal(signal.SIGTERM)
    assert await sidecar.wait() == 0
    assert list(folder.iterdir()) == []


@pytest.mark.rule("H-2")
async def test_a_socket_that_a_killed_sidecar_left_is_replaced_but_never_one_in_use(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "dapr-a-http.socket"
    flags = ["--unix-domain-socket", str(tmp_path)]
    first = await mesh.sidecar("a", None, *flags, wait=None)
    await healthy_at(path)
    first.kill()
    assert path.is_socket()

    second = await mesh.sidecar("a", None, *flags, wait=None)
    await healthy_at(path)
    third = await mesh.sidecar("a", None, *flags, wait=None)

    assert await third.wait() == 1
    taken = tmp_path / "dapr-a-grpc.socket"  # it is bound first
    assert f"failed to start API gRPC server: {taken}: address already in use" in third.log()
    assert "Traceback" not in third.log()
    assert (await ask_socket(path, "/v1.0/healthz")).status == 204
    assert second.code is None


@pytest.mark.rule("H-6")
async def test_the_internal_port_is_taken_before_a_resolver_is_started(mesh: Mesh, tmp_path: Path) -> None:
    """The resolver's start waits here, as its file is locked."""
    names = tmp_path / "names.db"
    config = tmp_path / "config.yaml"
    config.write_text(SQLITE % names)
    with contextlib.closing(sqlite3.connect(names, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        sidecar = await mesh.sidecar("a", None, "--config", str(config), wait=None)

        await until(lambda: is_listening(("127.0.0.1", sidecar.internal)), 10)
        with pytest.raises(TimeoutError):
            await ask(sidecar.port, "GET", "/v1.0/healthz", within_s=0.5)
        db.execute("ROLLBACK")

    await sidecar.healthy()


@pytest.mark.rule("N-5", "N-33")
async def test_sidecars_that_listen_on_loopback_find_each_other_in_a_database_of_the_user(
    mesh: Mesh, tmp_path: Path
) -> None:
    """The address in it is one that is listened on, not the host's."""
    config = tmp_path / "config.yaml"
    config.write_text(SQLITE % (tmp_path / "names.db"))
    await mesh.sidecar("callee", await mesh.app(echo), "--config", str(config))
    caller = await mesh.sidecar("caller", None, "--config", str(config))

    assert (await caller.call("callee", "x")).status == 200


# ── what it takes from its files ───────────────────────────────────────────────────────────────────
@pytest.mark.rule("N-3")
async def test_a_configuration_sees_the_variables_that_the_sidecar_sets(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    own = "$APP_ID+${APP_PORT}+$HOST_ADDRESS+$DAPR_PORT+$DAPR_HTTP_PORT+$DAPR_METRICS_PORT+$DAPR_PROFILE_PORT"
    config.write_text(SQLITE % f"{tmp_path}/names+{own}+$FROM_OUTSIDE.db")
    app = await mesh.app(echo)

    sidecar = await mesh.sidecar(
        "me", app, "--config", str(config), "--metrics-port", "9191", "--profile-port", "7878",
        environ={"DAPR_HOST_IP": "10.1.2.3", "APP_ID": "stale", "DAPR_PORT": "1", "FROM_OUTSIDE": "too"},
    )  # fmt: skip

    (made,) = tmp_path.glob("names+*.db")
    assert made.name == f"names+me+{app.port}+10.1.2.3+{sidecar.internal}+{sidecar.port}+9191+7878+too.db"


async def test_a_configuration_that_changes_is_not_read_again(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("{spec: {features: [{name: Before, enabled: true}]}}\n")
    sidecar = await mesh.sidecar("a", None, "--config", str(config))

    config.write_text("{spec: {features: [{name: After, enabled: true}]}}\n")
    config.touch()
    await asyncio.sleep(1)
    facts = json.loads((await sidecar.ask("GET", "/v1.0/metadata")).body)
    config.unlink()

    assert "Before" in facts["enabledFeatures"]
    assert "After" not in facts["enabledFeatures"]
    await sidecar.healthy()


# ── whom it takes for whom ─────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("N-8", "N-52")
async def test_an_id_means_the_own_namespace_and_one_with_a_dot_another(mesh: Mesh) -> None:
    async def tell(exchange: Exchange) -> None:
        exchange.answer(200, (exchange.header("dapr-callee-app-id") or "").encode())

    here, there = await mesh.app(tell), await mesh.app(tell)
    await asyncio.gather(
        mesh.sidecar("callee", here, environ={"NAMESPACE": "here"}),
        mesh.sidecar("callee", there, environ={"NAMESPACE": "there"}),
    )
    caller = await mesh.sidecar("caller", None, environ={"NAMESPACE": "here"})

    plain = await caller.call("callee", "1")
    same = await caller.call("callee.here", "2")
    other = await caller.call("callee.there", "3")
    nowhere = await caller.call("callee.nowhere", "4")

    assert [exchange.target for exchange in here.seen] == ["/1", "/2"]
    assert [exchange.target for exchange in there.seen] == ["/3"]
    assert [answer.body for answer in (plain, same, other)] == [b"callee"] * 3
    assert b"couldn't find service: callee\"" in nowhere.body
    assert b"id: callee.nowhere," in nowhere.body


async def test_an_app_of_another_namespace_only_is_told_so_at_once(mesh: Mesh) -> None:
    """Some resolvers do not tell namespaces apart: then the app's own sidecar does, and nobody is waited for."""
    await mesh.sidecar("py", await mesh.app(echo))
    caller = await mesh.sidecar("caller")
    by_resolver = await caller.call("py.other", "m")
    with contextlib.closing(sqlite3.connect(mesh.state / "tieline" / "registry.db")) as db:
        db.execute("UPDATE hosts SET namespace = '' WHERE app_id = 'py'")
        db.commit()
    began = time.monotonic()

    by_peer = await caller.call("py.other", "m", "POST", body=b"x")

    assert time.monotonic() - began < 0.9
    for answer in (by_resolver, by_peer):
        assert answer.header("tieline-cause") == "name-unknown"
        assert (answer.header("tieline-hint") or "").startswith("py is known in namespace default")
    assert b"couldn't find service: py" in by_peer.body
    assert (await caller.call("py", "m")).status == 200


@pytest.mark.rule("N-54")
@pytest.mark.parametrize(
    ("app_id", "text"),
    [
        ("a.b", "parameter app-id cannot contain dots"),
        ("a\nb", "parameter app-id cannot contain control characters"),
        ("a\udcff", "parameter app-id cannot contain control characters"),
    ],
)
async def test_an_id_that_could_not_be_called_is_refused_at_the_start(mesh: Mesh, app_id: str, text: str) -> None:
    sidecar = await mesh.sidecar("ok", None, "--app-id", app_id, wait=None)

    assert await sidecar.wait() == 1
    assert f"Fatal error from runtime: {text}" in sidecar.log()
    assert "Traceback" not in sidecar.log()


async def test_a_folder_of_resources_that_is_missing_is_named_at_the_start(mesh: Mesh, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    sidecar = await mesh.sidecar("a", None, "--resources-path", str(missing), wait=None)

    assert await sidecar.wait() == 1
    text = (
        f"Fatal error from runtime: failed to create watcher: failed to add target {missing}: no such file or directory"
    )
    assert text in sidecar.log()
    assert "--resources-path" in sidecar.log()


@pytest.mark.parametrize("name", ["NAMESPACE", "APP_API_TOKEN", "DAPR_HOST_IP"])
@pytest.mark.parametrize("value", ["x\n", "\udcff"])
async def test_a_variable_that_no_header_could_carry_is_named_at_the_start(mesh: Mesh, name: str, value: str) -> None:
    sidecar = await mesh.sidecar("a", None, environ={name: value}, wait=None)

    assert await sidecar.wait() == 1
    assert f"the environment's {name} has a control character" in sidecar.log()
    assert "Traceback" not in sidecar.log()


async def test_a_folder_that_was_removed_is_no_reason_not_to_start(mesh: Mesh, tmp_path: Path) -> None:
    code = (
        "import os, sys; os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]);"
        "from tieline.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    internal = ["--dapr-internal-grpc-port", "0"]

    sidecar = await mesh.sidecar("a", None, *internal, main=["-P", "-c", code, str(tmp_path / "gone"), "sidecar"])

    assert (await sidecar.ask("GET", "/v1.0/healthz")).status == 204


@pytest.mark.rule("H-134")
async def test_once_calls_are_taken_an_app_that_is_up_is_found_by_others(mesh: Mesh) -> None:
    """A script that starts all of them in a row, and waits for no more than that, may call at once."""
    app = await mesh.app(echo)
    caller = await mesh.sidecar("caller")

    for name in ("one", "two", "three"):
        await mesh.sidecar(name, app, wait="/v1.0/healthz/outbound")
        assert (await caller.call(name, "work", "POST", body=b"found")).body == b"found"


@pytest.mark.rule("H-134")
async def test_an_app_that_hangs_at_its_first_call_may_call_others_all_the_same(mesh: Mesh) -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    sidecar = await mesh.sidecar("a", await mesh.app(hangs), quiet=False, wait="/v1.0/healthz/outbound")

    assert (await sidecar.ask("GET", "/v1.0/healthz")).status == 500


@pytest.mark.rule("H-140", "H-141")
@pytest.mark.parametrize("path", ["/v1.0/loglevel", "/v1.0/log-level", "/v1.0/config", "/v1.0/components", "/loglevel"])
async def test_nothing_of_a_running_sidecar_is_read_or_set_but_its_metadata(mesh: Mesh, path: str) -> None:
    sidecar = await mesh.sidecar("a")

    answers = [await sidecar.ask(verb, path, body=b"debug") for verb in ("GET", "PUT", "POST")]

    for answer in answers:
        assert answer.status == 404
        assert json.loads(answer.body)["errorCode"] == "ERR_DIRECT_INVOKE"


# ── what it says ───────────────────────────────────────────────────────────────────────────────────
def messages(sidecar: Sidecar) -> list[str]:
    """Return the messages of its log lines."""
    found = re.findall(r' msg=("(?:[^"\\]|\\.)*"|\S+)', sidecar.log())
    return [json.loads(text) if text.startswith('"') else text for text in found]


@pytest.mark.rule("H-150")
async def test_the_lines_that_tools_wait_for(mesh: Mesh) -> None:
    """Whole messages: tools look for them letter by letter."""
    port = free_port()
    sidecar = await mesh.sidecar(
        "a", port, "--log-level", "debug", "--dapr-block-shutdown-duration", "1s", wait="/v1.0/healthz/outbound"
    )
    await sidecar.says("waiting on port")
    app = await mesh.app(echo, port=port)
    await sidecar.healthy()
    sidecar.signal(signal.SIGTERM)
    assert await sidecar.wait() == 0

    said = messages(sidecar)
    wanted = [
        f"Starting Dapr Runtime -- version {__version__} -- commit ",
        "Log level set to: debug",
        f"application protocol: http. waiting on port {app.port}.  {BLOCKS}",
        f"application discovered on port {app.port}",
        "Skipping programmatic dapr configuration loading",
        "dapr initialized. Status: Running. Init Elapsed <n>ms",
        "Received signal 'terminated'; beginning shutdown",
        "Blocking graceful shutdown for 1s or until app reports unhealthy...",
        "Block shutdown period expired, entering shutdown...",
        "Daprd shutdown gracefully",
    ]
    told = [re.sub(r"Elapsed \d+ms", "Elapsed <n>ms", text) for text in said]
    assert [text for text in told if text in wanted] == wanted
    assert told[-1] == "Daprd shutdown gracefully"


@pytest.mark.rule("H-150")
async def test_the_lines_of_a_shutdown_that_is_asked_for(mesh: Mesh) -> None:
    gentle, forced = await asyncio.gather(mesh.sidecar("a"), mesh.sidecar("b"))

    answers = [
        await gentle.ask("POST", "/v1.0/shutdown"),
        await forced.ask("POST", "/v1.0/shutdown", headers=[("dapr-force-shutdown", "TRUE")]),
    ]

    assert [answer.status for answer in answers] == [204, 204]
    assert (await gentle.wait(), await forced.wait()) == (0, 1)
    assert messages(gentle)[-2:] == ["Shutdown requested via API", "Daprd shutdown gracefully"]
    assert messages(forced)[-1] == "Force shutdown requested, exiting immediately without graceful shutdown"


async def test_a_shutdown_that_is_asked_for_twice_is_one(mesh: Mesh) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        entered.set()
        await go_on.wait()
        exchange.answer(200, b"done")

    pair = await start_pair(mesh, handler)
    call = asyncio.create_task(pair.callee.call("callee", "x"))
    await entered.wait()
    clients = [await Client.open(pair.callee.port) for _ in range(2)]

    # Both before either is answered: afterwards idle connections are closed.
    for client in clients:
        client.send("POST", "/v1.0/shutdown")
    for client in clients:
        assert (await client.head()).status == 204
        client.close()
    go_on.set()

    assert (await call).body == b"done"
    assert await pair.callee.wait() == 0
    assert messages(pair.callee).count("Shutdown requested via API") == 1


async def test_a_signal_while_the_app_is_awaited_ends_it_in_good_order(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("a", free_port(), wait="/v1.0/healthz/outbound")

    sidecar.signal(signal.SIGTERM)

    assert await sidecar.wait(3) == 0
    assert messages(sidecar)[-1] == "Daprd shutdown gracefully"


# ── is it ready ────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("O-50")
async def test_health_is_told_by_what_is_up(mesh: Mesh) -> None:
    port = free_port()
    sidecar = await mesh.sidecar("a", port, wait="/v1.0/healthz/outbound")

    async def health(query: str = "") -> tuple[int, bytes]:
        answer = await sidecar.ask("GET", f"/v1.0/healthz{query}")
        return answer.status, answer.body

    waiting = await health()
    mismatch_while_waiting = await health("?appid=b")
    call = await sidecar.call("a", "x")
    await mesh.app(echo, port=port)
    await sidecar.healthy()

    not_ready = (500, b'{"errorCode":"ERR_HEALTH_NOT_READY","message":"dapr is not ready: [runtime]"}')
    mismatch = (500, b'{"errorCode":"ERR_HEALTH_APPID_NOT_MATCH","message":"dapr app-id does not match"}')
    assert (waiting, mismatch_while_waiting) == (not_ready, not_ready)
    assert call.header("tieline-cause") == "app-unreachable"
    assert [await health(), await health("?appid=a")] == [(204, b"")] * 2
    assert [await health("?appid=b"), await health("?appid=")] == [mismatch] * 2


@pytest.mark.rule("O-51")
async def test_wait_returns_once_calls_are_taken(mesh: Mesh) -> None:
    port = free_port()
    command = ["-m", "tieline", "sidecar", "--wait"]
    waiting = await mesh.sidecar("waits", None, port=port, main=command, wait=None)
    await waiting.says("Dapr outbound NOT ready yet: ")
    assert waiting.code is None

    await mesh.sidecar("a", free_port(), port=port, wait="/v1.0/healthz/outbound")

    assert await waiting.wait() == 0


async def test_a_signal_before_the_loop_runs_shows_no_traceback(mesh: Mesh) -> None:
    waiting = await mesh.sidecar("waits", None, main=["-m", "tieline", "sidecar", "--wait"], wait=None)
    await waiting.says("Dapr outbound NOT ready yet: ")

    waiting.signal(signal.SIGINT)

    assert await waiting.wait() == 130
    assert "Traceback" not in waiting.log()


async def test_a_signal_while_a_busy_port_is_tried_again_ends_it(mesh: Mesh) -> None:
    """It would go on for ten seconds, twice as long as an impatient supervisor waits."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        sidecar = await mesh.sidecar("a", port=other.getsockname()[1], wait=None)
        await until(lambda: is_listening(("127.0.0.1", sidecar.internal)), 10)

        sidecar.signal(signal.SIGTERM)

        assert await sidecar.wait(3) == 0
    assert messages(sidecar)[-2:] == [
        "Received signal 'terminated'; beginning shutdown",
        "Daprd shutdown gracefully",
    ]
