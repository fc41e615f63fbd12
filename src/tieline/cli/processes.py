"""Processes that this command did not start: told apart from others of the same number, asked to stop, waited for."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import Final, Self

from tieline.names.sidecars import process_start

POLL_S: Final = 0.05
"""Pause between two looks where the system cannot tell of an end."""


class NotThere(Exception):
    """The process has ended, or its number belongs to another one now."""


class Process:
    """A process, held so that a signal reaches it and nobody else. Use it as a context.

    Args:
        pid: Its number.
        start: When it started, in ticks since boot; 0 if that is not known.

    Raises:
        NotThere: It has ended.
        PermissionError: It is somebody else's.
    """

    def __init__(self, pid: int, start: int = 0) -> None:
        self.pid = pid
        self._start = start or (process_start(pid) or 0)
        self._handle = _open_handle(pid)
        # Looked at once it is held: a number that is held is not given away.
        if self.has_ended():
            self.close()
            raise NotThere(f"process {pid} has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def has_ended(self) -> bool:
        """Whether it is gone, or only waits for its parent to notice."""
        if self._start:
            return process_start(self.pid) != self._start
        if sys.platform == "linux":
            return process_start(self.pid) is None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended. Raises ``PermissionError``."""
        with contextlib.suppress(ProcessLookupError):
            if self._handle is not None and sys.platform == "linux":
                signal.pidfd_send_signal(self._handle, number)
            elif not self.has_ended():
                os.kill(self.pid, number)

    def wait(self, until: float) -> bool:
        """Wait for its end until a point of ``time.monotonic``; tell whether it has ended."""
        while not self.has_ended():
            left = until - time.monotonic()
            if left <= 0:
                return False
            if self._handle is not None:
                select.select([self._handle], [], [], left)
            else:
                time.sleep(min(left, POLL_S))
        return True


def _open_handle(pid: int) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise NotThere(f"process {pid} has ended") from error
    except OSError:  # an old kernel, or one that forbids it
        return None
