"""The contract of an app channel: calls go in, the app's answers come out."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from tieline.errors import TielineError
from tieline.model import Headers, Invocation, Reply

UNWANTED_BYTES: Final = 65536
"""So much of an answer that nobody wants is read all the same,"""
UNWANTED_S: Final = 0.5
"""and for so long."""


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
            The app's answer with its end-to-end headers; an ``RpcReply`` if it speaks gRPC.

        Raises:
            AppUnreachable, AppBroken: See there. ``detail`` is as for a self invocation.
            AppUnhealthy: Its health checks fail.
            BadRequest: The method cannot be written into the app's URL.
        """
        ...

    async def aclose(self) -> None:
        """Let go of idle connections."""
        ...


async def read_out(reply: Reply) -> int:
    """Read an answer that nobody wants, but for a long one: an app that is cut off in an answer may log an error.

    Returns:
        How many bytes of it were read.
    """
    body = reply.body
    if isinstance(body, bytes):
        return len(body)
    left = UNWANTED_BYTES
    try:
        async with asyncio.timeout(UNWANTED_S):
            while left > 0 and (piece := await body.read()):
                left -= len(piece)
    except (TielineError, TimeoutError):
        pass
    finally:
        body.abandon()
    return UNWANTED_BYTES - left
