"""The serving end of HTTP/1.1: one request at a time a connection, and the door to HTTP/2.

A request that arrived whole is a task and one write. Everything else (bodies that are still coming, answers that
are streams) goes piece by piece, with back-pressure both ways: the socket is not read while ``UNREAD_BYTES`` of a
body lie unread, nor while a request is in progress and more than ``PIPELINED_BYTES`` of later ones have come.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Any, Final

from tieline.errors import BadRequest, Cancelled, TielineError, untrace
from tieline.model import MAX_CHUNK, AnyBody, Cause, Headers, Hop, Opened, Reply
from tieline.net.backpressure import BodyStream, ended, too_large, within
from tieline.net.http2_server import Handler, Http2Server
from tieline.net.lookout import forget, watch
from tieline.net.loop import WRITE_HIGH_WATER, Paced
from tieline.net.tunnel import Flow, SocketEnd
from tieline.wire.errors_text import explained
from tieline.wire.headers import clean_trailers
from tieline.wire.http1 import (
    CHUNKED,
    CONTINUE,
    BadMessage,
    RequestHead,
    RequestParser,
    chunk,
    declared,
    last_chunk,
    looks_like_preface,
    response_head,
)
from tieline.wire.http2 import ConnectionFault, Limits
from tieline.wire.websocket import (
    PROTOCOL,
    VERSION,
    BadHandshake,
    accept_of,
    asks_for_websocket,
    check_request,
    without_handshake,
)

log = logging.getLogger("dapr.runtime.http")

HEAD_WITHIN_S: Final = 10.0
"""How long a request's head may take (H-4)."""
UNREAD_BYTES: Final = 32768
"""Bytes of a request's body that may lie unread before the socket is not read any more."""
PIPELINED_BYTES: Final = 65536
"""Bytes of later requests that may lie unread while one is in progress."""
DISCARD_BYTES: Final = 262144
"""What is read and dropped of a body that nobody wanted, to keep the connection; above it, it is closed."""
UPGRADE_BODY_BYTES: Final = 65536
"""A request that asks for an upgrade to HTTP/2 gets it only if its body is whole and no longer than this."""
LINGER_S: Final = 0.5
"""After an answer to bad input the socket stays open so long for the client to read it."""

_SWITCHING: Final[Headers] = [(b"connection", b"Upgrade"), (b"upgrade", PROTOCOL)]
_OTHER_VERSION: Final[Headers] = [*_SWITCHING, (b"sec-websocket-version", VERSION)]
_settings_payload: Final = re.compile(rb"[A-Za-z0-9_-]*={0,2}").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a listener grants its connections.

    Attributes:
        max_head: Longest request head in bytes, HTTP/1.1.
        max_body: Longest request body in bytes; ``None`` for no limit.
        http2: Whether cleartext HTTP/2 is spoken, by prior knowledge and by upgrade.
        http2_limits: For those connections.
    """

    max_head: int
    max_body: int | None
    http2: bool
    http2_limits: Limits


class Http1Server(Paced):
    """One connection of a client."""

    def __init__(self, handler: Handler, options: ServerOptions, members: set[Any]) -> None:
        self.handler = handler
        self._options = options
        self._members = members
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser(max_head=options.max_head)
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None
        self._body: BodyStream | None = None
        self._handshake: tuple[bytes, SocketEnd] | None = None
        """Key of a WebSocket handshake in progress, and the end that this connection will be."""
        self._came = 0
        self._discarded = 0
        self._continue = False
        self._timer: asyncio.TimerHandle | None = None
        self._reading = True
        self._may_be_http2 = options.http2
        self._draining = False
        self._last = False
        """Closed after the answer in progress; what still comes of its request is read."""
        self._closing = False
        """Nothing that comes is read any more."""
        self._gone = False

    # ── the socket ─────────────────────────────────────────────────────────────────────────────────
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        watch(self._loop, transport)
        self._members.add(self)
        self._timer = self._loop.call_later(HEAD_WITHIN_S, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        forget(self._loop, self._transport)
        self._members.discard(self)
        self._gone = self._closing = True
        self._stop_timer()
        self.resume_writing()
        self._cancel()

    def eof_received(self) -> bool:
        """A client that closes its side is gone: nobody can tell half a goodbye from a whole one (H-161)."""
        self._closing = True
        if self._task is None:
            return False
        # A task that had not begun ends without a line of ``_serve``, and so without its end.
        self._task.add_done_callback(self._ended)
        self._cancel()
        return True

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None
            self._after()

    def _cancel(self) -> None:
        if self._body is not None:
            self._body.detach(Cancelled("context canceled"))
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def _read_on(self) -> None:
        if not self._reading and not self._gone:
            self._reading = True
            self._transport.resume_reading()

    def _read_not(self) -> None:
        if self._reading and not self._gone:
            self._reading = False
            self._transport.pause_reading()

    # ── requests ───────────────────────────────────────────────────────────────────────────────────
    def data_received(self, data: bytes) -> None:
        if self._closing or (self._last and self._body is None):
            return
        if self._may_be_http2:
            data = self._parser.leftover() + data
            verdict = looks_like_preface(data)
            if verdict:
                self._become_http2(data)
                return
            if verdict is False:
                self._may_be_http2 = False
        self._parser.receive(data)
        if self._may_be_http2:
            return  # the beginning of the preface, so far
        if self._body is not None:
            try:
                self._feed(self._body)
            except BadMessage as error:
                self._closing = True
                self._body.fail(BadRequest(error.detail))
        elif self._task is None:
            self._next()
        elif self._parser.pending > PIPELINED_BYTES:
            self._read_not()

    def _next(self) -> None:
        """Begin the next request, if its head has come."""
        parser = self._parser
        try:
            head = parser.next_head()
            if head is None:
                self._read_on()
                if parser.pending and self._timer is None:
                    self._timer = self._loop.call_later(HEAD_WITHIN_S, self._head_late)
                return
            if self._timer is not None:
                self._stop_timer()
            body: AnyBody = b""
            if head.upgrade and asks_for_websocket(head.upgrade):
                body = self._begin_handshake(head)
            elif not parser.body_done:
                whole = parser.take_whole_body()
                if whole is None:
                    body = self._begin_stream(head)
                elif parser.trailers:
                    body = ended(whole, self._options.max_body, clean_trailers(parser.trailers))
                else:
                    body = within(whole, self._options.max_body)
            if head.upgrade and self._upgrade(head, body):
                return
        except BadMessage as error:
            self._refuse(error)
            return
        except BadHandshake as error:
            phrase = "Upgrade Required" if error.status == 426 else "Bad Request"
            refused = BadMessage(error.text, error.status, f"{error.status} {phrase}: {error.text}")
            self._refuse(refused, _OTHER_VERSION if error.status == 426 else None)
            return
        head.body = body
        self._task = self._loop.create_task(self._serve(head))

    def _begin_stream(self, head: RequestHead) -> BodyStream:
        limit = self._options.max_body
        body = self._body = BodyStream(self, limit)
        self._came = self._discarded = 0
        self._continue = head.expect_continue
        if limit is not None and head.length is not None and head.length > limit:
            body.fail(too_large())
        self._read_on()
        self._feed(body)
        return body

    def _feed(self, body: BodyStream) -> None:
        """Hand on what has come of the body; drop what nobody wants, within bounds.

        Raises:
            BadMessage: Its chunked coding is broken.
        """
        parser = self._parser
        while piece := parser.read_body(MAX_CHUNK):
            self._continue = False
            self._came += len(piece)
            body.feed(piece)
            if not body.is_wanted:
                self._discarded += len(piece)
        if parser.body_done:
            self._body = None
            body.end(clean_trailers(parser.trailers) if parser.trailers else None)
            if self._task is None:
                self._after()
        elif self._discarded > DISCARD_BYTES:
            self._closing = True
            self._read_not()
            self._after()
        elif body.size > UNREAD_BYTES:
            self._read_not()

    def body_consumed(self, size: int) -> None:
        if not self._reading and self._body is not None and self._body.size <= UNREAD_BYTES // 2:
            self._read_on()

    def body_abandoned(self) -> None:
        self._read_on()

    def body_wanted(self) -> None:
        if self._continue and not self._gone:
            self._continue = False
            self._transport.write(CONTINUE)

    # ── answers ────────────────────────────────────────────────────────────────────────────────────
    async def _serve(self, head: RequestHead) -> None:
        try:
            reply = await self.handler(head)
            body = reply.body
            if isinstance(body, bytes) and not reply.trailers:
                self._write_whole(reply, body, head)
            elif isinstance(reply, Opened):
                self._become_tunnel(reply, head)
            else:
                await self._write_stream(reply, head)
            if self._paused is not None:
                await self._paused
        except asyncio.CancelledError:
            self._closing = True
        except Exception:
            log.exception("a handler failed")
            self._closing = True
        finally:
            self._task = None
            if self._body is not None:
                self._body.abandon()
            self._after()

    def _keep(self, head: RequestHead) -> bool:
        """Whether the connection goes on after this answer."""
        if self._closing or self._draining or not head.keep_alive or head.version_minor == 0:
            self._last = True
        elif head.protocol and self._parser.pending:
            # Sent before it was known whether this is a WebSocket: frames or a request, who knows.
            self._last = True
        elif self._continue:
            # The client still waits for a 100 that nobody needs: what comes next could be body or request.
            self._last = True
        elif self._body is not None and (head.length is None or head.length - self._came > DISCARD_BYTES):
            # More may be left of the request than is worth reading. Said now, no other request follows it in vain.
            self._last = True
        return not self._last

    def _write_whole(self, reply: Reply, body: bytes, head: RequestHead) -> None:
        status = reply.status
        keep = self._keep(head)
        if status in (204, 304) or head.verb == b"HEAD":
            framing, body = b"", b""
        else:
            framing = declared(len(body))
        start = response_head(status, reply.headers, framing, keep_alive=keep, version_minor=head.version_minor)
        if not self._gone:
            self._transport.write(start + body if body else start)

    async def _write_stream(self, reply: Reply, head: RequestHead) -> None:
        body = reply.body
        chunked = head.version_minor == 1
        bodiless = head.verb == b"HEAD" or reply.status in (204, 304)
        keep = self._keep(head)
        transport = self._transport
        framing = CHUNKED if chunked and not bodiless else b""
        transport.write(
            response_head(reply.status, reply.headers, framing, keep_alive=keep, version_minor=head.version_minor)
        )
        if isinstance(body, bytes):
            if not bodiless:
                transport.write(b"".join([*(chunk(body) if chunked else (body,)), _end(reply.trailers, chunked)]))
            return
        try:
            if bodiless:
                return
            while piece := await body.read():
                transport.writelines(chunk(piece) if chunked else (piece,))
                if self._paused is not None:
                    await self._paused
                if self._gone:
                    return
            transport.write(_end(body.trailers, chunked))
        except TielineError as error:
            # The answer broke off after its head. The only honest sign left is to close before its end.
            untrace(error)
            self._closing = True
            if not chunked and not self._gone:
                transport.abort()
        finally:
            body.abandon()

    def _after(self) -> None:
        """Go on with the next request, or close, once the answer is written."""
        if self._gone or self._task is not None:
            return
        if self._closing or self._last:
            self._shut(linger=self._body is not None)
        elif self._body is not None:
            return  # the rest of an unwanted body is dropped as it comes
        elif self._draining:
            self._shut()
        else:
            if self._parser.pending <= PIPELINED_BYTES:
                self._read_on()
            if self._parser.pending:
                self._next()

    def _refuse(self, error: BadMessage, more: Headers | None = None) -> None:
        """Answer what is no request, and close (H-64)."""
        headers: Headers = [(b"content-type", b"text/plain; charset=utf-8")] if error.text else []
        headers += more or ()
        headers += explained(*_why(error))
        self._transport.write(response_head(error.status, headers, b"", keep_alive=False) + error.text.encode())
        self._shut(linger=True)

    def _shut(self, *, linger: bool = False) -> None:
        """Close. With ``linger`` first our side only: closing on unread bytes would cost the client its answer."""
        self._closing = True
        self._stop_timer()
        if self._gone or self._transport.is_closing():
            return
        if linger and self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except OSError:
                self._transport.abort()  # the client has reset the connection, and nobody would tell us again
                return
            self._read_on()
            self._timer = self._loop.call_later(LINGER_S, self._transport.close)
        else:
            self._transport.close()

    # ── time ───────────────────────────────────────────────────────────────────────────────────────
    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_late(self) -> None:
        self._timer = None
        if self._parser.pending and not self._parser.has_request_line:
            self._refuse(BadMessage("the request line did not come in time"))
        else:
            self._shut()

    # ── leaving ────────────────────────────────────────────────────────────────────────────────────
    @property
    def busy(self) -> bool:
        """Whether a call is in progress."""
        return self._task is not None

    @property
    def in_progress(self) -> int:
        """How many calls are."""
        return int(self.busy)

    def drain(self) -> None:
        """Close after the answer in progress; at once if there is none."""
        self._draining = True
        if self._task is None:
            self._shut()

    def abort(self) -> None:
        """Drop the socket."""
        if not self._gone:
            self._transport.abort()

    # ── WebSocket ──────────────────────────────────────────────────────────────────────────────────
    def _begin_handshake(self, head: RequestHead) -> Flow:
        """Check a handshake, which becomes a call like any other; its body is what the client will send.

        Raises:
            BadHandshake: It is none.
        """
        key = check_request(head.verb, head.headers, has_body=not self._parser.body_done)
        end = SocketEnd(app=False, members=self._members)
        self._handshake = (key, end)
        head.protocol = PROTOCOL
        head.headers = without_handshake(head.headers)
        return end.flow

    def _become_tunnel(self, reply: Opened, head: RequestHead) -> None:
        """Hand the socket over: from here on it is an end of a tunnel."""
        assert self._handshake is not None
        key, end = self._handshake
        self._handshake = None
        down = reply.body
        assert isinstance(down, Flow)
        if self._gone or self._closing:
            down.abandon()
            return
        try:
            fields = [*_SWITCHING, (b"sec-websocket-accept", accept_of(key)), *reply.headers]
            start = response_head(101, fields, b"")
        except ValueError:
            down.abandon()
            raise
        self._transport.write(start)
        end.join(self._transport, self._parser.leftover(), reading=self._reading, full=self._paused is not None)
        self._leave()
        down.pipe(end)

    # ── HTTP/2 ─────────────────────────────────────────────────────────────────────────────────────
    def _become_http2(self, data: bytes) -> None:
        self._switch(self._http2()).data_received(data)

    def _http2(self) -> Http2Server:
        return Http2Server(
            self.handler,
            limits=self._options.http2_limits,
            native=False,
            members=self._members,
            max_body=self._options.max_body,
        )

    def _leave(self) -> None:
        """The socket has another protocol now."""
        self._stop_timer()
        self._members.discard(self)
        self._gone = self._closing = True
        self.resume_writing()

    def _switch(self, server: Http2Server) -> Http2Server:
        self._leave()
        self._transport.set_protocol(server)
        server.connection_made(self._transport)
        return server

    def _upgrade(self, head: RequestHead, body: AnyBody) -> bool:
        """Go over to HTTP/2 if that is what was asked for, and is safe; else go on in HTTP/1.1 (RFC 7540 §3.2)."""
        if head.upgrade != b"h2c" or not self._options.http2:
            return False
        if not isinstance(body, bytes) or len(body) > UPGRADE_BODY_BYTES:
            return False
        values = [value for name, value in head.headers if name == b"http2-settings"]
        if len(values) != 1 or not _settings_payload(values[0]) or not _nominates(head.headers):
            return False
        server = self._http2()
        head.body = body
        try:
            payload = urlsafe_b64decode(values[0] + b"=" * (-len(values[0]) % 4))
            server.serve_upgraded(payload, head)
        except (binascii.Error, ConnectionFault):
            return False
        self._transport.write(response_head(101, [(b"connection", b"Upgrade"), (b"upgrade", b"h2c")], b""))
        rest = self._parser.leftover()
        self._switch(server)
        if rest:
            server.data_received(rest)
        return True


def _end(trailers: Headers | None, chunked: bool) -> bytes:
    return last_chunk(clean_trailers(trailers) if trailers else []) if chunked else b""


def _nominates(headers: Headers) -> bool:
    """Whether ``Connection`` names both Upgrade and HTTP2-Settings, as the upgrade demands."""
    named = {option.strip().lower() for name, value in headers if name == b"connection" for option in value.split(b",")}
    return {b"upgrade", b"http2-settings"} <= named


def _why(error: BadMessage) -> tuple[Cause, Hop, str]:
    if error.status == 431:
        return Cause.TOO_LARGE, Hop.CALLER, f"{error.detail}: send less, or start the sidecar with --read-buffer-size"
    return Cause.BAD_REQUEST, Hop.CALLER, error.detail
