"""What gRPC clients and gRPC apps see, as recorded from a running ``daprd``, case by case.

Where Tieline means to differ, the cases say so already. Each test names the rules that its cases hold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract.harness.grpc_api import CASES, SETUPS, Case, Stage, differences

STAGES = 2
"""How many set-ups a worker keeps at a time."""


class Stages:
    """The set-ups that run, by name; the one that was used longest ago makes room."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._running: dict[str, Stage] = {}

    async def get(self, setup: str) -> Stage:
        """Return a set-up; one that must be fresh is started anew each time."""
        stage = self._running.pop(setup, None)
        if stage is not None and SETUPS[setup].get("fresh"):
            await stage.aclose()
            stage = None
        if stage is None:
            while len(self._running) >= STAGES:
                await self._running.pop(next(iter(self._running))).aclose()
            stage = Stage(SETUPS[setup], self._folders.mktemp(f"grpc-{setup}"))
            self._running[setup] = stage
            await stage.start()
        self._running[setup] = stage
        return stage

    async def aclose(self) -> None:
        """End all of them."""
        for stage in self._running.values():
            await stage.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stages(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stages]:
    """The set-ups of this worker."""
    made = Stages(tmp_path_factory)
    try:
        yield made
    finally:
        await made.aclose()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=pytest.mark.rule(*case.rules)) for case in CASES]
)
async def test_a_call_goes_as_recorded(case: Case, stages: Stages) -> None:
    stage = await stages.get(case.facts["setup"])
    found = differences(case, await stage.perform(case))
    assert not found, "\n".join([case.name, *found])
