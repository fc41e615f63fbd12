"""Proxied calls of our app: any RPC of any service, sent on as it is to the app that ``dapr-app-id`` names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from time import perf_counter
from typing import Final

from tieline.errors import BadRequest, GrpcCode, PeerLost, PeerUnreachable, TielineError
from tieline.model import Attempt, CallRecord, Cause, Endpoint, Target
from tieline.names.cache import NameCache
from tieline.net.deadlines import Deadlines
from tieline.net.http2_client import Http2Client
from tieline.net.http2_pool import Http2Pool
from tieline.net.http2_server import Http2Server
from tieline.net.relay import Outline, Place, Relay, Route, refuse
from tieline.outbound.peer import MAX_ADDRESSES
from tieline.resiliency.again import pause_before_retry
from tieline.wire.baggage import BadBaggage
from tieline.wire.baggage import check as read_baggage
from tieline.wire.grpc.proxied import Head, NewTraces, no_target
from tieline.wire.grpc.timeout import Timeout
from tieline.wire.grpc.trace import TRACE_BIN, render_trace_bin, trace_of
from tieline.wire.headers import identity
from tieline.wire.http2 import Stream
from tieline.wire.http2.hpack import Fields, flagged, trace_literals
from tieline.wire.method_path import check, split_target

MAX_TARGETS: Final = 1024
"""How many targets are remembered with what they mean; then the memory starts afresh."""
MAX_TARGET_BYTES: Final = 256
"""Longer ones are worked out anew each time."""
_TARGET_HINT: Final = "name the app in the metadata: dapr-app-id"
_INTERNALS: Final = b"/dapr.proto.internals."
_TRUTHY: Final = frozenset({b"y", b"yes", b"true", b"t", b"on", b"1"})
Over = Callable[[CallRecord], None]


class PeerRoute:
    """The way to other sidecars; see ``net.relay.Route``.

    Args:
        limit: Longest message in bytes.
        over: Is told of each call that is over.
    """

    def __init__(self, names: NameCache, pool: Http2Pool, *, limit: int | None, over: Over) -> None:
        self.limit = limit
        self._names = names
        self._pool = pool
        self._over = over
        self._places: dict[Endpoint, Place] = {}

    def ready(self, relay: Relay) -> Http2Client | None:
        """See ``Route``."""
        target = relay.record.target
        assert target is not None
        endpoint = self._names.pick_cached(target)
        if endpoint is None:
            return None
        client = self._pool.ready(_key(endpoint, target))
        if client is not None:
            self._note(relay, endpoint)
        return client

    def _note(self, relay: Relay, endpoint: Endpoint) -> None:
        record = relay.record
        record.attempts += (Attempt(endpoint, perf_counter()),)
        place = self._places.get(endpoint)
        if place is None:
            if len(self._places) >= MAX_TARGETS:
                self._places.clear()
            place = self._places[endpoint] = Place(str(endpoint).encode())
        relay.place = place

    async def open(self, relay: Relay, after: TielineError | None) -> Http2Client:
        """See ``Route``: try the instances of the target, and all of it again as ``resiliency.again`` allows."""
        record = relay.record
        error = after
        if after is not None and record.attempts:
            self._failed(record.attempts[-1], after)
            assert record.target is not None
            self._names.forget(record.target)
        while True:
            if error is not None:
                # A call that comes back was counted when it did.
                retries = relay.tries - (error is after)
                pause = pause_before_retry(error, b"POST", retries, body_ready=True)
                if pause is None:
                    raise error
                if pause and retries:  # the first time at once (G-82): a connection may be stale, or the app have moved
                    await asyncio.sleep(pause)
                relay.tries += error is not after
            try:
                return await self._connect(relay)
            except TielineError as failure:
                after, error = None, failure

    async def _connect(self, relay: Relay) -> Http2Client:
        """Return a connection to an instance; each is tried once, and set aside if it cannot be reached."""
        names, record = self._names, relay.record
        target = record.target
        assert target is not None
        tried: list[Endpoint] = []
        unreachable: TielineError | None = None
        while True:
            endpoint = names.pick_cached(target, tried)
            if endpoint is None:
                began = perf_counter()
                endpoint = await names.pick(target, tried)
                record.resolving_s += perf_counter() - began
            if unreachable is not None and endpoint in tried:
                names.forget(target)
                raise unreachable
            self._note(relay, endpoint)
            began = perf_counter()
            try:
                client = await self._pool.connection(endpoint.host, endpoint.port, _key(endpoint, target))
                await client.wait_turn()
                return client
            except PeerUnreachable as error:
                self._failed(record.attempts[-1], error)
                names.set_aside(endpoint)
                tried.append(endpoint)
                unreachable = error
                if len(tried) >= MAX_ADDRESSES:
                    names.forget(target)
                    raise
            finally:
                record.connecting_s += perf_counter() - began

    @staticmethod
    def _failed(attempt: Attempt, error: TielineError) -> None:
        attempt.outcome = error.cause

    def is_sidecar(self, client: Http2Client) -> bool:
        """See ``Route``."""
        return bool(client.h2.peer_native)

    def lost(self, text: str) -> TielineError:
        """See ``Route``."""
        return PeerLost(text)

    def over(self, relay: Relay) -> None:
        """See ``Route``."""
        record = relay.record
        record.rpc_code = relay.code
        record.duration_s = perf_counter() - record.started
        attempts = record.attempts
        if attempts and attempts[-1].outcome is None:
            attempts[-1].outcome = "ok" if relay.heard else record.cause
        self._over(record)


def _key(endpoint: Endpoint, target: Target) -> Hashable:
    # Connections of their own: streams that nobody reads would stop the calls beside them.
    return (endpoint, target.app_id, target.namespace, b"rpc")


class Plan:
    """What is alike in all calls of our app that come with the same head.

    Attributes:
        route: Where they go.
        target: Whom they are for.
        path: As sent, query included.
        outline: Of their head as it is sent on.
        trace: The trace that the head names, its id and its ``trace_literals``; ``None`` if each call gets a new one.
        echo: See ``Relay``.
        streaming, user_agent: See ``CallRecord``.
    """

    __slots__ = ("echo", "outline", "path", "route", "streaming", "target", "trace", "user_agent")

    def __init__(self, route: Route, target: Target, path: bytes, outline: Outline) -> None:
        self.route = route
        self.target = target
        self.path = path
        self.outline = outline
        self.trace: tuple[bytes, bytes] | None = (b"", b"")
        self.echo: tuple[bytes, bytes] | None = None
        self.streaming = False
        self.user_agent = b""


class Proxy:
    """Takes proxied calls at the gRPC API.

    Args:
        app_id, namespace: The sidecar's own.
        peers: The way to other sidecars.
        app: The way to our own app.
        over: Is told of each call that never sets out.
        deadlines: Watches those of the calls.
        traced: Whether calls carry a trace context of ours (O-1).
        drop_token: An API token is configured, so that it must not travel on.
        app_token: Token that every call to our app carries; empty for none.
    """

    def __init__(
        self,
        *,
        app_id: str,
        namespace: str,
        peers: Route,
        app: Route,
        over: Over,
        deadlines: Deadlines,
        new_traces: NewTraces,
        traced: bool,
        drop_token: bool,
        app_token: str,
    ) -> None:
        self._app_id = app_id
        self._namespace = namespace
        self._peers = peers
        self._app = app
        self._over = over
        self._deadlines = deadlines
        self._new_traces = new_traces
        self._traced = traced
        self._drop_token = drop_token
        self._app_token = app_token.encode()
        self._targets: dict[bytes, tuple[Target, Fields]] = {}

    def take(
        self,
        connection: Http2Server,
        stream: Stream,
        path: bytes,
        head: Head,
        end: bool,
        *,
        user_agent: bytes = b"",
        repeats: bool = False,
    ) -> Plan | None:
        """Take over a call to a method that is none of ours; see ``net.http2_server.Taker``.

        The request was let in: its content type is gRPC's, its path has two parts, its token is right.

        Returns:
            What to ``repeat`` with the next call that has the same head; ``None`` if this one was refused.
        """
        record = self._record(path, user_agent)
        try:
            plan = self._plan(path, head, record, repeats=repeats)
        except TielineError as error:
            refuse(connection, stream, error, record)
            self._over(record)
            return None
        plan.user_agent = user_agent
        self._begin(connection, stream, plan, record, head.timeout, end=end)
        return plan

    def repeat(self, connection: Http2Server, stream: Stream, plan: Plan, timeout: Timeout | None) -> None:
        """Take over a call with a head that is known but for its time-out."""
        record = self._record(plan.path, plan.user_agent)
        record.target = plan.target
        self._begin(connection, stream, plan, record, timeout, end=False)

    def _record(self, path: bytes, user_agent: bytes) -> CallRecord:
        record = CallRecord()
        record.started = perf_counter()
        record.caller = self._app_id
        record.verb = b"POST"
        record.method = record.api_rpc = path
        record.user_agent = user_agent
        return record

    def _begin(
        self,
        connection: Http2Server,
        stream: Stream,
        plan: Plan,
        record: CallRecord,
        timeout: Timeout | None,
        *,
        end: bool,
    ) -> None:
        if plan.streaming:
            record.streaming = True
        trace = plan.trace
        if trace is None:
            trace = self._new_traces()
        record.trace_id, tail = trace
        route = plan.route
        if route is self._app:
            record.local = True
        relay = Relay(route, plan.outline, tail, record)
        relay.echo = plan.echo
        relay.begin(connection, stream, end=end, deadlines=self._deadlines, timeout=timeout)

    def _plan(self, path: bytes, head: Head, record: CallRecord, *, repeats: bool) -> Plan:
        named = head.first(b"dapr-app-id")
        if named is None:
            raise BadRequest(no_target(path, traced=self._traced), hint=_TARGET_HINT)
        known = self._targets.get(named)
        if known is None:
            known = self._read_target(named)
        target, own = known
        record.target = target
        if path.startswith(_INTERNALS):
            raise BadRequest(
                "calls to the service of sidecars are not proxied",
                hint="call the other app by InvokeService, or its own methods",
                cause=Cause.DENIED,
                grpc_code=GrpcCode.PERMISSION_DENIED,
            )
        fields = head.fields
        plan = Plan(self._peers if own else self._app, target, path, Outline(fields, repeats=repeats))
        noted = head.noted
        if self._traced:
            plan.echo = self._check_baggage(noted)
            plan.trace = self._trace(noted)
        else:
            head.put_back(b"traceparent")
            head.put_back(TRACE_BIN)
        streaming = noted.get(b"dapr-stream")
        if streaming is not None:
            head.put_back(b"dapr-stream")
            plan.streaming = streaming[0].lower() in _TRUTHY
        if own:
            fields += own
            if not self._drop_token:
                head.put_back(b"dapr-api-token")
            return plan
        check(path)
        if self._app_token:
            fields.append((b"dapr-api-token", self._app_token, True))
        return plan

    @staticmethod
    def _check_baggage(noted: dict[bytes, list[bytes]]) -> tuple[bytes, bytes] | None:
        """Return what the answer repeats (G-120)."""
        values = noted.get(b"baggage")
        if values is None:
            return None
        try:
            joined = read_baggage(values)
        except BadBaggage as error:
            raise BadRequest(error.text, grpc_code=GrpcCode.INVALID_ARGUMENT) from error
        return None if joined is None else (b"baggage", joined)

    @staticmethod
    def _trace(noted: dict[bytes, list[bytes]]) -> tuple[bytes, bytes] | None:
        """Return the context that the client names (G-116, G-117): its id and literals; ``None`` for a new one."""
        if TRACE_BIN in noted or b"traceparent" in noted:
            said = [(name, value) for name in (b"traceparent", TRACE_BIN) for value in noted.get(name, ())]
            traceparent, _ = trace_of(said, binary_first=True)
            if traceparent:
                return traceparent[3:35], trace_literals(traceparent, render_trace_bin(traceparent))
        return None

    def _read_target(self, named: bytes) -> tuple[Target, Fields]:
        if not named:
            raise BadRequest("app id is empty", hint=_TARGET_HINT)
        target = split_target(named.decode("utf-8", "surrogateescape"), self._namespace)
        is_own = target.app_id == self._app_id and target.namespace == self._namespace
        added = [] if is_own else flagged(identity(self._app_id, self._namespace, target.app_id))
        if len(named) <= MAX_TARGET_BYTES:
            if len(self._targets) >= MAX_TARGETS:
                self._targets.clear()
            self._targets[named] = (target, added)
        return target, added
