"""Meshes for tests of the contract: started when first needed, kept while cases need them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.contract.harness.cases import SETUPS, Case, differences, perform
from tests.contract.harness.mesh import Mesh

MESHES: Final = 2
"""How many meshes a worker keeps at a time."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes ten seconds and more, as what it shows does")


class Meshes:
    """The running meshes of a test session, by set-up."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._running: dict[str, Mesh] = {}

    def get(self, setup: str) -> Mesh:
        """Return the mesh of a set-up; the one that was used longest ago makes room."""
        mesh = self._running.pop(setup, None)
        if mesh is not None and not mesh.alive:  # a case ended it, or it broke
            mesh.close()
            mesh = None
        if mesh is None:
            while len(self._running) >= MESHES:
                self._running.pop(next(iter(self._running))).close()
            mesh = Mesh(SETUPS[setup], self._folders.mktemp(f"mesh-{setup}"))
        self._running[setup] = mesh
        if not mesh.alive:
            mesh.start()
        return mesh

    def check(self, case: Case) -> None:
        """Play a case, and fail with what differs from its recording."""
        mesh = self.get(case.setup)
        found = differences(case, perform(mesh, case), mesh.fill)
        assert not found, "\n".join([case.name, *found])

    def close(self) -> None:
        """End all of them."""
        for mesh in self._running.values():
            mesh.close()


@pytest.fixture(scope="session")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meshes]:
    """The meshes of this worker."""
    found = Meshes(tmp_path_factory)
    try:
        yield found
    finally:
        found.close()
