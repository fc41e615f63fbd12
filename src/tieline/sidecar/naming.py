"""What a sidecar tells others of itself, and who tells it of others."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tieline.config.configuration import NameResolutionSpec
from tieline.config.settings import Settings
from tieline.errors import ConfigError
from tieline.model import Endpoint
from tieline.names.builtin import RESOLVERS
from tieline.names.host import announced_address
from tieline.names.mdns.resolver import MdnsResolver
from tieline.names.registry import local_registry
from tieline.names.resolver import InstanceFacts, Resolver, create
from tieline.names.sidecars import SidecarFacts, process_space, process_start
from tieline.net.tasks import spawn
from tieline.sidecar.listeners import Listeners

_NAMESPACED: Final = frozenset({"", "mdns", "registry"})
"""Resolvers, by component name, that tell the namespaces of Tieline's own sidecars apart."""


def knows_namespaces(spec: NameResolutionSpec | None) -> bool:
    """Say whether the resolvers of a Configuration tell namespaces apart."""
    return spec is None or spec.component.lower() in _NAMESPACED


def sidecar_facts(
    settings: Settings, spec: NameResolutionSpec | None, listeners: Listeners, version: str, *, metrics_port: int
) -> SidecarFacts:
    """Return what tools are told of this sidecar; ``metrics_port`` is the one that is bound, 0 if none is."""
    pid = os.getpid()
    return SidecarFacts(
        app_id=settings.app_id,
        namespace=settings.namespace,
        pid=pid,
        process_start=process_start(pid) or 0,
        process_space=process_space(),
        parent=os.getppid(),
        parent_start=process_start(os.getppid()) or 0,
        started=time.time(),
        version=version,
        http_host="" if settings.unix_domain_socket else _reached_at(settings.listen_addresses),
        http_port=listeners.api.port,
        http_socket=str(Path(listeners.api.where).absolute()) if settings.unix_domain_socket else "",
        grpc_port=listeners.grpc.port,
        internal_address=str(Endpoint(_registered_address(settings.internal_listen_address), listeners.internal.port)),
        app_port=settings.app_port or 0,
        app_protocol=settings.app_protocol,
        app_address=settings.app_channel_address,
        resolver=spec.component if spec is not None else "",
        needs_token=settings.api_token is not None,
        metrics_enabled=settings.enable_metrics,
        metrics_port=metrics_port,
        max_body_size=-1 if settings.max_body_size is None else settings.max_body_size,
        read_buffer_size=settings.read_buffer_size,
    )


def make_resolvers(
    settings: Settings,
    spec: NameResolutionSpec | None,
    sidecar: SidecarFacts,
    *,
    internal_port: int,
    address: str,
    environ: Mapping[str, str],
) -> list[Resolver]:
    """Make the resolvers that the user configured; else the registry of this host, and mDNS behind it.

    Args:
        address: Of this host.

    Raises:
        StartError: What is configured cannot be.
    """
    listen = settings.internal_listen_address
    facts = InstanceFacts(
        app_id=settings.app_id,
        namespace=settings.namespace,
        host_address=_told_address(listen, address),
        http_port=sidecar.http_port,
        grpc_port=sidecar.grpc_port,
        internal_port=internal_port,
        app_port=settings.app_port or 0,
        pid=sidecar.pid,
        started=sidecar.started,
        announced_address=lambda: announced_address(listen, environ),
    )

    def registry(*_: object) -> Resolver:
        return local_registry(facts, environ=environ, spawn=spawn, address=_registered_address(listen), sidecar=sidecar)

    if spec is None or not spec.component:
        return [registry()] if settings.no_mdns else [registry(), MdnsResolver(facts)]
    if spec.component.lower() == "mdns" and settings.no_mdns:
        raise ConfigError(
            "--no-mdns is given, and spec.nameResolution.component is mdns: no app could be found; "
            "leave one of them out"
        )
    return [create(spec, facts, spawn, {**RESOLVERS, "registry": registry})]


def _told_address(listen: str | None, host: str) -> str:
    """Return what resolvers that the user configured tell of us (N-5); loopback if nothing else is listened on."""
    if listen is None:
        return "127.0.0.1"
    return listen if listen in ("127.0.0.1", "localhost", "[::1]") else host


def _registered_address(listen: str | None) -> str:
    """Return the address for the registry of this host."""
    if listen in (None, "", "localhost", "0.0.0.0", "[::]"):
        return "127.0.0.1"
    assert listen is not None
    return listen.strip("[]")


def _reached_at(listen_addresses: Sequence[str]) -> str:
    """Return the address at which a program of this host finds the HTTP API."""
    first = listen_addresses[0].strip("[]") if listen_addresses else ""
    if first in ("", "0.0.0.0", "localhost"):
        return "127.0.0.1"
    return "::1" if first == "::" else first
