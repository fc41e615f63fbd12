"""Reads Configuration files (``--config``) into frozen data, and refuses protections that this version lacks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tieline.config.built import BUILT, Feature, Features
from tieline.config.decode import (
    Data,
    Decoder,
    ListOf,
    MapOf,
    Place,
    Scalar,
    Schema,
    Unknown,
    WrongType,
    as_block,
    as_list,
)
from tieline.config.environment import expand_environment
from tieline.config.fatal import FatalOption, ProtectionNotBuilt
from tieline.config.yaml_nodes import Node, YamlProblem, read_first_document

MAX_FILE_BYTES: Final = 1 << 20
"""Longest Configuration file, before and after the environment is put in."""

LOADING: Final = "error loading configuration: "
"""First words where a file cannot be used."""
DEFAULT_FEATURES: Final = ("HotReload", "WorkflowsRemoteActivityReminder")
"""On unless a Configuration names them (C-19)."""


class Tracing(NamedTuple):
    """How much is traced.

    Attributes:
        sampling_rate: As the user wrote it; empty or no number means 0.0001 (O-1).
        off: The rate is 0 or less: no tracing step at all.
    """

    sampling_rate: str
    off: bool


class NameResolutionSpec(NamedTuple):
    """Which resolver the user chose.

    Attributes:
        component: As written, in any case (N-1); empty for the default chain.
        version: ``v1`` if not given.
        configuration: Whatever the resolver takes; ``None`` if not given.
        place: Where the block stands.
    """

    component: str
    version: str
    configuration: object
    place: Place


class ApiLogging(NamedTuple):
    """Which API calls are logged, if the command line does not say."""

    enabled: bool
    obfuscate_urls: bool
    omit_health_checks: bool


class MetricRule(NamedTuple):
    """Rewrites label values of one metric.

    Attributes:
        labels: For each label: its name, and pairs of replacement and pattern, in order.
    """

    name: str
    labels: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


class Metric(NamedTuple):
    """What is measured, ``metrics`` laid over ``metric`` (C-13).

    Attributes:
        increased_cardinality: ``None`` if not given.
        latency_buckets_ms: Bounds of histograms of time; none means the built-in ones.
        given: The block as merged, for the log line about it (O-43).
    """

    enabled: bool
    record_error_codes: bool
    increased_cardinality: bool | None
    path_matching: tuple[str, ...]
    exclude_verbs: bool
    latency_buckets_ms: tuple[int, ...]
    rules: tuple[MetricRule, ...]
    given: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Configuration:
    """All Configuration files, laid over the defaults.

    Attributes:
        features: Name and whether it is on, in the order of the list; entries that say neither are left out.
        name_resolution: ``None`` if the user chose none.
        access_control: The block as merged, start values included; ``None`` if cleared.
        api: The allow and deny lists as written; empty if not given.
        http_pipeline: Handlers as written, outermost first; ``app_http_pipeline`` likewise.
        denied_components: Types, or types and versions, of components that are not to be loaded.
        ineffective: Dotted names of given blocks that do nothing in this version.
        asks_for_mtls: ``spec.mtls.enabled`` is true, which a sidecar does not look at (C-20).
        unknown: Keys that no Configuration has, by dotted name.
        places: Where each key was last written, by dotted name.
    """

    tracing: Tracing
    features: tuple[tuple[str, bool], ...]
    name_resolution: NameResolutionSpec | None
    api_logging: ApiLogging
    metric: Metric
    access_control: Mapping[str, object] | None
    api: Mapping[str, object]
    http_pipeline: tuple[Mapping[str, object], ...]
    app_http_pipeline: tuple[Mapping[str, object], ...]
    denied_components: tuple[str, ...]
    ineffective: tuple[str, ...]
    asks_for_mtls: bool
    unknown: Mapping[str, Unknown] = field(repr=False)
    places: Mapping[str, Place] = field(repr=False)

    def enabled_features(self) -> tuple[str, ...]:
        """Return the names that are on, each once, in order: a later ``false`` takes a name out (C-19)."""
        on: dict[str, None] = {}
        for name, enabled in self.features:
            if enabled:
                on[name] = None
            else:
                on.pop(name, None)
        return tuple(on)


# --- what a file may hold (C-8) --------------------------------------------------------------------------------------

_TEXT, _SWITCH, _NUMBER, _FREE = Scalar.TEXT, Scalar.SWITCH, Scalar.NUMBER, Scalar.FREE
_TEXTS: Final = ListOf(_TEXT)
_PIPELINE: Final[Schema] = {
    "handlers": ListOf({"name": _TEXT, "type": _TEXT, "version": _TEXT, "selector": _FREE}),
}
_METRIC: Final[Schema] = {
    "enabled": _SWITCH,
    "http": {"increasedCardinality": _SWITCH, "pathMatching": _TEXTS, "excludeVerbs": _SWITCH},
    "recordErrorCodes": _SWITCH,
    "latencyDistributionBuckets": ListOf(_NUMBER),
    "rules": ListOf({"name": _TEXT, "labels": ListOf({"name": _TEXT, "regex": MapOf(_TEXT)})}),
    "workflow": _FREE,
}
_API_RULES: Final = ListOf({"name": _TEXT, "version": _TEXT, "protocol": _TEXT})
_OPERATION: Final[Schema] = {"name": _TEXT, "httpVerb": _TEXTS, "action": _TEXT}
_POLICY: Final[Schema] = {
    "appId": _TEXT,
    "defaultAction": _TEXT,
    "trustDomain": _TEXT,
    "namespace": _TEXT,
    "operations": ListOf(_OPERATION),
}
_SPEC: Final[Schema] = {
    "httpPipeline": _PIPELINE,
    "appHttpPipeline": _PIPELINE,
    "tracing": {
        "samplingRate": _TEXT,
        "stdout": _SWITCH,
        "zipkin": {"endpointAddress": _TEXT},
        "otel": {
            "protocol": _TEXT,
            "endpointAddress": _TEXT,
            "isSecure": _SWITCH,
            "headers": _FREE,
            "timeout": Scalar.DURATION,
        },
    },
    "metric": _METRIC,
    "metrics": _METRIC,
    "logging": {"apiLogging": {"enabled": _SWITCH, "obfuscateURLs": _SWITCH, "omitHealthChecks": _SWITCH}},
    "nameResolution": {"component": _TEXT, "version": _TEXT, "configuration": _FREE},
    "accessControl": {"defaultAction": _TEXT, "trustDomain": _TEXT, "policies": ListOf(_POLICY)},
    "api": {"allowed": _API_RULES, "denied": _API_RULES},
    "features": ListOf({"name": _TEXT, "enabled": _SWITCH}),
    "mtls": _FREE,
    "secrets": {
        "scopes": ListOf(
            {"storeName": _TEXT, "defaultAccess": _TEXT, "allowedSecrets": _TEXTS, "deniedSecrets": _TEXTS}
        ),
    },
    "components": {"deny": _TEXTS},
    "wasm": {"strictSandbox": _SWITCH},
    "workflow": _FREE,
}
# Neither kind nor apiVersion nor metadata is looked at (C-3).
DOCUMENT: Final[Mapping[str, Schema]] = {"apiVersion": _FREE, "kind": _FREE, "metadata": _FREE, "spec": _SPEC}

_START: Final[Data] = {
    "spec": {
        "tracing": {"otel": {"isSecure": True}},
        "metric": {"enabled": True},
        "accessControl": {"defaultAction": "allow", "trustDomain": "public"},
    }
}

# Blocks that need a feature; those that protect are looked at apart, by what they say.
_NEEDS: Final = {
    "spec.httpPipeline": Feature.MIDDLEWARE,
    "spec.appHttpPipeline": Feature.MIDDLEWARE,
    "spec.tracing.stdout": Feature.TRACE_EXPORT,
    "spec.tracing.zipkin": Feature.TRACE_EXPORT,
    "spec.tracing.otel": Feature.TRACE_EXPORT,
    "spec.metric": Feature.METRICS,
    "spec.metrics": Feature.METRICS,
    "spec.logging.apiLogging": Feature.API_LOG,
    "spec.accessControl": Feature.ACCESS_CONTROL,
    "spec.api": Feature.API_LISTS,
    "spec.mtls": Feature.MTLS,
    "spec.secrets": Feature.SECRETS,
    "spec.wasm": Feature.COMPONENTS,
    "spec.workflow": Feature.WORKFLOWS,
}

_GUARDS: Final = frozenset(f"middleware.http.{name}" for name in ("bearer", "oauth2", "opa", "routerchecker"))
"""Middleware that decides who may call: without it the door is open."""


# --- reading ---------------------------------------------------------------------------------------------------------


def load_configuration(
    paths: Sequence[str], environ: Mapping[str, str], *, built: Features = BUILT, again: bool = False
) -> Configuration:
    """Read the files in order, each laid over those before it (C-4), on top of the start values (C-5).

    Args:
        environ: What ``$NAME`` in the files stands for; the sidecar's own variables included (N-3).
        again: They were read before, so that a pipe has nothing more to give, and must not be waited for.

    Raises:
        FatalOption: A file cannot be read, is not YAML, or has a value that its key does not take.
        ProtectionNotBuilt: A file asks for a protection that is not in ``built``.
    """
    decoder = Decoder()
    data = _START
    for path in paths:
        if again and _is_pipe(path):
            raise _failed(f"{path} is a pipe, which cannot be read again")
        document = _document(path, environ)
        if document is not None:
            data = _laid_over(decoder, data, document, path)
    for _, refusal in _refusals(_block(data, "spec"), decoder.places, built):
        raise refusal
    return _configuration(data, decoder, built)


def asks_for_mtls(paths: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Say whether the files, laid over one another, have ``spec.mtls.enabled: true``: whoever starts a sidecar asks.

    Raises:
        FatalOption: A file cannot be read, or is waited for if it is read before its time (a pipe).
    """
    decoder = Decoder()
    data = _START
    for path in paths:
        if _is_pipe(path):
            raise _failed(f"{path} is a pipe, which can be read only once")
        document = _document(path, environ)
        if document is not None:
            data = _laid_over(decoder, data, document, path)
    return _mtls(_block(data, "spec"))


class Examined(NamedTuple):
    """A document looked at by itself, with everything that would be said about it.

    Attributes:
        refusals: What would end the start: the key that it is about, its line, and the words.
        configuration: As far as it goes.
    """

    refusals: tuple[tuple[str, int, FatalOption], ...]
    configuration: Configuration


def examine(document: Node, file: str, *, built: Features = BUILT) -> Examined:
    """Look at a document whose shape is right, without a start.

    Raises:
        WrongType: The shape is not right.
    """
    decoder = Decoder()
    data = decoder.lay_over(_START, DOCUMENT, document, file)
    refusals = [
        (name, decoder.places[name].line if name in decoder.places else document.line, refusal)
        for name, refusal in _refusals(_block(data, "spec"), decoder.places, built)
    ]
    return Examined(tuple(refusals), _configuration(data, decoder, built))


def _configuration(data: Data, decoder: Decoder, built: Features) -> Configuration:
    spec = _block(data, "spec")
    return Configuration(
        tracing=_tracing(spec),
        features=_features(spec),
        name_resolution=_name_resolution(spec, decoder.places),
        api_logging=_api_logging(spec),
        metric=_metric(spec),
        access_control=_block(spec, "accessControl") or None,
        api=_block(spec, "api"),
        http_pipeline=_handlers(spec, "httpPipeline"),
        app_http_pipeline=_handlers(spec, "appHttpPipeline"),
        denied_components=_texts(_block(spec, "components"), "deny"),
        ineffective=_ineffective(decoder, built),
        asks_for_mtls=_mtls(spec),
        unknown=decoder.unknown,
        places=decoder.places,
    )


def _document(path: str, environ: Mapping[str, str]) -> Node | None:
    # Bytes that are not UTF-8 pass through the expansion and are then the YAML reader's to refuse.
    text = _read(path).decode("utf-8", "surrogateescape")
    data = expand_environment(text, environ).encode("utf-8", "surrogateescape")
    if len(data) > MAX_FILE_BYTES:
        raise _failed(f"{path} is longer than {MAX_FILE_BYTES} bytes once the environment is put in")
    try:
        return read_first_document(data)
    except YamlProblem as error:
        line = "" if error.line is None else f"line {error.line}: "
        raise _failed(f"yaml: {line}{error.text} (in {path})") from error


def _is_pipe(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - no import for it
    except (OSError, ValueError):
        return False  # reading will tell
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _read(path: str) -> bytes:
    """Return what the file holds. Errors have the form of Go's: the failed step, the path, the reason."""
    from pathlib import Path  # costs a millisecond that a start without a file need not pay

    step = "stat"
    try:
        Path(path).stat()
        step = "open"
        with Path(path).open("rb") as file:
            step = "read"
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        # A folder opens in Go and fails when read.
        step = "read" if isinstance(error, IsADirectoryError) else step
        hint = ""
        if isinstance(error, FileNotFoundError):
            # Path is not imported for it.
            hint = "; check --config" if os.path.isabs(path) else f"; check --config, a path from {os.getcwd()}"  # noqa: PTH117, PTH109
        raise _failed(f"{step} {path}: {_reason(error)}{hint}") from error
    except ValueError as error:  # a NUL in the path
        raise _failed(f"stat {path!r}: invalid argument") from error
    if len(data) > MAX_FILE_BYTES:
        raise _failed(f"{path} is longer than {MAX_FILE_BYTES} bytes")
    return data


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _laid_over(decoder: Decoder, data: Data, document: Node, path: str) -> Data:
    try:
        return decoder.lay_over(data, DOCUMENT, document, path)
    except WrongType as error:
        raise _failed(f"yaml: unmarshal errors: line {error.line}: {error} (in {path})") from error


def _failed(text: str) -> FatalOption:
    return FatalOption(LOADING + text)


# --- from data to types ----------------------------------------------------------------------------------------------


def _tracing(spec: Data) -> Tracing:
    rate = _text(_block(spec, "tracing"), "samplingRate")
    try:
        return Tracing(sampling_rate=rate, off=float(rate) <= 0)
    except ValueError:
        return Tracing(sampling_rate=rate, off=False)


def _features(spec: Data) -> tuple[tuple[str, bool], ...]:
    entries = _items(spec, "features")
    named = {_text(entry, "name") for entry in entries}
    listed = [
        (_text(entry, "name"), entry["enabled"]) for entry in entries if _text(entry, "name") and "enabled" in entry
    ]
    given = [(name, enabled) for name, enabled in listed if isinstance(enabled, bool)]
    return (*given, *((name, True) for name in DEFAULT_FEATURES if name not in named))


def _name_resolution(spec: Data, places: Mapping[str, Place]) -> NameResolutionSpec | None:
    block = _block(spec, "nameResolution")
    if not block:
        return None
    return NameResolutionSpec(
        component=_text(block, "component"),
        version=_text(block, "version") or "v1",
        configuration=block.get("configuration"),
        place=places["spec.nameResolution"],
    )


def _mtls(spec: Data) -> bool:
    enabled = _block(spec, "mtls").get("enabled")
    return enabled is True or (isinstance(enabled, str) and enabled.lower() == "true")


def _api_logging(spec: Data) -> ApiLogging:
    block = _block(_block(spec, "logging"), "apiLogging")
    return ApiLogging(
        enabled=_switch(block, "enabled"),
        obfuscate_urls=_switch(block, "obfuscateURLs"),
        omit_health_checks=_switch(block, "omitHealthChecks"),
    )


def _metric(spec: Data) -> Metric:
    # An empty list of rules or buckets in `metrics` leaves that of `metric`; `http` replaces as a whole (C-13).
    over = {key: value for key, value in _block(spec, "metrics").items() if value is not None and value != []}
    block = _block(spec, "metric") | over
    http = _block(block, "http")
    increased = http.get("increasedCardinality")
    return Metric(
        enabled=_switch(block, "enabled", default=True),
        record_error_codes=_switch(block, "recordErrorCodes"),
        increased_cardinality=increased if isinstance(increased, bool) else None,
        path_matching=_texts(http, "pathMatching"),
        exclude_verbs=_switch(http, "excludeVerbs"),
        latency_buckets_ms=tuple(n for n in _list(block, "latencyDistributionBuckets") if isinstance(n, int)),
        rules=tuple(_metric_rule(rule) for rule in _items(block, "rules")),
        given=block,
    )


def _metric_rule(rule: Data) -> MetricRule:
    labels = ((_text(label, "name"), _block(label, "regex")) for label in _items(rule, "labels"))
    return MetricRule(
        name=_text(rule, "name"),
        labels=tuple(
            (name, tuple((key, str(pattern or "")) for key, pattern in regex.items())) for name, regex in labels
        ),
    )


def _handlers(spec: Data, pipeline: str) -> tuple[Mapping[str, object], ...]:
    return tuple(_items(_block(spec, pipeline), "handlers"))


def _ineffective(decoder: Decoder, built: Features) -> tuple[str, ...]:
    return tuple(name for name, feature in _NEEDS.items() if name in decoder.places and feature not in built)


# --- checks ----------------------------------------------------------------------------------------------------------


def _refusals(spec: Data, places: Mapping[str, Place], built: Features) -> Iterator[tuple[str, FatalOption]]:
    """Return each reason not to start, and the key that it is about."""
    for store in _wrong_scopes(spec):
        yield "spec.secrets.scopes", _failed(store)
    access = _wrong_policies(_items(_block(spec, "accessControl"), "policies"))
    if access:
        yield "spec.accessControl.policies", FatalOption(access)
    for name, exporter in _wrong_exporters(_block(spec, "tracing")):
        yield name, FatalOption(f"failed to setup tracing: {exporter}")
    for name, feature in _unbuilt_protections(spec, built):
        yield (
            name,
            ProtectionNotBuilt(
                f"{name} ({places[name]}) restricts calls, but this version does not enforce {feature}; "
                "remove it to run without that protection"
            ),
        )


def _wrong_scopes(spec: Data) -> Iterator[str]:
    """Refuse what C-21 refuses, though there is no secrets API here: a file that daprd refuses is wrong."""
    stores: set[str] = set()
    for scope in _items(_block(spec, "secrets"), "scopes"):
        store, access = _text(scope, "storeName"), _text(scope, "defaultAccess")
        if store in stores:
            yield f"{store} storeName is repeated in secrets configuration"
        if access and access.lower() not in ("allow", "deny"):
            yield f"defaultAccess {access} can be either allow or deny"
        stores.add(store)


def _wrong_policies(policies: Sequence[Data]) -> str:
    """Refuse policies that do not say whom they are about (C-37); empty if all do."""
    trust, namespace = (
        " ".join(_text(policy, "appId") for policy in policies if _text(policy, "appId") and not _text(policy, key))
        for key in ("trustDomain", "namespace")
    )
    nameless = any(not _text(policy, "appId") for policy in policies)
    if not (trust or namespace or nameless):
        return ""
    return (
        f"invalid access control spec. missing trustdomain for apps: [{trust}], missing namespace for apps: "
        f"[{namespace}], missing app name on at least one of the app policies: {str(nameless).lower()}"
    )


def _wrong_exporters(tracing: Data) -> Iterator[tuple[str, str]]:
    """Refuse what no exporter could use (C-66)."""
    otel = _block(tracing, "otel")
    protocol = _text(otel, "protocol")
    if _text(otel, "endpointAddress") and protocol not in ("", "http", "grpc"):
        yield "spec.tracing.otel.protocol", f"invalid protocol {protocol} provided for Otel endpoint"
    collector = _text(_block(tracing, "zipkin"), "endpointAddress")
    scheme, separator, rest = collector.partition("://")
    if collector and not (scheme and separator and rest.partition("/")[0]):
        yield "spec.tracing.zipkin.endpointAddress", f'invalid collector URL "{collector}": no scheme or host'


def _unbuilt_protections(spec: Data, built: Features) -> Iterator[tuple[str, Feature]]:
    api = _block(spec, "api")
    asked = {
        "spec.accessControl": (Feature.ACCESS_CONTROL, _restricts_callers(_block(spec, "accessControl"))),
        "spec.api": (Feature.API_LISTS, bool(_list(api, "allowed") or _list(api, "denied"))),
        "spec.httpPipeline": (Feature.MIDDLEWARE, _has_guard(_handlers(spec, "httpPipeline"))),
        "spec.appHttpPipeline": (Feature.MIDDLEWARE, _has_guard(_handlers(spec, "appHttpPipeline"))),
    }
    for name, (feature, protects) in asked.items():
        if protects and feature not in built:
            yield name, feature


def _restricts_callers(access: Data) -> bool:
    """Say whether an access control block denies anything (C-37). Any word other than ``allow`` denies."""
    if _list(access, "policies"):
        return True
    action = _text(access, "defaultAction").lower()
    if action:
        return action != "allow"
    # An empty action denies if there is no list of policies; with neither of the three there is no access control.
    return access.get("policies") is None and bool(_text(access, "trustDomain"))


def _has_guard(handlers: Sequence[Mapping[str, object]]) -> bool:
    # In any case of letters: daprd skips a misspelt type in silence, and the user still meant a guard.
    return any(_text(handler, "type").lower() in _GUARDS for handler in handlers)


# --- data that the schema has checked; null counts as absent ---------------------------------------------------------


def _block(data: Mapping[str, object], key: str) -> Data:
    return as_block(data.get(key))


def _list(data: Mapping[str, object], key: str) -> list[object]:
    return as_list(data.get(key))


def _items(data: Mapping[str, object], key: str) -> list[Data]:
    return [as_block(item) for item in _list(data, key)]


def _texts(data: Mapping[str, object], key: str) -> tuple[str, ...]:
    return tuple(item for item in _list(data, key) if isinstance(item, str))


def _text(data: Mapping[str, object], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _switch(data: Mapping[str, object], key: str, *, default: bool = False) -> bool:
    value = data.get(key)
    return value if isinstance(value, bool) else default
