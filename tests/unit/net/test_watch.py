"""Noticing changed files: when it looks, what it waits for, and what it takes as seen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tieline.net.watch import MAX_SETTLE_LOOKS, Watch


class Files:
    """What looks return, one after the other, the last for ever; and what was called back with."""

    def __init__(self, looks: Sequence[str]) -> None:
        self._looks = list(looks)
        self.looked = 0
        self.changed: list[str] = []
        self.enough = asyncio.Event()

    def look(self) -> Iterator[Mapping[str, object]]:
        self.looked += 1
        if len(self._looks) == 1:
            self.enough.set()
        now = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        yield {"first": now}
        yield {"second": 0}

    def apply(self, seen: Mapping[str, object]) -> Mapping[str, object]:
        self.changed.append(str(seen["first"]))
        return seen


async def watched(looks: Sequence[str], seen: str = "A") -> Files:
    """Return the ledger once the looks are used up, and one look later."""
    files = Files(looks)
    watch = Watch(files.look, files.apply, interval_s=0, settle_s=0)
    watch.start({"first": seen, "second": 0})
    watch.start({})
    async with asyncio.timeout(5):
        await files.enough.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    watch.stop()
    watch.stop()
    return files


@pytest.mark.rule("C-68", "H-108")
@pytest.mark.parametrize(
    ("looks", "changed"),
    [
        (["A"], []),
        (["A", "B"], ["B"]),
        (["B", "C", "D", "D", "D"], ["D"]),
        (["B", "B", "C"], ["B", "C"]),
        (["B", "A", "A"], ["A"]),
    ],
    ids=["nothing", "a change", "still being written", "two changes", "back again"],
)
async def test_a_change_counts_once_it_has_settled(looks: list[str], changed: list[str]) -> None:
    assert (await watched(looks)).changed == changed


async def test_files_that_never_rest_are_taken_in_the_end() -> None:
    files = await watched([str(number) for number in range(MAX_SETTLE_LOOKS + 1)])

    assert files.changed[0] == str(MAX_SETTLE_LOOKS)


async def test_nothing_is_looked_at_after_the_end() -> None:
    files = Files(["A"])
    watch = Watch(files.look, files.apply, interval_s=0, settle_s=0)
    watch.start({"first": "A", "second": 0})
    await files.enough.wait()

    watch.stop()
    looked = files.looked
    for _ in range(5):
        await asyncio.sleep(0)

    assert files.looked == looked
