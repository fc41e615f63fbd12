"""The one place where a call becomes its record: how it ended, how long it took, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

from tieline.errors import Cancelled, TielineError, TimedOut
from tieline.middleware.chain import Handler
from tieline.model import Body, CallRecord, Cause, Headers, Hop, Invocation, Opened, Reply, Tunnel

CLOCK_SLACK_S: Final = 0.002
"""How much too early, by the event loop's clock, one of its timers may go off."""

Observer = Callable[[CallRecord], None]
"""Is told of each call when it is over. Must be quick and must not raise."""


class ObservedBody:
    """A streamed answer that ends its call's record when it ends, breaks off, or is dropped."""

    __slots__ = ("_body", "_observe", "_record", "_told", "trailers")

    def __init__(self, body: Body, record: CallRecord, observe: Observer) -> None:
        self._body = body
        self._record = record
        self._observe = observe
        self._told = False
        self.trailers: Headers = body.trailers

    async def read(self) -> bytes:
        """See ``model.Body``."""
        try:
            piece = await self._body.read()
        except TielineError as error:
            explain(self._record, error)
            self._tell()
            raise
        if piece:
            self._record.response_bytes += len(piece)
        else:
            self.trailers = self._body.trailers
            self._tell()
        return piece

    def abandon(self) -> None:
        """See ``model.Body``."""
        if not self._told:
            record = self._record
            record.cause, record.hop, record.detail = Cause.CANCELLED, Hop.CALLER, "context canceled"
            self._tell()
        self._body.abandon()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._record.duration_s = perf_counter() - self._record.started
            self._observe(self._record)


class Observe:
    """The outermost step: it sees every end of a call.

    Args:
        failure_size: Returns the body bytes of the answer that a failure becomes, where answers are counted by size.
        translate: Puts the answer of a gRPC app into the words of the call's client; ``None`` leaves it as it is.
    """

    def __init__(
        self,
        observe: Observer,
        failure_size: Callable[[CallRecord, TielineError], int] | None = None,
        translate: Callable[[Reply], Reply] | None = None,
    ) -> None:
        self._observe = observe
        self._failure_size = failure_size
        self._translate = translate

    def failed(self, record: CallRecord, error: TielineError) -> None:
        """End a record by a failure; also for calls that fail before they set out."""
        explain(record, error)
        record.status = error.http_status
        if self._failure_size is not None and error.cause is not Cause.CANCELLED:
            record.response_bytes = self._failure_size(record, error)
        record.duration_s = perf_counter() - record.started
        self._observe(record)

    async def __call__(self, call: Invocation, call_next: Handler) -> Reply:
        record = call.record
        try:
            reply = await call_next(call)
        except TielineError as error:
            self.failed(record, error)
            raise
        except asyncio.CancelledError:
            self.failed(record, _why_cut_off(call))
            raise
        if record.rpc_code >= 0 and self._translate is not None:
            reply = self._translate(reply)
        record.status = reply.status
        body = reply.body
        if isinstance(body, bytes):
            record.response_bytes = len(body)
            record.duration_s = perf_counter() - record.started
            self._observe(record)
        elif isinstance(reply, Opened):
            self._await_end(reply.tunnel, record)
        else:
            reply.body = ObservedBody(body, record, self._observe)
        return reply

    def _await_end(self, tunnel: Tunnel, record: CallRecord) -> None:
        """End the record when the tunnel is over."""

        def over() -> None:
            record.request_bytes = tunnel.bytes_up
            record.response_bytes = tunnel.bytes_down
            if isinstance(tunnel.error, TielineError):
                explain(record, tunnel.error)
            record.duration_s = perf_counter() - record.started
            self._observe(record)

        tunnel.when_over(over)


def _why_cut_off(call: Invocation) -> TielineError:
    """Say whether the caller went away or its time was up: both cancel the call."""
    deadline = None if call.rpc is None else call.rpc.deadline
    if deadline is not None and asyncio.get_running_loop().time() >= deadline - CLOCK_SLACK_S:
        return TimedOut()
    return Cancelled("context canceled")


def explain(record: CallRecord, error: TielineError) -> None:
    """Write into the record why the call failed."""
    record.cause = error.cause
    record.hop = error.hop
    record.hint = error.hint
    record.detail = error.detail
