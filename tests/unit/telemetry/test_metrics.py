"""Call records become counts and distributions under Dapr's names."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.model import Attempt, CallRecord, Cause, Endpoint, Hop, Target
from tieline.telemetry.metrics import (
    LATENCY_BUCKETS_MS,
    MAX_CHILDREN,
    OVERFLOW,
    SIZE_BUCKETS_BYTES,
    Counter,
    Histogram,
    Metrics,
)

PEER = Endpoint("127.0.0.1", 50002)


def outbound(**changes: Any) -> CallRecord:
    usual = {"target": Target("callee", "default", "callee"), "attempts": (Attempt(PEER, 10.001),)}
    return record(**{**usual, **changes})


def inbound(**changes: Any) -> CallRecord:
    return record(**{"inbound": True, "caller": "caller", "app_s": 0.0019, **changes})


def record(**changes: Any) -> CallRecord:
    made = CallRecord()
    made.started, made.duration_s, made.verb, made.status = 10.0, 0.0035, b"GET", 200
    made.request_bytes, made.response_bytes = 3, 2000
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def recorded(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Return all series: the value of counters, the count of histograms."""
    return {
        family.name: {
            values: child.value if isinstance(child, Counter) else child.count
            for values, child in family.children.items()
        }
        for family in metrics.families()
        if family.children
    }


def histogram(metrics: Metrics, name: str) -> Histogram:
    (family,) = (family for family in metrics.families() if family.name == name)
    (child,) = family.children.values()
    assert isinstance(child, Histogram)
    return child


@pytest.mark.rule("O-21")
def test_nothing_is_there_before_the_first_call() -> None:
    """All families are described, none is recorded, and each has Dapr's labels."""
    families = {family.name: family for family in Metrics("a").families()}

    assert recorded(Metrics("a")) == {}
    assert list(families) == sorted(families)
    assert families["dapr_http_server_request_count"].labels == ("app_id", "method", "path", "status")
    assert families["dapr_http_server_request_count"].kind == "counter"
    assert families["dapr_http_client_received_bytes"].labels == ("app_id",)
    prefix = "dapr_runtime_service_invocation_"
    assert families[prefix + "req_sent_total"].labels == ("app_id", "dst_app_id", "type")
    assert families[prefix + "req_recv_total"].labels == ("app_id", "src_app_id")
    assert families[prefix + "res_sent_total"].labels == ("app_id", "dst_app_id", "status")
    assert families[prefix + "res_recv_total"].labels == ("app_id", "src_app_id", "status", "type")
    assert families[prefix + "res_recv_latency_ms"].labels == ("app_id", "src_app_id", "status")
    assert families[prefix + "res_recv_latency_ms"].kind == "histogram"


def test_an_outbound_call_counts_at_the_api_and_in_service_invocation() -> None:
    """And in no client series: no app was called here."""
    metrics = Metrics("me")

    metrics.record_call(outbound())

    assert recorded(metrics) == {
        "dapr_http_server_request_count": {("me", "GET", "", "200"): 1},
        "dapr_http_server_latency": {("me", "GET", "", "200"): 1},
        "dapr_http_server_request_bytes": {("me",): 1},
        "dapr_http_server_response_bytes": {("me",): 1},
        "dapr_runtime_service_invocation_req_sent_total": {("me", "callee", "unary"): 1},
        "dapr_runtime_service_invocation_res_recv_total": {("me", "callee", "200", "unary"): 1},
        "dapr_runtime_service_invocation_res_recv_latency_ms": {("me", "callee", "200"): 1},
    }
    assert histogram(metrics, "dapr_http_server_request_bytes").sum == 3
    assert histogram(metrics, "dapr_http_server_response_bytes").sum == 2000


@pytest.mark.rule("O-22")
def test_latencies_are_whole_milliseconds_but_for_the_one_of_answers() -> None:
    """That one keeps fractions and is the time of the attempt that was answered."""
    metrics = Metrics("me")

    metrics.record_call(outbound())

    assert histogram(metrics, "dapr_http_server_latency").sum == 3
    latency = histogram(metrics, "dapr_runtime_service_invocation_res_recv_latency_ms")
    assert latency.sum == pytest.approx(2.5)


def test_an_inbound_call_counts_as_received_and_at_the_app() -> None:
    """And in no series of the HTTP API."""
    metrics = Metrics("me")

    metrics.record_call(inbound(status=404))

    assert recorded(metrics) == {
        "dapr_http_client_completed_count": {("me", "GET", "", "404"): 1},
        "dapr_http_client_roundtrip_latency": {("me", "GET", "", "404"): 1},
        "dapr_http_client_sent_bytes": {("me", "GET", "", ""): 1},
        "dapr_http_client_received_bytes": {("me",): 1},
        "dapr_runtime_service_invocation_req_recv_total": {("me", "caller"): 1},
        "dapr_runtime_service_invocation_res_sent_total": {("me", "caller", "404"): 1},
    }
    assert histogram(metrics, "dapr_http_client_roundtrip_latency").sum == 1


def test_calling_oneself_is_not_service_invocation() -> None:
    """It counts at the API and at the app."""
    metrics = Metrics("me")

    metrics.record_call(outbound(local=True, app_s=0.001))

    assert set(recorded(metrics)) == {
        "dapr_http_server_request_count",
        "dapr_http_server_latency",
        "dapr_http_server_request_bytes",
        "dapr_http_server_response_bytes",
        "dapr_http_client_completed_count",
        "dapr_http_client_roundtrip_latency",
        "dapr_http_client_sent_bytes",
        "dapr_http_client_received_bytes",
    }


def test_each_attempt_counts_as_sent_and_only_an_answer_as_received() -> None:
    """A target that was not found was never sent to."""
    metrics = Metrics("me")
    attempts = tuple(Attempt(PEER, 10.0 + n) for n in range(4))

    metrics.record_call(outbound(attempts=attempts, cause=Cause.PEER_UNREACHABLE, hop=Hop.PEER, status=500))
    metrics.record_call(outbound(attempts=(), cause=Cause.NAME_UNKNOWN, hop=Hop.CALLER, status=500))

    found = recorded(metrics)
    assert found["dapr_runtime_service_invocation_req_sent_total"] == {("me", "callee", "unary"): 4}
    assert "dapr_runtime_service_invocation_res_recv_total" not in found
    assert found["dapr_http_server_request_count"] == {("me", "GET", "", "500"): 2}


def test_an_app_that_cannot_be_reached_counts_as_its_500_a_refused_call_not_at_all() -> None:
    """Access control ends a call before the app."""
    metrics = Metrics("me")

    metrics.record_call(inbound(app_s=0.0, cause=Cause.APP_UNREACHABLE, hop=Hop.APP, status=500))
    metrics.record_call(inbound(app_s=0.0, cause=Cause.DENIED, hop=Hop.PEER, status=403))

    found = recorded(metrics)
    assert found["dapr_http_client_completed_count"] == {("me", "GET", "", "500"): 1}
    assert found["dapr_runtime_service_invocation_res_sent_total"] == {
        ("me", "caller", "500"): 1,
        ("me", "caller", "403"): 1,
    }


def test_a_caller_without_a_name_is_unknown() -> None:
    """As Dapr labels it."""
    metrics = Metrics("me")

    metrics.record_call(inbound(caller=""))

    assert recorded(metrics)["dapr_runtime_service_invocation_req_recv_total"] == {("me", "unknown"): 1}


@pytest.mark.rule("O-24")
def test_a_verb_of_the_callers_own_is_unknown() -> None:
    """Verbs come from callers, so there might be any number of them."""
    metrics = Metrics("me")

    for verb in (b"CUSTOM", b"get", b"\xff", b"TRACE"):
        metrics.record_request(verb, 200, 0.0, 0, 0)

    assert recorded(metrics)["dapr_http_server_request_count"] == {
        ("me", "UNKNOWN", "", "200"): 3,
        ("me", "TRACE", "", "200"): 1,
    }


def test_labels_chosen_by_callers_cannot_fill_the_memory() -> None:
    """Beyond the bound they share one child; nothing is lost, and what was there goes on."""
    metrics = Metrics("me")

    for number in range(MAX_CHILDREN + 50):
        metrics.record_call(inbound(caller=f"c{number}"))
    metrics.record_call(inbound(caller="c0"))

    received = recorded(metrics)["dapr_runtime_service_invocation_req_recv_total"]
    assert len(received) == MAX_CHILDREN + 1
    assert received["me", OVERFLOW] == 50
    assert received["me", "c0"] == 2
    assert sum(received.values()) == MAX_CHILDREN + 51


@pytest.mark.rule("O-22")
def test_buckets() -> None:
    """Dapr's, or those of the user in order and each once."""
    metrics, own = Metrics("me"), Metrics("me", [50, 5, 50, 0.5])

    metrics.record_call(outbound())
    own.record_call(outbound())

    name = "dapr_http_server_latency"
    assert histogram(metrics, name).bounds == LATENCY_BUCKETS_MS
    assert len(LATENCY_BUCKETS_MS) == 34
    assert histogram(own, name).bounds == (0.5, 5, 50)
    assert histogram(own, "dapr_runtime_service_invocation_res_recv_latency_ms").bounds == (0.5, 5, 50)
    assert histogram(own, "dapr_http_server_request_bytes").bounds == SIZE_BUCKETS_BYTES


@given(st.lists(st.floats(0, 200_000), max_size=30))
def test_each_value_falls_into_the_first_bucket_that_is_not_below_it(values: list[float]) -> None:
    """Upper bounds are inclusive, as Prometheus has them; the last bucket takes the rest."""
    found = Histogram(LATENCY_BUCKETS_MS)

    for value in values:
        found.observe(value)

    bounds = (*LATENCY_BUCKETS_MS, float("inf"))
    for index, bound in enumerate(bounds):
        assert sum(found.counts[: index + 1]) == sum(value <= bound for value in values)
    assert found.count == len(values)
    assert found.sum == pytest.approx(sum(values))


@given(st.integers(0, 10**10), st.floats(0, 200, allow_nan=False))
def test_the_quick_way_observes_as_the_plain_one(size: int, seconds: float) -> None:
    """A request's three distributions are written out by hand; they must agree with ``observe``."""
    metrics = Metrics("me")

    metrics.record_request(b"GET", 200, seconds, size, size)

    for name, value in (
        ("dapr_http_server_latency", int(seconds * 1000)),
        ("dapr_http_server_request_bytes", size),
        ("dapr_http_server_response_bytes", size),
    ):
        found = histogram(metrics, name)
        assert found.counts[bisect_left(found.bounds, value)] == 1
        assert (found.count, found.sum) == (1, value)
