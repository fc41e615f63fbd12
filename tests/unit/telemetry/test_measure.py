"""What a Configuration says about metrics takes effect, and a start tells what is in force."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from tieline.config.configuration import Configuration, load_configuration
from tieline.telemetry.measure import describe, make_metrics
from tieline.telemetry.metrics import Metrics
from tieline.telemetry.path_patterns import BadPattern


@pytest.fixture
def configured(tmp_path: Path) -> Any:
    def load(spec: dict[str, Any]) -> Configuration:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"kind": "Configuration", "spec": spec}))
        return load_configuration([str(path)], {})

    return load


def made(configuration: Configuration) -> Metrics | None:
    return make_metrics("me", configuration.metric, configuration.places)


@pytest.mark.rule("O-43")
@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({}, '{"enabled":true}'),
        (
            {"metric": {"http": {"increasedCardinality": False}}},
            '{"enabled":true,"http":{"increasedCardinality":false}}',
        ),
        (
            {"metric": {"recordErrorCodes": True, "http": {"excludeVerbs": True, "increasedCardinality": False}}},
            '{"enabled":true,"recordErrorCodes":true,"http":{"increasedCardinality":false,"excludeVerbs":true}}',
        ),
        (
            {"metric": {"latencyDistributionBuckets": [500, 5, 5, 50], "http": {"pathMatching": ["/a/{x}"]}}},
            '{"enabled":true,"http":{"pathMatching":["/a/{x}"]},"latencyDistributionBuckets":[500,5,5,50]}',
        ),
        (
            {"metric": {"rules": [{"name": "m", "labels": [{"name": "path", "regex": {"<": "&"}}]}]}},
            r'{"enabled":true,"rules":[{"name":"m","labels":[{"name":"path","regex":{"\u003c":"\u0026"}}]}]}',
        ),
        (
            {"metric": {"enabled": False}, "metrics": {"enabled": True, "http": {"increasedCardinality": False}}},
            '{"enabled":true,"http":{"increasedCardinality":false}}',
        ),
    ],
)
def test_the_line_about_what_is_measured(configured: Any, spec: dict[str, Any], text: str) -> None:
    """Word for word what tools look for in daprd's log."""
    assert describe(configured(spec).metric) == text


@pytest.mark.rule("C-8", "O-22", "O-43")
def test_what_a_start_logs(configured: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    made(configured({}))
    by_default = [(record.levelname, record.getMessage()) for record in caplog.records]
    caplog.clear()
    made(
        configured({"metric": {"http": {"increasedCardinality": True}, "latencyDistributionBuckets": [500, 5, 5, 50]}})
    )

    buckets = (
        "Using default latency distribution buckets: [1 2 3 4 5 6 8 10 13 16 20 25 30 40 50 65 80 100 130 160 200 "
        "250 300 400 500 650 800 1000 2000 5000 10000 20000 50000 100000]"
    )
    warning = (
        "The default value for 'spec.metric.http.increasedCardinality' will change to 'false' in Dapr 1.15 or later"
    )
    assert by_default == [("INFO", 'metric spec: {"enabled":true}'), ("INFO", buckets), ("WARNING", warning)]
    assert caplog.messages[1:] == ["Using custom latency distribution buckets: [500 5 5 50]"]


@pytest.mark.rule("C-13", "O-20")
def test_metrics_that_are_switched_off_are_not_made(configured: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    assert made(configured({"metric": {"enabled": False}})) is None
    assert made(configured({"metric": {"enabled": False}, "metrics": {"recordErrorCodes": True}})) is None
    assert caplog.messages == []
    assert made(configured({"metric": {"enabled": False}, "metrics": {"enabled": True}})) is not None


@pytest.mark.rule("C-10")
def test_a_pattern_without_meaning_stops_the_start_and_the_error_says_where_it_stands(configured: Any) -> None:
    with pytest.raises(BadPattern) as error:
        made(configured({"metric": {"http": {"pathMatching": ["/a/{x}/b", "/a/c/{y}"]}}}))

    assert "spec.metric.http.pathMatching (" in str(error.value)
    assert "config.yaml line " in str(error.value)
    assert "'/a/{x}/b' and '/a/c/{y}'" in str(error.value)


@pytest.mark.rule("C-10", "O-25")
def test_a_rule_without_meaning_is_told_and_left_out(configured: Any, caplog: pytest.LogCaptureFixture) -> None:
    rule = {"name": "dapr_http_server_request_count", "labels": [{"name": "path", "regex": {"x": "a("}}]}

    assert made(configured({"metric": {"rules": [rule], "http": {"increasedCardinality": False}}})) is not None

    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "dapr.runtime")
    assert record.getMessage().startswith(
        "[INIT_FAILURE]: initialization error occurred for metrics: failed to compile regex for rule "
        "http/server/request/countpath/x: error parsing regexp: missing closing ): `a(`"
    )
