"""Which handler answers which RPC of the sidecar's own services; all others are apps' own."""

from __future__ import annotations

from collections.abc import Mapping

from tieline.api.grpc.health import SERVICE as HEALTH_SERVICE
from tieline.api.grpc.health import HealthRpcs
from tieline.api.grpc.invoke import InvokeService
from tieline.api.grpc.own import OwnRpcs
from tieline.api.grpc.reflection import V1, V1ALPHA, Reflection
from tieline.api.grpc.server import Streaming, Unary, not_built, told_its_trace
from tieline.api.health import Health
from tieline.config.grpc_apis import ALL_PATHS, path_of


def own_rpcs(invoke: InvokeService, own: OwnRpcs) -> Mapping[bytes, Unary]:
    """Return the handlers of the whole Dapr service: what this sidecar lacks says so (G-11)."""
    return {
        **dict.fromkeys(ALL_PATHS, told_its_trace(not_built)),
        path_of("InvokeService"): invoke,
        path_of("GetMetadata"): told_its_trace(own.get_metadata),
        path_of("SetMetadata"): told_its_trace(own.set_metadata),
        path_of("Shutdown"): told_its_trace(own.shutdown),
    }


def shared_rpcs(health: Health) -> Mapping[bytes, Unary]:
    """Return the handlers of services that apps have, too; a call that names an app is that app's."""
    return {f"/{HEALTH_SERVICE}/Check".encode(): HealthRpcs(health).check}


def shared_streams(health: Health) -> Mapping[bytes, Streaming]:
    """Return those of streams."""
    return {
        f"/{HEALTH_SERVICE}/Watch".encode(): HealthRpcs(health).watch,
        **{f"/{name}/ServerReflectionInfo".encode(): Reflection(health, name).info for name in (V1, V1ALPHA)},
    }
