"""The ``sqlite`` resolver: a database file that the user names, shared by the sidecars of one host."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import unquote

from tieline.config.duration import parse_duration
from tieline.errors import ConfigError
from tieline.model import Endpoint
from tieline.names.file_resolver import FileResolver
from tieline.names.hosts_file import HostRow, HostsFile, HostsSettings, Place
from tieline.names.resolver import InstanceFacts, Resolver, ResolverSpec, Spawn, init_failure, label_of, start_failure

_ALIASES: Final = {
    "url": "connectionstring",
    "timeoutinseconds": "timeout",
    "cleanupintervalinseconds": "cleanupinterval",
}
"""Other spellings of keys, in lower case as all keys are compared (N-4, N-30)."""
_TRUTH: Final = frozenset({"y", "yes", "true", "t", "on", "1"})
_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z_]+")
_OWN_PRAGMAS: Final = {"busy_timeout": "busyTimeout", "journal_mode": "disableWAL", "foreign_keys": ""}
"""Pragmas that a connection string must not hold, and the key to use instead (N-31)."""
_PRAGMA: Final = re.compile(r"(\w+)\s*(\(\s*[\w.+-]+\s*\)|=\s*[\w.+-]+)?")
_SECONDS: Final = re.compile(r"[+-]?[0-9]{1,9}")
"""A duration as a plain number; longer ones are no seconds that anybody means."""

_log: Final = logging.getLogger("tieline.names")


@dataclass(frozen=True, slots=True)
class SqliteConfig:
    """What ``spec.nameResolution.configuration`` asks for."""

    place: Place
    settings: HostsSettings


def sqlite(spec: ResolverSpec, facts: InstanceFacts, spawn: Spawn) -> Resolver:
    """Make the resolver (N-30…N-37).

    Raises:
        ConfigError: The configuration cannot be used, or a fact that is registered is missing.
    """
    label = label_of(spec)
    try:
        config = parse_configuration(spec.configuration)
        row = HostRow(facts.app_id, "", _address(facts))
    except ConfigError as error:
        remedy = "correct spec.nameResolution.configuration"
        if not isinstance(spec.configuration, Mapping):
            remedy += ": it needs connectionString, the path of a file that these sidecars share"
        raise init_failure(label, str(error), remedy) from None
    where = config.place.path or "the database"
    remedy = f"see that {where} is an SQLite file that can be written, in a folder that exists"
    return FileResolver(
        "sqlite",
        HostsFile(lambda: config.place, config.settings, row),
        namespace=facts.namespace,
        heartbeat_s=config.settings.heartbeat_s,
        spawn=spawn,
        unknown_text=lambda _: "no host found with the given ID",
        start_error=lambda cause: start_failure(label, cause, remedy),
    )


def parse_configuration(configuration: object) -> SqliteConfig:
    """Read the resolver's configuration: keys in any case, numbers and booleans also as text (N-4, N-30, N-31).

    Raises:
        ConfigError: Something cannot be used; the text is Dapr's.
    """
    if not isinstance(configuration, Mapping):
        kind = "nothing" if configuration is None else type(configuration).__name__
        raise ConfigError(f"input object cannot be cast to map[string]string: it is {kind}, not a mapping of keys")
    given = _normalised(cast("Mapping[object, object]", configuration))
    connection_string = given.get("connectionstring", "")
    if not connection_string:
        raise ConfigError("missing connection string")
    timeout_s = _duration(given, "timeout", 1.0)
    if timeout_s < 1:
        raise ConfigError("invalid value for 'timeout': must be greater than 1s")
    hosts, metadata = given.get("tablename", "hosts"), given.get("metadatatablename", "metadata")
    if not _IDENTIFIER.fullmatch(hosts):
        raise ConfigError(f"invalid identifier for table name: {hosts}")
    if not _IDENTIFIER.fullmatch(metadata):
        raise ConfigError(f"invalid identifier for metadata table name: {metadata}")
    update_s = _duration(given, "updateInterval", 5.0)
    if update_s != int(update_s):
        raise ConfigError("update interval must not contain fractions of seconds")
    if update_s - timeout_s < 1:
        raise ConfigError("update interval must be at least 1s greater than timeout")
    place, journal_mode, pragmas = parse_connection_string(
        connection_string, wal=given.get("disablewal", "").strip().lower() not in _TRUTH
    )
    settings = HostsSettings(
        hosts_table=hosts,
        metadata_table=metadata,
        timeout_s=timeout_s,
        busy_timeout_s=max(0.0, _duration(given, "busyTimeout", 0.8)),
        update_interval_s=int(update_s),
        cleanup_interval_s=_duration(given, "cleanupInterval", 3600.0),
        journal_mode=journal_mode,
        pragmas=pragmas,
    )
    return SqliteConfig(place, settings)


def parse_connection_string(text: str, *, wal: bool = True) -> tuple[Place, str, tuple[str, ...]]:
    """Return place, journal mode and pragmas of a path or a ``file:`` URI (N-31).

    Raises:
        ConfigError: It sets a pragma that has a key of its own, or one that cannot be read.
    """
    name, _, query = (text if text.startswith("file:") else f"file:{text}").partition("?")
    parameters = [parameter for parameter in query.split("&") if parameter]
    kept = [parameter for parameter in parameters if parameter.partition("=")[0] not in ("_txlock", "_pragma")]
    pragmas = tuple(_pragma(unquote(value)) for key, value in map(_pair, parameters) if key == "_pragma")
    _check_lock(parameters)
    if name == "file::memory:" or "mode=memory" in kept:
        _log.warning(
            "Configuring name resolution with an in-memory SQLite database."
            " Service invocation across different apps will not work."
        )
        shared = kept if any(parameter.startswith("cache=") for parameter in kept) else [*kept, "cache=shared"]
        return Place(_uri(name, shared), ""), "MEMORY", pragmas
    read_only = "mode=ro" in kept or "immutable=1" in kept
    return Place(_uri(name, kept), _path_of(name)), "WAL" if wal and not read_only else "DELETE", pragmas


def _normalised(configuration: Mapping[object, object]) -> dict[str, str]:
    """Return the configuration as texts under lower-case keys; a key's first spelling wins over its alias."""
    plain = {str(key).lower(): _text(str(key), value) for key, value in configuration.items()}
    aliased = {_ALIASES[key]: value for key, value in plain.items() if key in _ALIASES}
    return aliased | plain


def _text(key: str, value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case _:
            kind = type(value).__name__
            raise ConfigError(f"input object cannot be cast to map[string]string: '{key}' is {kind}, not text")


def _duration(given: Mapping[str, str], key: str, default: float) -> float:
    """Return a duration in seconds: Go text, or a whole number of seconds (N-4)."""
    text = given.get(key.lower())
    if text is None:
        return default
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"error decoding '{key}': {error}; write it like 5s") from None


def _pair(parameter: str) -> tuple[str, str]:
    key, _, value = parameter.partition("=")
    return key, value


def _pragma(text: str) -> str:
    matched = _PRAGMA.fullmatch(text)
    if not matched:
        raise ConfigError(f"'_pragma={text}' in the connection string cannot be read; write _pragma=name(value)")
    name = matched[1].lower()
    if name in _OWN_PRAGMAS:
        instead = f"; use the key {_OWN_PRAGMAS[name]}" if _OWN_PRAGMAS[name] else ""
        raise ConfigError(f"found forbidden option '_pragma={name}' in the connection string{instead}")
    return text


def _check_lock(parameters: list[str]) -> None:
    if any(key == "_txlock" and value != "immediate" for key, value in map(_pair, parameters)):
        _log.warning(
            "The connection string has a _txlock different from the recommended value 'immediate';"
            " 'immediate' is used all the same"
        )


def _uri(name: str, parameters: list[str]) -> str:
    return f"{name}?{'&'.join(parameters)}" if parameters else name


def _path_of(name: str) -> str:
    """Return the file name in a ``file:`` URI without query, as SQLite reads it."""
    path = unquote(name.removeprefix("file:").partition("#")[0], errors="surrogateescape")
    if path.startswith("//"):
        path = "/" + path[2:].partition("/")[2]
    return path


def _address(facts: InstanceFacts) -> str:
    """Return the address to register, ``host:port`` (N-33); the refusals are N-17's."""
    if not facts.app_id:
        raise ConfigError("name is missing")
    if not facts.host_address:
        raise ConfigError("address is missing")
    if not 0 < facts.internal_port < 65536:
        raise ConfigError("port is missing or invalid")
    host = facts.host_address.removeprefix("[").removesuffix("]")
    return str(Endpoint(host, facts.internal_port))
