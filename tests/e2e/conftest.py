"""What end-to-end tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.mesh import Mesh


@pytest_asyncio.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """Sidecars and apps that end with the test."""
    made = Mesh(tmp_path)
    try:
        yield made
    finally:
        await made.aclose()
