"""Call records become counts and distributions under Dapr's names."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.model import Attempt, CallRecord, Cause, Endpoint, Hop, Target
from tieline.telemetry.families import MAX_CHILDREN, MAX_OVERFLOW, OVERFLOW, Counter, Histogram
from tieline.telemetry.label_rules import compile_rules
from tieline.telemetry.metrics import LATENCY_BUCKETS_MS, MAX_CALLER, SIZE_BUCKETS_BYTES, Metrics

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
    for attempt in attempts:
        attempt.outcome = Cause.PEER_UNREACHABLE

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
    assert found["dapr_runtime_service_invocation_res_sent_total"] == {("me", "caller", "500"): 1}
    assert found["dapr_runtime_service_invocation_req_recv_total"] == {("me", "caller"): 1}


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
        metrics.record_request(verb, b"/x", 200, 0.0, 0, 0)

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

    metrics.record_request(b"GET", b"/x", 200, seconds, size, size)

    for name, value in (
        ("dapr_http_server_latency", int(seconds * 1000)),
        ("dapr_http_server_request_bytes", size),
        ("dapr_http_server_response_bytes", size),
    ):
        found = histogram(metrics, name)
        assert found.counts[bisect_left(found.bounds, value)] == 1
        assert (found.count, found.sum) == (1, value)


@pytest.mark.rule("O-24")
def test_the_verb_of_the_request_counts_at_the_api_and_the_one_that_the_app_sees_at_the_app() -> None:
    """A verb of the caller's own reaches the app as a POST."""
    metrics = Metrics("me")

    metrics.record_call(outbound(local=True, app_s=0.001, api_verb=b"CUSTOM", verb=b"POST"))

    found = recorded(metrics)
    assert list(found["dapr_http_server_request_count"]) == [("me", "UNKNOWN", "", "200")]
    assert list(found["dapr_http_client_completed_count"]) == [("me", "POST", "", "200")]


@pytest.mark.rule("O-24")
def test_verbs_can_be_left_out() -> None:
    metrics = Metrics("me", exclude_verbs=True)

    for verb in (b"GET", b"POST", b"CUSTOM"):
        metrics.record_call(outbound(local=True, app_s=0.001, verb=verb))

    found = recorded(metrics)
    assert found["dapr_http_server_request_count"] == {("me", "", "", "200"): 3}
    assert found["dapr_http_client_completed_count"] == {("me", "", "", "200"): 3}
    assert found["dapr_http_client_sent_bytes"] == {("me", "", "", ""): 3}


@pytest.mark.rule("O-23")
def test_paths_are_labels_only_with_increased_cardinality() -> None:
    """Then there is one family more. Requests count by their own path, calls to apps by the method's."""
    low, high = Metrics("me"), Metrics("me", increased_cardinality=True)
    call = outbound(local=True, app_s=0.001, api_path=b"/v1.0/invoke/me/method/a%20b", method=b"a b")

    for metrics in (low, high):
        metrics.record_call(call)

    full = ("me", "GET", "/v1.0/invoke/me/method/a b", "200")
    for name in ("request_count", "response_count", "latency"):
        assert recorded(high)[f"dapr_http_server_{name}"] == {full: 1}
    assert recorded(high)["dapr_http_client_completed_count"] == {("me", "GET", "/a b", "200"): 1}
    assert recorded(high)["dapr_http_client_sent_bytes"] == {("me", "GET", "/a b", ""): 1}
    assert "dapr_http_server_response_count" not in recorded(low)
    assert recorded(low)["dapr_http_server_request_count"] == {("me", "GET", "", "200"): 1}
    assert recorded(low)["dapr_http_client_completed_count"] == {("me", "GET", "", "200"): 1}


@pytest.mark.rule("O-25")
def test_a_rule_changes_one_metric_and_children_that_become_alike_are_one() -> None:
    rules, _ = compile_rules([("dapr_http_server_request_count", (("path", (("/orders/ID", "/orders/[0-9]+"),)),))])
    metrics = Metrics("me", increased_cardinality=True, rules=rules)

    for number in (17, 18, 17):
        metrics.record_request(b"GET", b"/orders/%d" % number, 200, 0.0, 0, 0)

    found = recorded(metrics)
    assert found["dapr_http_server_request_count"] == {("me", "GET", "/orders/ID", "200"): 3}
    assert len(found["dapr_http_server_response_count"]) == 2


def test_a_call_outside_the_mesh_counts_by_its_own_name_and_as_a_call_to_a_server() -> None:
    metrics = Metrics("me", increased_cardinality=True)

    metrics.record_call(outbound(external="http://127.0.0.1:3595", method=b"outside2", api_path=b"/x"))

    found = recorded(metrics)
    prefix = "dapr_runtime_service_invocation_"
    assert found[prefix + "req_sent_total"] == {("me", "http://127.0.0.1:3595", "unary"): 1}
    assert found[prefix + "res_recv_total"] == {("me", "http://127.0.0.1:3595", "200", "unary"): 1}
    assert found["dapr_http_client_completed_count"] == {("me", "GET", "/outside2", "200"): 1}
    assert histogram(metrics, "dapr_http_client_roundtrip_latency").sum == 2


def test_each_attempt_outside_the_mesh_is_a_call_and_those_without_an_answer_are_its_500() -> None:
    metrics = Metrics("me")
    attempts = tuple(Attempt(PEER, 10.0 + n) for n in range(2))

    metrics.record_call(outbound(external="ext", attempts=attempts, duration_s=1.5))
    metrics.record_call(outbound(external="ext", attempts=attempts, cause=Cause.PEER_UNREACHABLE, status=500))

    found = recorded(metrics)
    assert found["dapr_http_client_completed_count"] == {("me", "GET", "", "200"): 1, ("me", "GET", "", "500"): 3}
    assert found["dapr_runtime_service_invocation_req_sent_total"] == {("me", "ext", "unary"): 4}


def test_a_body_that_breaks_off_does_not_take_back_that_there_was_an_answer() -> None:
    metrics = Metrics("me")
    answered = Attempt(PEER, 10.0)
    answered.outcome = "ok"

    metrics.record_call(outbound(attempts=(answered,), cause=Cause.APP_BROKEN, hop=Hop.APP))
    metrics.record_call(inbound(cause=Cause.APP_BROKEN, hop=Hop.APP))

    found = recorded(metrics)
    assert found["dapr_runtime_service_invocation_res_recv_total"] == {("me", "callee", "200", "unary"): 1}
    assert found["dapr_http_client_completed_count"] == {("me", "GET", "", "200"): 1}


def test_failures_are_counted_by_what_the_caller_was_told() -> None:
    metrics = Metrics("me")

    metrics.record_call(outbound(cause=Cause.NAME_UNKNOWN, hop=Hop.CALLER, status=500, attempts=()))
    metrics.record_call(inbound(cause=Cause.APP_UNREACHABLE, hop=Hop.APP, status=500, app_s=0.0))
    metrics.record_call(outbound())

    assert recorded(metrics)["tieline_call_failures_total"] == {
        ("me", "name-unknown", "outbound", "caller"): 1,
        ("me", "app-unreachable", "inbound", "app"): 1,
    }


@pytest.mark.rule("O-28")
def test_error_codes_are_counted_if_that_is_asked_for() -> None:
    silent, counting = Metrics("me"), Metrics("me", error_codes=True)

    for metrics in (silent, counting):
        metrics.count_error("ERR_DIRECT_INVOKE", "service-invocation")
        metrics.count_error("ERR_HEALTH_NOT_READY", "health")
        metrics.count_error("ERR_DIRECT_INVOKE", "service-invocation")

    assert recorded(silent) == {}
    assert recorded(counting) == {
        "dapr_error_code_total": {
            ("me", "service-invocation", "ERR_DIRECT_INVOKE"): 2,
            ("me", "health", "ERR_HEALTH_NOT_READY"): 1,
        }
    }


def test_health_probes_have_families_of_their_own() -> None:
    metrics = Metrics("me")

    metrics.record_probe(200, 0.0019)
    metrics.record_probe(500, 0.5)
    metrics.record_probe(200, 0.001)

    assert recorded(metrics) == {
        "dapr_http_healthprobes_completed_count": {("me", "200"): 2, ("me", "500"): 1},
        "dapr_http_healthprobes_roundtrip_latency": {("me", "200"): 2, ("me", "500"): 1},
    }


def test_callers_whose_names_are_too_long_to_be_kept_count_together() -> None:
    metrics = Metrics("me")

    for letter in "ab":
        metrics.record_call(inbound(caller=letter * (MAX_CALLER + 1)))
    metrics.record_call(inbound(caller="c" * MAX_CALLER))

    received = recorded(metrics)["dapr_runtime_service_invocation_req_recv_total"]
    assert received == {("me", OVERFLOW): 2, ("me", "c" * MAX_CALLER): 1}


def test_beyond_the_bound_paths_share_what_is_counted_but_statuses_still_show(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A thousand distinct paths, or a million: what is shown stays of one size, and one line tells."""
    metrics = Metrics("me", increased_cardinality=True)

    for number in range(3 * MAX_CHILDREN):
        metrics.record_request(b"GET", b"/orders/%d" % number, 200, 0.0, 0, 0)
    metrics.record_request(b"POST", b"/orders/new", 503, 0.0, 0, 0)
    metrics.record_request(b"GET", b"/orders/0", 200, 0.0, 0, 0)

    requests = recorded(metrics)["dapr_http_server_request_count"]
    assert len(requests) == MAX_CHILDREN + 2
    assert requests["me", "GET", OVERFLOW, "200"] == 2 * MAX_CHILDREN
    assert requests["me", "POST", OVERFLOW, "503"] == 1
    assert requests["me", "GET", "/orders/0", "200"] == 2
    assert len(caplog.messages) == 1
    assert "MAX_CHILDREN" in caplog.messages[0]
    assert "1024" in caplog.messages[0]
    assert "pathMatching" in caplog.messages[0]


def test_nothing_that_callers_choose_makes_families_grow_without_end() -> None:
    """Paths, verbs, statuses, names of peers and of callers, all at once."""
    metrics = Metrics("me", increased_cardinality=True)

    for number in range(5000):
        name, status = f"app{number}", 200 + number % 800
        path = b"/v1.0/invoke/a/method/%d" % number
        metrics.record_call(
            outbound(external=name, api_path=path, method=path, status=status, api_verb=b"V%d" % number)
        )
        metrics.record_call(inbound(caller=name, method=path, status=status))

    for family in metrics.families():
        assert len(family.children) <= MAX_CHILDREN + MAX_OVERFLOW + 1, family.name
    assert sum(recorded(metrics)["dapr_http_server_request_count"].values()) == 5000


def test_what_is_only_read_when_asked_for_is_shown_with_the_own_app_id() -> None:
    metrics = Metrics("me")
    metrics.add_reading("tieline_x", "gauge", "h", ("listener",), lambda: [(("http",), 2)])

    (reading,) = (family for family in metrics.shown() if family.name == "tieline_x")

    assert reading.labels == ("app_id", "listener")
    assert reading.samples() == [(("me", "http"), 2)]
