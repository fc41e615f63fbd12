"""Dapr's own SDKs, unmodified, between an app and its sidecar; `make sdk` installs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.sdk.conftest import TOKEN
from tests.support.mesh import Mesh, free_port
from tests.support.pair import Pair

HERE = Path(__file__).parent
WITHIN_S = 50.0
CHECKS = {
    *("waits for the sidecar", "adds two numbers", "carries headers and a query", "tells the app's errors"),
    *("explains an unknown app", "echoes 2 MiB", "makes many calls at once", "takes an endpoint"),
    "needs its token",
}
"""What every client checks; it prints ``ok <name>`` for each."""


def run(command: Sequence[object], port: int, **environment: str) -> set[str]:
    """Run a client, whose sidecar's API is at ``port``; return the names of the checks that held."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAPR_", "APP_"))}
    done = subprocess.run(
        list(map(str, command)), env={**kept, "DAPR_HTTP_PORT": str(port), **environment},
        capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return {line.removeprefix("ok ") for line in done.stdout.splitlines() if line.startswith("ok ")}


def program(name: str) -> str:
    """Return the path of a program that is known to be there."""
    path = shutil.which(name)
    assert path is not None
    return path


@pytest.mark.rule("A-13", "H-84")
def test_the_sdk_for_python_calls_an_app(python_sdk: Path, pair: Pair) -> None:
    # -I: nothing of this project's environment.
    assert run([python_sdk / "bin/python", "-I", HERE / "client.py"], pair.http_port, **TOKEN) == CHECKS


@pytest.mark.rule("A-13", "H-84", "H-136", "H-137")
def test_the_sdk_for_node_calls_an_app_and_sets_metadata(node_sdk: Path, pair: Pair) -> None:
    modules = str(node_sdk / "node_modules")

    found = run([program("node"), HERE / "client.cjs"], pair.http_port, NODE_PATH=modules, **TOKEN)

    assert found == CHECKS | {"reads and sets metadata"}


@pytest.mark.rule("A-13", "H-84")
def test_the_sdk_for_java_calls_an_app(java_sdk: Path, pair: Pair) -> None:
    command = [program("java"), "-XX:TieredStopAtLevel=1", "-cp", f"{java_sdk / 'jars'}/*", HERE / "Client.java"]

    assert run(command, pair.http_port, **TOKEN) == CHECKS


async def test_the_sdk_for_node_stops_a_sidecar(node_sdk: Path, mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("stopped")

    command = [program("node"), HERE / "client.cjs", "stop"]
    found = run(command, sidecar.port, NODE_PATH=str(node_sdk / "node_modules"))

    assert found == {"stops the sidecar"}
    assert await sidecar.wait() == 0


async def test_an_app_made_with_the_sdk_for_node_is_called(node_sdk: Path, mesh: Mesh) -> None:
    app_port, api_port = free_port(), free_port()
    caller = await mesh.sidecar("caller")
    node = ["env", f"NODE_PATH={node_sdk / 'node_modules'}", program("node")]

    app = mesh.process("node-app", [*node, str(HERE / "server.cjs"), str(app_port), str(api_port)])
    await mesh.sidecar("node-app", app_port, port=api_port, quiet=False)
    # It starts by waiting for its sidecar, which waits for it.
    await app.says("started", 20)

    hello = await caller.call("node-app", "hello")
    assert (hello.status, hello.body) == (200, b'{"hello":"world"}')
    headers = [("Content-Type", "application/json"), ("X-Asked", "yes")]
    answer = await caller.call("node-app", "told?x=1", "POST", headers=headers, body=b'{"n":1}')
    told = json.loads(answer.body)
    assert (told["body"], told["query"]) == ({"n": 1}, "/told?x=1")
    assert (told["headers"]["x-asked"], told["headers"]["dapr-caller-app-id"]) == ("yes", "caller")
    assert json.loads((await caller.call("node-app", "twice")).body) == {"hello": "world"}
    assert (await caller.call("node-app", "missing")).status == 404
