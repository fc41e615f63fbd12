"""How many sockets this process may hold, and what happens to connections beyond that: they are refused at once.

Without this, an accept that fails would be tried again for ever, and calls of those who got in would fail too, since
they need connections to the app and to peers.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from typing import Any, Final

log = logging.getLogger("dapr.runtime")

MAX_DESCRIPTORS: Final = 1 << 20
"""What the limit is raised to at most."""
ASSUMED_LIMIT: Final = 256
"""Where the system does not tell."""
FOR_CALLERS: Final = 0.75
"""Share of all descriptors that connections of callers may take; the rest is for the app, peers and files."""
REPORT_EVERY_S: Final = 10.0


def raise_limit() -> None:
    """Let this process open as many files as the system allows it, as programs written in Go do by themselves."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.debug("the limit of %d open files stays: %s", soft, error)


def limit() -> int:
    """Return how many files this process may have open."""
    if sys.platform == "win32":
        return ASSUMED_LIMIT
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


class ListeningSocket(socket.socket):
    """A socket that accepts connections, and closes those for which there is no room."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._limit = limit()
        self._room = int(self._limit * FOR_CALLERS)
        self._refused = 0
        self._reported = -REPORT_EVERY_S
        self._spare = -1

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection for which there is room.

        Raises:
            BlockingIOError: There is none.
        """
        self._put_by()
        while True:
            try:
                connection, address = super().accept()
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                self._refuse_by_spare()
                continue
            # The lowest free number is always the one given, so this is how many are open.
            if connection.fileno() < self._room:
                return connection, address
            connection.close()
            self._report()

    def _refuse_by_spare(self) -> None:
        """Take one connection with the descriptor that was put by for this, and close it.

        Raises:
            BlockingIOError: There is no connection any more, or the spare descriptor is gone.
        """
        if self._spare < 0:
            raise BlockingIOError
        os.close(self._spare)
        self._spare = -1
        try:
            connection, _ = super().accept()
            connection.close()
        finally:
            self._put_by()
        self._report()

    def _put_by(self) -> None:
        if self._spare < 0:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pass  # somebody else took the last one

    def _report(self) -> None:
        self._refused += 1
        now = time.monotonic()
        if now - self._reported >= REPORT_EVERY_S:
            self._reported = now
            log.warning(
                "refused %d connections: this process may have %d files open, and a part is kept for calls; "
                "raise the limit (ulimit -n), or close idle connections",
                self._refused, self._limit,
            )  # fmt: skip
            self._refused = 0

    def close(self) -> None:
        """Close it and what was put by; idempotent."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        super().close()
