"""Send a call again when that is certain to be right, with the table of ``resiliency.again``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter

from tieline.errors import TielineError
from tieline.middleware.chain import Handler
from tieline.model import MAX_CHUNK, Body, Headers, Invocation, Reply
from tieline.resiliency.again import MAX_RETRIES, pause_before_retry

log = logging.getLogger("dapr.runtime.direct_messaging")

KEPT_BYTES = MAX_CHUNK
"""A streamed body is kept to be sent again as long as no more of it was read."""


class KeptBody:
    """A body that can be read from its beginning again, as long as ``KEPT_BYTES`` hold what was read."""

    __slots__ = ("_at", "_kept", "_size", "_source", "overflowed", "trailers")

    def __init__(self, source: Body) -> None:
        self._source = source
        self._kept: list[bytes] = []
        self._size = 0
        self._at = 0
        self.overflowed = False
        """Too much was read to begin again."""
        self.trailers: Headers = source.trailers

    async def read(self) -> bytes:
        """See ``model.Body``."""
        if self._at < len(self._kept):
            self._at += 1
            return self._kept[self._at - 1]
        piece = await self._source.read()
        self.trailers = self._source.trailers
        if piece and not self.overflowed:
            self._size += len(piece)
            if self._size > KEPT_BYTES:
                self.overflowed = True
                self._kept.clear()
                self._at = 0
            else:
                self._kept.append(piece)
                self._at += 1
        return piece

    def rewind(self) -> None:
        """Begin again at the first byte; only while not ``overflowed``."""
        self._at = 0

    def abandon(self) -> None:
        """See ``model.Body``. Whoever read for one attempt does not speak for the next: nothing happens yet."""


class Attempts:
    """The step that repeats a call.

    Tries begin a pause apart: a try that took longer, looking up a name or waiting for a connection, is followed by the
    next at once. ``sleep`` waits between two tries, by ``clock``; tests put their own there.
    """

    def __init__(
        self,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._sleep = sleep
        self._clock = clock

    async def __call__(self, call: Invocation, call_next: Handler) -> Reply:
        kept = None
        if not isinstance(call.body, bytes) and not call.protocol:  # nothing of a tunnel is read before it is open
            call.body = kept = KeptBody(call.body)
        try:
            return await call_next(call)
        except TielineError as error:
            return await self._again(call, call_next, error, kept)

    async def _again(self, call: Invocation, call_next: Handler, error: TielineError, kept: KeptBody | None) -> Reply:
        retries = 0
        began = call.record.started  # of the call, which is about when its first try began
        while True:
            ready = kept is None or not kept.overflowed
            pause = pause_before_retry(error, call.verb, retries, body_ready=ready)
            if pause is None:
                would_go_on = pause_before_retry(error, call.verb, 0, body_ready=ready) is not None
                if would_go_on and retries >= MAX_RETRIES and call.length is not None:
                    error = _exhausted(call, error)
                raise error
            log.debug("call to %s is sent again in %s s: %s", call.target.addressed, pause, error.text)
            left = began + pause - self._clock()
            if left > 0:
                await self._sleep(left)
            began = self._clock()
            retries += 1
            if kept is not None:
                kept.rewind()
            try:
                return await call_next(call)
            except TielineError as next_error:
                error = next_error


def _exhausted(call: Invocation, error: TielineError) -> TielineError:
    """Say how often it was tried, in the words that clients know (H-85)."""
    text = f"failed to invoke target {call.target.app_id} after {MAX_RETRIES} retries. Error: {error.detail}"
    return TielineError(text, hint=error.hint, cause=error.cause, hop=error.hop)
