"""An RPC of the sidecar's own whose answer goes on until one side ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tieline.api.grpc.calls import RpcCall
from tieline.api.health import Health
from tieline.errors import GrpcCode, untrace
from tieline.model import Headers, RpcStatus
from tieline.wire.grpc.messages import BadMessages, MessageReader, frame
from tieline.wire.grpc.status import OK, render_status

MAX_MESSAGE: Final = 65536
"""Longest message that a client of these RPCs may send, in bytes."""
_LEAVING: Final = RpcStatus(GrpcCode.UNAVAILABLE, "the sidecar is shutting down")
_LATE: Final = RpcStatus(GrpcCode.DEADLINE_EXCEEDED, "context deadline exceeded")


class Conversation:
    """A streamed answer (see ``model.Body``): messages as ``next`` gives them, and the status in the trailers.

    It ends when the sidecar leaves, which else would wait for it.
    """

    def __init__(self, rpc: RpcCall, health: Health) -> None:
        self._rpc = rpc
        self._health = health
        self._reader: MessageReader | None = None
        self._waiting: asyncio.Task[object] | None = None
        self._over = False
        self.on_end: Callable[[int], None] | None = None
        """Is told the code, once."""
        self.trailers: Headers = []
        health.watchers.add(self._told)

    async def next(self) -> bytes | None:
        """Return the next message to send; ``None`` to end well.

        Raises:
            BadMessages: What the client sent is wrong; its code ends the RPC.
        """
        raise NotImplementedError

    def last_words(self) -> bytes | None:
        """Return a message to send before the sidecar leaves; ``None`` if there is none, or none any more."""
        return None

    async def read(self) -> bytes:
        """See ``model.Body``."""
        if self._over:
            return b""
        status = OK
        try:
            async with asyncio.timeout_at(self._rpc.deadline):
                message = await self._next_unless_leaving()
            if message is None and self._health.leaving:
                message = self.last_words()
                status = _LEAVING
            if message is not None:
                return frame(message)
        except TimeoutError as error:
            untrace(error)
            status = _LATE
        except BadMessages as error:
            status = RpcStatus(error.code, error.text)
        self._end(status)
        return b""

    async def _next_unless_leaving(self) -> bytes | None:
        if self._health.leaving:
            return None
        self._waiting = asyncio.current_task()  # nowhere else: a frame that held its task would be a cycle
        try:
            return await self.next()
        except asyncio.CancelledError as error:
            if not self._takes_back():
                raise
            untrace(error)
            return None
        finally:
            self._waiting = None

    def _takes_back(self) -> bool:
        """Whether it was the sidecar's leaving alone that cancelled."""
        return self._health.leaving and self._waiting is not None and self._waiting.uncancel() == 0

    async def receive(self) -> bytes | None:
        """Return the next message of the client; ``None`` when it has sent its last.

        Raises:
            BadMessages: It is broken or too long.
        """
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(MAX_MESSAGE, self._rpc.encoding)
            if isinstance(self._rpc.request.body, bytes):
                reader.feed(self._rpc.request.body)
        body = self._rpc.request.body
        while True:
            message = reader.next()
            if message is not None:
                return message
            piece = b"" if isinstance(body, bytes) else await body.read()
            if not piece:
                reader.check_end()
                return None
            reader.feed(piece)

    def _told(self) -> None:
        """Health changed."""
        if self._health.leaving and self._waiting is not None:
            self._waiting.cancel()

    def _end(self, status: RpcStatus) -> None:
        if not self._over:
            self._over = True
            self._health.watchers.discard(self._told)
            self._rpc.request.drop_body()
            self.trailers = render_status(status)
            if self.on_end is not None:
                self.on_end(status.code)

    def abandon(self) -> None:
        """See ``model.Body``; also called after the end."""
        self._end(RpcStatus(GrpcCode.CANCELED))
