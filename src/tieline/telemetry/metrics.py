"""Counts and distributions of calls, kept in plain accumulators that cost about a microsecond a call.

Names, help texts and labels are Dapr's (O section 5), except for those that begin with ``tieline_``.

``Metrics.record_call`` is the one place where a call record becomes metrics. It finds all children of a call by
one look-up: they are kept together under what tells the label values, e.g. verb, status and label of the path. What
every call passes is written out by hand; it saves a fifth of a microsecond for each function that is not called.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from tieline.errors import name_of
from tieline.model import CallRecord, Cause
from tieline.telemetry.families import (
    MAX_CHILDREN,
    OVERFLOW,
    Counter,
    Family,
    Histogram,
    Reading,
    Rule,
    Shown,
    for_metric,
)
from tieline.telemetry.path_labels import PathLabels

if TYPE_CHECKING:
    from tieline.telemetry.path_patterns import PathPatterns

log = logging.getLogger("dapr.runtime.diagnostics")

LATENCY_BUCKETS_MS: Final[tuple[int, ...]] = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 250, 300, 400, 500, 650, 800),
    *(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000),
)
SIZE_BUCKETS_BYTES: Final[tuple[int, ...]] = (
    *(1024, 2048, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864),
    *(268435456, 1073741824, 4294967296),
)

MAX_CALLER: Final = 256
"""Characters of a caller's app ID; callers with longer ones are counted together."""

_VERBS: Final = frozenset({b"GET", b"PUT", b"POST", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"CONNECT", b"TRACE"})
_TYPES: Final = ("unary", "streaming")
_APP_FAILED: Final = frozenset({Cause.APP_UNREACHABLE, Cause.APP_BROKEN})
_BEFORE_RECEIPT: Final = frozenset({Cause.DENIED, Cause.APP_MISSING})
"""A call that ends so at the callee was refused before it counts as received (H-43)."""

ON_INVOKE: Final = "/dapr.proto.runtime.v1.AppCallback/OnInvoke"
"""What every call of a gRPC app counts as."""

AnyFamily: TypeAlias = Family[Counter] | Family[Histogram]


class _Server(NamedTuple):
    """Children of one verb, status and path at the HTTP API."""

    requests: Counter
    responses: Counter
    latency: Histogram
    request_bytes: Histogram
    response_bytes: Histogram


class _Client(NamedTuple):
    """Children of one verb, status and path towards an HTTP app."""

    completed: Counter
    latency: Histogram
    sent: Histogram
    received: Histogram


class _RpcServer(NamedTuple):
    """Children of one method and status at the gRPC API; those of sizes are ``None`` for streams."""

    completed: Counter
    latency: Histogram
    received: Histogram | None
    sent: Histogram | None


class _AppRpc(NamedTuple):
    """Children of one method and status towards a gRPC app."""

    completed: Counter
    latency: Histogram
    sent: Histogram
    received: Histogram


class _Answered(NamedTuple):
    """Children of one peer and status, at the caller."""

    responses: Counter
    latency: Histogram


class Metrics:
    """All families that HTTP service invocation fills, for one app.

    Args:
        app_id: Own app ID.
        latency_buckets_ms: Upper bounds of the buckets of all latencies; sorted here, duplicates dropped (O-22).
        increased_cardinality: Whether paths are labels; then there is a family more (O-23).
        patterns: Paths that count together; ``None`` if there are none.
        exclude_verbs: Whether verbs are no labels (O-24).
        rules: Rewritings of label values (O-25).
        error_codes: Whether errors are counted by their codes (O-28).
    """

    def __init__(
        self,
        app_id: str,
        latency_buckets_ms: Sequence[float] = LATENCY_BUCKETS_MS,
        *,
        increased_cardinality: bool = False,
        patterns: PathPatterns | None = None,
        exclude_verbs: bool = False,
        rules: Sequence[Rule] = (),
        error_codes: bool = False,
    ) -> None:
        self._app_id = app_id
        self._latency = tuple(sorted(set(latency_buckets_ms)))
        self._increased = increased_cardinality
        self._excludes_verbs = exclude_verbs
        self._rules = rules
        self._counts_codes = error_codes
        self._families: list[AnyFamily] = []
        self._readings: list[Reading] = []
        self._warned = False
        self._server_paths = PathLabels(increased=increased_cardinality, patterns=patterns, encoded=True)
        self._client_paths = PathLabels(increased=increased_cardinality, patterns=patterns, encoded=False)
        # What each call looks at, one attribute away.
        self._known_paths = self._server_paths.known
        self._other_paths = self._server_paths.otherwise
        self._known_methods = self._client_paths.known
        self._other_methods = self._client_paths.otherwise
        self._server: dict[tuple[bytes, int, str], _Server] = {}
        self._client: dict[tuple[bytes, int, str], _Client] = {}
        self._rpcs: dict[tuple[bytes, int, bool], _RpcServer] = {}
        self._apps: dict[tuple[str, int], _AppRpc] = {}
        self._sent: dict[tuple[str, bool], Counter] = {}
        self._answered: dict[tuple[str, int, bool], _Answered] = {}
        self._received: dict[str, Counter] = {}
        self._returned: dict[tuple[str, int], Counter] = {}
        self._add_http()
        self._add_grpc_server()
        self._add_grpc_client()
        self._add_service_invocation()
        self._add_failures()

    def families(self) -> Iterator[AnyFamily]:
        """Iterate over all families that are recorded, those without a record included, in order of name."""
        return iter(sorted(self._families, key=lambda family: family.name))

    def shown(self) -> list[Shown]:
        """Return all that there is to show, what is read only now included."""
        return [*self._families, *self._readings]

    def add_reading(
        self,
        name: str,
        kind: str,
        help_text: str,
        labels: tuple[str, ...],
        read: Callable[[], Iterable[tuple[tuple[str, ...], float]]],
    ) -> None:
        """Have a metric read when somebody asks for it; see ``Reading``. ``app_id`` is put before the labels."""
        own = self._app_id
        self._readings.append(
            Reading(name, kind, help_text, ("app_id", *labels), lambda: (((own, *v), n) for v, n in read()))
        )

    # ── recording ──────────────────────────────────────────────────────────────────────────────────
    def record_call(self, record: CallRecord) -> None:
        """Count a call that is over, seen from this side of it.

        An outbound record counts as a request at the HTTP API and as one of service invocation, an inbound one as
        received. A local call counts at the API and at the app only (O section 5). Whatever reached the own HTTP
        app, or an endpoint outside the mesh, counts as a client call too.
        """
        if record.cause is not None:
            self._count_failure(record)
        if record.inbound:
            self._record_inbound(record)
        else:
            if not record.api_rpc:  # else its server counts it, in messages rather than bodies
                self.record_request(
                    record.api_verb or record.verb,
                    record.api_path,
                    record.status,
                    record.duration_s,
                    record.request_bytes,
                    record.response_bytes,
                )
            if not record.local:
                self._record_outbound(record, record.status if record.rpc_code < 0 else record.rpc_code)
                return
        if record.rpc_code >= 0:
            self._count_app_rpc(ON_INVOKE, record.rpc_code, record.app_s, record.request_bytes, record.response_bytes)
        elif record.app_s:
            self._count_client(record, record.status, record.app_s)
        elif record.cause in _APP_FAILED:
            self._count_client(record, 500, 0.0)

    def record_proxied(self, record: CallRecord) -> None:
        """Count a proxied call that is over: at the caller as service invocation, at the callee if it failed there."""
        if record.cause is not None:
            self._count_failure(record)
        if record.api_rpc:
            self.record_rpc(record.api_rpc, record.rpc_code, record.duration_s, None, 0)
        if not record.inbound and not record.local:
            self._record_outbound(record, record.rpc_code)

    def record_request(
        self, verb: bytes, path: bytes, status: int, duration_s: float, request_bytes: int, response_bytes: int
    ) -> None:
        """Count a request at the HTTP API or the public port; for calls that were sent ``record_call`` does it.

        Args:
            verb: As sent; an unusual one counts as ``UNKNOWN`` (O-24).
            path: As sent: percent-encoded, without the query.
            status: HTTP status of the answer.
            duration_s: Until the last byte of the answer was written.
            request_bytes: Declared length, 0 if there is none.
            response_bytes: Body bytes written.
        """
        label = self._known_paths.get(path, self._other_paths)
        if label is None:
            label = self._server_paths.find(path)
        found = self._server.get((verb, status, label)) or self._add_server(verb, status, label)
        requests, responses, latency, sizes_in, sizes_out = found
        requests.value += 1
        responses.value += 1
        milliseconds = int(duration_s * 1000)  # whole ones, as Dapr cuts them (O-22)
        latency.counts[bisect_left(latency.bounds, milliseconds)] += 1
        latency.sum += milliseconds
        sizes_in.counts[bisect_left(sizes_in.bounds, request_bytes)] += 1
        sizes_in.sum += request_bytes
        sizes_out.counts[bisect_left(sizes_out.bounds, response_bytes)] += 1
        sizes_out.sum += response_bytes

    def record_rpc(self, path: bytes, code: int, seconds: float, received: int | None, sent: int) -> None:
        """Count an RPC at the gRPC API that is over (O-26, O-27).

        Args:
            path: As sent, ``/service/method``.
            received: Bytes of the request's message; ``None`` for a stream, whose sizes are not counted.
            sent: Bytes of the answer's message.
        """
        is_stream = received is None
        found = self._rpcs.get((path, code, is_stream)) or self._add_rpc(path, code, is_stream)
        found.completed.value += 1
        found.latency.observe(int(seconds * 1000))
        if found.received is not None and found.sent is not None and received is not None:
            found.received.observe(received)
            found.sent.observe(sent)

    def record_app_call(self, record: CallRecord) -> None:
        """Count a call to the own app; those of ``record_call`` it counts by itself.

        Read are verb, method, status, ``app_s`` and the sizes. Without ``app_s`` there was no answer: a 500.
        """
        self._count_client(record, record.status if record.app_s else 500, record.app_s)

    def record_probe(self, status: int, seconds: float) -> None:
        """Count a probe of the app's health over HTTP that is over.

        Args:
            status: Of the answer; 500 if there was none.
            seconds: From sending until the answer was read, or until it failed.
        """
        values = (self._app_id, str(status))
        self._probes.child(*values).value += 1
        self._probe_latencies.child(*values).observe(int(seconds * 1000))

    def record_rpc_probe(self, code: int, seconds: float) -> None:
        """Count a probe of the app's health over gRPC that is over, by the code with which it ended."""
        values = (self._app_id, name_of(code))
        self._rpc_probes.child(*values).value += 1
        self._rpc_probe_latencies.child(*values).observe(int(seconds * 1000))

    def count_error(self, code: str, category: str) -> None:
        """Count an error answer of the API by its code, e.g. ``ERR_DIRECT_INVOKE``, if that was asked for (O-28)."""
        if self._counts_codes:
            self._error_codes.child(self._app_id, category, code).value += 1

    def _record_outbound(self, record: CallRecord, status: int) -> None:
        attempts = record.attempts
        if not attempts or record.target is None:
            return
        external = record.external
        peer = external or record.target.app_id
        streaming = record.streaming
        sent = self._sent.get((peer, streaming)) or self._add_sent(peer, streaming)
        sent.value += len(attempts)
        last = attempts[-1]
        # A body that broke off does not take back that there was an answer.
        answered = record.cause is None or last.outcome == "ok"
        if answered:
            found = self._answered.get((peer, status, streaming)) or self._add_answered(peer, status, streaming)
            count, latency = found
            count.value += 1
            # The time of the last attempt, with fractions: it is the one that was answered.
            milliseconds = (record.started + record.duration_s - last.started) * 1000
            latency.counts[bisect_left(latency.bounds, milliseconds)] += 1
            latency.sum += milliseconds
        if external:
            self._record_external(record, answered=answered)

    def _record_external(self, record: CallRecord, *, answered: bool) -> None:
        """Count the attempts of a call outside the mesh as calls to an HTTP server, which each of them is."""
        end = record.started + record.duration_s
        for attempt in reversed(record.attempts):
            if answered:
                self._count_client(record, record.status, record.app_s or end - attempt.started)
                answered = False  # the attempts before it were not
            else:
                self._count_client(record, 500, 0.0)

    def _record_inbound(self, record: CallRecord) -> None:
        if record.cause in _BEFORE_RECEIPT:
            return
        caller = record.caller or "unknown"
        if len(caller) > MAX_CALLER:
            caller = OVERFLOW  # it is only a claim, and would be kept
        received = self._received.get(caller) or self._add_received(caller)
        received.value += 1
        status = record.status if record.rpc_code < 0 else record.rpc_code
        returned = self._returned.get((caller, status)) or self._add_returned(caller, status)
        returned.value += 1

    def _count_client(self, record: CallRecord, status: int, seconds: float) -> None:
        label = self._known_methods.get(record.method, self._other_methods)
        if label is None:
            label = self._client_paths.find(record.method)
        found = self._client.get((record.verb, status, label)) or self._add_client(record.verb, status, label)
        completed, latency, sizes_out, sizes_in = found
        completed.value += 1
        milliseconds = int(seconds * 1000)
        latency.counts[bisect_left(latency.bounds, milliseconds)] += 1
        latency.sum += milliseconds
        size = record.request_bytes
        sizes_out.counts[bisect_left(sizes_out.bounds, size)] += 1
        sizes_out.sum += size
        size = record.response_bytes
        sizes_in.counts[bisect_left(sizes_in.bounds, size)] += 1
        sizes_in.sum += size

    def _count_app_rpc(self, method: str, code: int, seconds: float, sent: int, received: int) -> None:
        """Count an RPC to the own app; ``sent`` and ``received`` are the bytes of data in its messages."""
        found = self._apps.get((method, code)) or self._add_app_rpc(method, code)
        found.completed.value += 1
        found.latency.observe(int(seconds * 1000))
        found.sent.observe(sent)
        found.received.observe(received)

    def _count_failure(self, record: CallRecord) -> None:
        direction = "inbound" if record.inbound else "outbound"
        assert record.cause is not None
        self._failures.child(self._app_id, record.cause, direction, record.hop or "").value += 1

    # ── looking up: the slow way, once for each new set of label values ────────────────────────────
    def _verb(self, verb: bytes) -> str:
        if self._excludes_verbs:
            return ""
        return verb.decode("ascii") if verb in _VERBS else "UNKNOWN"

    def _add_app_rpc(self, method: str, code: int) -> _AppRpc:
        values = (self._app_id, method, name_of(code))
        made = _AppRpc(
            self._app_rpcs.child(*values),
            self._app_rpc_latencies.child(*values),
            self._app_rpc_sent.child(self._app_id, method),
            self._app_rpc_received.child(self._app_id, method),
        )
        return _keep(self._apps, (method, code), made)

    def _add_server(self, verb: bytes, status: int, path: str) -> _Server:
        values = (self._app_id, self._verb(verb), path, str(status))
        made = _Server(
            self._requests.child(*values),
            self._responses.child(*values),
            self._latencies.child(*values),
            self._request_sizes.child(self._app_id),
            self._response_sizes.child(self._app_id),
        )
        return _keep(self._server, (verb, status, path), made)

    def _add_client(self, verb: bytes, status: int, path: str) -> _Client:
        shown = self._verb(verb)
        values = (self._app_id, shown, path, str(status))
        made = _Client(
            self._client_completed.child(*values),
            self._client_latencies.child(*values),
            # Dapr leaves the status of this one empty.
            self._client_sent.child(self._app_id, shown, path, ""),
            self._client_received.child(self._app_id),
        )
        return _keep(self._client, (verb, status, path), made)

    def _add_rpc(self, path: bytes, code: int, is_stream: bool) -> _RpcServer:
        method, status = path.decode("utf-8", "replace"), name_of(code)
        made = _RpcServer(
            self._rpc_completed.child(self._app_id, method, status),
            self._rpc_latencies.child(self._app_id, method, status),
            None if is_stream else self._rpc_received.child(self._app_id, method),
            None if is_stream else self._rpc_sent.child(self._app_id, method),
        )
        return _keep(self._rpcs, (path, code, is_stream), made)

    def _add_sent(self, peer: str, streaming: bool) -> Counter:
        return _keep(self._sent, (peer, streaming), self._request_sent.child(self._app_id, peer, _TYPES[streaming]))

    def _add_answered(self, peer: str, status: int, streaming: bool) -> _Answered:
        count = self._response_received.child(self._app_id, peer, str(status), _TYPES[streaming])
        latency = self._response_latencies.child(self._app_id, peer, str(status))
        return _keep(self._answered, (peer, status, streaming), _Answered(count, latency))

    def _add_received(self, caller: str) -> Counter:
        return _keep(self._received, caller, self._request_received.child(self._app_id, caller))

    def _add_returned(self, caller: str, status: int) -> Counter:
        return _keep(self._returned, (caller, status), self._response_sent.child(self._app_id, caller, str(status)))

    def _bound_hit(self, name: str) -> None:
        """Say once that label values are counted together."""
        if not self._warned:
            self._warned = True
            log.warning(
                "%s has %d combinations of label values, which is the most that is kept (MAX_CHILDREN): further ones "
                "are counted together as %s, here and in other metrics. If paths hold ids, give "
                "'spec.metric.http.pathMatching', or set 'spec.metric.http.increasedCardinality' to false",
                name, MAX_CHILDREN, OVERFLOW,
            )  # fmt: skip

    # ── making the families ────────────────────────────────────────────────────────────────────────
    def _counter(self, name: str, help_text: str, *labels: str) -> Family[Counter]:
        all_labels = ("app_id", *labels)
        rewrites = for_metric(self._rules, name, all_labels)
        family = Family(name, "counter", help_text, all_labels, Counter, rewrites=rewrites, full=self._bound_hit)
        self._families.append(family)
        return family

    def _histogram(self, name: str, help_text: str, bounds: tuple[float, ...], *labels: str) -> Family[Histogram]:
        all_labels = ("app_id", *labels)
        rewrites = for_metric(self._rules, name, all_labels)
        family = Family(
            name,
            "histogram",
            help_text,
            all_labels,
            lambda: Histogram(bounds),
            rewrites=rewrites,
            full=self._bound_hit,
        )
        self._families.append(family)
        return family

    def _add_http(self) -> None:
        full = ("method", "path", "status")
        sizes = SIZE_BUCKETS_BYTES
        self._requests = self._counter(
            "dapr_http_server_request_count", "Count of HTTP requests processed by the server.", *full
        )
        self._responses = self._counter("dapr_http_server_response_count", "The number of HTTP responses", *full)
        if not self._increased:
            self._families.remove(self._responses)  # counted all the same, which is cheaper than asking
        self._latencies = self._histogram(
            "dapr_http_server_latency", "HTTP request end-to-end latency in server.", self._latency, *full
        )
        self._request_sizes = self._histogram(
            "dapr_http_server_request_bytes",
            "HTTP request body size if set as ContentLength (uncompressed) in server.",
            sizes,
        )
        self._response_sizes = self._histogram(
            "dapr_http_server_response_bytes", "HTTP response body size (uncompressed) in server.", sizes
        )
        self._client_completed = self._counter("dapr_http_client_completed_count", "Count of completed requests", *full)
        self._client_latencies = self._histogram(
            "dapr_http_client_roundtrip_latency",
            "Time between first byte of request headers sent to last byte of response received, or terminal error",
            self._latency,
            *full,
        )
        self._client_sent = self._histogram(
            "dapr_http_client_sent_bytes",
            "Total bytes sent in request body (not including headers)",
            sizes,
            *full,
        )
        self._client_received = self._histogram(
            "dapr_http_client_received_bytes",
            "Total bytes received in response bodies (not including headers but including error responses with bodies)",
            sizes,
        )
        self._probes = self._counter(
            "dapr_http_healthprobes_completed_count", "Count of completed health probes", "status"
        )
        self._probe_latencies = self._histogram(
            "dapr_http_healthprobes_roundtrip_latency",
            "Time between first byte of health probes headers sent to last byte of response received, "
            "or terminal error",
            self._latency,
            "status",
        )

    def _add_grpc_server(self) -> None:
        prefix = "dapr_grpc_io_server_"
        self._rpc_completed = self._counter(
            # Dapr's own words, wrong as they are.
            prefix + "completed_rpcs",
            "Distribution of bytes sent per RPC, by method.",
            "grpc_server_method",
            "grpc_server_status",
        )
        self._rpc_latencies = self._histogram(
            prefix + "server_latency",
            "Time between first byte of request received to last byte of response sent, or terminal error.",
            self._latency,
            "grpc_server_method",
            "grpc_server_status",
        )
        self._rpc_received = self._histogram(
            prefix + "received_bytes_per_rpc",
            "Total bytes received across all messages per RPC.",
            SIZE_BUCKETS_BYTES,
            "grpc_server_method",
        )
        self._rpc_sent = self._histogram(
            prefix + "sent_bytes_per_rpc",
            "Total bytes sent in across all response messages per RPC.",
            SIZE_BUCKETS_BYTES,
            "grpc_server_method",
        )

    def _add_grpc_client(self) -> None:
        method, status = "grpc_client_method", "grpc_client_status"
        prefix = "dapr_grpc_io_client_"
        self._app_rpcs = self._counter(prefix + "completed_rpcs", "Count of RPCs by method and status.", method, status)
        self._app_rpc_latencies = self._histogram(
            prefix + "roundtrip_latency",
            "Time between first byte of request sent to last byte of response received, or terminal error.",
            self._latency,
            method,
            status,
        )
        self._app_rpc_sent = self._histogram(
            prefix + "sent_bytes_per_rpc",
            "Total bytes sent across all request messages per RPC.",
            SIZE_BUCKETS_BYTES,
            method,
        )
        self._app_rpc_received = self._histogram(
            prefix + "received_bytes_per_rpc",
            "Total bytes received across all response messages per RPC.",
            SIZE_BUCKETS_BYTES,
            method,
        )
        self._rpc_probes = self._counter(
            "dapr_grpc_io_healthprobes_completed_count", "Count of completed health probes", status
        )
        self._rpc_probe_latencies = self._histogram(
            "dapr_grpc_io_healthprobes_roundtrip_latency",
            "Time between first byte of health probes sent to last byte of response received, or terminal error",
            self._latency,
            status,
        )

    def _add_service_invocation(self) -> None:
        prefix = "dapr_runtime_service_invocation_"
        self._request_sent = self._counter(
            prefix + "req_sent_total", "The number of requests sent via service invocation.", "dst_app_id", "type"
        )
        self._request_received = self._counter(
            prefix + "req_recv_total", "The number of requests received via service invocation.", "src_app_id"
        )
        self._response_sent = self._counter(
            prefix + "res_sent_total",
            "The number of responses sent via service invocation.",
            "dst_app_id",
            "status",
        )
        self._response_received = self._counter(
            prefix + "res_recv_total",
            "The number of responses received via service invocation.",
            "src_app_id",
            "status",
            "type",
        )
        self._response_latencies = self._histogram(
            prefix + "res_recv_latency_ms",
            "The latency of service invocation response.",
            self._latency,
            "src_app_id",
            "status",
        )

    def _add_failures(self) -> None:
        self._error_codes = self._counter(
            "dapr_error_code_total",
            "Total number of times an error with a specific error code was encountered.",
            "category",
            "error_code",
        )
        self._failures = self._counter(
            "tieline_call_failures_total",
            "Calls that a sidecar could not bring to an end, by what tieline-cause and tieline-hop tell the caller.",
            "cause",
            "direction",
            "hop",
        )


Key = TypeVar("Key")
Made = TypeVar("Made")


def _keep(cache: dict[Key, Made], key: Key, made: Made) -> Made:
    """Remember children for the next call; at the bound the memory starts afresh."""
    if len(cache) >= MAX_CHILDREN:
        cache.clear()
    cache[key] = made
    return made
