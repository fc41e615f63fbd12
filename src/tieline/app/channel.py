"""The contract of an app channel: calls go in, the app's answers come out."""

from __future__ import annotations

from typing import Protocol

from tieline.errors import AppMissing
from tieline.model import Headers, Invocation, Reply


class AppChannel(Protocol):
    """Our own app, whatever protocol it speaks.

    Life: made from settings (no I/O), any number of ``call``, ``aclose``.
    """

    async def call(self, call: Invocation, identity: Headers) -> Reply:
        """Call the app.

        Args:
            call: Method cleaned and checked, headers as they came from the caller or its sidecar.
            identity: The three fields that say who calls whom; they replace what the headers claim.

        Returns:
            The app's answer with its end-to-end headers.

        Raises:
            AppUnreachable, AppBroken: See there. ``detail`` is as for a self invocation.
            BadRequest: The method cannot be written into the app's URL.
        """
        ...

    async def aclose(self) -> None:
        """Let go of idle connections."""
        ...


class ChannelNotBuilt:
    """Stands for an app whose protocol this version does not speak: each call says so."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol

    async def call(self, call: Invocation, identity: Headers) -> Reply:
        """See ``AppChannel``; always raises ``AppMissing``."""
        raise AppMissing(
            f"apps that speak {self._protocol} are not built into this version of Tieline",
            hint="let the app speak HTTP, and start its sidecar with --app-protocol http, https or h2c",
        )

    async def aclose(self) -> None:
        """See ``AppChannel``."""
