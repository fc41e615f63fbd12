"""What calls go through in a sidecar, made of its settings and its Configuration, and joined."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Final

from tieline.api.grpc.invoke import InvokeService
from tieline.api.grpc.own import OwnRpcs
from tieline.api.grpc.routes import own_rpcs, shared_rpcs, shared_streams
from tieline.api.grpc.server import GrpcApi
from tieline.api.health import Health
from tieline.api.http.cors import Cors
from tieline.api.http.errors import category_of
from tieline.api.http.invoke import Invoke, failure_size
from tieline.api.http.own import OwnApis
from tieline.api.http.rpc import RpcAnswers
from tieline.api.http.server import Front, HttpApi, PublicApi
from tieline.api.http.token import Token
from tieline.api.http.tracing import Tracer
from tieline.api.metadata import Metadata
from tieline.app.grpc_channel import HEALTH_CHECK, GrpcChannel
from tieline.app.health import Prober
from tieline.app.http_channel import HttpChannel
from tieline.config.api_lists import ApiLists, GrpcLists
from tieline.config.configuration import Configuration
from tieline.config.outbound_proxy import read_proxies
from tieline.config.settings import Settings
from tieline.errors import TielineError
from tieline.inbound.serve import ToApp, inbound
from tieline.inbound.server import InboundServer
from tieline.middleware.attempts import Attempts
from tieline.middleware.observe import Observe
from tieline.model import CallRecord
from tieline.names.cache import NameCache
from tieline.names.host import host_address
from tieline.net.dial import LeadsBackCheck
from tieline.net.http2_pool import Http2Pool
from tieline.net.http2_server import Handler as Http2Handler
from tieline.outbound.external import External
from tieline.outbound.invoke import Dispatch, Local, outbound
from tieline.outbound.peer import PEER_LIMITS, PEER_UPKEEP, PeerCaller
from tieline.sidecar.naming import knows_namespaces
from tieline.sidecar.proxying import Proxying
from tieline.telemetry.access_log import FailureLog
from tieline.telemetry.api_log import ApiLog, GrpcApiLog
from tieline.telemetry.measure import make_metrics
from tieline.telemetry.metrics import Metrics
from tieline.wire import headers as fields
from tieline.wire.trace_context import IdSource

log = logging.getLogger("dapr.runtime")

MAP_GRPC_STATUS: Final = "MapGRPCStatusToHTTP"
"""The feature of a Configuration by which errors of gRPC apps get finer HTTP statuses (A-11)."""


class Parts:
    """The parts of one sidecar that know no port of their own.

    Args:
        configuration: The one in force at the start.
        environ: The process's environment at its start.
        measured: Is told of metrics that are about to be filled.
        leads_back: Whether a socket that was connected leads to this sidecar's own API.
        rpcs_lead_back: The same of its gRPC ports.

    Attributes:
        configuration: The one in force.
        channel: To our app; ``None`` if there is none.
        prober: Probes the app; ``None`` if it always counts as healthy (H-121).
        metrics: ``None`` where nobody could ask for them: nothing is counted then.
    """

    def __init__(
        self,
        settings: Settings,
        configuration: Configuration,
        environ: Mapping[str, str],
        version: str,
        *,
        measured: Callable[[Metrics], None],
        leads_back: LeadsBackCheck,
        rpcs_lead_back: LeadsBackCheck,
    ) -> None:
        self._settings = settings
        self._measured = measured
        self.configuration = configuration
        self.address = host_address(environ)
        self._hostname = socket.gethostname()
        self._proxies = read_proxies(environ)
        self._failures = FailureLog()
        self.health = Health(settings.app_id)
        self.metadata = Metadata(
            app_id=settings.app_id,
            version=version,
            features=configuration.enabled_features(),
            app_port=settings.app_port,
            app_protocol=settings.app_protocol,
            channel_address=settings.app_channel_address,
            max_concurrency=settings.app_max_concurrency,
            health_checks=settings.health_checks if settings.health_checks.enabled else None,
        )
        self.tracer = Tracer(enabled=not configuration.tracing.off, new_ids=IdSource())
        self.front = Front(self.tracer)
        self.channel = self._make_channel()
        self.prober = self._make_prober()
        if settings.app_port:
            self.health.app = self._tell_app
        self.peers = Http2Pool(
            native=True,
            limits=PEER_LIMITS,
            upkeep=PEER_UPKEEP._replace(idle_s=settings.peer_idle_s, look_every_s=settings.peer_sweep_s),
        )
        self.proxying = Proxying(
            settings,
            channel=self.channel,
            peers=self.peers,
            over=self.observe_proxied,
            leads_back=rpcs_lead_back,
        )
        self.external = External(
            max_concurrency=settings.app_max_concurrency, proxies=self._proxies, leads_back=leads_back
        )
        self._rpc_log: GrpcApiLog | None = None
        self.metrics: Metrics | None = None
        self._counts_errors = False
        self.measure(configuration)

    # ── towards our app ────────────────────────────────────────────────────────────────────────────
    def _make_channel(self) -> HttpChannel | GrpcChannel | None:
        settings = self._settings
        if not settings.app_port:
            return None
        if settings.app_max_concurrency > 0:
            log.info("app max concurrency set to %d", settings.app_max_concurrency)
        if settings.app_protocol in ("grpc", "grpcs"):
            return self._make_grpc_channel(settings.app_port)
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

    def _make_grpc_channel(self, port: int) -> GrpcChannel:
        settings = self._settings
        return GrpcChannel(
            secure=settings.app_protocol == "grpcs",
            host=settings.app_channel_address,
            port=port,
            max_concurrency=settings.app_max_concurrency,
            max_message=settings.max_body_size,
            token=settings.app_api_token,
            idle_s=settings.peer_idle_s,
            look_every_s=settings.peer_sweep_s,
        )

    def _tell_app(self) -> str:
        """Return how the app is: ``waiting`` for its port, by its probes, or ``unknown`` if there are none."""
        if self.metadata.waiting_for_app and (self.prober is None or not self.prober.heard.is_set()):
            return f"waiting; nobody listens on port {self._settings.app_port} yet"
        if self.prober is None:
            return "unknown; it is not checked, --enable-app-health-check would"
        return self.prober.told()

    def _make_prober(self) -> Prober | None:
        checks, channel = self._settings.health_checks, self.channel
        if not checks.enabled:
            return None
        if isinstance(channel, GrpcChannel):
            return Prober(channel, checks, rpc=HEALTH_CHECK.decode())
        return Prober(channel, checks) if isinstance(channel, HttpChannel) else None

    @property
    def waiting_for_app(self) -> int | None:
        """How many calls wait for a free slot at the app; ``None`` if there is no limit."""
        return None if self.channel is None else self.channel.waiting

    # ── watching ───────────────────────────────────────────────────────────────────────────────────
    def measure(self, configuration: Configuration) -> None:
        """Count from now on, from zero, what a Configuration asks for.

        Raises:
            BadPattern: It cannot be used; what was counted before still is.
        """
        metrics = make_metrics(self._settings.app_id, configuration.metric, configuration.places)
        self.metrics = metrics if self._settings.enable_metrics else None
        self._counts_errors = configuration.metric.record_error_codes
        self.front.metrics = self.metrics
        if self.prober is not None:
            self.prober.listener = self.metrics
        if self.metrics is not None:
            self._measured(self.metrics)

    def observe(self, record: CallRecord) -> None:
        """Take note of a call that is over."""
        metrics = self.metrics
        if metrics is not None:
            metrics.record_call(record)
            failed = record.status >= 400 and not record.inbound and not record.api_rpc
            # The app's own errors too, as dashboards for daprd expect it (O-28), but those of whole requests only.
            if self._counts_errors and failed and (record.cause is not None or not record.streamed):
                metrics.count_error(TielineError.code, category_of(TielineError.code))
        if record.cause is not None:
            self._failures.log_failure(record)

    def observe_proxied(self, record: CallRecord) -> None:
        """Take note of a proxied call that is over."""
        if self._rpc_log is not None and record.api_rpc:
            self._rpc_log.write(record.api_rpc, record.rpc_code, record.started, record.user_agent)
        if self.metrics is not None:
            self.metrics.record_proxied(record)
        if record.cause is not None:
            self._failures.log_failure(record)

    def count_app_call(self, record: CallRecord) -> None:
        """Take note of a call of our own to the app."""
        if self.metrics is not None:
            self.metrics.record_app_call(record)

    # ── the paths ──────────────────────────────────────────────────────────────────────────────────
    def make_dispatch(self, names: NameCache) -> Dispatch:
        """Join where the calls of our app can go."""
        settings = self._settings
        peer = PeerCaller(
            names,
            self.peers,
            added=[
                *fields.forwarded(self.address, self._hostname),
                *fields.identity(settings.app_id, settings.namespace),
            ],
            namespace=settings.namespace,
            knows_namespaces=knows_namespaces(self.configuration.name_resolution),
            limit=settings.max_body_size,
        )
        own = fields.identity(settings.app_id, settings.namespace, settings.app_id)
        return Dispatch(
            app_id=settings.app_id,
            namespace=settings.namespace,
            local=Local(self.channel, own),
            peer=peer,
            external=self.external,
        )

    def make_inbound(self) -> InboundServer:
        """Make what other sidecars call."""
        settings = self._settings
        observe = Observe(self.observe)
        serve = inbound(observe=observe, end=ToApp(self.channel, settings.app_id))

        def make_calls() -> Http2Handler:
            from tieline.inbound.grpc_calls import GrpcCalls

            return GrpcCalls(
                serve,
                observe,
                app_id=settings.app_id,
                namespace=settings.namespace,
                has_app=self.channel is not None,
                limit=settings.max_body_size,
                new_ids=None if self.configuration.tracing.off else IdSource(),
            )

        return InboundServer(
            serve, observe, app_id=settings.app_id, namespace=settings.namespace, make_calls=make_calls
        )

    def make_api(self, dispatch: Dispatch, shutdown: Callable[[bool], None]) -> HttpApi:
        """Make the API as the Configuration wants it now."""
        settings = self._settings
        lists = ApiLists(self.configuration.api)
        cors = Cors(settings.allowed_origins) if settings.allowed_origins else None
        own = OwnApis(health=self.health, metadata=self.metadata, shutdown=shutdown, lists=lists, cors=cors)
        return HttpApi(
            front=self.front,
            own=own,
            invoke=self._make_invoke(dispatch, own) if lists.is_open("invoke", "v1", "v1.0/invoke/") else None,
            cors=cors,
            token=Token(settings.api_token) if settings.api_token is not None else None,
            api_log=self._make_api_log(),
        )

    def make_grpc_api(self, dispatch: Dispatch, names: NameCache, shutdown: Callable[[bool], None]) -> GrpcApi:
        """Make the gRPC API as the Configuration wants it now."""
        settings = self._settings
        lists = GrpcLists(self.configuration.api)
        self._rpc_log = GrpcApiLog() if self._logs_calls else None
        observe = Observe(self.observe)
        invoke = InvokeService(
            outbound(observe=observe, attempts=Attempts(), end=dispatch),
            observe,
            app_id=settings.app_id,
            namespace=settings.namespace,
            drop_token=settings.api_token is not None,
            is_external=dispatch.is_external,
            limit=settings.max_body_size,
        )
        return GrpcApi(
            own=own_rpcs(invoke, OwnRpcs(metadata=self.metadata, shutdown=shutdown)),
            shared=shared_rpcs(self.health),
            streams=shared_streams(self.health),
            tracer=self.tracer,
            limit=settings.max_body_size,
            lists=lists if lists.restrict else None,
            token=settings.api_token,
            api_log=self._rpc_log,
            metrics=lambda: self.metrics,
            proxy=self.proxying.make_proxy(names, traced=self.tracer.enabled),
        )

    def make_public_api(self) -> PublicApi:
        """Make what is answered on the public port."""
        lists = ApiLists(self.configuration.api)
        own = OwnApis(health=self.health, metadata=self.metadata, shutdown=None, lists=lists)
        return PublicApi(front=self.front, own=own)

    def _make_invoke(self, dispatch: Dispatch, own: OwnApis) -> Invoke:
        settings = self._settings
        mapped = settings.map_grpc_status or MAP_GRPC_STATUS in self.configuration.enabled_features()
        observe = Observe(self.observe, failure_size, RpcAnswers(map_status=mapped))
        return Invoke(
            outbound(observe=observe, attempts=Attempts(), end=dispatch),
            observe,
            self.tracer,
            app_id=settings.app_id,
            namespace=settings.namespace,
            drop_token=settings.api_token is not None,
            is_external=dispatch.is_external,
            count=self.front.count,
            explain=own.explain,
        )

    @property
    def _logs_calls(self) -> bool:
        """Whether each call of the APIs gets a line."""
        explicit = self._settings.enable_api_logging
        return self.configuration.api_logging.enabled if explicit is None else explicit

    def _make_api_log(self) -> ApiLog | None:
        asked = self.configuration.api_logging
        if not self._logs_calls:
            return None
        return ApiLog(obfuscate=asked.obfuscate_urls, omit_health=asked.omit_health_checks)

    # ── the end ────────────────────────────────────────────────────────────────────────────────────
    async def aclose(self) -> None:
        """Let go of all connections that calls went over; there are no calls any more."""
        self.peers.close()
        self.proxying.close()
        self.external.close()
        if self.channel is not None:
            await self.channel.aclose()

    def flush(self) -> None:
        """Write what was held back."""
        self._failures.flush()
