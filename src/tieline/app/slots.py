"""At most so many calls to the app at a time; the others wait their turn (H-115)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from tieline.model import Body, Headers


class Slots:
    """A first-come, first-served semaphore. Its queue is bounded by the calls that exist."""

    __slots__ = ("_free", "_waiting")

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot."""
        return len(self._waiting)

    def take(self) -> bool:
        """Take a slot if one is free."""
        if self._free > 0:
            self._free -= 1
            return True
        return False

    async def acquire(self) -> None:
        """Take a slot, waiting for one if need be; cancelling gives it back."""
        if self._free > 0:
            self._free -= 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            else:
                # ``release`` may have passed over it in this very turn.
                with contextlib.suppress(ValueError):
                    self._waiting.remove(waiter)
            raise

    def release(self) -> None:
        """Give a slot back: to the longest waiting, if anybody waits."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1


class HeldBody:
    """An answer's body that keeps its call's slot until it is relayed or dropped."""

    __slots__ = ("_body", "_slots", "trailers")

    def __init__(self, body: Body, slots: Slots) -> None:
        self._body = body
        self._slots: Slots | None = slots
        self.trailers: Headers = body.trailers

    async def read(self) -> bytes:
        """See ``model.Body``."""
        try:
            piece = await self._body.read()
        except Exception:  # a reader that is cancelled may only have been in a hurry, else it abandons the body
            self._let_go()
            raise
        if not piece:
            self.trailers = self._body.trailers
            self._let_go()
        return piece

    def abandon(self) -> None:
        """See ``model.Body``."""
        self._body.abandon()
        self._let_go()

    def _let_go(self) -> None:
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()
