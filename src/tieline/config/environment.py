"""The environment: what a sidecar reads from it, what it sets in it, and how files refer to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from tieline.config.settings import Settings

_TRUTH_WORDS: Final = frozenset({"y", "yes", "true", "t", "on", "1"})
# A name, or one of the characters that a shell takes for a variable of its own (C-3).
_BARE: Final = r"([*#$@!?\-0-9]|[A-Za-z_][A-Za-z0-9_]*)"
# Compiled when a file is read, since most starts read none.
_REFERENCE: Final = r"\$(?:\{([^}]*)\}|" + _BARE + ")"
_UNCLOSED: Final = r"\$(?:\{|" + _BARE + ")"


class Environment(NamedTuple):
    """The variables that a sidecar reads (H-10: no others stand in for options).

    Attributes:
        namespace: ``default`` if absent; empty if set to nothing.
        api_token: ``None`` if absent or empty, as is ``app_api_token`` and ``host_ip``.
        http_disable_h2c: ``DAPR_HTTP_DISABLE_H2C`` holds a truth word.
        peer_idle: ``DAPR_GRPC_MAX_CONN_IDLE``, a Go duration; ``None`` if absent or empty, as is ``peer_sweep``, which
            is ``DAPR_GRPC_CONN_COLLECTOR_INTERVAL`` (G-6).
    """

    namespace: str
    api_token: str | None
    app_api_token: str | None
    host_ip: str | None
    http_disable_h2c: bool
    peer_idle: str | None
    peer_sweep: str | None


class Ports(NamedTuple):
    """The ports that a sidecar really listens on, chosen ones included."""

    http: int
    grpc: int
    internal: int
    metrics: int


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Return what the environment says; nothing in it can be wrong."""
    return Environment(
        namespace=environ.get("NAMESPACE", "default"),
        api_token=environ.get("DAPR_API_TOKEN") or None,
        app_api_token=environ.get("APP_API_TOKEN") or None,
        host_ip=environ.get("DAPR_HOST_IP") or None,
        http_disable_h2c=environ.get("DAPR_HTTP_DISABLE_H2C", "").lower() in _TRUTH_WORDS,
        peer_idle=environ.get("DAPR_GRPC_MAX_CONN_IDLE") or None,
        peer_sweep=environ.get("DAPR_GRPC_CONN_COLLECTOR_INTERVAL") or None,
    )


def own_environment(settings: Settings, host_address: str, ports: Ports) -> dict[str, str]:
    """Return the variables that a sidecar sets in its own environment, over those from outside (H-17)."""
    return {
        "APP_ID": settings.app_id,
        "APP_PORT": str(settings.app_port or 0),
        "HOST_ADDRESS": host_address,
        "DAPR_PORT": str(ports.internal),
        "DAPR_GRPC_PORT": str(ports.grpc),
        "DAPR_HTTP_PORT": str(ports.http),
        "DAPR_METRICS_PORT": str(ports.metrics),
        "DAPR_PROFILE_PORT": str(settings.profile_port),
    }


def expand_environment(text: str, environ: Mapping[str, str]) -> str:
    """Replace ``$NAME`` and ``${NAME}`` by the environment, unset ones by nothing (C-3).

    There is no escape. ``$$``, ``$-``, ``$1`` and the like are variables that are never set; ``${}`` and an unclosed
    ``${`` vanish; a dollar before anything else stays. Takes time linear in the text.
    """

    def value(match: re.Match[str]) -> str:
        name = match[match.lastindex] if match.lastindex else ""
        return environ.get(name, "") if name else ""

    # Behind the last brace nothing is closed. Looking for the closing one there again and again would be quadratic.
    end = text.rfind("}") + 1
    return re.sub(_REFERENCE, value, text[:end]) + re.sub(_UNCLOSED, value, text[end:])


def vanishing_references(text: str, environ: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return what ``expand_environment`` would replace by nothing: the line and the text of each."""
    found: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("#"):
            continue
        for match in re.finditer(_REFERENCE, line):
            name = match[match.lastindex] if match.lastindex else ""
            if name not in environ:
                found.append((number, match[0]))
    return found
