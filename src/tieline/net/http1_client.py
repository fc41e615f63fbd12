"""Requests over HTTP/1.1: a pool of connections to one server, one exchange at a time each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from tieline.errors import AppBroken, TielineError
from tieline.model import MAX_CHUNK, AnyBody, Headers, Opened, Reply
from tieline.net.backpressure import BodyStream
from tieline.net.dial_text import tls_text
from tieline.net.lookout import forget, watch
from tieline.net.loop import WRITE_HIGH_WATER, Paced
from tieline.net.tasks import spawn
from tieline.net.tunnel import Flow, SocketEnd, opened
from tieline.wire.headers import clean_trailers
from tieline.wire.http1 import (
    BadMessage,
    Ending,
    ResponseHead,
    ResponseParser,
    chunk,
    last_chunk,
    request_framing,
    request_head,
)
from tieline.wire.websocket import KEY_BYTES, PROTOCOL, VERSION, make_key, problem_of_answer, without_handshake

IDLE_S: Final = 4.0
"""An idle connection is dropped after this time: common servers drop theirs after 5 s, and a request that meets
the closing is lost."""
IDLE_MAX: Final = 64
"""Idle connections that are kept (H-112)."""
CONNECTIONS_MAX: Final = 1024
"""Connections at a time; further calls wait (H-112)."""
_UPGRADE: Final[Headers] = [
    (b"connection", b"Upgrade"),
    (b"upgrade", PROTOCOL),
    (b"sec-websocket-version", VERSION),
]
UNREAD_BYTES: Final = 32768
"""Bytes of an answer that may lie unread before the socket is not read any more."""


_CLOSED: Final[int] = getattr(select, "POLLRDHUP", 0)

Dial: TypeAlias = Callable[[Callable[[], asyncio.BaseProtocol]], Awaitable[asyncio.BaseProtocol]]
"""Opens a connection with a protocol of the maker's making."""


class Unanswered(Exception):
    """The server closed a connection before one byte of an answer.

    Attributes:
        again: The connection had served another exchange before, and its closing crossed our request.
        text: What happened, as Go's HTTP client would say it.
        by_tls: The server ended it by a TLS alert: as a rule it does not like our certificate.
    """

    def __init__(self, text: str, *, again: bool, by_tls: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.again = again
        self.by_tls = by_tls


class Http1Client(Paced):
    """One connection, lent by the pool for one exchange.

    Attributes:
        answer: Of the exchange begun last.
    """

    answer: asyncio.Future[Reply]

    def __init__(self, pool: Http1Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = ResponseParser(max_head=pool.max_head)
        self._transport: Any = None
        self._answer: asyncio.Future[Reply] | None = None
        self._body: BodyStream | None = None
        self._upload: asyncio.Task[None] | None = None
        self._handshake: tuple[bytes, Flow] | None = None
        """Key of a WebSocket handshake, and what its client will send."""
        self._busy = False
        self._reading = True
        self._heard = False
        self.used = False
        self.gone = False
        self.idle_since = 0.0
        self._poll: Any = None

    # ── the socket ─────────────────────────────────────────────────────────────────────────────────
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        watch(self._loop, transport)

    def eof_received(self) -> bool:
        self._ended()
        return False

    def _was_refused(self, exc: Exception | None) -> bool:
        """Whether the kernel says that the server had closed before our request came, so that it never read it.

        A server that closed in good order after it took the request has decided; one that had closed before
        answers our bytes with a reset.
        """
        if exc is not None:
            return isinstance(exc, (ConnectionResetError, BrokenPipeError))
        sock = self._transport.get_extra_info("socket")
        return sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def connection_lost(self, exc: Exception | None) -> None:
        forget(self._loop, self._transport)
        if not self.gone:
            self._ended(exc)
        self.resume_writing()

    def _ended(self, exc: Exception | None = None) -> None:
        """The server closed, or the connection broke."""
        self.gone = True
        if self._answer is None and self._body is None:
            self._pool.forget(self)
            return
        ending = Ending.TRUNCATED if exc is not None else self._parser.eof()
        if self._body is not None:
            body, self._body = self._body, None
            if ending in (Ending.COMPLETE, Ending.SHORT):
                body.end()
            else:
                body.detach(AppBroken(str(exc) if exc is not None else "unexpected EOF"))
        elif self._answer is not None:
            if self._heard:
                self._fail(AppBroken("unexpected EOF" if exc is None else str(exc)))
            else:
                again = self.used and self._was_refused(exc)
                self._fail(Unanswered(_closed_text(exc), again=again, by_tls=isinstance(exc, ssl.SSLError)))
        self._finish()

    def has_closed(self) -> bool:
        """Ask the kernel whether the server has closed already; cheaper than losing a call that may run once only."""
        if self.gone or self._transport.is_closing():
            return True
        if self._poll is None:
            sock = self._transport.get_extra_info("socket")
            if sock is None or not hasattr(select, "poll"):
                return False
            self._poll = select.poll()
            # Over TLS a server says things of its own (session tickets), so that only its closing tells.
            self._poll.register(sock.fileno(), _CLOSED if self._pool.secure else select.POLLIN)
        return bool(self._poll.poll(0))

    def abort(self) -> None:
        """Drop the socket, and with it the exchange."""
        self.gone = True
        if self._transport is not None:
            self._transport.abort()

    # ── an exchange ────────────────────────────────────────────────────────────────────────────────
    def send(
        self,
        verb: bytes,
        target: bytes,
        headers: Headers,
        body: AnyBody,
        length: int | None,
    ) -> None:
        """Send a request; ``answer`` gives what comes back as soon as its head is there.

        A body that is a ``Flow`` makes it a WebSocket handshake.

        Raises:
            ValueError: The request cannot be written safely; nothing was sent.
        """
        framing = request_framing(verb, length)
        handshake = None
        if not isinstance(body, bytes) and isinstance(body, Flow):
            handshake = (make_key(os.urandom(KEY_BYTES)), body)
            headers = [*headers, *_UPGRADE, (b"sec-websocket-key", handshake[0])]
        head = request_head(verb, target, self._pool.host, headers, framing)
        self._parser.expect(verb, upgrade=handshake is not None)
        self._handshake = handshake
        self._busy = True
        self._heard = False
        self.answer = self._answer = self._loop.create_future()
        if self.gone:
            # Closed, or spoken to unasked, after it was opened or lent and before its user's turn came.
            self._fail(Unanswered("EOF", again=self.used))
            self._finish()
        elif isinstance(body, bytes):
            if length is None:
                self._transport.write(b"".join([head, *chunk(body), last_chunk([])]))
            else:
                self._transport.write(head + body if body else head)
        elif handshake is not None:
            self._transport.write(head)
        else:
            self._transport.write(head)
            self._upload = spawn(self._send_body(body, chunked=length is None), name="upload")

    async def _send_body(self, body: AnyBody, *, chunked: bool) -> None:
        assert not isinstance(body, bytes)
        transport = self._transport
        try:
            while piece := await body.read():
                if self.gone:
                    return
                transport.writelines(chunk(piece) if chunked else (piece,))
                if self._paused is not None:
                    await self._paused
            if chunked and not self.gone:
                transport.write(last_chunk(clean_trailers(body.trailers) if body.trailers else []))
            self._upload = None
            if self._answer is None and self._body is None:
                self._finish()
        except TielineError as error:
            # Our caller's body broke off: the server must not take what it has for the whole.
            self._upload = None
            self._fail(error)
            self._transport.abort()
            self.gone = True
            self._finish()

    def data_received(self, data: bytes) -> None:
        if self._answer is None and self._body is None:
            self.abort()  # the server speaks unasked: nothing it says can be trusted to belong to a request
            self._pool.forget(self)
            return
        self._heard = True
        self._parser.receive(data)
        self._read()

    def _read(self) -> None:
        parser = self._parser
        try:
            if self._body is None:
                head = parser.next_head()
                if head is None:
                    return
                if head.status == 101:
                    self._become_tunnel(head)
                    return
                whole = parser.take_whole_body()
                if whole is not None:
                    self._answered(head, whole)
                    self._finish()
                    return
                self._body = BodyStream(self)
                self._answered(head, self._body)
            body = self._body
            if body is None:
                return  # nobody wants it any more: the connection was dropped
            while piece := parser.read_body(MAX_CHUNK):
                body.feed(piece)
        except BadMessage as error:
            self._broken(AppBroken(error.detail))
            return
        if parser.body_done:
            self._body = None
            body.end(clean_trailers(parser.trailers) if parser.trailers else None)
            self._finish()
        elif body.size > UNREAD_BYTES and self._reading:
            self._reading = False
            if not self._pool.secure:
                self._transport.pause_reading()
            else:
                # Paused within its own read, aiofastnet's TLS forgets what it has read already, and never wakes us.
                self._loop.call_soon(self._pause)

    def _pause(self) -> None:
        if not self._reading and not self.gone:
            self._transport.pause_reading()

    def _become_tunnel(self, head: ResponseHead) -> None:
        """Leave the pool: from here on the connection is an end of a tunnel."""
        assert self._handshake is not None
        key, up = self._handshake
        problem = problem_of_answer(head.headers, key)
        answer = self._answer
        if problem is not None or answer is None or answer.done():
            self._broken(AppBroken(problem or "nobody waits for the WebSocket"))
            return
        self._answer = self._handshake = None
        self._busy = False
        self.gone = True
        self._pool.let_go()
        end = SocketEnd(app=True)
        end.join(self._transport, self._parser.leftover(), reading=self._reading)
        answer.set_result(opened(without_handshake(head.headers), up, end.flow))
        up.pipe(end)

    def _answered(self, head: ResponseHead, body: AnyBody) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            trailers = self._parser.trailers
            cleaned = clean_trailers(trailers) if trailers and isinstance(body, bytes) else None
            answer.set_result(Reply(head.status, head.headers, body, cleaned))
        elif not isinstance(body, bytes):
            body.abandon()

    def _broken(self, error: TielineError) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.detach(error)
        self._fail(error)
        self.abort()
        self._finish()

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
            answer.exception()  # whoever waited may be gone
        if self._body is not None and isinstance(error, TielineError):
            body, self._body = self._body, None
            body.detach(error)

    def cancel(self) -> None:
        """Whoever awaited the answer is gone."""
        answer = self.answer
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            reply = answer.result()
            if isinstance(reply, Opened):
                reply.drop_body()
        if self._body is None and (self._answer is None or not self._answer.cancelled()):
            return  # it came whole in this very turn: the connection was given back, and may serve another call
        self._answer = None
        self.abort()
        self._finish()

    def _finish(self) -> None:
        """The exchange is over, or at least its answer: give the connection back if it is still good."""
        if not self._busy:
            return
        self._busy = False
        self._handshake = None
        upload, self._upload = self._upload, None
        if upload is not None:
            # Answered before it had everything: the rest is not wanted, and the connection is not worth the wait.
            upload.cancel()
            self.abort()
        reusable = not self.gone and self._parser.reusable
        if not self._reading and reusable:
            self._reading = True
            self._transport.resume_reading()
        self.used = True
        if not reusable and not self.gone:
            self.gone = True
            self._transport.close()
        self._pool.give_back(self, reusable=reusable)

    # ── the body's side ────────────────────────────────────────────────────────────────────────────
    def body_consumed(self, size: int) -> None:
        if not self._reading and self._body is not None and self._body.size <= UNREAD_BYTES // 2 and not self.gone:
            self._reading = True
            self._transport.resume_reading()

    def body_abandoned(self) -> None:
        self._body = None
        self.abort()
        self._finish()

    def body_wanted(self) -> None:
        return


class Http1Pool:
    """The connections to one server, newest idle first.

    Args:
        dial: Opens a connection; raises ``OSError`` if it cannot.

    Attributes:
        host: Value of ``Host``.
        max_head: Longest answer head in bytes.
        secure: Whether the connections are TLS.
    """

    def __init__(self, dial: Dial, *, host: bytes, max_head: int, secure: bool = False) -> None:
        self._dial = dial
        self.secure = secure
        self.host = host
        self.max_head = max_head
        self._idle: list[Http1Client] = []
        self._open = 0
        self._waiting: deque[asyncio.Future[Http1Client | None]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def idle(self, *, checked: bool) -> Http1Client | None:
        """Take an idle connection, if there is one; ``checked``: one that the server has certainly not closed yet."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.gone or (checked and connection.has_closed()):
                self._drop(connection)
                continue
            return connection
        return None

    async def open(self, *, urgent: bool = False) -> Http1Client:
        """Open a connection, or wait for one when there are ``CONNECTIONS_MAX``; an ``urgent`` one is on top of them.

        Raises:
            OSError: It cannot be opened.
        """
        if self._open >= CONNECTIONS_MAX and not urgent:
            waiter: asyncio.Future[Http1Client | None] = self._loop.create_future()
            self._waiting.append(waiter)
            try:
                lent = await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    if (lent := waiter.result()) is not None:
                        self.give_back(lent, reusable=True)
                    else:
                        self._admit()  # the turn is the next one's
                else:
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(waiter)
                raise
            if lent is not None:
                if not lent.gone:
                    return lent
                self._open -= 1
        self._open += 1
        try:
            connection = await self._dial(lambda: Http1Client(self))
        except BaseException:
            self._open -= 1
            self._admit()
            raise
        assert isinstance(connection, Http1Client)
        return connection

    def give_back(self, connection: Http1Client, *, reusable: bool) -> None:
        """Take a connection back after an exchange."""
        if not reusable or self._closed or self._open > CONNECTIONS_MAX:
            self._drop(connection)
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if len(self._idle) >= IDLE_MAX:
            self._drop(connection)
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_S / 4, self._drop_old)

    def let_go(self) -> None:
        """A connection that was lent became a tunnel, and is the pool's no more."""
        self._open -= 1
        self._admit()

    def forget(self, connection: Http1Client) -> None:
        """An idle connection ended."""
        if connection in self._idle:
            self._idle.remove(connection)
            self._drop(connection)

    def _drop(self, connection: Http1Client) -> None:
        self._open -= 1
        connection.abort()
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._open < CONNECTIONS_MAX:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _drop_old(self) -> None:
        self._sweep = None
        oldest = self._loop.time() - IDLE_S * 3 / 4
        stale = [connection for connection in self._idle if connection.idle_since < oldest]
        self._idle = [connection for connection in self._idle if connection.idle_since >= oldest]
        for connection in stale:
            self._drop(connection)
        if self._idle:
            self._sweep = self._loop.call_later(IDLE_S / 4, self._drop_old)

    def close(self) -> None:
        """Drop the idle connections; those in use end with their exchange."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        idle, self._idle = self._idle, []
        for connection in idle:
            self._drop(connection)


def _closed_text(error: Exception | None) -> str:
    """Say why a connection ended, as Go does."""
    if isinstance(error, ssl.SSLError):
        return tls_text(error)
    if isinstance(error, OSError) and error.strerror:
        return f"read: {error.strerror.lower()}"
    return "EOF"
