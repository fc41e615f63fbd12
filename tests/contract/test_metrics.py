"""What a series of calls leaves in the metrics of both sidecars, as recorded from a running ``daprd``.

``metrics.json`` holds the calls, and for each setting the counts in each family, with the values of the labels in the
order of their names, ``app_id`` left out. The recorded series went on with calls over gRPC; what those counted for
is subtracted, and so are the families of access control.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.app import Exchange
from tests.support.http1 import ask
from tests.support.mesh import Mesh, Sidecar, free_port
from tests.support.prometheus import Exposed, read

TEXT: Final = Path(__file__).with_name("metrics.json").read_text()
CASES: Final[list[dict[str, Any]]] = json.loads(TEXT)["cases"]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """Sidecars with a registry of their own."""
    made = Mesh(tmp_path)
    try:
        yield made
    finally:
        await made.aclose()


async def answer(exchange: Exchange) -> None:
    """Answer with the status that the path asks for."""
    await exchange.body()
    asked = re.search(r"/status/(\d+)", exchange.target)
    if exchange.target == "/dapr/config":
        exchange.answer(404)
    elif exchange.target.startswith("/flaky"):
        exchange.answer(503)
    else:
        exchange.answer(int(asked[1]) if asked else 200, b"{}")


class World:
    """A caller and a callee, each with an app, and a server outside the mesh."""

    def __init__(self, caller: Sidecar, callee: Sidecar, outside: int, public: int, metrics: dict[str, int]) -> None:
        self._caller = caller
        self.callee = callee
        self.caller = caller
        self.outside = outside
        self._public = public
        self._metrics = metrics

    async def call_all(self) -> None:
        """Make the recorded calls, one after the other."""
        for line, status in json.loads(TEXT.replace("{{outside}}", str(self.outside)))["calls"]:
            *public, verb, path = line.split()
            headers = [("dapr-app-id", "callee")] if path.startswith("/orders") else []
            port = self._public if public else self._caller.port
            body = None if verb in ("GET", "CUSTOM") else b"x"
            assert (await ask(port, verb, path, headers=headers, body=body)).status == status, line

    async def scrape(self, name: str) -> dict[str, Exposed]:
        """Return the families of Dapr's that a sidecar shows."""
        text = (await ask(self._metrics[name], "GET", "/metrics")).body.decode()
        return {name: family for name, family in read(text).items() if name.startswith("dapr_")}


async def build(mesh: Mesh, folder: Path, spec: dict[str, Any]) -> World:
    own, called, outside = await mesh.app(answer), await mesh.app(answer), await mesh.app(answer)
    config, resources = folder / "config.yaml", folder / "resources"
    config.write_text(json.dumps({"kind": "Configuration", "spec": spec}))
    resources.mkdir()
    endpoint = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "HTTPEndpoint",
        "metadata": {"name": "ext"},
        "spec": {"baseUrl": f"http://127.0.0.1:{outside.port}"},
    }
    (resources / "ext.yaml").write_text(json.dumps(endpoint))
    metrics, public = {"caller": free_port(), "callee": free_port()}, free_port()
    shared = ("--config", str(config), "--resources-path", str(resources))
    # Being polled for its health would count.
    callee, caller = await asyncio.gather(
        mesh.sidecar(
            "callee", called, *shared, "--metrics-port", str(metrics["callee"]), quiet=False, wait=None
        ),
        mesh.sidecar(
            "caller", own, *shared, "--metrics-port", str(metrics["caller"]), "--dapr-public-port", str(public),
            "--dapr-public-listen-address", "127.0.0.1", quiet=False, wait=None,
        ),
    )  # fmt: skip
    await asyncio.gather(*(sidecar.says("dapr initialized", within_s=20) for sidecar in (callee, caller)))
    return World(caller, callee, outside.port, public, metrics)


def counts(family: Exposed) -> list[list[object]]:
    """Return its rows as they are recorded."""
    found: list[list[object]] = []
    for labels, number in [*family.values.items(), *((key, one.count) for key, one in family.distributions.items())]:
        assert number is not None
        found.append([*(value for name, value in labels if name != "app_id"), int(number)])
    return sorted(found, key=str)


@pytest.mark.rule("C-10", "C-13", "H-88", "O-20", "O-21", "O-22", "O-23", "O-24", "O-25", "O-28", "O-29", "H-139")
@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
async def test_calls_count_as_they_do_with_daprd(case: dict[str, Any], mesh: Mesh, tmp_path: Path) -> None:
    world = await build(mesh, tmp_path, case["spec"])

    await world.call_all()

    wanted = json.loads(json.dumps(case).replace("{{outside}}", str(world.outside)))
    for name in ("caller", "callee"):
        found = await world.scrape(name)
        assert {family: counts(exposed) for family, exposed in found.items()} == {
            family: sorted(rows, key=str) for family, rows in wanted[name].items()
        }, name
        for exposed in (exposed for family, exposed in found.items() if "latency" in family):
            assert {tuple(one.buckets) for one in exposed.distributions.values()} == {tuple(case["buckets"])}
    said = world.caller.log().replace('\\"', '"')
    for line in case["log"]:
        assert line in said


def test_the_rules_named_above_are_those_of_the_cases() -> None:
    (mark,) = (mark for mark in test_calls_count_as_they_do_with_daprd.pytestmark if mark.name == "rule")

    assert set(mark.args) == {rule for case in CASES for rule in case["rules"]} | {"H-139"}
