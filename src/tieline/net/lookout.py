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
    """Looks once in a while at all open connections of a loop, with one system call.

    Where the kernel keeps the list of what to look at, ten thousand idle connections cost a look nothing (handed over
    anew each time they held up everything else for 14 ms a second). A connection enters the list at the first look, so
    that one which is gone by then never does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poll: Any = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._new: set[Any] = set()
        self._descriptors: dict[Any, int] = {}
        self._transports: dict[int, Any] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, transport: Any) -> None:
        """Watch a connection until it is closed; ``forget`` it then."""
        self._new.add(transport)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def forget(self, transport: Any) -> None:
        """Watch a connection no more."""
        self._new.discard(transport)
        descriptor = self._descriptors.pop(transport, None)
        if descriptor is None or self._transports.get(descriptor) is not transport:
            return  # never entered; or closed before, and its number has a new owner
        del self._transports[descriptor]
        try:
            self._poll.unregister(descriptor)
        except OSError:
            pass  # the kernel forgets by itself what is closed

    def _look(self) -> None:
        self._timer = None
        for transport in self._new:
            self._enter(transport)
        self._new.clear()
        for descriptor, _ in self._poll.poll(0):
            transport = self._transports.get(descriptor)
            if transport is not None:
                self._read_on(transport, READS_AT_MOST)
        if self._descriptors:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def _enter(self, transport: Any) -> None:
        descriptor = transport.get_extra_info("socket").fileno()
        if descriptor < 0 or transport in self._descriptors:
            return
        try:
            self._poll.register(descriptor, 0)  # errors and hang-ups are always told
        except OSError:
            return  # more than the system allows; the others are watched all the same
        self._descriptors[transport] = descriptor
        self._transports[descriptor] = transport

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
