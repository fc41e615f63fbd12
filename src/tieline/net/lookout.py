"""Finds connections of which uvloop has lost sight, and has them read on.

A reset that arrives together with data has libuv stop watching the socket after one read, as if the descriptor were
bad, and nobody is told: the rest of the data, and the reset itself, would never be seen, and the call behind it never
end. Plain asyncio and uvloop's own transports do not have this; ``loop.add_reader`` of uvloop, on which aiofastnet is
built, does.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any, Final
from weakref import WeakKeyDictionary

LOOK_EVERY_S: Final = 1.0
"""How long a reset may go unseen."""
READS_AT_MOST: Final = 512
"""Reads that a socket may need to give what came before its reset; then it is dropped."""


class Lookout:
    """Looks once in a while at all open connections of a loop, with one system call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: set[Any] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, transport: Any) -> None:
        """Watch a connection until it is closed; ``forget`` it then."""
        self._watched.add(transport)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def forget(self, transport: Any) -> None:
        """Watch a connection no more."""
        self._watched.discard(transport)

    def _look(self) -> None:
        self._timer = None
        by_descriptor: dict[int, Any] = {}
        poll = select.poll()
        for transport in self._watched:
            descriptor = transport.get_extra_info("socket").fileno()
            if descriptor >= 0:
                by_descriptor[descriptor] = transport
                poll.register(descriptor, 0)  # errors and hang-ups are always told
        for descriptor, _ in poll.poll(0):
            self._read_on(by_descriptor[descriptor], READS_AT_MOST)
        if self._watched:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def _read_on(self, transport: Any, reads: int) -> None:
        """Begin to watch the socket anew, for one read each time, until it gives its reset."""
        if transport.is_closing() or not reads:
            transport.abort()  # nobody is there any more to take what is still to be written
            return
        if not transport.is_reading():
            return  # a reader that is not ready comes again at the next look
        transport.pause_reading()
        transport.resume_reading()
        self._loop.call_soon(self._read_on, transport, reads - 1)


_lookouts: WeakKeyDictionary[asyncio.AbstractEventLoop, Lookout] = WeakKeyDictionary()


def watch(loop: asyncio.AbstractEventLoop, transport: Any) -> None:
    """Have a connection watched if its loop needs that; call when it is made."""
    lookout = _lookouts.get(loop)
    if lookout is None:
        if type(loop).__module__ != "uvloop" or not hasattr(select, "poll"):
            return
        lookout = _lookouts[loop] = Lookout(loop)
    lookout.watch(transport)


def forget(loop: asyncio.AbstractEventLoop, transport: Any) -> None:
    """Let go of a connection; call when it is lost."""
    lookout = _lookouts.get(loop)
    if lookout is not None:
        lookout.forget(transport)
