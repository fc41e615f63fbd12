"""A call to another sidecar: in the native form, a plain HTTP/2 request that two Tielines understand, or as gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable
from time import perf_counter
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from tieline.errors import (
    GrpcCode,
    PeerFailed,
    PeerProtocol,
    PeerRefused,
    PeerUnreachable,
    TielineError,
    WrongPeer,
    name_of,
)
from tieline.model import Attempt, CallRecord, Cause, Endpoint, Headers, Hop, Invocation, Reply, RpcReply, Target
from tieline.names.cache import NameCache
from tieline.net.http2 import Upkeep
from tieline.net.http2_client import Http2Client
from tieline.net.http2_pool import Http2Pool
from tieline.wire.grpc.codes import read_status_body
from tieline.wire.grpc.mapping import own_metadata
from tieline.wire.grpc.status import OK
from tieline.wire.http2 import Limits
from tieline.wire.http2.hpack import NEVER_INDEXED, Fields, flagged

if TYPE_CHECKING:
    from tieline.outbound.grpc_peer import GrpcPeer

MAX_ERROR_TEXT: Final = 8192
"""The longest text that a peer's own failure may have, in bytes."""
MAX_STATUS: Final = 1 << 20
"""The longest status of a gRPC app, details included, in bytes."""
MAX_ADDRESSES: Final = 4
"""Endpoints tried for one attempt, each once, before the attempt counts as failed."""
MAX_AUTHORITIES: Final = 1024
"""Targets whose ``:authority`` is remembered ready-made; then the memory starts afresh."""

_SCHEME: Final = (b":scheme", b"http", False)
PEER_LIMITS: Final = Limits(streams=1, header_list=1 << 20, header_list_hard=2 << 20, unread=160 << 20)
"""For the connections to peers: whatever an app's answer head may be, it comes through; and as many calls as share a
connection may have readers that stop, without holding up those beside them."""

PEER_UPKEEP: Final = Upkeep(ping_after_s=10.0, ping_within_s=5.0)
"""A peer that says nothing for so long is asked for a sign of life, in use or not (G-5)."""


class PeerCaller:
    """Finds the callee's sidecar and sends the call.

    Args:
        added: Fields put on each call: who calls, and through which sidecar.
        namespace: The sidecar's own.
        knows_namespaces: The resolvers tell namespaces apart, so that the callee may hold a call to its own.
        limit: Longest message of an RPC in bytes (G-2); ``None`` for no limit.
    """

    def __init__(
        self,
        names: NameCache,
        pool: Http2Pool,
        *,
        added: Headers,
        namespace: str,
        knows_namespaces: bool,
        limit: int | None = None,
    ) -> None:
        self._names = names
        self._pool = pool
        self._limit = limit
        self._plain_added = added
        self._grpc: GrpcPeer | None = None
        self._added = flagged([*added, (b"tieline-invoke", b"1")])
        self._namespace = namespace
        self._knows_namespaces = knows_namespaces
        self._authorities: dict[str, bytes] = {}

    async def call(self, call: Invocation) -> Reply:
        """Send the call to an instance of its target.

        An instance that cannot be reached is set aside, and the next is tried at once: nothing was sent.

        Raises:
            UnknownTarget, ResolverFailed: Nobody knows where the target is.
            PeerUnreachable, PeerRefused, PeerLost, PeerProtocol, PeerFailed: See there.
        """
        names = self._names
        target = call.target
        record = call.record
        tried = _tried(record) if record.attempts else []
        first = len(tried)
        endpoint = names.pick_cached(target, tried)
        while True:
            if endpoint is None:
                began = perf_counter()
                endpoint = await names.pick(target, tried)
                record.resolving_s += perf_counter() - began
            if tried and endpoint in tried and _was_wrong(record, endpoint):
                raise await names.not_there(target)
            attempt = Attempt(endpoint, perf_counter())
            record.attempts += (attempt,)
            try:
                key: Hashable = (endpoint, target.app_id, target.namespace)
                if call.protocol:
                    # Tunnels share connections of their own: many that nobody reads would stop the calls beside them.
                    key = (key, call.protocol)
                connection = self._pool.ready(key)
                if connection is None:
                    connection = await self._connect(endpoint, key, record)
                if call.rpc is not None or not connection.h2.peer_native:
                    reply = await self._by_grpc(connection, call, endpoint)
                    if isinstance(reply, RpcReply):
                        record.rpc_code = reply.rpc_status.code
                    attempt.outcome = "ok"
                    return reply
                fields = self._fields(call)
                if connection.h2.can_open:
                    exchange = connection.begin_request(fields, call.body)
                    try:
                        reply = await exchange.answer
                    except asyncio.CancelledError:
                        exchange.cancel()
                        raise
                    finally:
                        del exchange  # with an error it would hold this frame, which holds it
                else:
                    reply = await connection.request(fields, call.body)
                headers = reply.headers
                if headers and headers[0][0] == b"tieline-grpc-status":
                    reply = await read_rpc(reply, record)
                elif reply.status == 500:
                    await self._raise_failure(reply, target.addressed, endpoint)
            except PeerUnreachable as error:
                attempt.outcome = error.cause
                names.set_aside(endpoint)
                tried.append(endpoint)
                if isinstance(error, PeerRefused) or len(tried) - first >= MAX_ADDRESSES:
                    names.forget(target)
                    raise
                endpoint = await self._another(target, tried)
                if endpoint is None:
                    raise
            except Exception as error:
                attempt.outcome = getattr(error, "cause", "failed")
                raise
            else:
                attempt.outcome = "ok"
                return reply

    async def _another(self, target: Target, tried: list[Endpoint]) -> Endpoint | None:
        """Return an instance that was not tried: one that is known, else one that a fresh look-up finds."""
        names = self._names
        endpoint = names.pick_cached(target, tried)
        names.forget(target)
        if endpoint is None or endpoint in tried:
            try:
                endpoint = await names.pick(target, tried)
            except TielineError:
                return None
        return None if endpoint in tried else endpoint

    async def _connect(self, endpoint: Endpoint, key: Hashable, record: CallRecord) -> Http2Client:
        began = perf_counter()
        connection = await self._pool.connection(endpoint.host, endpoint.port, key)
        record.connecting_s += perf_counter() - began
        return connection

    def _by_grpc(self, connection: Http2Client, call: Invocation, endpoint: Endpoint) -> Awaitable[Reply]:
        """Make a call as a daprd understands it, and as gRPC clients mean theirs."""
        if call.protocol:
            raise _no_websockets(call.target.addressed, endpoint)
        if self._grpc is None:
            # With the first such call: protobuf takes long to load.
            from tieline.outbound.grpc_peer import GrpcPeer

            self._grpc = GrpcPeer(added=self._plain_added, limit=self._limit)
        return self._grpc.call(connection, call, endpoint)

    def _fields(self, call: Invocation) -> Fields:
        """Return the call as the fields of one HTTP/2 request."""
        addressed = call.target.addressed
        path = b"/" + call.encoded
        if call.query:
            path += b"?" + call.query
        fields: Fields = [
            (b":method", call.verb, False),
            (b":path", path, True),  # paths differ: in the table they would push out what repeats
            _SCHEME,
            (b":authority", self._authorities.get(addressed) or self._authority(call), False),
        ]
        if call.protocol:
            fields[:1] = [(b":method", b"CONNECT", False), (b":protocol", call.protocol, False)]
        fields += [(name, value, name in NEVER_INDEXED) for name, value in call.headers]
        fields += self._added
        if call.length:
            fields.append((b"content-length", b"%d" % call.length, True))
        return fields

    def _authority(self, call: Invocation) -> bytes:
        """Write whom we mean: the namespace only if it is not the usual one and the resolver vouches for it.

        Callers in a namespace of their own always write it: an address that mDNS found may be of any.
        """
        target = call.target
        text = quote(target.app_id, safe="", errors="surrogateescape")
        if self._knows_namespaces and not target.namespace == self._namespace == "default":
            text += "." + quote(target.namespace, safe="", errors="surrogateescape")
        authority = text.encode("ascii")
        if len(self._authorities) >= MAX_AUTHORITIES:
            self._authorities.clear()
        self._authorities[target.addressed] = authority
        return authority

    async def _raise_failure(self, reply: Reply, addressed: str, endpoint: Endpoint) -> None:
        """Raise what the callee's sidecar reports as its own failure; an app's 500 is a reply like any other."""
        said = {name: value for name, value in reply.headers if name.startswith(b"tieline-")}
        if b"tieline-error" not in said:
            return
        text = (await _read(reply)).decode("utf-8", "replace")
        cause = _cause(said.get(b"tieline-cause", b""))
        hint = _hint(said)
        if cause is Cause.NAME_UNKNOWN:
            # The port has a new owner: our address is old. Nothing was processed.
            raise WrongPeer(f"{text} (asked for {addressed} at {endpoint})", endpoint)
        raise PeerFailed(
            text,
            hint=hint,
            cause=cause,
            hop=_hop(said.get(b"tieline-hop", b"")),
            grpc_code=_code(said[b"tieline-error"]),
        )


async def read_rpc(reply: Reply, record: CallRecord) -> RpcReply:
    """Return the answer of a gRPC app that its sidecar passes on, and note what that says about a failure."""
    said = {name: value for name, value in reply.headers if name.startswith(b"tieline-")}
    metadata = [field for field in reply.headers if not field[0].startswith(b"tieline-")]
    code = record.rpc_code = _code(said[b"tieline-grpc-status"])
    if code == 0:
        content_type = next((value for name, value in metadata if name == b"content-type"), b"")
        answer = RpcReply(
            OK,
            own_metadata(metadata),
            content_type=content_type.decode("utf-8", "replace"),
            type_url=unquote(said.get(b"tieline-type-url", b"").decode("latin-1")),
        )
        answer.body = reply.body
        return answer
    status = read_status_body(code, await _read(reply, MAX_STATUS))
    if b"tieline-cause" in said:
        record.cause = _cause(said[b"tieline-cause"])
        record.hop = _hop(said.get(b"tieline-hop", b""))
        record.hint = _hint(said)
        record.detail = f"rpc error: code = {name_of(code)} desc = {status.message}"
    return RpcReply(status, own_metadata(metadata))


def _no_websockets(addressed: str, endpoint: Endpoint) -> PeerProtocol:
    error = PeerProtocol(
        f"the sidecar of {addressed} at {endpoint} is no Tieline, and takes no WebSocket",
        hint="it is a daprd or another program: WebSockets go through Tieline sidecars only; run the app with one",
        grpc_code=GrpcCode.UNIMPLEMENTED,
    )
    error.http_status = 501
    return error


def _was_wrong(record: CallRecord, endpoint: Endpoint) -> bool:
    """Whether an endpoint said, in this call, that it is somebody else's."""
    return any(attempt.endpoint == endpoint and attempt.outcome == Cause.NAME_UNKNOWN for attempt in record.attempts)


def _tried(record: CallRecord) -> list[Endpoint]:
    """Return the endpoints of the attempts before this one."""
    return [attempt.endpoint for attempt in record.attempts[-MAX_ADDRESSES:] if attempt.endpoint is not None]


async def _read(reply: Reply, limit: int = MAX_ERROR_TEXT) -> bytes:
    body = reply.body
    if isinstance(body, bytes):
        return body[:limit]
    pieces: list[bytes] = []
    size = 0
    try:
        while size < limit and (piece := await body.read()):
            pieces.append(piece)
            size += len(piece)
    finally:
        body.abandon()
    return b"".join(pieces)[:limit]


def _hint(said: dict[bytes, bytes]) -> str:
    return unquote(said.get(b"tieline-hint", b"").decode("latin-1"))[:512]


def _cause(value: bytes) -> Cause:
    try:
        return Cause(value.decode("latin-1"))
    except ValueError:
        return Cause.PEER_PROTOCOL


def _hop(value: bytes) -> Hop:
    return Hop.APP if value == b"app" else Hop.PEER


def _code(value: bytes) -> int:
    return int(value) if value.isdigit() and len(value) < 4 else 13
