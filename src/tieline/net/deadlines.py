"""Deadlines of many things at once: a timer for each short stretch of time, not for each thing."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

FINE_S: Final = 0.05
"""How late one that is near may be told,"""
COARSE_S: Final = 1.0
"""and one that is farther off,"""
NEAR_S: Final = 30.0
"""which begins here."""
FAR_S: Final = 86400.0
"""Beyond this nobody is told: whatever waits so long is watched by who waits."""


class Expiring(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """The deadline has passed."""
        ...


class Deadlines:
    """Tells things when their time is up.

    The timers are bounded by the stretches before ``FAR_S``, however many things there are.
    """

    def __init__(self) -> None:
        self._due: dict[tuple[float, int], set[Expiring]] = {}

    def watch(self, thing: Expiring, within_s: float) -> set[Expiring] | None:
        """Have ``thing.expire`` called in so many seconds, or a little later; discard it from the set that is returned
        when it is over before."""
        if within_s > FAR_S:
            return None
        step = FINE_S if within_s <= NEAR_S else COARSE_S
        loop = asyncio.get_running_loop()
        key = (step, int((loop.time() + within_s) / step) + 1)
        due = self._due.get(key)
        if due is None:
            due = self._due[key] = set()
            loop.call_at(key[1] * step, self._expire, key)
        due.add(thing)
        return due

    def _expire(self, key: tuple[float, int]) -> None:
        due = self._due.pop(key)
        while due:
            due.pop().expire()
