"""Checks of Configurations: what would end a start, and what would do nothing without a word."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from tieline.config.api_lists import rule_faults
from tieline.config.built import BUILT, Features
from tieline.config.checks.component import MIDDLEWARE
from tieline.config.checks.findings import Findings, quoted
from tieline.config.checks.shape import Shape, without
from tieline.config.configuration import DEFAULT_FEATURES, DOCUMENT, LOADING, Configuration, examine
from tieline.config.decode import Place, WrongType
from tieline.config.manifests import field, items, text
from tieline.config.remarks import MTLS_IS_NO_SWITCH
from tieline.config.spelling import closest
from tieline.config.yaml_nodes import Node

FEATURES: Final = (
    *DEFAULT_FEATURES,
    "ActorStateTTL",
    "MapGRPCStatusToHTTP",
    "WorkflowHistorySigning",
    "WorkflowsClusteredDeployment",
    "WorkflowsFastPath",
)
VERBS: Final = ("*", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")


class HandlerUse(NamedTuple):
    """A component that a pipeline wants."""

    name: str
    type: str
    version: str
    line: int


def check_configuration(
    document: Node, found: Findings, *, built: Features = BUILT
) -> tuple[Configuration | None, list[HandlerUse]]:
    """Note what is wrong; return what it says, as far as it goes, and the components that its pipelines want."""
    shape = Shape(found, any_case=False)
    shape.check(DOCUMENT, document)
    document = without(document, shape.wrong)
    handlers: list[HandlerUse] = []
    with contextlib.suppress(WrongType):  # the shape, and noted by then
        spec = field(document, "spec")
        for lint in _LINTS:
            with contextlib.suppress(WrongType):
                lint(spec, found)
        for name in ("httpPipeline", "appHttpPipeline"):
            with contextlib.suppress(WrongType):
                handlers += _handlers(name, field(spec, name), found)
    try:
        examined = examine(document, found.file, built=built)
    except WrongType:
        return None, handlers
    refused = set()
    for name, line, refusal in examined.refusals:
        refused.add(name)
        message = refusal.message.removeprefix(LOADING).replace(f" ({Place(found.file, line)})", "")
        found.error(line, message)
    if examined.configuration.asks_for_mtls:
        found.warn(examined.configuration.places["spec.mtls"].line, MTLS_IS_NO_SWITCH)
        refused.add("spec.mtls")
    for name in examined.configuration.ineffective:
        if name not in refused:
            found.note(examined.configuration.places[name].line, f"{name} has no effect in this version of Tieline")
    return examined.configuration, handlers


def _features(spec: Node | None, found: Findings) -> None:
    for entry in items(spec, "features", ""):
        name = text(entry, "name", "")
        if not name or field(entry, "enabled") is None:
            found.warn(entry.line, "a feature needs name and enabled: this entry is passed over")
        elif name not in FEATURES:
            guess = closest(name, FEATURES)
            found.warn(entry.line, f"there is no feature {name}: switching it does nothing", quoted(guess))


def _tracing(spec: Node | None, found: Findings) -> None:
    rate = field(field(spec, "tracing"), "samplingRate")
    if rate is None:
        return
    try:
        if not 0 <= float(str(rate.content)) <= 1:
            found.warn(rate.line, f"samplingRate {rate.content} is not from 0 to 1: all is traced, or nothing")
    except ValueError:
        found.warn(rate.line, f"samplingRate {rate.content} is no number: 0.0001 is taken")


def _api(spec: Node | None, found: Findings) -> None:
    api = field(spec, "api")
    for kind in ("allowed", "denied"):
        for rule in items(api, kind, ""):
            name, protocol = text(rule, "name", ""), text(rule, "protocol", "")
            for fault in rule_faults(name, text(rule, "version", ""), protocol):
                note = found.error if fault.is_certain else found.warn
                note(rule.line, f"api.{kind}: {fault.text}", fault.hint)


def _access(spec: Node | None, found: Findings) -> None:
    access = field(spec, "accessControl")
    if access is None:
        return
    _action(access, "defaultAction", "accessControl", found)
    policies = items(access, "policies", "")
    if policies and field(access, "defaultAction") is None:
        found.warn(
            access.line,
            "accessControl has policies but no defaultAction: all other apps may call",
            "add defaultAction: deny",
        )
    for policy in policies:
        what = f"policy of {text(policy, 'appId', '') or 'an app'}"
        _action(policy, "defaultAction", what, found)
        for operation in items(policy, "operations", ""):
            _operation(what, operation, found)


def _operation(what: str, operation: Node, found: Findings) -> None:
    _action(operation, "action", what, found)
    name = text(operation, "name", "")
    if "/*/" in name.rstrip("/"):
        found.warn(operation.line, f"{what}: in {name}, the * between slashes stands for itself only")
    verbs = [str(verb.content) for verb in items(operation, "httpVerb", "")]
    if not verbs:
        found.warn(
            operation.line, f"{what}: {name or 'an operation'} has no httpVerb: it decides nothing for HTTP apps"
        )
    for verb in verbs:
        if verb not in VERBS:
            guess = closest(verb, VERBS)
            found.warn(operation.line, f"{what}: the verb {verb} matches no request", quoted(guess))


def _action(node: Node, key: str, what: str, found: Findings) -> None:
    action = field(node, key)
    if action is not None and str(action.content).lower() not in ("", "allow", "deny"):
        found.error(action.line, f"{what}: {key} must be allow or deny; {action.content} counts as deny")


def _handlers(pipeline: str, node: Node | None, found: Findings) -> Iterator[HandlerUse]:
    for handler in items(node, "handlers", ""):
        name, kind = text(handler, "name", ""), text(handler, "type", "")
        if not name or not kind:
            found.error(handler.line, f"{pipeline}: a handler needs name and type: this one is left out")
            continue
        if kind not in MIDDLEWARE:
            found.error(handler.line, f"{pipeline}: there is no middleware {kind}", quoted(closest(kind, MIDDLEWARE)))
        if field(handler, "selector") is not None:
            found.warn(handler.line, f"{pipeline}: the selector of {name} is never looked at")
        yield HandlerUse(name, kind, text(handler, "version", "") or "v1", handler.line)


_LINTS: Final[tuple[Callable[[Node | None, Findings], None], ...]] = (_features, _tracing, _api, _access)
