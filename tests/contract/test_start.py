"""The start of a sidecar and the time it gives its clients, as recorded from a running ``daprd``."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.contract.conftest import Meshes
from tests.contract.harness.apps import OK
from tests.contract.harness.cases import SETUPS
from tests.contract.harness.mesh import POLL_S, Mesh, accepts, get
from tests.contract.harness.stream import Stream, answers_ping, play, read_head
from tieline import __version__

HEAD_S: Final = 10.0
"""How long a client has for the head of a request (H-4)."""
SETTINGS_S: Final = 2.0
"""How long it has for its SETTINGS after the preface of HTTP/2."""
SLACK_S: Final = 2.5
"""By how much a busy machine may be late."""
PREFACE: Final = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS: Final = "\0\0\0\4\0\0\0\0\0"
HEALTH: Final = "GET /v1.0/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH_WITHOUT_END: Final = HEALTH.removesuffix("\r\n")


# ── an app that comes late ─────────────────────────────────────────────────────────────────────────
@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Mesh]:
    """A sidecar that waits for its app."""
    mesh = Mesh(SETUPS["app-late"], tmp_path)
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.close()


def await_health(mesh: Mesh, within_s: float) -> None:
    """Return once the sidecar is ready."""
    deadline = time.monotonic() + within_s
    while (answer := get(mesh.ports["caller.http"], "/v1.0/healthz")).status != "204":
        assert time.monotonic() < deadline, answer
        time.sleep(POLL_S)


def await_log(mesh: Mesh, text: str, within_s: float) -> None:
    """Return once the sidecar has written a line that holds ``text``."""
    deadline = time.monotonic() + within_s
    while text not in mesh.log("caller"):
        assert time.monotonic() < deadline, mesh.log("caller")
        time.sleep(POLL_S)


@pytest.mark.rule("H-7", "H-116", "H-133", "H-134", "H-136")
def test_a_sidecar_can_be_used_while_it_waits_for_its_app(waiting: Mesh) -> None:
    port = waiting.ports["caller.http"]

    health, outbound, metadata = (get(port, f"/v1.0/{path}") for path in ("healthz", "healthz/outbound", "metadata"))

    assert (health.status, json.loads(health.body)) == (
        "500",
        {"errorCode": "ERR_HEALTH_NOT_READY", "message": "dapr is not ready: [runtime]"},
    )
    assert (outbound.status, outbound.body) == ("204", b"")
    facts: dict[str, Any] = json.loads(metadata.body)
    assert metadata.body.endswith(b"}\n")
    assert (facts["id"], facts["runtimeVersion"]) == ("caller", __version__)
    assert facts["extended"] == {"daprRuntimeVersion": __version__}
    assert facts["appConnectionProperties"] == {
        "port": waiting.ports["caller.app"],
        "protocol": "http",
        "channelAddress": "127.0.0.1",
    }
    assert facts["actorRuntime"] == {"runtimeStatus": "INITIALIZING", "hostReady": False}
    assert accepts(waiting.ports["caller.internal"])


@pytest.mark.rule("H-7", "H-116", "H-117", "H-133")
def test_a_sidecar_is_ready_once_its_app_is_up_and_was_asked_for_its_configuration(waiting: Mesh) -> None:
    app = waiting.ports["caller.app"]

    waiting.apps["caller.app"].serve()
    await_health(waiting, within_s=1 + SLACK_S)

    (asked,) = waiting.stage.settled(1, 0)
    assert asked.start == "GET /dapr/config HTTP/1.1"
    assert asked.values()["dapr-app-id"] == ["caller"]
    assert asked.values()["content-type"] == ["application/json"]
    lines = [line for line in waiting.log("caller").splitlines() if "appli" in line]
    assert len(lines) == 2, lines
    assert (
        f"application protocol: http. waiting on port {app}.  This will block until the app is listening on that port."
    ) in lines[0]
    assert f"application discovered on port {app}" in lines[1]


@pytest.mark.slow
@pytest.mark.rule("H-116")
def test_a_sidecar_says_from_time_to_time_that_it_still_waits(waiting: Mesh) -> None:
    await_log(waiting, f"waiting for application to listen on port {waiting.ports['caller.app']}", within_s=15)


@pytest.mark.rule("H-116", "H-117", "H-133")
def test_a_sidecar_without_an_app_waits_for_none(tmp_path: Path) -> None:
    mesh = Mesh({"apps": [], "sidecars": {"caller": {"app_id": "caller"}}}, tmp_path)
    try:
        mesh.start()

        assert "application protocol" not in mesh.log("caller")
        assert "application discovered" not in mesh.log("caller")
    finally:
        mesh.close()


# ── its own environment ────────────────────────────────────────────────────────────────────────────
@pytest.mark.rule("H-10", "H-17")
@pytest.mark.parametrize(
    "given",
    [
        {"GIVEN": "yes"},
        {
            "GIVEN": "yes",
            "APP_ID": "given",
            "APP_PORT": "1",
            "HOST_ADDRESS": "given",
            "DAPR_PORT": "1",
            "DAPR_HTTP_PORT": "1",
            "DAPR_GRPC_PORT": "1",
            "DAPR_METRICS_PORT": "1",
            "DAPR_PROFILE_PORT": "1",
            "APP_API_TOKEN": "secret",
        },
    ],
    ids=["none given", "given"],
)
def test_a_sidecar_sets_its_own_environment_over_what_is_given(given: dict[str, str], tmp_path: Path) -> None:
    """Seen in a file name, since a Configuration may refer to the environment."""
    ours = ["APP_ID", "APP_PORT", "HOST_ADDRESS", "DAPR_PORT", "DAPR_HTTP_PORT", "DAPR_GRPC_PORT"]
    names = ["GIVEN", *ours, "DAPR_METRICS_PORT", "DAPR_PROFILE_PORT", "NOT_THERE"]
    folder = tmp_path / "named"
    folder.mkdir()
    file = folder / (":".join(f"${{{name}}}" for name in names) + ".db")
    resolution = {"component": "sqlite", "configuration": {"connectionString": str(file)}}
    sidecar = {"app_id": "caller", "app": "caller.app", "env": given, "config": {"nameResolution": resolution}}
    mesh = Mesh({"apps": ["caller.app"], "sidecars": {"caller": sidecar}}, tmp_path)
    try:
        mesh.start()

        (found,) = folder.glob("*.db")
        ports = (mesh.ports[f"caller.{kind}"] for kind in ("internal", "http", "grpc", "metrics"))
        assert found.stem.split(":") == [
            "yes", "caller", str(mesh.ports["caller.app"]), "127.0.0.1", *map(str, ports), "7777", "",
        ]  # fmt: skip
    finally:
        mesh.close()


# ── clients that take their time ───────────────────────────────────────────────────────────────────
class Idler:
    """A client that sends something, and then nothing."""

    def __init__(self, port: int, text: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.began = time.monotonic()
        self.stream = Stream(self.sock)
        play(self.sock, [{"text": text}])

    def says_until_closed(self, within_s: float) -> bytes:
        """Return what comes until the sidecar closes, which it must in time."""
        self.sock.settimeout(within_s)
        rest = self.stream.rest()
        assert self.stream.ended == "closed"
        return rest

    def asks_on(self, text: str) -> str:
        """Send more, and return the status of the answer."""
        self.sock.settimeout(SLACK_S)
        play(self.sock, [{"text": text}])
        answer = read_head(self.stream)
        return "" if answer is None else answer.status


@pytest.fixture
def idlers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.rule("H-4")
def test_a_client_of_http2_must_send_its_settings_soon(meshes: Meshes, idlers: ExitStack) -> None:
    idler = Idler(meshes.get("mesh").ports["caller.http"], PREFACE)
    idlers.enter_context(idler.sock)

    idler.says_until_closed(SETTINGS_S + SLACK_S)

    assert time.monotonic() - idler.began >= SETTINGS_S - 0.1


@pytest.mark.slow
@pytest.mark.rule("H-4")
def test_a_head_must_come_soon_and_all_else_may_take_its_time(meshes: Meshes, idlers: ExitStack) -> None:
    mesh = meshes.get("mesh")
    mesh.stage.begin([OK])
    port = mesh.ports["caller.http"]

    def idler(text: str, *, answered: int = 0) -> Idler:
        found = Idler(port, text)
        idlers.enter_context(found.sock)
        found.sock.settimeout(SLACK_S)
        for _ in range(answered):
            answer = read_head(found.stream)
            assert answer is not None
            assert answer.status == "204"
        return found

    late = {
        "nothing": idler(""),
        "half a request line": idler("GET /v1.0/hea"),
        "a head without end": idler(HEALTH_WITHOUT_END),
        "half a head after a request": idler(HEALTH + HEALTH_WITHOUT_END, answered=1),
    }
    between_requests = idler(HEALTH, answered=1)
    before_its_body = idler(
        "POST /v1.0/invoke/callee/method/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
    )
    on_http2 = idler(PREFACE + SETTINGS)

    early, _, _ = select.select([client.sock for client in late.values()], [], [], HEAD_S - 1)
    said = {what: client.says_until_closed(1 + SLACK_S) for what, client in late.items()}

    assert early == []
    assert said["half a request line"].startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert {what for what, text in said.items() if text} == {"half a request line"}
    assert between_requests.asks_on(HEALTH) == "204"
    assert before_its_body.asks_on("body") == "200"
    assert answers_ping(on_http2.sock, on_http2.stream)
