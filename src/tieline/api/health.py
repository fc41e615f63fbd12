"""Whether the sidecar is up, as both faces of the API tell it (H-133, H-134)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

RUNTIME: Final = "runtime"
"""What is waited for until everything is up, and again from the shutdown on."""


class Health:
    """What is ready; the sidecar tells it as it starts and stops.

    Attributes:
        outbound: Calls from our app are taken.
        waiting_for: Names of what is not up yet; nothing in it means ready.
        leaving: The shutdown has begun.
        app: Returns how the app is, ``<state>; <last probe>``; ``None`` without an app.
        watchers: Are told of each change; they put themselves here, and must not raise.
    """

    def __init__(self, app_id: str) -> None:
        self.app_id = app_id
        self.outbound = False
        self.waiting_for: tuple[str, ...] = (RUNTIME,)
        self.leaving = False
        self.app: Callable[[], str] | None = None
        self.watchers: set[Callable[[], None]] = set()

    def open_outbound(self) -> None:
        """Say that calls from our app are taken."""
        self.outbound = True
        self._tell()

    def be_ready(self) -> None:
        """Say that everything is up."""
        self.waiting_for = ()
        self._tell()

    def leave(self) -> None:
        """Say that the sidecar is about to go."""
        self.leaving = True
        self.waiting_for = (RUNTIME,)
        self._tell()

    def _tell(self) -> None:
        for watcher in tuple(self.watchers):
            watcher()
