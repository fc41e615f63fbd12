"""A body on its way from a connection to one reader, with back-pressure.

The connection *feeds* what arrives; one reader *reads*. What was read is told to the connection (``consumed``),
which then lets the sender go on: HTTP/1.1 by reading from the socket again, HTTP/2 by a WINDOW_UPDATE. How much
may lie unread is therefore the connection's decision, and each has a named bound for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from tieline.errors import TielineError, TooLarge
from tieline.model import MAX_CHUNK, Headers
from tieline.wire.pieces import add_piece


class Source(Protocol):
    """The connection behind a body."""

    def body_consumed(self, size: int) -> None:
        """``size`` bytes were read, or dropped."""

    def body_abandoned(self) -> None:
        """Nobody will read on. Called at most once, and only before the end."""

    def body_wanted(self) -> None:
        """The reader waits for the first time (a sender may be waiting for ``100 Continue``)."""


class NoSource:
    """Stands behind a body whose bytes come from no connection any more."""

    def body_consumed(self, size: int) -> None:
        """See ``Source``."""

    def body_abandoned(self) -> None:
        """See ``Source``."""

    def body_wanted(self) -> None:
        """See ``Source``."""


_NO_SOURCE: Final = NoSource()


class BodyStream:
    """Bytes between the callbacks of a connection and one reader (see the module)."""

    __slots__ = (
        "_abandoned", "_ended", "_error", "_left", "_pieces", "_source", "_waiter", "size", "touched", "trailers",
    )  # fmt: skip

    def __init__(self, source: Source, limit: int | None = None) -> None:
        """Begin a body of at most ``limit`` bytes; one that is longer fails with ``TooLarge``."""
        self._source = source
        self._left = limit
        self._pieces: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: TielineError | None = None
        self._ended = False
        self._abandoned = False
        self.size = 0
        """Bytes fed and not yet read."""
        self.touched = False
        """Whether reading has begun."""
        self.trailers: Headers = []

    # ── the connection's side ──────────────────────────────────────────────────────────────────────
    def feed(self, data: bytes) -> None:
        """Add what arrived. Once nobody reads on, it is dropped and counted as consumed."""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.fail(too_large())
        if self._abandoned or self._error is not None:
            self._source.body_consumed(len(data))
            return
        add_piece(self._pieces, data)
        self.size += len(data)
        self._wake()

    def end(self, trailers: Headers | None = None) -> None:
        """The body is complete."""
        if trailers:
            self.trailers = trailers
        self._ended = True
        if not self._pieces:
            self._source = _NO_SOURCE
        self._wake()

    def fail(self, error: TielineError) -> None:
        """The body broke off. What lies unread is dropped: a broken message ends as soon as that is known."""
        if not self._ended and self._error is None:
            self._error = error
            self._drop()
            self._wake()

    def detach(self, error: TielineError) -> None:
        """The body broke off if it had not ended, and the connection has no more for it.

        Each holds the other, and both would be left to the garbage collector.
        """
        self.fail(error)
        self._source = _NO_SOURCE

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    # ── the reader's side ──────────────────────────────────────────────────────────────────────────
    @property
    def is_complete(self) -> bool:
        """Whether all of it has arrived, so that reading it waits for nothing."""
        return self._ended and self._error is None

    @property
    def is_wanted(self) -> bool:
        """Whether somebody may still read; False once it was abandoned or broke off."""
        return not self._abandoned and self._error is None

    def whole(self) -> bytes | None:
        """Return all of a body that has come in one piece, without reading it; ``None`` of any other."""
        pieces = self._pieces
        return pieces[0] if self._ended and len(pieces) == 1 and not self.touched and self._error is None else None

    async def read(self) -> bytes:
        """Return the next piece, at most ``MAX_CHUNK`` bytes; ``b""`` at the end.

        Raises:
            TielineError: The body broke off.
        """
        if not self.touched:
            self.touched = True
            if not self._pieces and not self._ended:
                self._source.body_wanted()
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended or self._abandoned:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._next()

    def _next(self) -> bytes:
        pieces = self._pieces
        piece = pieces.popleft()
        if len(piece) > MAX_CHUNK:
            pieces.appendleft(piece[MAX_CHUNK:])
            piece = piece[:MAX_CHUNK]
        elif pieces and self.size <= MAX_CHUNK:
            pieces.appendleft(piece)
            piece = b"".join(pieces)
            pieces.clear()
        size = len(piece)
        self.size -= size
        self._source.body_consumed(size)
        if self._ended and not pieces:
            self._source = _NO_SOURCE
        return piece

    def abandon(self) -> None:
        """Say that nobody will read on. Idempotent, also after the end."""
        if self._abandoned:
            return
        self._abandoned = True
        self._drop()
        if not self._ended and self._error is None:
            self._source.body_abandoned()

    def _drop(self) -> None:
        if self.size:
            self._pieces.clear()
            size, self.size = self.size, 0
            self._source.body_consumed(size)


class WholeBody(BodyStream):
    """A body that came whole, with trailers, which plain bytes cannot carry."""

    __slots__ = ()

    def __init__(self, data: bytes, trailers: Headers) -> None:
        self._source = _NO_SOURCE
        self._left = None
        self._pieces = deque((data,)) if data else deque()
        self._waiter = None
        self._error = None
        self._ended = True
        self._abandoned = False
        self.size = len(data)
        self.touched = False
        self.trailers = trailers


def too_large() -> TooLarge:
    """Return the failure of a body over its limit, in the words that clients know (H-60)."""
    return TooLarge(
        "stream too large",
        hint="the request body is over --max-body-size of the caller's sidecar: raise it, or set it to 0 for no limit",
    )


def within(body: bytes, limit: int | None) -> bytes | BodyStream:
    """Return a whole body, or in its place one that fails, if it is over the limit."""
    if limit is None or len(body) <= limit:
        return body
    stream = BodyStream(_NO_SOURCE)
    stream.fail(too_large())
    return stream


def ended(body: bytes, limit: int | None, trailers: Headers) -> BodyStream:
    """Return a whole body that has trailers, or in its place one that fails, if it is over the limit."""
    checked = within(body, limit)
    return WholeBody(checked, trailers) if isinstance(checked, bytes) else checked
