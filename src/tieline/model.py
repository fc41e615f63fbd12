"""The nouns of a call: who is meant, what is asked, what came back, and what happened on the way."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""Header fields in order: lower-case name, value without surrounding blanks. Never pseudo-headers."""

MAX_CHUNK: Final = 65536
"""The longest piece of a body that is handed on at once, in bytes."""


class Cause(StrEnum):
    """Why a call failed, as ``tieline-cause`` tells it. The list is closed."""

    BAD_REQUEST = "bad-request"
    DENIED = "denied"
    NAME_UNKNOWN = "name-unknown"
    RESOLVER_FAILED = "resolver-failed"
    PEER_UNREACHABLE = "peer-unreachable"
    PEER_PROTOCOL = "peer-protocol"
    PEER_TLS = "peer-tls"
    PEER_LOST = "peer-lost"
    APP_MISSING = "app-missing"
    APP_UNREACHABLE = "app-unreachable"
    APP_BROKEN = "app-broken"
    APP_UNHEALTHY = "app-unhealthy"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    BREAKER_OPEN = "breaker-open"
    TOO_LARGE = "too-large"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting-down"


class Hop(StrEnum):
    """Where a call failed, seen from the app that made it, as ``tieline-hop`` tells it."""

    CALLER = "caller"
    """The caller's own sidecar, or the caller."""
    PEER = "peer"
    """The callee's sidecar, or the way to it."""
    APP = "app"
    """The called app, or the way from its sidecar to it."""


class Target(NamedTuple):
    """Who is meant. Never an address; ``names`` finds that.

    Attributes:
        app_id: App ID or name of an HTTPEndpoint, case-sensitive, without namespace; empty for a URL.
        namespace: Namespace of the app; the sidecar's own if the caller named none.
        addressed: The target exactly as the caller wrote it; error texts and policies use it.
    """

    app_id: str
    namespace: str
    addressed: str


class Endpoint(NamedTuple):
    """An address that can be dialled."""

    host: str
    """IP literal without brackets, or a host name."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Body(Protocol):
    """A message body that is still coming. Readable once, by one reader.

    A body that arrived whole with its head is plain ``bytes`` instead and needs no stream.
    """

    trailers: Headers
    """Trailer fields; complete once ``read`` has returned ``b""``."""

    async def read(self) -> bytes:
        """Return the next piece, at most ``MAX_CHUNK`` bytes; ``b""`` at the end.

        Raises:
            TielineError: The body broke off, and whose fault that was.
        """
        ...

    def abandon(self) -> None:
        """Say that nobody will read on; the sender is told to stop. Idempotent, also after the end."""
        ...


AnyBody: TypeAlias = bytes | Body


class Attempt:
    """One try to reach an endpoint."""

    __slots__ = ("endpoint", "outcome", "started")

    def __init__(self, endpoint: Endpoint | None, started: float) -> None:
        self.endpoint = endpoint
        self.started = started
        self.outcome: str | None = None
        """``None`` until it ended; then ``ok`` or a ``Cause``."""


class CallRecord:
    """What happened to one call, filled in by the steps as they decide.

    Metrics, access log, span and error answer are read from it; no step reports twice. Defaults are class
    attributes, so that a call pays only for what it sets. Times are event-loop-independent
    (``time.perf_counter``), in seconds.
    """

    started: float = 0.0
    inbound: bool = False
    """True at the callee: the call came from another sidecar."""
    caller: str = ""
    """App ID of the caller."""
    caller_namespace: str = ""
    caller_verified: bool = False
    """Whether a certificate vouches for ``caller``; without mTLS it is only a claim."""
    target: Target | None = None
    verb: bytes = b""
    method: bytes = b""
    local: bool = False
    """Self invocation: no other sidecar took part."""
    external: str = ""
    """What a call outside the mesh counts for: an HTTPEndpoint's name, or ``scheme://host:port`` of a URL."""
    api_path: bytes = b""
    """Path of the request at the HTTP API, percent-encoded as sent; empty at the callee."""
    streamed: bool = False
    """The caller declared no length of its body."""
    api_rpc: bytes = b""
    """Path of the RPC by which it came to the gRPC API, as sent; empty for one that came otherwise."""
    user_agent: bytes = b""
    """Of a proxied call's client, if calls are logged."""
    api_verb: bytes = b""
    """Verb of that request, where it is not ``verb``, which the app will see."""
    resolver: str = ""
    attempts: tuple[Attempt, ...] = ()
    waited_s: float = 0.0
    """Time spent waiting for a free slot at the app."""
    resolving_s: float = 0.0
    connecting_s: float = 0.0
    app_s: float = 0.0
    """Time from sending to the app until its answer's head."""
    status: int = 0
    """HTTP status that the caller is given; 0 until there is one."""
    rpc_code: int = -1
    """Code with which a gRPC app answered; -1 if none did."""
    cause: Cause | None = None
    hop: Hop | None = None
    hint: str = ""
    detail: str = ""
    """The text of the failure, as the caller is given it."""
    streaming: bool = False
    """A proxied call that its client calls a stream (``dapr-stream``)."""
    trace_id: bytes = b""
    """32 lower-case hex digits, or empty without tracing."""
    request_bytes: int = 0
    response_bytes: int = 0
    duration_s: float = 0.0


class RpcStatus(NamedTuple):
    """How an RPC ended.

    Attributes:
        code: Usually an ``errors.GrpcCode``, but peers may send any number.
        details: A serialised ``google.rpc.Status``; empty if there is none.
    """

    code: int
    message: str = ""
    details: bytes = b""


class Rpc(NamedTuple):
    """What a call has besides if a gRPC client made it, by ``InvokeService``.

    The method of such a call was cleaned but not percent-decoded; its headers are metadata, binary values as the
    base64 text that came.

    Attributes:
        verb: Number of the verb in the HTTP extension; ``None`` without one. Numbers outside the enum are kept.
        content_type: Of the message, whatever the metadata say.
        type_url: Of the message's data.
        deadline: Event-loop time in seconds past which nobody waits any more; ``None`` without one.
    """

    verb: int | None
    content_type: str
    type_url: str
    deadline: float | None


class Shape:
    """What many requests, or many calls, have in common.

    Attributes:
        made: What was made of one of them, for the next; ``None`` before. Of a request it belongs to its handler, of a
            call to the end of its path.
    """

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made: Any = None


class Invocation:
    """One call from an app to a method of another app, before its next hop.

    Attributes:
        target: Who is called.
        verb: HTTP verb as it will reach the app, e.g. ``b"POST"``.
        method: Path below ``/method/``, percent-decoded and normalised on entry to each sidecar; with a
            leading slash only if the caller doubled it (H-35). Bytes, since it need not be UTF-8.
        encoded: The method percent-encoded, as it is written into a URL.
        query: Raw query without the question mark, ``b""`` if none.
        headers: End-to-end fields; no ``host``, ``content-length`` or hop-by-hop fields.
        body: Whole, or a stream.
        length: Declared length of the body in bytes; ``None`` if the caller declared none, which makes the
            call a *streaming* one (no policy retries, H-94).
        record: What happened to the call so far.
        protocol: ``b"websocket"`` if it is a handshake that may become a tunnel, whose bytes ``body`` then has; nothing
            of it is read before. Else ``b""``.
        rpc: ``None`` if an HTTP client made it.
        shape: ``None``, or what all calls share that are like this one but for their body and for the last of their
            headers, which is the ``traceparent``.
    """

    __slots__ = (
        "body", "encoded", "headers", "length", "method", "protocol", "query", "record", "rpc", "shape", "target",
        "verb",
    )  # fmt: skip

    def __init__(
        self,
        target: Target,
        verb: bytes,
        method: bytes,
        encoded: bytes,
        query: bytes,
        headers: Headers,
        body: AnyBody,
        length: int | None,
        record: CallRecord,
        protocol: bytes = b"",
        rpc: Rpc | None = None,
        shape: Shape | None = None,
    ) -> None:
        self.target = target
        self.verb = verb
        self.method = method
        self.encoded = encoded
        self.query = query
        self.headers = headers
        self.body = body
        self.length = length
        self.record = record
        self.protocol = protocol
        self.rpc = rpc
        self.shape = shape


class Reply:
    """What came back: the answer of the called app, or a sidecar's own.

    Attributes:
        status: HTTP status, 200…999; 101 only of ``Opened``.
        headers: End-to-end fields, without ``content-length``.
        body: Whole, or a stream whose end must be reached or which must be abandoned.
        trailers: Trailer fields of a whole body; those of a stream are on the stream.
    """

    __slots__ = ("body", "headers", "status", "trailers")

    def __init__(self, status: int, headers: Headers, body: AnyBody = b"", trailers: Headers | None = None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.trailers = trailers

    def drop_body(self) -> None:
        """Say that nobody will read the body, if it is a stream."""
        if not isinstance(self.body, bytes):
            self.body.abandon()


class RpcReply(Reply):
    """The answer of a gRPC app, for the caller's face to put into its client's words.

    ``status`` is 200 if the RPC ended well, else 500; ``headers`` and ``trailers`` are metadata as they came, without
    what gRPC keeps to itself; ``body`` is the value of the data.

    Attributes:
        rpc_status: How the RPC ended.
        content_type: Of the message.
        type_url: Of the message's data.
    """

    __slots__ = ("content_type", "rpc_status", "type_url")

    def __init__(
        self,
        rpc_status: RpcStatus,
        headers: Headers,
        body: bytes = b"",
        trailers: Headers | None = None,
        *,
        content_type: str = "",
        type_url: str = "",
    ) -> None:
        super().__init__(200 if rpc_status.code == 0 else 500, headers, body, trailers)
        self.rpc_status = rpc_status
        self.content_type = content_type
        self.type_url = type_url


class Tunnel(Protocol):
    """Two directions of bytes that a handshake opened.

    Attributes:
        bytes_up, bytes_down: What came from the client, and from the app; there once it is over.
    """

    bytes_up: int
    bytes_down: int

    @property
    def error(self) -> Exception | None:
        """What broke it; ``None`` if it ended in good order."""

    def when_over(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when both directions are over; at once if they are. It must not raise."""
        ...


class Opened(Reply):
    """The answer to a handshake that became a tunnel, whatever the protocol: status 101.

    Attributes:
        body: What comes from the app.
        tunnel: Both directions.
    """

    __slots__ = ("tunnel",)

    def __init__(self, headers: Headers, body: Body, tunnel: Tunnel) -> None:
        super().__init__(101, headers, body)
        self.tunnel = tunnel


class Request:
    """An HTTP request as a server received it, before anything was decided about it.

    Attributes:
        verb: Verb as sent.
        path: Raw request target without query, still percent-encoded, e.g. ``b"/v1.0/invoke/x/method/y"``.
        query: Raw query without the question mark; ``None`` if there was no question mark.
        headers: All fields, hop-by-hop ones included (HTTP/2 has none), ``content-length`` included.
        body: Whole, or a stream.
        length: Declared length of the body in bytes; ``None`` if it comes undeclared. 0 without a body.
        authority: ``Host`` or ``:authority``.
        protocol: ``:protocol`` of an extended CONNECT, ``b"websocket"`` of a handshake in HTTP/1.1, else ``b""``.
        native: Highest version of the native form that the connection's peer speaks; 0 for others.
        shape: What all requests share that came with the same head on the same connection; ``None`` for one that is the
            first, or nothing special.
    """

    __slots__ = ("authority", "body", "headers", "length", "native", "path", "protocol", "query", "shape", "verb")

    def __init__(
        self,
        verb: bytes,
        path: bytes,
        query: bytes | None,
        headers: Headers,
        body: AnyBody,
        length: int | None,
        authority: bytes = b"",
        protocol: bytes = b"",
        native: int = 0,
        shape: Shape | None = None,
    ) -> None:
        self.verb = verb
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.length = length
        self.authority = authority
        self.protocol = protocol
        self.native = native
        self.shape = shape

    def drop_body(self) -> None:
        """Say that nobody will read the body, if it is a stream."""
        if not isinstance(self.body, bytes):
            self.body.abandon()
