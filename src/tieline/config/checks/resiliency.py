"""Checks of Resiliency resources (R-2 to R-5, R-11, R-12)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tieline.config.checks.findings import Findings, quoted
from tieline.config.checks.resource import FREE, TEXT, resource
from tieline.config.decode import MapOf, Scalar, Schema
from tieline.config.duration import parse_duration
from tieline.config.manifests import Manifest, block, field, text
from tieline.config.spelling import closest
from tieline.config.yaml_nodes import Node

_NUMBER: Final = Scalar.NUMBER
_TARGET: Final[Schema] = {"timeout": TEXT, "retry": TEXT, "circuitBreaker": TEXT}
_APP: Final[Schema] = {
    "timeout": TEXT,
    "retry": TEXT,
    "circuitBreaker": TEXT,
    "circuitBreakerCacheSize": _NUMBER,
    "circuitBreakerScope": TEXT,
}
SCHEMA: Final = resource(
    {
        "policies": {
            "timeouts": MapOf(TEXT),
            "retries": MapOf(
                {
                    "policy": TEXT,
                    "duration": TEXT,
                    "maxInterval": TEXT,
                    "maxRetries": _NUMBER,
                    "matching": {"httpStatusCodes": TEXT, "gRPCStatusCodes": TEXT},
                }
            ),
            "circuitBreakers": MapOf(
                {"name": TEXT, "maxRequests": _NUMBER, "interval": TEXT, "timeout": TEXT, "trip": TEXT}
            ),
        },
        "targets": {
            "apps": MapOf(_APP),
            "actors": MapOf(_APP),
            "components": MapOf({"inbound": _TARGET, "outbound": _TARGET}),
        },
        "scopes": FREE,
    }
)
_KINDS: Final = {"timeout": "timeouts", "retry": "retries", "circuitBreaker": "circuitBreakers"}
_MILLISECONDS: Final = re.compile(r"[+-]?[0-9]+")
_CODES: Final = re.compile(r"([0-9+]+)(?:-([0-9+]+))?")


def check_resiliency(manifest: Manifest, found: Findings) -> None:
    """Note what is wrong with policies and targets whose shape is right."""
    spec = field(manifest.root, "spec")
    policies = field(spec, "policies")
    if (scopes := field(spec, "scopes")) is not None:
        found.error(scopes.line, "scopes within spec is passed over", "put scopes beside spec")
    for name, node in block(field(policies, "timeouts"), "").items():
        if not _is_duration(node):
            found.error(node.line, f"timeout {name}: {_shown(node)} is no duration", "such as 5s or 300ms")
    for name, retry in block(field(policies, "retries"), "").items():
        _check_retry(name, retry, found)
    for name, breaker in block(field(policies, "circuitBreakers"), "").items():
        _check_durations(f"circuit breaker {name}", breaker, ("interval", "timeout"), found)
    _check_targets(spec, policies, found)


def _check_retry(name: str, retry: Node, found: Findings) -> None:
    what = f"retry {name}"
    policy = text(retry, "policy", "").lower()
    if policy not in ("", "constant", "exponential"):
        found.error(retry.line, f"{what}: policy must be constant or exponential, not {policy}")
    _check_durations(what, retry, ("duration", "maxInterval"), found)
    if policy == "exponential" and field(retry, "duration") is not None:
        found.warn(retry.line, f"{what}: duration is for constant pauses only", "give maxInterval")
    if policy in ("", "constant") and field(retry, "maxInterval") is not None:
        found.warn(retry.line, f"{what}: maxInterval is for exponential pauses only", "give duration")
    matching = field(retry, "matching")
    for key, least, most in (("httpStatusCodes", 100, 599), ("gRPCStatusCodes", 0, 16)):
        node = field(matching, key)
        if node is not None and isinstance(node.content, str):
            for item in filter(None, node.content.split(",")):
                if not _is_range(item, least, most):
                    hint = f"numbers from {least} to {most} and ranges such as a-b, without blanks"
                    found.error(node.line, f"{what}: {key}: {item!r} is no code", hint)


def _is_range(item: str, least: int, most: int) -> bool:
    match = _CODES.fullmatch(item)
    if match is None:
        return False
    try:
        first, last = int(match[1]), int(match[2] or match[1])
    except ValueError:
        return False
    return least <= first <= last <= most


def _check_durations(what: str, node: Node, keys: tuple[str, ...], found: Findings) -> None:
    for key in keys:
        value = field(node, key)
        if value is not None and value.content != "" and not _is_duration(value):
            found.error(value.line, f"{what}: {key}: {_shown(value)} is no duration", "such as 5s or 300ms")


def _check_targets(spec: Node | None, policies: Node | None, found: Findings) -> None:
    """Policies may also stand in another resource, so a missing one is only worth a warning (R-9, R-11)."""
    known = {key: list(block(field(policies, kind), "")) for key, kind in _KINDS.items()}
    for what, target in _targets(field(spec, "targets")):
        for key, names in known.items():
            node = field(target, key)
            if node is None or node.content in names:
                continue
            message = f"{what}: there is no {key} policy {node.content!r} here: if nowhere else, none applies"
            found.warn(node.line, message, quoted(closest(str(node.content), names)))


def _targets(targets: Node | None) -> Iterator[tuple[str, Node]]:
    for kind in ("apps", "actors"):
        for name, target in block(field(targets, kind), "").items():
            yield f"targets.{kind}.{name}", target
    for name, component in block(field(targets, "components"), "").items():
        for direction in ("inbound", "outbound"):
            if (way := field(component, direction)) is not None:
                yield f"targets.components.{name}.{direction}", way


def _is_duration(node: Node) -> bool:
    if not isinstance(node.content, str) or node.is_null:
        return False
    if _MILLISECONDS.fullmatch(node.content):
        return True
    try:
        parse_duration(node.content)
    except ValueError:
        return False
    return True


def _shown(node: Node) -> str:
    return repr(node.content) if isinstance(node.content, str) else node.what
