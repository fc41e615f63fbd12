"""Counts and distributions of calls, kept in plain accumulators that cost well under a microsecond a call.

A ``Family`` is what Prometheus calls a metric family: a name, a help text, label names, and one child per tuple
of label values. Nothing is rendered here; a renderer walks ``Metrics.families()``. A family without children has
not been recorded yet and is not shown (O-21). Names, help texts and labels are Dapr's (O section 5).

``Metrics.record_call`` is the one place where a call record becomes metrics. It finds all children of a call by
one look-up: they are kept together under what tells the label values, e.g. verb and status.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from tieline.model import CallRecord, Cause

LATENCY_BUCKETS_MS: Final[tuple[int, ...]] = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 250, 300, 400, 500, 650, 800),
    *(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000),
)
SIZE_BUCKETS_BYTES: Final[tuple[int, ...]] = (
    *(1024, 2048, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864),
    *(268435456, 1073741824, 4294967296),
)
MAX_CHILDREN: Final = 1024
"""Most children of one family. Label values come from callers; without a bound they could fill the memory."""
OVERFLOW: Final = "__other__"
"""Value of all labels but ``app_id`` of the child that takes what is over the bound."""

_VERBS: Final = frozenset({b"GET", b"PUT", b"POST", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"CONNECT", b"TRACE"})
_APP_FAILED: Final = frozenset({Cause.APP_UNREACHABLE, Cause.APP_BROKEN})


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Histogram:
    """How often values fell into each bucket, and their sum.

    Attributes:
        bounds: Inclusive upper bounds, ascending, without infinity.
        counts: One more than bounds; the last is for what is over all of them. Not cumulative.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self.counts)


Child = TypeVar("Child", Counter, Histogram)


class Family(Generic[Child]):
    """One metric: its description and its children by label values.

    Attributes:
        kind: ``counter`` or ``histogram``.
        labels: Names, the first is always ``app_id``.
        children: At most ``MAX_CHILDREN`` and one more for the overflow.
    """

    def __init__(
        self, name: str, kind: str, help_text: str, labels: tuple[str, ...], make_child: Callable[[], Child]
    ) -> None:
        self.name = name
        self.kind = kind
        self.help_text = help_text
        self.labels = labels
        self.children: dict[tuple[str, ...], Child] = {}
        self._make_child: Callable[[], Child] = make_child

    def child(self, *values: str) -> Child:
        """Return the child for these label values, the overflow child if there are too many others."""
        found = self.children.get(values)
        if found is not None:
            return found
        if len(self.children) >= MAX_CHILDREN:
            values = (values[0], *(OVERFLOW for _ in values[1:]))
        return self.children.setdefault(values, self._make_child())


AnyFamily: TypeAlias = Family[Counter] | Family[Histogram]


class _Server(NamedTuple):
    """Children of one verb and status at the HTTP API."""

    requests: Counter
    latency: Histogram
    request_bytes: Histogram
    response_bytes: Histogram


class _Client(NamedTuple):
    """Children of one verb and status towards the HTTP app."""

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
    """

    def __init__(self, app_id: str, latency_buckets_ms: Sequence[float] = LATENCY_BUCKETS_MS) -> None:
        self._app_id = app_id
        self._latency = tuple(sorted(set(latency_buckets_ms)))
        self._families: list[AnyFamily] = []
        self._server: dict[tuple[bytes, int], _Server] = {}
        self._client: dict[tuple[bytes, int], _Client] = {}
        self._sent: dict[str, Counter] = {}
        self._answered: dict[tuple[str, int], _Answered] = {}
        self._received: dict[str, Counter] = {}
        self._returned: dict[tuple[str, int], Counter] = {}
        self._add_http()
        self._add_service_invocation()

    def families(self) -> Iterator[AnyFamily]:
        """Iterate over all families, recorded or not, in order of name."""
        return iter(sorted(self._families, key=lambda family: family.name))

    def record_call(self, record: CallRecord) -> None:
        """Count a call that is over, seen from this side of it.

        An outbound record counts as a request at the HTTP API and as one of service invocation, an inbound one as
        received. A local call counts at the API and at the app only (O section 5). Whatever reached the own HTTP
        app counts as a client call too.
        """
        if record.inbound:
            self._record_inbound(record)
        else:
            self.record_request(
                record.verb, record.status, record.duration_s, record.request_bytes, record.response_bytes
            )
            if not record.local:
                self._record_outbound(record)
                return
        if record.app_s or record.cause in _APP_FAILED:
            self._record_app_call(record)

    def record_request(
        self, verb: bytes, status: int, duration_s: float, request_bytes: int, response_bytes: int
    ) -> None:
        """Count a request at the HTTP API; for invocations ``record_call`` does it.

        Args:
            verb: As sent; an unusual one counts as ``UNKNOWN`` (O-24).
            status: HTTP status of the answer.
            duration_s: Until the last byte of the answer was written.
            request_bytes: Declared length, 0 if there is none.
            response_bytes: Body bytes written.
        """
        found = self._server.get((verb, status)) or self._add_server(verb, status)
        requests, latency, sizes_in, sizes_out = found
        requests.value += 1
        # ``Histogram.observe``, written out, here and below: on every call, it saves a fifth of a microsecond.
        milliseconds = int(duration_s * 1000)  # whole ones, as Dapr cuts them (O-22)
        latency.counts[bisect_left(latency.bounds, milliseconds)] += 1
        latency.sum += milliseconds
        sizes_in.counts[bisect_left(sizes_in.bounds, request_bytes)] += 1
        sizes_in.sum += request_bytes
        sizes_out.counts[bisect_left(sizes_out.bounds, response_bytes)] += 1
        sizes_out.sum += response_bytes

    def count_error(self, code: str, category: str) -> None:
        """Count an answer with one of Dapr's error codes (O-28)."""

    def _record_outbound(self, record: CallRecord) -> None:
        attempts = record.attempts
        if not attempts or record.target is None:
            return
        peer = record.target.app_id
        sent = self._sent.get(peer) or self._add_sent(peer)
        sent.value += len(attempts)
        if record.cause is None:
            count, latency = self._answered.get((peer, record.status)) or self._add_answered(peer, record.status)
            count.value += 1
            # The time of the last attempt, with fractions: it is the one that was answered.
            milliseconds = (record.started + record.duration_s - attempts[-1].started) * 1000
            latency.counts[bisect_left(latency.bounds, milliseconds)] += 1
            latency.sum += milliseconds

    def _record_inbound(self, record: CallRecord) -> None:
        caller = record.caller or "unknown"
        received = self._received.get(caller) or self._add_received(caller)
        received.value += 1
        returned = self._returned.get((caller, record.status)) or self._add_returned(caller, record.status)
        returned.value += 1

    def _record_app_call(self, record: CallRecord) -> None:
        # What failed on the way to the app counts as its 500.
        status = record.status if record.cause is None else 500
        found = self._client.get((record.verb, status)) or self._add_client(record.verb, status)
        completed, latency, sizes_out, sizes_in = found
        completed.value += 1
        milliseconds = int(record.app_s * 1000)
        latency.counts[bisect_left(latency.bounds, milliseconds)] += 1
        latency.sum += milliseconds
        size = record.request_bytes
        sizes_out.counts[bisect_left(sizes_out.bounds, size)] += 1
        sizes_out.sum += size
        size = record.response_bytes
        sizes_in.counts[bisect_left(sizes_in.bounds, size)] += 1
        sizes_in.sum += size

    # Looking up: the slow way, once for each new set of label values. The caches are as bounded as the families.

    def _add_server(self, verb: bytes, status: int) -> _Server:
        values = (self._app_id, _verb(verb), "", str(status))
        made = _Server(
            self._requests.child(*values),
            self._latencies.child(*values),
            self._request_sizes.child(self._app_id),
            self._response_sizes.child(self._app_id),
        )
        return _keep(self._server, (verb, status), made)

    def _add_client(self, verb: bytes, status: int) -> _Client:
        values = (self._app_id, _verb(verb), "", str(status))
        made = _Client(
            self._client_completed.child(*values),
            self._client_latencies.child(*values),
            # Dapr leaves the status of this one empty.
            self._client_sent.child(self._app_id, _verb(verb), "", ""),
            self._client_received.child(self._app_id),
        )
        return _keep(self._client, (verb, status), made)

    def _add_sent(self, peer: str) -> Counter:
        return _keep(self._sent, peer, self._request_sent.child(self._app_id, peer, "unary"))

    def _add_answered(self, peer: str, status: int) -> _Answered:
        count = self._response_received.child(self._app_id, peer, str(status), "unary")
        latency = self._response_latencies.child(self._app_id, peer, str(status))
        return _keep(self._answered, (peer, status), _Answered(count, latency))

    def _add_received(self, caller: str) -> Counter:
        return _keep(self._received, caller, self._request_received.child(self._app_id, caller))

    def _add_returned(self, caller: str, status: int) -> Counter:
        return _keep(self._returned, (caller, status), self._response_sent.child(self._app_id, caller, str(status)))

    # Making the families.

    def _counter(self, name: str, help_text: str, *labels: str) -> Family[Counter]:
        family = Family(name, "counter", help_text, ("app_id", *labels), Counter)
        self._families.append(family)
        return family

    def _histogram(self, name: str, help_text: str, bounds: tuple[float, ...], *labels: str) -> Family[Histogram]:
        family = Family(name, "histogram", help_text, ("app_id", *labels), lambda: Histogram(bounds))
        self._families.append(family)
        return family

    def _add_http(self) -> None:
        full = ("method", "path", "status")
        sizes = SIZE_BUCKETS_BYTES
        self._requests = self._counter(
            "dapr_http_server_request_count", "Count of HTTP requests processed by the server.", *full
        )
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


Key = TypeVar("Key")
Made = TypeVar("Made")


def _keep(cache: dict[Key, Made], key: Key, made: Made) -> Made:
    """Remember children for the next call; over the bound they are looked up anew each time."""
    if len(cache) < MAX_CHILDREN:
        cache[key] = made
    return made


def _verb(verb: bytes) -> str:
    return verb.decode("ascii") if verb in _VERBS else "UNKNOWN"
