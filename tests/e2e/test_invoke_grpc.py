"""``tieline invoke --grpc`` through real sidecars, which are found by the registry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.command import Result, run
from tests.support.grpc_app import GrpcApp
from tests.support.mesh import Mesh, Sidecar
from tests.support.shop import SERVICE, Shop, descriptor_set

NEW = f"{SERVICE}/New"
ORDER = '{"orderId": "5", "item": {"name": "ü"}}'


@pytest_asyncio.fixture
async def app() -> AsyncIterator[GrpcApp]:
    """The shop, which describes its services."""
    shop = Shop()
    made = shop.app()
    await made.start(prepare=shop.reflect)
    yield made
    await made.aclose()


async def start(mesh: Mesh, app: GrpcApp) -> tuple[Sidecar, Sidecar]:
    """Start the sidecar of the app ``orders``, and one that calls it."""
    return await asyncio.gather(mesh.sidecar("orders", app), mesh.sidecar("shop"))


async def invoke(mesh: Mesh, app_id: str, method: str, *argv: str, **environ: str) -> Result:
    return await run({**mesh.environ, **environ}, "invoke", app_id, method, "--grpc", *argv)


async def test_an_rpc_goes_the_whole_way_and_the_app_describes_itself(mesh: Mesh, app: GrpcApp) -> None:
    await start(mesh, app)

    result = await invoke(mesh, "orders", NEW, "-d", ORDER)

    assert (result.code, json.loads(result.out)) == (0, json.loads(ORDER)), result.err
    assert "Calling orders through the sidecar of shop" in result.err
    [seen] = app.seen
    assert (seen.values("dapr-caller-app-id"), seen.values("dapr-app-id")) == (["shop"], [])

    itself = await invoke(mesh, "orders", f"{SERVICE}/Watch", "-d", '{"orderId": 1}', "--from", "orders", "-q")
    assert itself.out.splitlines() == ['{"orderId": "1"}', '{"orderId": "2"}', '{"orderId": "3"}']
    failed = await invoke(mesh, "orders", NEW, "-o", "json")
    assert failed.code == 1
    assert failed.json()["error"]["details"][0]["reason"] == "NO_SUCH_ORDER"


async def test_a_method_that_the_app_knows_is_invoked(mesh: Mesh, app: GrpcApp) -> None:
    await start(mesh, app)

    result = await invoke(mesh, "orders", "api/v1/echo?x=1", "-d", "[1]", "-v", "PUT")

    assert (result.code, result.out) == (0, "[1]"), result.err
    asked = app.seen[0].invoked
    assert (asked.method, asked.http_extension.querystring) == ("api/v1/echo", "x=1")


async def test_a_call_that_reaches_nobody_is_explained(mesh: Mesh, app: GrpcApp, tmp_path: Path) -> None:
    await start(mesh, app)
    described = tmp_path / "shop.binpb"
    described.write_bytes(descriptor_set())

    by_reflection = await invoke(mesh, "nobody", NEW)
    by_descriptors = await invoke(mesh, "nobody", NEW, "--proto", str(described))
    by_method = await invoke(mesh, "nobody", "m")

    for result in (by_reflection, by_descriptors, by_method):
        assert (result.code, result.out) == (1, "")
        assert "couldn't find service: nobody" in result.err
        assert "why:         name-unknown" in result.err
        assert "where:       caller" in result.err
        assert "known now: orders, shop" in result.err


async def test_the_token_is_shown(mesh: Mesh, app: GrpcApp) -> None:
    await asyncio.gather(mesh.sidecar("orders", app), mesh.sidecar("shop", environ={"DAPR_API_TOKEN": "open sesame"}))

    shown = await invoke(mesh, "orders", NEW, "-d", ORDER, "--from", "shop", DAPR_API_TOKEN="open sesame")
    withheld = await invoke(mesh, "orders", NEW, "-d", ORDER, "--from", "shop")

    assert shown.code == 0, shown.err
    assert (withheld.code, withheld.out) == (1, "")
    assert "Unauthenticated: Unauthorized" in withheld.err
    assert "what to do:" in withheld.err
    assert app.seen[0].values("dapr-api-token") == []


async def test_a_sidecar_behind_a_socket_is_found(mesh: Mesh, app: GrpcApp, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    await asyncio.gather(
        mesh.sidecar("orders", app),
        mesh.sidecar("shop", None, "--unix-domain-socket", str(folder), wait=None),
    )

    async def call(*argv: str) -> Result:
        return await invoke(mesh, "orders", NEW, "-d", ORDER, *argv)

    async with asyncio.timeout(20):
        while (given := await call("--unix-domain-socket", str(folder))).code == 3:
            pass
    found = await call("--from", "shop")

    for result in (given, found):
        assert (result.code, json.loads(result.out)) == (0, json.loads(ORDER)), result.err
        assert str(folder / "dapr-shop-grpc.socket") in result.err
