"""RPCs on their way through this sidecar: frame by frame, from stream to stream, with no task and no look inside.

A relay has two *lanes*, ``up`` from the client's stream to the server's and ``down`` back. A lane is the handler of the
stream that it reads, and writes to the stream that the other one reads::

    client ─▶ near stream ── up ───▶ far stream ─▶ server
    client ◀─ near stream ◀─ down ── far stream ◀─ server

Back-pressure: a piece counts as consumed, so that its sender may go on, only when the other side's windows have let it
through. What waits is therefore bounded by the window of the stream that it came on.

Where a call goes is the affair of its *route*. If the route has a connection at hand, the call needs no task at all;
otherwise one finds the way, and what the client sends meanwhile waits in its stream's window.

How it ends: with the server's trailers; with a status of our own, if the way or the server fails; without one, if the
client goes away. Whatever is still open at either side is reset then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from math import inf
from time import perf_counter
from typing import Any, Final, Protocol

from tieline.errors import AppBroken, Cancelled, GrpcCode, PeerRefused, TielineError, TimedOut, TooLarge, WrongPeer
from tieline.model import CallRecord, Cause, Headers, RpcStatus
from tieline.net.deadlines import Deadlines, Expiring
from tieline.net.http2 import Http2Protocol
from tieline.net.http2_client import Http2Client
from tieline.net.tasks import spawn
from tieline.wire.grpc.failure import explain_by, failure_fields
from tieline.wire.grpc.messages import PREFIX
from tieline.wire.grpc.status import (
    CONTENT_TYPE,
    read_status,
    render_status,
    status_of_http,
    status_of_reset,
    why_malformed,
)
from tieline.wire.grpc.timeout import Timeout, render_timeout
from tieline.wire.grpc.walker import MessageWalker
from tieline.wire.http2 import ErrorCode, Stream
from tieline.wire.http2.frames import code_name
from tieline.wire.http2.hpack import Fields, Likely, flagged, literals
from tieline.wire.pieces import add_piece

log = logging.getLogger("dapr.runtime.grpc")

KEPT_BYTES: Final = 65536
"""What was sent of a request is kept until its answer begins, to be sent again if the server says for certain that it
did not look at it; more than this is not kept."""
FIRST_GROWTH_BYTES: Final = 512 << 10
LAST_GROWTH_BYTES: Final = 4 << 20
"""After the first so many bytes and after the last, the window of a stream is doubled whose sink keeps up; so it is
1 MiB at most, and all of a connection together have ``Limits.grown`` for that. Each return of credit costs both ends
about as much as a read of 64 KiB: with windows of 256 KiB, a message of 1 KiB cost a quarter more."""
CLIENT_AHEAD_S: Final = 0.02
"""A client's deadline began before it was told here; so long before it passes here, the client goes because of it."""
_SCHEME_AT: Final = 2
_AUTHORITY_AT: Final = 3
MAX_PLACES: Final = 16
"""For so many places the head of calls is kept ready; then the memory starts afresh."""
_OWN_PREFIX: Final = b"tieline-"
_STATUS: Final = b"grpc-status"
_OK: Final = (b":status", b"200")


class Place:
    """What the head of a call says about where it goes.

    Args:
        authority: Host and port.
        secure: Whether TLS leads there.
    """

    __slots__ = ("authority", "scheme")

    def __init__(self, authority: bytes, *, secure: bool = False) -> None:
        self.authority = (b":authority", authority, False)
        self.scheme = (b":scheme", b"https" if secure else b"http", False)


class Outline:
    """The head of calls as it is sent on: what is alike in all that came with the same head.

    Args:
        fields: As ``Connection.send_request`` takes them; scheme and authority are filled in for each place.
        repeats: More of such calls are to be expected.
    """

    __slots__ = ("_at", "fields", "repeats")

    def __init__(self, fields: Fields, *, repeats: bool) -> None:
        self.fields = fields
        self.repeats = repeats
        self._at: dict[Place, Likely] = {}

    def at(self, place: Place) -> Fields | Likely:
        """Return the head for one place; always the same if it repeats."""
        head = self._at.get(place)
        if head is not None:
            return head
        fields = self.fields.copy()
        fields[_SCHEME_AT] = place.scheme
        fields[_AUTHORITY_AT] = place.authority
        if not self.repeats:
            return fields
        if len(self._at) >= MAX_PLACES:
            self._at.clear()
        head = self._at[place] = Likely(fields)
        return head


class Route(Protocol):
    """Where calls go. One route serves many of them."""

    limit: int | None
    """Longest message in bytes, either way (G-2)."""

    def ready(self, relay: Relay) -> Http2Client | None:
        """Return a connection that takes the call now, its ``place`` being set; ``None`` to be asked ``open``.

        Raises:
            TielineError: The call cannot be made.
        """
        ...

    async def open(self, relay: Relay, after: TielineError | None) -> Http2Client:
        """Return a connection that takes the call when this returns, its ``place`` being set.

        Cancelled if nobody waits any more.

        Args:
            relay: The call.
            after: Why the call must be sent again, none of it having been processed; ``None`` the first time.

        Raises:
            TielineError: There is none.
        """
        ...

    def is_sidecar(self, client: Http2Client) -> bool:
        """Whether a Tieline answers there, whose ``tieline-*`` fields are to be believed."""
        ...

    def lost(self, text: str) -> TielineError:
        """Return the failure of a connection that broke while the call was on it."""
        ...

    def over(self, relay: Relay) -> None:
        """The call is over. Must be quick and must not raise."""
        ...


class Lane:
    """One direction of a relay (see the module)."""

    relays = True
    tunnels = False

    __slots__ = (
        "_grows_at",
        "_held",
        "_kept",
        "_limit",
        "_stalled",
        "_trailers",
        "_walker",
        "connection",
        "ended",
        "other",
        "relay",
        "stream",
        "total",
    )

    def __init__(self, relay: Relay, connection: Http2Protocol, stream: Stream, limit: int | None) -> None:
        self.relay: Relay | None = relay
        self.connection = connection
        self.stream = stream
        self.other: Lane | None = None
        self.ended = False
        """The sender has ended its side."""
        self.total = 0
        """Bytes of body that came."""
        self._held: deque[bytes] | None = None
        """Pieces that wait; ``None`` if none may wait, so that what comes goes straight on."""
        self._kept: list[bytes] | None = None
        """What was sent, while it may have to be sent again."""
        self._stalled = 0
        """Bytes of the piece that the sink has not let through yet."""
        self._trailers: Headers | None = None
        """They wait too."""
        self._grows_at: float = FIRST_GROWTH_BYTES
        self._limit = limit
        self._walker: MessageWalker | None = None
        """From the first piece on that is not one whole message."""

    # ── what comes ─────────────────────────────────────────────────────────────────────────────────
    def on_data(self, data: bytes, end: bool) -> bool:
        """A piece of the body; see ``http2.connection.Sink``."""
        size = len(data)
        self.total += size
        limit = self._limit
        if (
            limit is not None
            and size
            and (self._walker is not None or size != PREFIX + int.from_bytes(data[1:PREFIX], "big") or size > limit)
            and (length := self._walk(data, limit))
        ):
            assert self.relay is not None
            self.relay.too_large(length, limit)
            return True
        if end:
            self.ended = True
        sink = self.other
        if sink is None or self._held is not None:
            self._hold(data)
            return False
        connection = sink.connection
        kept = self._kept
        if kept is not None:
            self._keep(kept, data)
        passed = connection.h2.send_data(sink.stream, data, end=end)
        if not passed:
            self._held = deque()
            self._stalled = size
        elif self.total >= self._grows_at:
            self._grow()
        if not connection.scheduled:
            connection.kick()
        return passed

    def _grow(self) -> None:
        """Have the window doubled of a stream that brings much to a sink that takes all of it: fewer, larger reads."""
        self._grows_at = 2 * self._grows_at if self._grows_at < LAST_GROWTH_BYTES else inf
        self.stream.grows = True

    def _walk(self, data: bytes, limit: int) -> int:
        walker = self._walker
        if walker is None:
            walker = self._walker = MessageWalker(limit)
        return walker.walk(data)

    def _keep(self, kept: list[bytes], data: bytes) -> None:
        """Keep a piece that is handed to the sink, unless it becomes too much."""
        if self.total > KEPT_BYTES:
            self._kept = None
        else:
            kept.append(data)

    def on_trailers(self, headers: Headers) -> None:
        """Trailers, and with them the end."""
        self.ended = True
        sink = self.other
        if sink is None or self._held is not None:
            self._trailers = headers
            if self._held is None:
                self._held = deque()
        else:
            sink.connection.h2.send_trailers(sink.stream, headers)
            sink.connection.kick()

    def _hold(self, data: bytes) -> None:
        held = self._held
        if held is None:
            held = self._held = deque()
        if data:
            add_piece(held, data)

    # ── what goes on ───────────────────────────────────────────────────────────────────────────────
    def wake(self, error: TielineError | None = None) -> None:
        """The stream that this lane reads takes more of what the other lane writes."""
        other = self.other
        if other is not None:
            other.go_on()

    def go_on(self) -> None:
        """Send what waits, as far as the sink takes it."""
        sink = self.other
        assert sink is not None
        target, stream = sink.connection, sink.stream
        source = self.connection.h2
        if self._stalled:
            size, self._stalled = self._stalled, 0
            source.consumed(self.stream, size)
        held = self._held
        if held is not None:
            while held:
                data = held.popleft()
                if self._kept is not None:
                    self._keep(self._kept, data)
                last = self.ended and not held and self._trailers is None
                if not target.h2.send_data(stream, data, end=last):
                    self._stalled = len(data)
                    break
                source.consumed(self.stream, len(data))
            else:
                self._held = None
                self._end(target, stream)
        target.kick()
        if source.out:
            self.connection.kick()

    def _end(self, target: Http2Protocol, stream: Stream) -> None:
        """Everything that waited has been sent: end the sink's side if this one has ended, and that is not said yet."""
        if self._trailers is not None:
            trailers, self._trailers = self._trailers, None
            target.h2.send_trailers(stream, trailers)
        elif self.ended and not stream.closed & 1 and stream.pending is None:
            target.h2.send_data(stream, b"", end=True)

    def is_idle(self) -> bool:
        """Whether nothing waits here."""
        return self._held is None and not self._stalled

    # ── how it ends ────────────────────────────────────────────────────────────────────────────────
    def on_reset(self, code: int, *, local: bool, unprocessed: bool) -> None:
        """The stream was cut off."""
        raise NotImplementedError

    def on_lost(self) -> None:
        """The connection is gone."""
        raise NotImplementedError

    def drop(self) -> None:
        """Send nothing more of what waits, and take what still comes for nothing."""
        self.ended = True
        self._held = None
        self._trailers = None

    def part(self, code: ErrorCode) -> None:
        """Leave the stream, which is reset if it is still open, and give back what of it was not read."""
        stream, connection = self.stream, self.connection
        stream.handler = stream.sink = None
        self.relay = self.other = None
        self._held = None
        if stream.closed != 3:
            connection.h2.reset(stream, code)
            connection.kick()
        elif stream.unread and not connection.lost:
            connection.h2.consumed(stream, stream.unread)
            if connection.h2.out:
                connection.kick()


class UpLane(Lane):
    """From the client to the server."""

    __slots__ = ()

    def __init__(self, relay: Relay, connection: Http2Protocol, stream: Stream, limit: int | None) -> None:
        super().__init__(relay, connection, stream, limit)
        self._kept = []

    def on_trailers(self, headers: Headers) -> None:
        """The end. Requests of gRPC have no trailers: some servers would close the connection that all calls share."""
        self.on_data(b"", True)

    def forget(self) -> None:
        """The answer has begun: the request is never sent again."""
        self._kept = None

    @property
    def may_go_again(self) -> bool:
        """Whether the request can be sent from its beginning."""
        return self._kept is not None

    def rewind(self) -> None:
        """Have everything wait for another stream."""
        kept, self._kept = self._kept, []
        assert kept is not None
        size, self._stalled = self._stalled, 0
        if size:
            self.connection.h2.consumed(self.stream, size)
        # They count as consumed already, and ``consumed`` does nothing for more than is unread.
        self._held = deque([*kept, *(self._held or ())])
        self.other = None

    def on_reset(self, code: int, *, local: bool, unprocessed: bool) -> None:
        assert self.relay is not None
        self.relay.client_gone()

    def on_lost(self) -> None:
        assert self.relay is not None
        self.relay.client_gone()


class DownLane(Lane):
    """From the server to the client."""

    __slots__ = ()

    def on_head(self, status: int, headers: Headers, end: bool) -> None:
        """The answer begins; ``end``: and ends with that."""
        relay = self.relay
        assert relay is not None
        believed = relay.believes and end
        content_type = b""
        passed: Headers = []
        for field in headers:
            name = field[0]
            if name == b"content-type":
                content_type = field[1]
            elif name == b"content-length" or (name.startswith(_OWN_PREFIX) and not believed):
                continue
            passed.append(field)
        if status != 200 or not content_type.startswith(CONTENT_TYPE):
            relay.fail_as(status_of_http(status, content_type), AppBroken("the answer is no gRPC"))
            return
        if problem := why_malformed(passed):
            self._refuse(problem)
            return
        relay.heard = True
        if end:
            relay.note_status(passed)
            if believed and relay.record.cause is Cause.NAME_UNKNOWN:
                # The port has a new owner: our address is old. Nothing was processed.
                said = read_status(passed)
                relay.misdirected("" if said is None else said.message)
                return
        echo = relay.echo
        if echo is not None and not any(name == echo[0] for name, _ in passed):
            passed.append(echo)
        near = relay.up
        near.forget()
        known = self.connection.h2.repeated
        if known is None or end or echo is not None:
            near.connection.h2.send_response(near.stream, 200, passed, end=end)
        else:
            known.plan = Likely(flagged([_OK, *passed]))
            near.connection.h2.send_likely(near.stream, known.plan, end=False)
        relay.head_sent = True
        near.connection.kick()
        if end:
            relay.answered()

    def pass_on(self, plan: Likely, end: bool) -> bool:
        """A head or trailers came of which it is known how they are sent on. Return False to be told in full."""
        relay = self.relay
        assert relay is not None
        near = relay.up
        stream = near.stream
        if not end:
            if relay.echo is not None:
                return False
            relay.heard = True
            near.forget()
            near.connection.h2.send_likely(stream, plan, end=False)
            relay.head_sent = True
        elif self._held is not None or stream.pending is not None or (self._walker is not None and self._breaks_off()):
            return False
        else:
            self.ended = True
            relay.code = 0
            near.connection.h2.send_likely(stream, plan, end=True)
            relay.answered()
        if not near.connection.scheduled:
            near.connection.kick()
        return True

    def on_data(self, data: bytes, end: bool) -> bool:
        if not end:
            return super().on_data(data, False)
        if data:
            super().on_data(data, False)
        if self.relay is not None:
            self._refuse("server closed the stream without sending trailers")
        return True

    def _breaks_off(self) -> bool:
        """Whether the last message is there in part only."""
        return self._walker is not None and not self._walker.between_messages

    def _refuse(self, problem: str) -> None:
        """End the call for what its answer is."""
        assert self.relay is not None
        self.relay.fail_as(RpcStatus(GrpcCode.INTERNAL, problem), AppBroken(problem))

    def on_trailers(self, headers: Headers) -> None:
        relay = self.relay
        assert relay is not None
        if not relay.believes:
            for name, _ in headers:
                if name.startswith(_OWN_PREFIX):
                    headers = [field for field in headers if not field[0].startswith(_OWN_PREFIX)]
                    break
        problem = why_malformed(headers)
        if problem:
            self._refuse(problem)
            return
        relay.note_status(headers)
        if not relay.code and self._breaks_off():
            self._refuse("unexpected EOF")
            return
        known = self.connection.h2.repeated
        if known is not None and not relay.code:
            known.plan = Likely(flagged(headers))
        super().on_trailers(headers)
        relay.answered()

    def go_on(self) -> None:
        super().go_on()
        if self.relay is not None and self.ended:
            self.relay.answered()

    def on_reset(self, code: int, *, local: bool, unprocessed: bool) -> None:
        assert self.relay is not None
        self.relay.server_reset(code, local=local, unprocessed=unprocessed)

    def on_lost(self) -> None:
        assert self.relay is not None
        self.relay.server_lost()


def refuse(connection: Http2Protocol, stream: Stream, error: TielineError, record: CallRecord) -> None:
    """Answer a call that never set out, and end its record."""
    code = GrpcCode.UNKNOWN if error.grpc_code is None else error.grpc_code
    record.cause, record.hop, record.hint, record.detail = error.cause, error.hop, error.hint, error.detail
    record.rpc_code = int(code)
    record.duration_s = perf_counter() - record.started
    headers = [
        (b"content-type", CONTENT_TYPE),
        *render_status(RpcStatus(int(code), error.text)),
        *failure_fields(record),
    ]
    connection.h2.send_response(stream, 200, headers, end=True)
    connection.h2.reset(stream, ErrorCode.NO_ERROR)
    connection.kick()


class Relay:
    """One RPC that passes.

    Attributes:
        outline: The head of the request to the server.
        tail: What stands behind that, in ``hpack.literals``: what is this call's own, but for its time-out.
        place: Where it goes; the route sets it.
        record: What happened to it.
        deadline: Event-loop time at which it is over; ``None`` without one.
        code: How it ended; -1 before.
        slot: Whatever the route has to give back when it is over.
        tries: How often it was sent again.
        echo: What our own answer head says besides the server's; ``None`` for nothing.
    """

    __slots__ = (
        "_due", "_task", "_timeout", "believes", "code", "deadline", "down", "echo", "head_sent", "heard", "outline",
        "place", "record", "route", "slot", "tail", "tries", "up",
    )  # fmt: skip

    def __init__(self, route: Route, outline: Outline, tail: bytes, record: CallRecord) -> None:
        self.route = route
        self.outline = outline
        self.tail = tail
        self._timeout = b""
        self.record = record
        self.place: Place
        self.up: UpLane
        self.down: DownLane | None = None
        self.deadline: float | None = None
        self.code = -1
        self.slot: Any = None
        self.tries = 0
        self.echo: tuple[bytes, bytes] | None = None
        self.heard = False
        """The server has begun to answer."""
        self.head_sent = False
        self.believes = False
        """``tieline-*`` fields of the answer pass: a Tieline has set them."""
        self._due: set[Expiring] | None = None
        self._task: asyncio.Task[None] | None = None

    # ── setting out ────────────────────────────────────────────────────────────────────────────────
    def begin(
        self,
        connection: Http2Protocol,
        stream: Stream,
        *,
        end: bool,
        deadlines: Deadlines,
        timeout: Timeout | None,
    ) -> None:
        """Let the call set out.

        Args:
            connection: The client's.
            stream: The client's, whose request has just begun.
            end: And ended: there is no message.
            deadlines: Who watches that of this call.
            timeout: ``grpc-timeout`` as it came, and its seconds; ``None`` without one.
        """
        up = self.up = UpLane(self, connection, stream, self.route.limit)
        up.ended = end
        stream.handler = stream.sink = up
        if timeout is not None:
            value, seconds = timeout
            self._timeout = literals([(b"grpc-timeout", value)])
            self.deadline = asyncio.get_running_loop().time() + seconds
            if seconds <= 0:
                self.expire()
                return
            self._due = deadlines.watch(self, seconds)
        try:
            client = self.route.ready(self)
        except TielineError as error:
            self.fail(error)
            return
        if client is None:
            self._look_for_way(None)
        else:
            self._set_out(client)

    def _look_for_way(self, after: TielineError | None) -> None:
        self._task = spawn(self._find_way(after), name="proxied call")

    async def _find_way(self, after: TielineError | None) -> None:
        try:
            client = await self.route.open(self, after)
        except TielineError as error:
            self._task = None
            self.fail(error)
            return
        except Exception:
            log.exception("a proxied call failed")
            self._task = None
            self.fail(TielineError("internal error", cause=Cause.PEER_PROTOCOL, grpc_code=GrpcCode.INTERNAL))
            return
        self._task = None
        if self.deadline is not None:
            left = self.deadline - asyncio.get_running_loop().time()
            self._timeout = literals([(b"grpc-timeout", render_timeout(left))])
        self._set_out(client)

    def _set_out(self, client: Http2Client) -> None:
        self.believes = self.route.is_sidecar(client)
        up = self.up
        whole = up.ended and up.is_idle()
        stream = client.h2.send_request(self.outline.at(self.place), end=whole, tail=self._timeout + self.tail)
        down = self.down = DownLane(self, client, stream, self.route.limit)
        stream.handler = stream.sink = down
        up.other = down
        down.other = up
        if whole or up.is_idle():
            if not client.scheduled:
                client.kick()
        else:
            up.go_on()

    # ── what the lanes tell ────────────────────────────────────────────────────────────────────────
    def note_status(self, trailers: Headers) -> None:
        """Take note of how the server says that it ended."""
        for name, value in trailers:
            if name == _STATUS:
                if value == b"0":
                    self.code = 0
                    return
                break
        status = read_status(trailers)
        self.code = GrpcCode.UNKNOWN if status is None else status.code
        if self.believes and status is not None:
            self.note_failure(status, trailers)

    def note_failure(self, status: RpcStatus, trailers: Headers) -> None:
        """Take note of why a sidecar on the way says that it failed, if one does."""
        said = {name: value for name, value in trailers if name.startswith(_OWN_PREFIX)}
        if b"tieline-cause" in said:
            explain_by(said, status, self.record)

    def answered(self) -> None:
        """The whole answer has come: be over as soon as it has gone on, too."""
        down, up = self.down, self.up
        if up.stream.closed & 1:
            self._over(ErrorCode.NO_ERROR)
        elif down is not None and not down.stream.closed & 1:
            # Answered before it had everything: it wants no more.
            down.connection.h2.reset(down.stream, ErrorCode.NO_ERROR)
            down.connection.kick()

    def client_gone(self) -> None:
        """The client reset the stream or its connection went."""
        if self._is_late(CLIENT_AHEAD_S):
            self._explain(TimedOut())
            self.code = GrpcCode.DEADLINE_EXCEEDED
        else:
            self._explain(Cancelled("context canceled"))
            self.code = GrpcCode.CANCELED
        self._over(ErrorCode.CANCEL)

    def expire(self) -> None:
        """The deadline has passed; see ``Expiring``."""
        self._due = None
        self.fail(TimedOut())
        if self.up.relay is not None:
            self._over(ErrorCode.CANCEL)  # the client does not even take what is there

    def too_large(self, length: int, limit: int) -> None:
        """A message is over the limit."""
        text = f"grpc: received message larger than max ({length} vs. {limit})"
        hint = "raise --max-body-size of this sidecar, or send less in one message"
        self.fail(TooLarge(text, hint=hint, grpc_code=GrpcCode.RESOURCE_EXHAUSTED))

    def server_reset(self, code: int, *, local: bool, unprocessed: bool) -> None:
        """The server cut the call off, or we did for what it sent."""
        if unprocessed:
            self._again(PeerRefused("stream refused: the peer did not process the call"))
            return
        if local:
            text = f"malformed answer: {code_name(code)}"
            status = RpcStatus(GrpcCode.INTERNAL, text)
        else:
            text = f"stream terminated by RST_STREAM with error code: {code_name(code)}"
            status = RpcStatus(status_of_reset(code), text)
        if code == ErrorCode.CANCEL and self._is_late(0.0):
            status = RpcStatus(GrpcCode.DEADLINE_EXCEEDED, "context deadline exceeded")
        error = self.route.lost(text)
        error.grpc_code = GrpcCode(status.code)
        self.fail_as(status, error)

    def server_lost(self) -> None:
        """The connection to the server went."""
        self.fail(self.route.lost("error reading from server: EOF"))

    def misdirected(self, text: str) -> None:
        """The sidecar that was reached is another app's, and says so."""
        record = self.record
        record.cause = record.hop = None
        record.hint = record.detail = ""
        self.heard = False
        self._again(WrongPeer(text))

    def _again(self, error: TielineError) -> None:
        """Send the call once more if that can be, none of it having been processed."""
        down, up = self.down, self.up
        assert down is not None
        if self.head_sent or not up.may_go_again:
            self.fail(error)
            return
        self.tries += 1
        self.down = None
        down.part(ErrorCode.CANCEL)
        up.rewind()
        self._look_for_way(error)

    # ── the end ────────────────────────────────────────────────────────────────────────────────────
    def fail(self, error: TielineError) -> None:
        """End the call with the status that an error is."""
        code = GrpcCode.UNKNOWN if error.grpc_code is None else error.grpc_code
        self.fail_as(RpcStatus(int(code), error.text), error)

    def fail_as(self, status: RpcStatus, error: TielineError) -> None:
        """End the call with a status; ``error`` says why and where."""
        self._explain(error)
        self.code = status.code
        if self._task is not None:
            self._task.cancel()
            self._task = None
        down, up = self.down, self.up
        if down is not None:
            down.drop()
            if down.stream.closed != 3:
                down.connection.h2.reset(down.stream, ErrorCode.CANCEL)
                down.connection.kick()
        up.drop()
        trailers = [*render_status(status), *failure_fields(self.record)]
        h2, stream = up.connection.h2, up.stream
        if self.head_sent:
            h2.send_trailers(stream, trailers)
        else:
            h2.send_response(stream, 200, [(b"content-type", CONTENT_TYPE), *trailers], end=True)
            self.head_sent = True
        up.connection.kick()
        self.answered()

    def _is_late(self, ahead_s: float) -> bool:
        """Tell whether the call's deadline has passed, or will within ``ahead_s``."""
        return self.deadline is not None and asyncio.get_running_loop().time() >= self.deadline - ahead_s

    def _explain(self, error: TielineError) -> None:
        record = self.record
        record.cause, record.hop, record.hint, record.detail = error.cause, error.hop, error.hint, error.detail

    def _over(self, code: ErrorCode) -> None:
        """Leave both streams."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._due is not None:
            self._due.discard(self)
            self._due = None
        record, down, up = self.record, self.down, self.up
        record.request_bytes = up.total
        if down is not None:
            record.response_bytes = down.total
            self.down = None
            down.part(code)
        up.part(code)
        self.route.over(self)
