"""The sidecar: builds all of it from what the user asked for, and starts, drains and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tieline.api.http.cors import Cors
from tieline.api.http.errors import category_of
from tieline.api.http.health import Health
from tieline.api.http.invoke import Invoke, failure_size
from tieline.api.http.metadata import Metadata
from tieline.api.http.own import OwnApis
from tieline.api.http.server import Front, HttpApi, PublicApi
from tieline.api.http.token import Token
from tieline.api.http.tracing import Tracer
from tieline.api.metrics import MetricsServer
from tieline.app.channel import AppChannel, ChannelNotBuilt
from tieline.app.health import Prober
from tieline.app.http_channel import HttpChannel
from tieline.app.start import ask_config, wait_for_port
from tieline.config.api_lists import ApiLists
from tieline.config.configuration import Configuration, load_configuration
from tieline.config.duration import format_duration
from tieline.config.environment import Ports, own_environment
from tieline.config.outbound_proxy import read_proxies
from tieline.config.resource_set import Resources
from tieline.config.settings import LOOPBACK, Settings
from tieline.errors import ConfigError, StartError, TielineError
from tieline.inbound.serve import ToApp, inbound
from tieline.inbound.server import InboundServer
from tieline.middleware.attempts import Attempts
from tieline.middleware.observe import Observe
from tieline.model import CallRecord, Endpoint
from tieline.names.builtin import RESOLVERS
from tieline.names.cache import NameCache
from tieline.names.host import announced_address, host_address, own_internal_port
from tieline.names.mdns.resolver import MdnsResolver
from tieline.names.registry import local_registry, sidecar_entry
from tieline.names.resolver import InstanceFacts, Resolver, create
from tieline.names.sidecars import SidecarEntry, SidecarFacts, process_space, process_start
from tieline.net.http1_server import Http1Server, ServerOptions
from tieline.net.http2_pool import Http2Pool
from tieline.net.http2_server import Http2Server
from tieline.net.listener import Listener
from tieline.net.tasks import spawn
from tieline.net.watch import Watch
from tieline.outbound.external import External
from tieline.outbound.invoke import Dispatch, Local, outbound
from tieline.outbound.peer import PEER_LIMITS, PeerCaller
from tieline.telemetry.access_log import FailureLog
from tieline.telemetry.api_log import ApiLog
from tieline.telemetry.measure import make_metrics
from tieline.telemetry.metrics import Metrics
from tieline.telemetry.process import process_readings
from tieline.telemetry.readings import add_readings
from tieline.wire import headers as fields
from tieline.wire.http2 import Limits
from tieline.wire.trace_context import IdSource

log = logging.getLogger("dapr.runtime")
_loader_log = logging.getLogger("dapr.runtime.loader.disk")
_reload_log = logging.getLogger("dapr.runtime.hotreload")
_signals_log = logging.getLogger("dapr.signals")

HOT_RELOAD: Final = "HotReload"
"""Feature that watches the folders of resource files (C-67)."""
LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
"""Of notices about resource files."""
HEAD_SLACK: Final = 4096
"""What a request head may have beyond the read buffer (H-63)."""
HTTP2_HEAD_SLACK: Final = 320
INTERNAL_LIMITS: Final = Limits(streams=2048, header_list=1 << 20, header_list_hard=2 << 20)
FORCED_EXIT_S: Final = 0.1
OUTBOUND_GRACE_S: Final = 0.1
"""How long an app that listens already may put off outbound health, so that others find it by then."""
FIRST_PROBE_S: Final = 0.5
"""How long the first health probe of the app may put off that it is announced and the sidecar ready."""
CHANGED_IN_PLACE: Final = frozenset(
    {
        "spec.tracing",
        "spec.features",
        "spec.logging.apiLogging",
        "spec.components",
        "spec.api",
        "spec.metric",
    }
)
"""Blocks of a Configuration that take effect without a new start."""
_NAMESPACED: Final = frozenset({"", "mdns", "registry"})
"""Resolvers, by component name, that tell the namespaces of Tieline's own sidecars apart."""


class Sidecar:
    """One sidecar, from start to stop.

    Args:
        settings: Options and environment, checked.
        configuration: Of the ``--config`` files.
        environ: The process's own environment; what a sidecar sets there is set there.
        version: Shown in logs and metadata.
    """

    def __init__(
        self, settings: Settings, configuration: Configuration, environ: Mapping[str, str], version: str
    ) -> None:
        self._settings = settings
        self._configuration = configuration
        self._environ = environ
        self._version = version
        self._began = time.perf_counter()
        self._hostname = socket.gethostname()
        self._address = host_address(environ)
        self._health = Health(settings.app_id)
        self.metrics: Metrics | None = None
        self._counts_errors = False
        process = process_readings()
        self._scraped = MetricsServer(lambda: [*(self.metrics.shown() if self.metrics else ()), *process])
        self._failures = FailureLog()
        self._api = Listener("HTTP", logging.getLogger("dapr.runtime.http"))
        self._public = Listener("public HTTP", logging.getLogger("dapr.runtime.http"))
        self._internal = Listener("internal gRPC", logging.getLogger("dapr.runtime.grpc.internal"))
        self._proxies = read_proxies(environ)
        self._channel = self._make_channel()
        self._prober = self._make_prober()
        self._probing: asyncio.Task[None] | None = None
        self._peers = Http2Pool(native=True, limits=PEER_LIMITS)
        self._external = External(max_concurrency=settings.app_max_concurrency, proxies=self._proxies)
        self._dispatch: Dispatch | None = None
        self._names: NameCache | None = None
        self._resources = Resources()
        self._watch = Watch(lambda: self._resources.look(), self._files_changed)
        self._http_api: HttpApi
        self._public_api: PublicApi
        self._reload_asked = False
        self._entry: SidecarEntry | None = None
        self._noting: asyncio.Task[None] | None = None
        self._metadata = Metadata(
            app_id=settings.app_id,
            version=version,
            features=configuration.enabled_features(),
            app_port=settings.app_port,
            app_protocol=settings.app_protocol,
            channel_address=settings.app_channel_address,
            max_concurrency=settings.app_max_concurrency,
            health_checks=settings.health_checks if settings.health_checks.enabled else None,
        )
        self._tracer = Tracer(enabled=not configuration.tracing.off, new_ids=IdSource())
        self._front = Front(self._tracer)
        self._stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._start_task: asyncio.Task[object] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._measure(configuration)

    # ── building ───────────────────────────────────────────────────────────────────────────────────
    def _make_channel(self) -> AppChannel | None:
        settings = self._settings
        if not settings.app_port:
            return None
        if settings.app_protocol in ("grpc", "grpcs"):
            return ChannelNotBuilt(settings.app_protocol)
        if settings.app_max_concurrency > 0:
            log.info("app max concurrency set to %d", settings.app_max_concurrency)
        protocol, host, port = settings.app_protocol, settings.app_channel_address, settings.app_port
        proxies = self._proxies
        return HttpChannel(
            protocol=protocol,
            host=host,
            port=port,
            max_concurrency=settings.app_max_concurrency,
            read_buffer=settings.read_buffer_size,
            token=settings.app_api_token,
            proxy=proxies.choose("https" if protocol == "https" else "http", host.strip("[]"), port)
            if proxies
            else None,
        )

    def _make_prober(self) -> Prober | None:
        """Return what probes the app; ``None`` if it always counts as healthy (H-121)."""
        checks = self._settings.health_checks
        if not checks.enabled or not isinstance(self._channel, HttpChannel):
            return None
        return Prober(self._channel, checks)

    def _measure(self, configuration: Configuration) -> None:
        """Count from now on, from zero, what a Configuration asks for.

        Raises:
            BadPattern: It cannot be used; what was counted before still is.
        """
        metrics = make_metrics(self._settings.app_id, configuration.metric, configuration.places)
        # Without a listener nobody could ask: nothing is counted then.
        self.metrics = metrics if self._settings.enable_metrics else None
        self._counts_errors = configuration.metric.record_error_codes
        self._front.metrics = self.metrics
        if self._prober is not None:
            self._prober.listener = self.metrics
        if self.metrics is not None:
            self._add_readings(self.metrics)

    def _add_readings(self, metrics: Metrics) -> None:
        """Have shown with the metrics what is only worth a look when somebody asks."""
        channel = self._channel
        add_readings(
            metrics,
            version=self._version,
            listeners={
                "http": self._api,
                "internal": self._internal,
                "metrics": self._scraped.listener,
                "public": self._public,
            },
            peer_connections=lambda: self._peers.size,
            waiting_for_app=(lambda: channel.waiting) if isinstance(channel, HttpChannel) else (lambda: None),
        )

    def _observe(self, record: CallRecord) -> None:
        metrics = self.metrics
        if metrics is not None:
            metrics.record_call(record)
            if self._counts_errors and record.status >= 400 and not record.inbound:
                # The app's own errors too, as dashboards for daprd expect it (O-28).
                metrics.count_error(TielineError.code, category_of(TielineError.code))
        if record.cause is not None:
            self._failures.log_failure(record)

    def _facts(self) -> SidecarFacts:
        """What tools are told of this sidecar."""
        settings = self._settings
        spec = self._configuration.name_resolution
        pid = os.getpid()
        return SidecarFacts(
            app_id=settings.app_id,
            namespace=settings.namespace,
            pid=pid,
            process_start=process_start(pid) or 0,
            process_space=process_space(),
            started=time.time(),
            version=self._version,
            http_host="" if settings.unix_domain_socket else _reached_at(settings.listen_addresses),
            http_port=self._api.port,
            http_socket=str(Path(self._api.where).absolute()) if settings.unix_domain_socket else "",
            grpc_port=settings.grpc_port,
            internal_address=str(Endpoint(_registered_address(settings.internal_listen_address), self._internal.port)),
            app_port=settings.app_port or 0,
            app_protocol=settings.app_protocol,
            app_address=settings.app_channel_address,
            resolver=spec.component if spec is not None else "",
            needs_token=settings.api_token is not None,
            metrics_enabled=settings.enable_metrics,
            max_body_size=-1 if settings.max_body_size is None else settings.max_body_size,
            read_buffer_size=settings.read_buffer_size,
        )

    def _make_names(self, sidecar: SidecarFacts) -> NameCache:
        settings = self._settings
        listen = settings.internal_listen_address
        facts = InstanceFacts(
            app_id=settings.app_id,
            namespace=settings.namespace,
            host_address=listen if listen in ("127.0.0.1", "localhost", "[::1]") else self._address,
            http_port=sidecar.http_port,
            grpc_port=settings.grpc_port,
            internal_port=self._internal.port,
            app_port=settings.app_port or 0,
            pid=sidecar.pid,
            started=sidecar.started,
            announced_address=lambda: announced_address(listen, self._environ),
        )
        return NameCache(self._make_resolvers(facts, sidecar), spawn=spawn)

    def _make_resolvers(self, facts: InstanceFacts, sidecar: SidecarFacts) -> list[Resolver]:
        """Make what the user configured; else the registry of this host, and mDNS behind it."""
        listen = self._settings.internal_listen_address

        def registry(*_: object) -> Resolver:
            address = _registered_address(listen)
            return local_registry(facts, environ=self._environ, spawn=spawn, address=address, sidecar=sidecar)

        spec = self._configuration.name_resolution
        if spec is None or not spec.component:
            return [registry()] if self._settings.no_mdns else [registry(), MdnsResolver(facts)]
        if spec.component.lower() == "mdns" and self._settings.no_mdns:
            raise ConfigError(
                "--no-mdns is given, and spec.nameResolution.component is mdns: no app could be found; "
                "leave one of them out"
            )
        return [create(spec, facts, spawn, {**RESOLVERS, "registry": registry})]

    def _make_dispatch(self, names: NameCache) -> Dispatch:
        settings = self._settings
        own = fields.identity(settings.app_id, settings.namespace, settings.app_id)
        spec = self._configuration.name_resolution
        peer = PeerCaller(
            names,
            self._peers,
            added=[
                *fields.forwarded(self._address, self._hostname),
                *fields.identity(settings.app_id, settings.namespace),
            ],
            namespace=settings.namespace,
            knows_namespaces=spec is None or spec.component.lower() in _NAMESPACED,
        )
        return Dispatch(
            app_id=settings.app_id,
            namespace=settings.namespace,
            local=Local(self._channel, own),
            peer=peer,
            external=self._external,
        )

    def _make_api(self) -> HttpApi:
        """Make the API as the Configuration wants it now."""
        settings = self._settings
        lists = ApiLists(self._configuration.api)
        cors = Cors(settings.allowed_origins) if settings.allowed_origins else None
        return HttpApi(
            front=self._front,
            own=OwnApis(
                health=self._health, metadata=self._metadata, shutdown=self._shutdown_asked, lists=lists, cors=cors
            ),
            invoke=self._make_invoke() if lists.is_open("invoke", "v1", "v1.0/invoke/") else None,
            cors=cors,
            token=Token(settings.api_token) if settings.api_token is not None else None,
            api_log=self._make_api_log(),
        )

    def _make_public_api(self) -> PublicApi:
        lists = ApiLists(self._configuration.api)
        own = OwnApis(health=self._health, metadata=self._metadata, shutdown=None, lists=lists)
        return PublicApi(front=self._front, own=own)

    def _make_invoke(self) -> Invoke:
        settings = self._settings
        assert self._dispatch is not None
        observe = Observe(self._observe, failure_size)
        return Invoke(
            outbound(observe=observe, attempts=Attempts(), end=self._dispatch),
            observe,
            self._tracer,
            app_id=settings.app_id,
            namespace=settings.namespace,
            drop_token=settings.api_token is not None,
            is_external=self._dispatch.is_external,
            count=self._front.count,
        )

    def _make_api_log(self) -> ApiLog | None:
        asked = self._configuration.api_logging
        explicit = self._settings.enable_api_logging
        if not (asked.enabled if explicit is None else explicit):
            return None
        return ApiLog(obfuscate=asked.obfuscate_urls, omit_health=asked.omit_health_checks)

    # ── start ──────────────────────────────────────────────────────────────────────────────────────
    async def run(self) -> int:
        """Start, serve until told to stop, drain, and return the exit code.

        Raises:
            StartError: It cannot start.
        """
        self._listen_to_signals()
        try:
            await self._start_unless_stopped()
            reason = await self._stop
            return await self._leave(reason)
        finally:
            for listener in (self._api, self._public, self._internal, self._scraped.listener):
                listener.abort()
            if self._entry is not None:
                self._entry.remove()

    async def _start_unless_stopped(self) -> None:
        """Start; a signal breaks it off, since it may wait long for a busy port or a locked file."""
        self._start_task = task = asyncio.current_task()
        try:
            await self._start()
        except asyncio.CancelledError:
            if not self._stop.done() or task is None:
                raise
            task.uncancel()
        finally:
            self._start_task = None

    def _load_resources(self) -> Resources:
        """Read what the user asked for in files; a mistake in one ends the start only where it must."""
        if not self._settings.resources_paths:
            return Resources()
        from tieline.config.resources import load_resources  # costs milliseconds that other starts need not pay

        resources = load_resources(
            self._settings.resources_paths,
            app_id=self._settings.app_id,
            environ=self._environ,
            denied=self._configuration.denied_components,
            watch=self._watches,
        )
        for level, text in resources.notices:
            _loader_log.log(LEVELS[level], "%s", text)
        for name in resources.http_endpoints:
            log.info("Found http endpoint: %s", name)
        return resources

    @property
    def _watches(self) -> bool:
        return HOT_RELOAD in self._configuration.enabled_features()

    async def _start(self) -> None:
        settings = self._settings
        self._use_resources(self._load_resources())
        self._reserve_internal_port()
        await self._bind_api()
        if settings.enable_metrics:
            self._scraped.bind(settings.metrics_listen_address, settings.metrics_port)
        self._set_environment()
        sidecar = self._facts()
        names = self._names = self._make_names(sidecar)
        await names.start()
        self._dispatch = self._make_dispatch(names)
        self._http_api = self._make_api()
        observe = Observe(self._observe)
        server = InboundServer(
            inbound(observe=observe, end=ToApp(self._channel, settings.app_id)),
            observe,
            app_id=settings.app_id,
            namespace=settings.namespace,
        )
        await self._internal.accept(
            lambda: Http2Server(server, limits=INTERNAL_LIMITS, native=True, members=self._internal.members)
        )
        log.info("Internal gRPC server is running on port %d", self._internal.port)
        options = ServerOptions(
            max_head=settings.read_buffer_size + HEAD_SLACK,
            max_body=settings.max_body_size,
            http2=not settings.http_disable_h2c,
            http2_limits=Limits(header_list=settings.read_buffer_size + HTTP2_HEAD_SLACK),
        )
        await self._api.accept(lambda: Http1Server(self._http_api.handle, options, self._api.members))
        if settings.unix_domain_socket:
            log.info("HTTP server listening on UNIX socket: %s", self._api.where)
        else:
            log.info("HTTP server is running on port %d", self._api.port)
        await self._open_public_port()
        if settings.enable_metrics:
            await self._scraped.serve()
        self._watch_or_not()
        if self._reload_asked:
            self._reload()
        self._entry = sidecar_entry(sidecar, self._environ)
        self._noting = spawn(asyncio.to_thread(self._entry.write), name="word for tools")
        self._starting = spawn(self._welcome_app(names), name="app start")
        asyncio.get_running_loop().call_later(OUTBOUND_GRACE_S, self._open_outbound)

    def _open_outbound(self) -> None:
        """Say that calls are taken: at once if the app is still to come, else when others find it too, but soon."""
        self._health.outbound = True

    async def _open_public_port(self) -> None:
        """Serve health and metadata to whoever may not use the API (H-131)."""
        settings = self._settings
        if settings.public_port is None:
            return
        address, port = settings.public_listen_address, settings.public_port
        try:
            self._public.bind_now(address, port)
        except (OSError, OverflowError) as error:
            raise StartError(
                f"listen tcp {address}:{port}: bind: {_reason(error)}; choose another one with --dapr-public-port"
            ) from error
        self._public_api = self._make_public_api()
        options = ServerOptions(
            max_head=settings.read_buffer_size + HEAD_SLACK, max_body=None, http2=False, http2_limits=Limits()
        )
        await self._public.accept(lambda: Http1Server(self._public_api.handle, options, self._public.members))
        log.info("Public HTTP server is running on port %d", self._public.port)

    def _reserve_internal_port(self) -> None:
        """Hold the port before anything else can take it (H-5, H-6)."""
        settings = self._settings
        addresses = _internal_addresses(settings)
        port = settings.internal_port
        if port is None:
            with contextlib.suppress(OSError):
                self._bind_internal(addresses, own_internal_port(settings.app_id))
                return
            port = 0
        try:
            self._bind_internal(addresses, port)
        except (OSError, OverflowError) as error:
            raise StartError(
                f"failed to start internal gRPC server: port {port}: {_reason(error)}; "
                "choose another one with --dapr-internal-grpc-port"
            ) from error

    def _bind_internal(self, addresses: Sequence[str], port: int) -> None:
        for address in addresses:
            self._internal.bind_now(address, self._internal.port or port)

    async def _bind_api(self) -> None:
        settings = self._settings
        if settings.unix_domain_socket:
            self._bind_api_socket(settings.unix_domain_socket)
            return
        optional = LOOPBACK[1:] if settings.listen_addresses == LOOPBACK else ()
        if settings.http_port and settings.http_port == settings.grpc_port:
            raise StartError(
                f"failed to start HTTP server: could not listen on any endpoint: port {settings.http_port} "
                "is given for both the HTTP and the gRPC API; choose another --dapr-grpc-port"
            )
        if not await self._api.bind(settings.listen_addresses, settings.http_port, optional=optional):
            raise StartError(
                "failed to start HTTP server: could not listen on any endpoint: "
                f"port {settings.http_port} is taken or not usable; choose another --dapr-http-port"
            )

    def _set_environment(self) -> None:
        """Tell, for those that refer to the environment, which ports it became (H-17)."""
        settings = self._settings
        ports = Ports(
            http=self._api.port or settings.http_port,
            grpc=settings.grpc_port,
            internal=self._internal.port,
            metrics=self._scraped.port or settings.metrics_port,
        )
        os.environ.update(own_environment(settings, self._address, ports))

    def _bind_api_socket(self, folder: str) -> None:
        """Serve the API on a Unix domain socket in place of TCP (H-2)."""
        path = Path(folder) / f"dapr-{self._settings.app_id}-http.socket"
        try:
            self._api.bind_unix(path)
        except OSError as error:
            raise StartError(
                f"failed to start HTTP server: {path}: {_reason(error)}; "
                "make the folder, or choose another one with --unix-domain-socket"
            ) from error

    async def _welcome_app(self, names: NameCache) -> None:
        """Wait for the app, then let others find it."""
        settings = self._settings
        prober = self._prober
        if self._channel is not None and settings.app_port:
            self._metadata.waiting_for_app = True
            await wait_for_port(
                settings.app_protocol,
                settings.app_channel_address,
                settings.app_port,
                on_wait=self._open_outbound,
            )
            if prober is not None:
                self._probing = spawn(prober.run(), name="app health")
                # Health does not depend on the app's, but whoever waited for it should find a healthy app healthy.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FIRST_PROBE_S):
                        await prober.heard.wait()
            else:
                await self._greet_app(self._channel)
            self._metadata.waiting_for_app = False
        await names.announce()
        self._open_outbound()
        self._health.waiting_for.clear()
        elapsed = int((time.perf_counter() - self._began) * 1000)
        log.info("dapr initialized. Status: Running. Init Elapsed %dms", elapsed)
        if prober is not None and self._channel is not None:
            await prober.well.wait()
            await self._greet_app(self._channel)

    async def _greet_app(self, channel: AppChannel) -> None:
        """Make the first call to an app that is healthy now (H-117)."""
        settings = self._settings
        if "config" in settings.disable_init_endpoints:
            log.info("Skipping programmatic dapr configuration loading")
        elif settings.app_protocol not in ("grpc", "grpcs"):
            await ask_config(channel, settings.app_id, settings.namespace, self._count_app_call)

    def _count_app_call(self, record: CallRecord) -> None:
        if self.metrics is not None:
            self.metrics.record_app_call(record)

    # ── reload ─────────────────────────────────────────────────────────────────────────────────────
    def _use_resources(self, resources: Resources) -> None:
        """Let calls from now on see these; those in progress end as they began."""
        self._resources = resources
        self._external.replace(resources.http_endpoints)
        self._metadata.http_endpoints = tuple(resources.http_endpoints)

    def _watch_or_not(self) -> None:
        """Watch the folders, unless there are none or the user does not want it (C-67)."""
        folders = self._resources.folders
        if self._watches and folders:
            _reload_log.info("Watching directories: [%s]", " ".join(folders))
            self._watch.start(self._resources.seen)
        else:
            self._watch.stop()

    def _files_changed(self, seen: Mapping[str, object]) -> Mapping[str, object]:
        # What cannot be read counts as seen: it is told of once, and read when it changes again.
        return self._resources.seen if self._reload_resources() else seen

    def _reload_resources(self) -> bool:
        """Read the folders again and swap what changed, in place (C-69, C-70, H-108).

        Whatever cannot be read keeps its last good definition. Returns false if nothing could be read.
        """
        from tieline.config.changes import changed_resources, new_notices
        from tieline.config.resources import load_resources

        old = self._resources
        try:
            new = load_resources(
                self._settings.resources_paths,
                app_id=self._settings.app_id,
                environ=self._environ,
                denied=self._configuration.denied_components,
                watch=self._watches,
                previous=old,
            )
        except StartError as error:
            _reload_log.error("resources stay as they were: %s", error)
            return False
        for level, text in new_notices(old, new):
            _loader_log.log(LEVELS[level], "%s", text)
        for line in changed_resources(old, new):
            _reload_log.info("%s", line)
        self._use_resources(new)
        return True

    def _reload(self) -> None:
        """Read all files anew, and put what changed in force without a new start (C-71)."""
        if self._settings.config_files:
            self._reload_configuration()
        self._reload_resources()
        self._watch.stop()
        self._watch_or_not()
        _reload_log.info("Reloaded; nothing was restarted")

    def _reload_configuration(self) -> None:
        """Read the ``--config`` files; if they do not load, the old ones stay in force."""
        from tieline.config.changes import changed_sections

        old = self._configuration
        try:
            new = load_configuration(self._settings.config_files, self._environ, again=True)
            if new.metric != old.metric:
                self._measure(new)
        except StartError as error:
            _reload_log.error("the configuration stays as it was: %s", error)
            return
        changed = changed_sections(old, new)
        self._configuration = new
        self._tracer.enabled = not new.tracing.off
        self._metadata.features = new.enabled_features()
        if not {"spec.api", "spec.logging.apiLogging"}.isdisjoint(changed):
            self._swap_api()
        in_force = [name for name in changed if name in CHANGED_IN_PLACE]
        if in_force:
            _reload_log.info("Configuration changed: %s", ", ".join(in_force))
        later = [name for name in changed if name not in CHANGED_IN_PLACE]
        if later:
            _reload_log.warning("changed, but in force only after the next start: %s", ", ".join(later))

    def _swap_api(self) -> None:
        """Answer as the Configuration wants it now, on open connections too."""
        self._http_api = self._make_api()
        self._api.hand_over(self._http_api.handle)
        if self._settings.public_port is not None:
            self._public_api = self._make_public_api()
            self._public.hand_over(self._public_api.handle)

    # ── stop ───────────────────────────────────────────────────────────────────────────────────────
    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, name in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupt")):
            loop.add_signal_handler(number, self._signalled, name)
        # Started by nohup, there is no terminal whose end matters.
        ends_with_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
        loop.add_signal_handler(signal.SIGHUP, self._hung_up, ends_with_terminal)

    def _hung_up(self, ends_with_terminal: bool) -> None:
        """Read the files anew; unless this is the terminal, which was closed and ends what runs in it."""
        if self._stop.done() or (ends_with_terminal and not _has_terminal()):
            self._signalled("hangup")
            return
        _signals_log.info("Received signal 'hangup'; reloading")
        if self._start_task is None:
            self._reload()
        else:
            self._reload_asked = True

    def _signalled(self, name: str) -> None:
        if self._stop.done():
            _signals_log.critical("Received signal '%s' during shutdown; exiting immediately", name)
            os._exit(1)
        _signals_log.info("Received signal '%s'; beginning shutdown", name)
        self._stop.set_result("signal")
        if self._start_task is not None:
            self._start_task.cancel()

    def _shutdown_asked(self, force: bool) -> None:
        if force:
            log.info("Force shutdown requested, exiting immediately without graceful shutdown")
            asyncio.get_running_loop().call_later(FORCED_EXIT_S, os._exit, 1)
        elif not self._stop.done():
            log.info("Shutdown requested via API")
            self._stop.set_result("api")

    async def _leave(self, reason: str) -> int:
        settings = self._settings
        if reason == "signal" and settings.block_shutdown_s is not None:
            await self._block(settings.block_shutdown_s)
        self._health.waiting_for = ["runtime"]
        self._watch.stop()
        for task in (self._starting, self._probing):
            if task is not None:
                task.cancel()
        grace = settings.graceful_shutdown_s
        try:
            async with asyncio.timeout(grace):
                await self._drain()
        except TimeoutError:
            log.error("Graceful shutdown timeout exceeded, forcing shutdown")
            return 1
        log.info("Daprd shutdown gracefully")
        return 0

    async def _block(self, seconds: float) -> None:
        shown = format_duration(seconds)
        log.info("Blocking graceful shutdown for %s or until app reports unhealthy...", shown)
        if await self._turns_unhealthy(seconds):
            log.info("App reported unhealthy, entering shutdown...")
        else:
            log.info("Block shutdown period expired, entering shutdown...")

    async def _turns_unhealthy(self, within_s: float) -> bool:
        """Wait for the app to become unhealthy, and say whether it did; one that never came up has been all along."""
        if self._health.waiting_for:
            return True
        if self._prober is None:
            await asyncio.sleep(within_s)
            return False
        try:
            async with asyncio.timeout(within_s):
                await self._prober.ill.wait()
        except TimeoutError:
            return False
        return True

    async def _drain(self) -> None:
        """Let calls in progress finish, in the order in which they need each other.

        First nobody finds us, and other sidecars are told to send no new calls. Calls that run in our app may
        still need the API for calls of their own, so it closes after them; then its own calls finish.
        """
        if self._names is not None:
            await self._names.withdraw()
        await self._internal.drain()
        await self._api.drain()
        await self._public.drain()
        await self._scraped.drain()  # after the calls, so that a last look at the metrics has them all
        self._peers.close()
        self._external.close()
        if self._channel is not None:
            await self._channel.aclose()
        if self._names is not None:
            await self._names.aclose()
        self._failures.flush()


def _has_terminal() -> bool:
    """Say whether this process belongs to a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _internal_addresses(settings: Settings) -> tuple[str, ...]:
    """Where other sidecars may call: on this host only, unless an address is given."""
    given = settings.internal_listen_address
    return ("127.0.0.1",) if given is None else (given,)


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


def _reason(error: Exception) -> str:
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
