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
            try:
                await stage.start()
            except BaseException:
                await stage.aclose()  # the next case begins anew
                raise
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


@pytest.mark.rule(
    "A-11", "G-1", "G-2", "G-7", "G-8", "G-10", "G-11", "G-12", "G-13", "G-14", "G-15", "G-16", "G-17", "G-18",
    "G-19", "G-20", "G-21", "G-22", "G-24", "G-25", "G-26", "G-27", "G-29", "G-31", "G-34", "G-37", "G-40", "G-42",
    "G-44", "G-49", "G-50", "G-56", "G-58", "G-59", "G-60", "G-62", "G-64", "G-65", "G-66", "G-67", "G-68", "G-69",
    "G-70", "G-72", "G-73", "G-74", "G-76", "G-77", "G-78", "G-79", "G-82", "G-86", "G-88", "G-110", "G-111", "G-112",
    "G-113", "G-115", "G-116", "G-117", "G-118", "G-120", "G-128", "H-79", "H-80", "H-81", "H-82", "H-83", "H-85",
)  # fmt: skip
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=pytest.mark.rule(*case.rules)) for case in CASES]
)
async def test_a_call_goes_as_recorded(case: Case, stages: Stages) -> None:
    stage = await stages.get(case.facts["setup"])
    found = differences(case, await stage.perform(case))
    assert not found, "\n".join([case.name, *found])


def test_the_rules_named_above_are_those_of_the_cases() -> None:
    marks = {mark.name: mark for mark in test_a_call_goes_as_recorded.pytestmark}  # type: ignore[attr-defined]
    assert set(marks["rule"].args) == {rule for case in CASES for rule in case.rules}
