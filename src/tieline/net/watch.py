"""Notices that files have changed, by looking from time to time: no thread, and alike on every file system."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from tieline.net.tasks import spawn

INTERVAL_S: Final = 1.0
"""Between two looks."""
SETTLE_S: Final = 0.1
"""How long files must stay as they are before a change counts: until then somebody may still be writing."""
MAX_SETTLE_LOOKS: Final = 50
"""After so many looks at files that never rest, they are taken as they are."""
MAX_SHARE: Final = 0.01
"""Part of the time that looking may take; where it is slow it is rarer."""

Seen = TypeVar("Seen")


class Watch(Generic[Seen]):
    """Calls back after a change.

    Args:
        look: Returns what would differ after a change; it is called on the event loop, so it must be quick.
        changed: Takes what was seen last, once it has settled, and returns what counts as seen from now on.
    """

    def __init__(
        self,
        look: Callable[[], Seen],
        changed: Callable[[Seen], Seen],
        *,
        interval_s: float = INTERVAL_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._look = look
        self._changed = changed
        self._interval_s = interval_s
        self._settle_s = settle_s
        self._task: asyncio.Task[None] | None = None

    def start(self, seen: Seen) -> None:
        """Begin to look; ``seen`` is what the files looked like when they were read. Idempotent."""
        if self._task is None:
            self._task = spawn(self._run(seen), name="watch")

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, seen: Seen) -> None:
        pause = self._interval_s
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            now = self._look()
            pause = max(self._interval_s, (time.monotonic() - began) / MAX_SHARE)
            if now != seen:
                seen = self._changed(await self._settled(now))

    async def _settled(self, now: Seen) -> Seen:
        for _ in range(MAX_SETTLE_LOOKS):
            await asyncio.sleep(self._settle_s)
            before, now = now, self._look()
            if now == before:
                break
        return now
