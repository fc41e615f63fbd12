"""One pair of sidecars for all attacks of a module; after each of them it must be as it was before."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.hostile.world import World
from tests.support.mesh import Mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Start both sidecars."""
    folder = tmp_path_factory.mktemp("hostile")
    mesh = Mesh(folder)
    world = World(mesh, folder)
    try:
        await world.start()
        yield world
    finally:
        await mesh.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def world(shared_world: World) -> AsyncIterator[World]:
    """Lend both sidecars to one test, and see that it did them no harm."""
    yield shared_world
    await shared_world.calm()
