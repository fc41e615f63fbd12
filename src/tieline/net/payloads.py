"""Bodies on their way between sidecars as payloads of gRPC messages, in both directions and with back-pressure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tieline.errors import TielineError, untrace
from tieline.model import MAX_CHUNK, Body, Headers
from tieline.net.backpressure import BodyStream
from tieline.wire.grpc.internal import BrokenBody, frame_stream, payloads_of
from tieline.wire.grpc.messages import BadMessages, MessageReader

FIRST_PAYLOAD_WITHIN_S: Final = 0.01
"""How long the head waits for the first piece of its body, to share a message with it."""
EVENTS_HEAD: Final = b""
"""An empty head, which daprd puts before each event (G-46)."""


class Outgoing:
    """A body as the messages that carry it, the head first.

    A piece of the body becomes one piece of messages, which is a little longer.

    Args:
        head: Serialised.
        ending: Makes the trailers, of how the body ended: ``None`` if well. Without it, what breaks the body off is
            raised, as by any ``Body``.
        events: Each piece is an event, and is marked as one.
    """

    __slots__ = ("_body", "_ended", "_ending", "_first", "_head", "_later", "_seq", "trailers")

    def __init__(
        self,
        head: bytes,
        body: Body,
        *,
        ending: Callable[[TielineError | None], Headers] | None = None,
        events: bool = False,
    ) -> None:
        self._head: bytes | None = head
        self._later = EVENTS_HEAD if events else None
        self._body = body
        self._ending = ending
        self._ended = False
        self._first = True
        self._seq = 0
        self.trailers: Headers = []

    async def read(self) -> bytes:
        """See ``model.Body``."""
        if self._ended:
            return b""
        head, self._head = self._head, self._later
        first, self._first = self._first, False
        try:
            piece = await (self._first_piece() if first else self._body.read())
        except TielineError as error:
            if self._ending is None:
                raise
            return self._end(error, head if first else None)
        if piece is None:
            assert head is not None
            return frame_stream(head, b"", 0)
        if not piece:
            return self._end(None, head if first else None)
        messages = frame_stream(head, piece, self._seq)
        self._seq += payloads_of(len(piece))
        return messages

    async def _first_piece(self) -> bytes | None:
        """Return the first piece of the body, ``None`` if it is not there soon; reading can then be begun again."""
        try:
            async with asyncio.timeout(FIRST_PAYLOAD_WITHIN_S):
                return await self._body.read()
        except TimeoutError:
            return None

    def _end(self, error: TielineError | None, head: bytes | None) -> bytes:
        self._ended = True
        if self._ending is not None:
            self.trailers = self._ending(error)
            untrace(error)
        return b"" if head is None or error is not None else frame_stream(head, b"", 0)

    def abandon(self) -> None:
        """See ``model.Body``."""
        self._body.abandon()


class Incoming:
    """The body that the messages of a stream carry.

    Args:
        source: Where the messages come from.
        reader: Has what was read of it already.
        first: What the first message brought.
        data_of: Returns what a later message brings.
        broken: Makes the failure of a body that is not what it should be, of a text.
        ended: Is called with the trailers at the end of the stream, and raises if it was none.
        length: How long it has to be, ``None`` if nobody said.
    """

    __slots__ = (
        "_broken",
        "_data_of",
        "_ended",
        "_error",
        "_left",
        "_length",
        "_over",
        "_reader",
        "_source",
        "trailers",
    )

    def __init__(
        self,
        source: BodyStream,
        reader: MessageReader,
        first: bytes,
        data_of: Callable[[bytes], bytes],
        *,
        broken: Callable[[str], TielineError],
        ended: Callable[[Headers], None] | None = None,
        length: int | None = None,
    ) -> None:
        self._source = source
        self._reader = reader
        self._left = first
        self._data_of = data_of
        self._broken = broken
        self._ended = ended
        self._length = length
        self._over = False
        self._error: TielineError | None = None
        self.trailers: Headers = []

    async def read(self) -> bytes:
        """See ``model.Body``."""
        if self._error is not None:
            raise self._error
        try:
            return self._counted(await self._next())
        except TielineError as error:
            self._error = error
            self._source.abandon()
            raise

    async def _next(self) -> bytes:
        left = self._left
        if left:
            self._left = left[MAX_CHUNK:]
            return left[:MAX_CHUNK] if self._left else left
        while not self._over:
            data = self._take()
            if data:
                return data
            piece = await self._source.read()
            if not piece:
                self._finish()
            self._reader.feed(piece)
        return b""

    def _take(self) -> bytes:
        """Return what the messages that are here bring, but for what is more than one piece."""
        pieces: list[bytes] = []
        size = 0
        try:
            while size < MAX_CHUNK and (message := self._reader.next()) is not None:
                data = self._data_of(message)
                pieces.append(data)
                size += len(data)
        except (BrokenBody, BadMessages) as error:
            raise self._broken(error.text) from None
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if size > MAX_CHUNK:
            self._left = data[MAX_CHUNK:]
            data = data[:MAX_CHUNK]
        return data

    def _finish(self) -> None:
        self._over = True
        if self._ended is not None:
            self._ended(self._source.trailers)
        try:
            self._reader.check_end()
        except BadMessages as error:
            raise self._broken(error.text) from None

    def _counted(self, piece: bytes) -> bytes:
        if self._length is not None:
            self._length -= len(piece)
            if self._length < 0 or (not piece and self._length):
                raise self._broken("the body is not as long as its content-length says")
        return piece

    def abandon(self) -> None:
        """See ``model.Body``."""
        self._left = b""
        self._over = True
        self._source.abandon()


async def collect(body: Body, limit: int | None, too_long: Callable[[], TielineError]) -> bytes:
    """Return a body whole.

    Raises:
        TielineError: It broke off, or is longer than ``limit``.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := await body.read():
            size += len(piece)
            if limit is not None and size > limit:
                raise too_long()
            pieces.append(piece)
    except BaseException:  # cancelled too: nobody reads on
        body.abandon()
        raise
    return b"".join(pieces)
