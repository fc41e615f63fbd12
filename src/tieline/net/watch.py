"""Notices that files have changed, by looking from time to time: no thread, and alike on every file system."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from tieline.net.tasks import spawn

INTERVAL_S: Final = 1.0
"""Between two looks."""
SETTLE_S: Final = 0.3
"""How long files must stay as they are before a change counts: until then somebody may still be writing."""
MAX_SETTLE_LOOKS: Final = 20
"""After so many looks at files that never rest, they are taken as they are."""
MAX_SHARE: Final = 0.01
"""Part of the time that looking may take; where it is slow it is rarer."""
MAX_INTERVAL_S: Final = 5.0
"""But not rarer than this."""

Seen: TypeAlias = Mapping[str, object]


class Watch:
    """Calls back after a change.

    Args:
        look: Returns what would differ after a change, in parts. Each is made on the event loop, so it must be quick.
        changed: Takes what was seen last, once it has settled, and returns what counts as seen from now on.
    """

    def __init__(
        self,
        look: Callable[[], Iterable[Seen]],
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
            now = await self._looked()
            pause = max(self._interval_s, min(MAX_INTERVAL_S, (time.monotonic() - began) / MAX_SHARE))
            if now != seen:
                seen = self._changed(await self._settled(now))

    async def _settled(self, now: Seen) -> Seen:
        for _ in range(MAX_SETTLE_LOOKS):
            await asyncio.sleep(self._settle_s)
            before, now = now, await self._looked()
            if now == before:
                break
        return now

    async def _looked(self) -> Seen:
        seen: dict[str, object] = {}
        for part in self._look():
            seen |= part
            await asyncio.sleep(0)
        return seen
