"""Which features this version has: the one place that turns an accepted setting into one with an effect."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Final, TypeAlias


class Feature(StrEnum):
    """A feature that some option or Configuration block needs. The text stands in messages to users."""

    # These protect: asking for one that is not built stops the start.
    ACCESS_CONTROL = "access control"
    API_LISTS = "API allow and deny lists"
    API_TOKEN = "API tokens"  # noqa: S105 - its name, no token
    MIDDLEWARE = "HTTP middleware"
    MTLS = "mTLS"
    # These do not: asking for one that is not built is told once, as having no effect.
    ACTORS = "actors"
    API_LOG = "API logging"
    APP_HEALTH = "app health checks"
    BINDINGS = "bindings"
    COMPONENTS = "components"
    CORS = "CORS"
    GRPC_API = "the gRPC API"
    GRPC_APPS = "gRPC apps"
    HOT_RELOAD = "hot reload"
    KUBERNETES = "Kubernetes mode"
    METRICS = "metrics"
    PROFILING = "profiling"
    PUBLIC_PORT = "the public port"
    RESOURCES = "resource files"
    SECRETS = "the secrets API"
    TRACE_EXPORT = "trace exporters"
    WORKFLOWS = "workflows"


Features: TypeAlias = AbstractSet[Feature]

# To switch a feature on, name it here. Nothing else decides whether a setting takes effect.
BUILT: Final[Features] = frozenset(
    {
        Feature.API_LISTS,
        Feature.API_LOG,
        Feature.API_TOKEN,
        Feature.APP_HEALTH,
        Feature.CORS,
        Feature.GRPC_API,
        Feature.GRPC_APPS,
        Feature.HOT_RELOAD,
        Feature.METRICS,
        Feature.PUBLIC_PORT,
        Feature.RESOURCES,
    }
)
