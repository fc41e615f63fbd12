"""Families become text that a strict reader takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.prometheus import read
from tieline.model import Attempt, CallRecord, Endpoint, Target
from tieline.telemetry.exposition import bound_text, render
from tieline.telemetry.families import Counter, Family, Histogram, Reading
from tieline.telemetry.metrics import LATENCY_BUCKETS_MS, SIZE_BUCKETS_BYTES, Metrics
from tieline.telemetry.process import process_readings

RECORDED_BUCKETS = {
    "size": [
        *("1024", "2048", "4096", "16384", "65536", "262144", "1.048576e+06", "4.194304e+06", "1.6777216e+07"),
        *("6.7108864e+07", "2.68435456e+08", "1.073741824e+09", "4.294967296e+09", "+Inf"),
    ],
    "latency": [
        *("1", "2", "3", "4", "5", "6", "8", "10", "13", "16", "20", "25", "30", "40", "50", "65", "80", "100", "130"),
        *("160", "200", "250", "300", "400", "500", "650", "800", "1000", "2000", "5000", "10000", "20000", "50000"),
        *("100000", "+Inf"),
    ],
}
"""As daprd writes them: queries compare bounds as text."""


def family(kind: str, *labels: str, help_text: str = "h") -> Any:
    if kind == "counter":
        return Family("c_total", kind, help_text, labels, Counter)
    return Family("h", kind, help_text, labels, lambda: Histogram((1, 2.5)))


@pytest.mark.rule("O-20", "O-21")
def test_a_counter_is_a_line_a_child_and_a_family_without_children_is_not_there() -> None:
    counted, untouched = family("counter", "app_id", "path"), family("histogram", "app_id")
    counted.child("me", "/b").value = 2
    counted.child("me", "").value = 1

    assert "".join(render([counted, untouched])) == (
        '# HELP c_total h\n# TYPE c_total counter\nc_total{app_id="me",path=""} 1\nc_total{app_id="me",path="/b"} 2\n'
    )


def test_a_histogram_counts_up_to_infinity() -> None:
    observed = family("histogram", "app_id")
    for value in (1, 2, 2.5, 3):
        observed.child("me").observe(value)

    assert "".join(render([observed])) == (
        "# HELP h h\n"
        "# TYPE h histogram\n"
        'h_bucket{app_id="me",le="1"} 1\n'
        'h_bucket{app_id="me",le="2.5"} 3\n'
        'h_bucket{app_id="me",le="+Inf"} 4\n'
        'h_sum{app_id="me"} 8.5\n'
        'h_count{app_id="me"} 4\n'
    )


def test_without_labels_there_are_no_braces() -> None:
    reading = Reading("up", "gauge", "x", (), lambda: [((), 0.25)])
    nothing = Reading("down", "gauge", "x", (), list)

    assert "".join(render([reading, nothing])).splitlines()[-1] == "up 0.25"
    assert "down" not in "".join(render([reading, nothing]))


@pytest.mark.parametrize(
    ("number", "text"), [(float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN"), (2.0, "2"), (7, "7")]
)
def test_numbers(number: float, text: str) -> None:
    assert "".join(render([Reading("g", "gauge", "x", (), lambda: [((), number)])])).endswith(f"\ng {text}\n")


@pytest.mark.rule("O-22")
def test_bounds_are_written_as_daprd_writes_them() -> None:
    assert [bound_text(bound) for bound in SIZE_BUCKETS_BYTES] == RECORDED_BUCKETS["size"][:-1]
    assert [bound_text(bound) for bound in LATENCY_BUCKETS_MS] == RECORDED_BUCKETS["latency"][:-1]


@given(st.lists(st.text(max_size=20), min_size=2, max_size=2), st.text(max_size=20))
def test_any_text_may_be_a_value_or_a_help(values: list[str], help_text: str) -> None:
    """What a caller writes into a path cannot break out of its line; what is no Unicode becomes a question mark."""
    counted = family("counter", "a", "b", help_text=help_text)
    counted.child(*values).value = 3

    found = read("".join(render([counted])))

    shown = tuple(value.encode("utf-8", "replace").decode() for value in values)
    assert found["c_total"].values == {(("a", shown[0]), ("b", shown[1])): 3}
    assert found["c_total"].help_text == help_text


def test_lone_surrogates_are_replaced() -> None:
    counted = family("counter", "a")
    counted.child("x\udcff").value = 1

    assert list(read("".join(render([counted])))["c_total"].values) == [(("a", "x?"),)]


@pytest.mark.rule("O-21", "O-22")
def test_what_calls_leave_is_read_back() -> None:
    metrics = Metrics("me", increased_cardinality=True)
    record = CallRecord()
    record.target, record.attempts = Target("callee", "default", "callee"), (Attempt(Endpoint("127.0.0.1", 1), 10.0),)
    record.started, record.duration_s, record.verb, record.status = 10.0, 0.0035, b"GET", 200
    record.api_path = b"/v1.0/invoke/callee/method/x"
    for _ in range(3):
        metrics.record_call(record)

    found = read("".join(render(sorted(metrics.shown(), key=lambda one: one.name))))

    assert found["dapr_http_server_request_count"].values == {
        (("app_id", "me"), ("method", "GET"), ("path", "/v1.0/invoke/callee/method/x"), ("status", "200")): 3
    }
    (sizes,) = found["dapr_http_server_request_bytes"].distributions.values()
    assert list(sizes.buckets) == RECORDED_BUCKETS["size"]
    (latency,) = found["dapr_http_server_latency"].distributions.values()
    assert list(latency.buckets) == RECORDED_BUCKETS["latency"]
    assert (latency.sum, latency.count, latency.buckets["2"], latency.buckets["3"]) == (9, 3, 0, 3)


def test_the_process_tells_about_itself() -> None:
    """With the names that everybody's dashboards know."""
    found = read("".join(render(process_readings())))

    assert 1 << 20 < found["process_resident_memory_bytes"].values[()] < 1 << 32
    assert found["process_open_fds"].values[()] >= 3
    assert found["process_cpu_seconds_total"].values[()] > 0
    assert found["process_start_time_seconds"].values[()] > 1.7e9
    assert {labels for (labels,) in found["python_gc_collections_total"].values} >= {("generation", "0")}
