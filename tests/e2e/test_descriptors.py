"""More connections than a sidecar may hold: those without room are refused, and everybody else is served."""

from __future__ import annotations

import asyncio
import resource
import sys

import pytest

from tests.support.app import echo
from tests.support.http1 import Broken, Client
from tests.support.mesh import Mesh, Sidecar, invoke_path, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are lowered by prlimit")


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """Return what starts a sidecar with these limits of open files."""
    lower = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    return "-c", f"{lower}; import sys; from tieline.cli.main import main; sys.exit(main())", "sidecar"


async def served(client: Client) -> bool:
    """Say whether a connection is answered; else it is closed, and soon."""
    client.send("GET", "/v1.0/healthz")
    async with asyncio.timeout(5):
        try:
            return (await client.answer()).status == 204
        except (Broken, ConnectionError):
            return False


async def crowd(sidecar: Sidecar, count: int) -> tuple[list[Client], int]:
    """Open so many connections; return those that are served, and how many are refused."""
    kept: list[Client] = []
    refused = 0
    for _ in range(count):
        client = await Client.open(sidecar.port)
        if await served(client):
            kept.append(client)
        else:
            refused += 1
            client.close()
    return kept, refused


async def test_a_sidecar_takes_as_many_descriptors_as_the_system_lets_it(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("callee", main=limited(64, 512))

    kept, refused = await crowd(sidecar, 200)

    assert (len(kept), refused) == (200, 0)
    for client in kept:
        client.close()


async def test_connections_without_room_are_refused_and_calls_go_on(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("callee", await mesh.app(echo), main=limited(120, 120))

    kept, refused = await crowd(sidecar, 150)

    assert len(kept) > 50
    assert refused > 50
    # A quarter is kept back, so that those who are in can still call the app.
    for client in kept[:10]:
        client.send("GET", invoke_path("callee", "x"))
    assert [(await client.answer()).status for client in kept[:10]] == [200] * 10
    assert sidecar.log().count("refused") == 1
    before = sidecar.descriptors()
    for client in kept:
        client.close()
    await until(lambda: sidecar.descriptors() <= before - len(kept))
    assert (await sidecar.call("callee", "x")).status == 200


async def test_a_sidecar_that_has_no_descriptor_left_refuses_and_recovers(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("callee", await mesh.app(echo))
    kept, _ = await crowd(sidecar, 40)
    used = sidecar.descriptors()
    resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (used, used))

    late, refused = await crowd(sidecar, 30)

    assert (late, refused) == ([], 30)
    assert await served(kept[0])
    before = sidecar.descriptors()
    for client in kept:
        client.close()
    await until(lambda: sidecar.descriptors() <= before - len(kept))
    assert (await sidecar.call("callee", "x")).status == 200
    assert "Exception" not in sidecar.log()
