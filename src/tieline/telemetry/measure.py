"""From what a Configuration says about metrics to what is measured, with the lines that a start logs about it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tieline.config.configuration import Metric
from tieline.config.decode import Place
from tieline.telemetry.families import Rule
from tieline.telemetry.metrics import LATENCY_BUCKETS_MS, Metrics

if TYPE_CHECKING:
    from tieline.telemetry.path_patterns import PathPatterns

log = logging.getLogger("dapr.runtime.diagnostics")
_start_log = logging.getLogger("dapr.runtime")

_ORDER: Final = ("enabled", "recordErrorCodes", "http", "latencyDistributionBuckets", "rules")
_HTTP_ORDER: Final = ("increasedCardinality", "pathMatching", "excludeVerbs")


def make_metrics(app_id: str, spec: Metric, places: Mapping[str, Place]) -> Metrics | None:
    """Return the metrics that a Configuration asks for; ``None`` if it switches them off.

    A rule that cannot be used is told and left out: the others, and the start, are not spoilt by it (C-10).

    Args:
        places: Where the Configuration's keys stand, for the error.

    Raises:
        BadPattern: A pattern of ``pathMatching`` cannot be used.
    """
    if not spec.enabled:
        return None
    log.info("metric spec: %s", describe(spec))
    buckets = spec.latency_buckets_ms
    log.info(
        "Using %s latency distribution buckets: [%s]",
        "custom" if buckets else "default",
        " ".join(map(str, buckets or LATENCY_BUCKETS_MS)),
    )
    if spec.increased_cardinality is None:
        log.warning(
            "The default value for 'spec.metric.http.increasedCardinality' will change to 'false' in Dapr 1.15 or later"
        )
    return Metrics(
        app_id,
        buckets or LATENCY_BUCKETS_MS,
        increased_cardinality=spec.increased_cardinality is not False,
        patterns=_patterns(spec, places) if spec.path_matching else None,
        exclude_verbs=spec.exclude_verbs,
        rules=_rules(spec) if spec.rules else (),
        error_codes=spec.record_error_codes,
    )


def _rules(spec: Metric) -> list[Rule]:
    from tieline.telemetry.label_rules import compile_rules  # few have any, and it costs every start

    rules, problems = compile_rules((rule.name, rule.labels) for rule in spec.rules)
    for problem in problems:
        _start_log.error(
            "[INIT_FAILURE]: initialization error occurred for metrics: %s; this rule is left out", problem
        )
    return rules


def _patterns(spec: Metric, places: Mapping[str, Place]) -> PathPatterns:
    from tieline.telemetry.path_patterns import BadPattern, PathPatterns  # as above

    try:
        return PathPatterns(spec.path_matching)
    except BadPattern as error:
        names = ("spec.metrics.http.pathMatching", "spec.metric.http.pathMatching")
        name = next((name for name in names if name in places), names[1])
        where = f" ({places[name]})" if name in places else ""
        raise BadPattern(f"{name}{where}: {error}; change or remove the pattern") from error


def describe(spec: Metric) -> str:
    """Return what is in force as Dapr writes it: JSON without blanks, what was not given left out (O-43)."""
    given = {"enabled": spec.enabled, **_given(spec.given, _ORDER[1:])}
    if isinstance(http := given.get("http"), Mapping):
        given["http"] = _given(http, _HTTP_ORDER)
    if spec.rules:
        given["rules"] = [
            {"name": rule.name, "labels": [{"name": name, "regex": dict(sorted(pairs))} for name, pairs in rule.labels]}
            for rule in spec.rules
        ]
    text = json.dumps(given, separators=(",", ":"), ensure_ascii=False)
    # As Go's encoder has it: safe inside HTML.
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _given(block: Mapping[str, object], names: tuple[str, ...]) -> dict[str, object]:
    return {name: block[name] for name in names if block.get(name) not in (None, [], {})}
