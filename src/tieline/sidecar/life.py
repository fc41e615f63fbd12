"""The life of a sidecar, from its start to the last line of its log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from typing import Final

from tieline.api.metrics import MetricsServer
from tieline.app.channel import AppChannel
from tieline.app.start import ask_config, wait_for_port
from tieline.config.configuration import Configuration
from tieline.config.duration import format_duration
from tieline.config.environment import Ports, own_environment
from tieline.config.settings import Settings
from tieline.names.cache import NameCache
from tieline.names.registry import sidecar_entry
from tieline.names.sidecars import CUT, STOPPED, SidecarEntry
from tieline.net.tasks import spawn
from tieline.net.terminal import ends_with_terminal, has_terminal
from tieline.outbound.invoke import Dispatch
from tieline.sidecar.listeners import Listeners
from tieline.sidecar.naming import make_resolvers, sidecar_facts
from tieline.sidecar.parts import Parts
from tieline.sidecar.reload import Files
from tieline.telemetry.metrics import Metrics
from tieline.telemetry.process import process_readings
from tieline.telemetry.readings import add_readings

log = logging.getLogger("dapr.runtime")
_signals_log = logging.getLogger("dapr.signals")

FORCED_EXIT_S: Final = 0.1
OUTBOUND_GRACE_S: Final = 0.1
"""How long an app that listens already may put off outbound health, so that others find it by then."""
SHARE_OF_OTHERS: Final = 0.5
"""Of the grace: so much of it calls of other sidecars may take before the API closes too, whose calls get the rest."""
FIRST_PROBE_S: Final = 0.5
"""How long the first health probe of the app may put off that it is announced and the sidecar ready."""


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
        self._environ = environ
        self._version = version
        self._began = time.perf_counter()
        process = process_readings()
        self._scraped = MetricsServer(lambda: [*(metrics.shown() if (metrics := self.metrics) else ()), *process])
        self._listeners = Listeners(settings)
        self._parts = Parts(
            settings,
            configuration,
            environ,
            version,
            measured=self._add_readings,
            leads_back=self._listeners.api.is_behind,
            rpcs_lead_back=self._listeners.serves_rpcs_behind,
        )
        self._files = Files(settings, self._parts, environ, swap_apis=self._swap_apis)
        self._names: NameCache | None = None
        self._dispatch: Dispatch
        self._entry: SidecarEntry | None = None
        self._reload_asked = False
        self._was_cut = False
        self._stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._start_task: asyncio.Task[object] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None

    @property
    def metrics(self) -> Metrics | None:
        """What is counted; ``None`` if nothing is."""
        return self._parts.metrics

    def _add_readings(self, metrics: Metrics) -> None:
        """Have shown with the metrics what is only worth a look when somebody asks."""
        listeners = self._listeners
        add_readings(
            metrics,
            version=self._version,
            listeners={
                "grpc": listeners.grpc,
                "http": listeners.api,
                "internal": listeners.internal,
                "metrics": self._scraped.listener,
                "public": listeners.public,
            },
            peer_connections=lambda: self._parts.peers.size,
            waiting_for_app=lambda: self._parts.waiting_for_app,
        )

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
            self._listeners.abort()
            self._scraped.listener.abort()
            if self._entry is not None:
                self._entry.remove(last_word=self._last_word())

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

    async def _start(self) -> None:
        settings, parts, listeners = self._settings, self._parts, self._listeners
        self._files.load()
        listeners.reserve_internal()
        await listeners.bind_apis()
        if settings.enable_metrics:
            self._scraped.bind(settings.metrics_listen_address, settings.metrics_port)
        self._set_environment()
        spec = parts.configuration.name_resolution
        facts = sidecar_facts(settings, spec, listeners, self._version, metrics_port=self._scraped.port)
        resolvers = make_resolvers(
            settings,
            spec,
            facts,
            internal_port=listeners.internal.port,
            address=parts.address,
            environ=self._environ,
        )
        names = self._names = NameCache(resolvers, spawn=spawn, namespace=settings.namespace)
        await names.start()
        self._dispatch = parts.make_dispatch(names)
        proxied = parts.proxying.make_calls(traced=parts.tracer.enabled)
        await listeners.serve_internal(parts.make_inbound(), proxied)
        await listeners.serve_grpc(parts.make_grpc_api(self._dispatch, names, self._shutdown_asked))
        await listeners.serve_api(parts.make_api(self._dispatch, self._shutdown_asked))
        await listeners.serve_public(parts.make_public_api())
        if settings.enable_metrics:
            await self._scraped.serve()
        self._files.watch()
        if self._reload_asked:
            self._files.reload()
        self._entry = sidecar_entry(facts, self._environ)
        self._noting = spawn(asyncio.to_thread(self._entry.write), name="word for tools")
        self._starting = spawn(self._welcome_app(names), name="app start")
        asyncio.get_running_loop().call_later(OUTBOUND_GRACE_S, self._open_outbound)

    def _set_environment(self) -> None:
        """Tell, for those that refer to the environment, which ports it became (H-17)."""
        settings, listeners = self._settings, self._listeners
        ports = Ports(
            http=listeners.api.port or settings.http_port,
            grpc=listeners.grpc.port or settings.grpc_port,
            internal=listeners.internal.port,
            metrics=self._scraped.port or settings.metrics_port,
        )
        os.environ.update(own_environment(settings, self._parts.address, ports))

    def _swap_apis(self) -> None:
        """Answer as the Configuration wants it now."""
        api = self._parts.make_api(self._dispatch, self._shutdown_asked)
        assert self._names is not None
        rpcs = self._parts.make_grpc_api(self._dispatch, self._names, self._shutdown_asked)
        self._listeners.swap(api, rpcs, self._parts.make_public_api())

    def _open_outbound(self) -> None:
        """Say that calls are taken: at once if the app is still to come, else when others find it too, but soon."""
        self._parts.health.open_outbound()

    async def _welcome_app(self, names: NameCache) -> None:
        """Wait for the app, then let others find it."""
        settings, parts = self._settings, self._parts
        channel, prober = parts.channel, parts.prober
        if channel is not None and settings.app_port:
            parts.metadata.waiting_for_app = True
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
                await self._greet_app(channel)
            parts.metadata.waiting_for_app = False
        await names.announce()
        self._open_outbound()
        parts.health.be_ready()
        elapsed = int((time.perf_counter() - self._began) * 1000)
        log.info("dapr initialized. Status: Running. Init Elapsed %dms", elapsed)
        if prober is not None and channel is not None:
            await prober.well.wait()
            await self._greet_app(channel)

    async def _greet_app(self, channel: AppChannel) -> None:
        """Make the first call to an app that is healthy now (H-117)."""
        settings = self._settings
        if "config" in settings.disable_init_endpoints:
            log.info("Skipping programmatic dapr configuration loading")
        elif settings.app_protocol not in ("grpc", "grpcs"):
            await ask_config(channel, settings.app_id, settings.namespace, self._parts.count_app_call)

    # ── stop ───────────────────────────────────────────────────────────────────────────────────────
    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, name in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupt")):
            loop.add_signal_handler(number, self._signalled, name)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up, ends_with_terminal())

    def _hung_up(self, ends_with_it: bool) -> None:
        """Read the files anew; unless this is the terminal, which was closed and ends what runs in it."""
        if self._stop.done() or (ends_with_it and not has_terminal()):
            self._signalled("hangup")
            return
        _signals_log.info("Received signal 'hangup'; reloading")
        if self._start_task is None:
            self._files.reload()
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
        self._parts.health.leave()
        self._files.stop()
        for task in (self._starting, self._probing):
            if task is not None:
                task.cancel()
        grace = settings.graceful_shutdown_s
        try:
            async with asyncio.timeout(grace):
                await self._drain()
        except TimeoutError:
            log.error("Graceful shutdown timeout exceeded, forcing shutdown")
            self._was_cut = True
            return 1
        log.info("Daprd shutdown gracefully")
        return 0

    def _last_word(self) -> str:
        """Return what tools are still to be told after the end: of calls that were cut, of a ``run`` that goes on."""
        if self._was_cut:
            return CUT
        is_child_of_run = self._parts.metadata.attribute("cliPID") == str(os.getppid())
        return STOPPED if is_child_of_run else ""

    async def _block(self, seconds: float) -> None:
        shown = format_duration(seconds)
        log.info("Blocking graceful shutdown for %s or until app reports unhealthy...", shown)
        if await self._turns_unhealthy(seconds):
            log.info("App reported unhealthy, entering shutdown...")
        else:
            log.info("Block shutdown period expired, entering shutdown...")

    async def _turns_unhealthy(self, within_s: float) -> bool:
        """Wait for the app to become unhealthy, and say whether it did; one that never came up has been all along."""
        prober = self._parts.prober
        if self._parts.health.waiting_for:
            return True
        if prober is None:
            await asyncio.sleep(within_s)
            return False
        try:
            async with asyncio.timeout(within_s):
                await prober.ill.wait()
        except TimeoutError:
            return False
        return True

    async def _drain(self) -> None:
        """Let calls in progress finish, in the order in which they need each other.

        First nobody finds us, and other sidecars are told to send no new calls. Calls that run in our app may
        still need the API for calls of their own, so it closes after them; then its own calls finish. One that does
        not end (a stream, say) leaves its calls a share of the grace.
        """
        grace = self._settings.graceful_shutdown_s
        share = None if grace is None else asyncio.get_running_loop().time() + grace * SHARE_OF_OTHERS
        if self._names is not None:
            await self._names.withdraw()
        listeners = self._listeners
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(share):
                await listeners.internal.drain()
        await asyncio.gather(listeners.internal.members.wait_empty(), listeners.api.drain(), listeners.grpc.drain())
        await listeners.public.drain()
        await self._scraped.drain()  # after the calls, so that a last look at the metrics has them all
        await self._parts.aclose()
        if self._names is not None:
            await self._names.aclose()
        self._parts.flush()
