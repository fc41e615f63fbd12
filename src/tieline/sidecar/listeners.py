"""The ports of a sidecar: bound, served, and drained, with an error that names the option where one cannot be had."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tieline.api.grpc.server import GrpcApi
from tieline.api.http.server import HttpApi, PublicApi
from tieline.config.settings import LOOPBACK, Settings
from tieline.errors import StartError
from tieline.inbound.server import InboundServer
from tieline.names.host import own_internal_port
from tieline.net.http1_server import Http1Server, ServerOptions
from tieline.net.http2 import Upkeep
from tieline.net.http2_server import Handler, Http2Server, Taker
from tieline.net.listener import Listener
from tieline.wire.http2 import Limits

log = logging.getLogger("dapr.runtime")

HEAD_SLACK: Final = 4096
"""What a request head may have beyond the read buffer (H-63)."""
HTTP2_HEAD_SLACK: Final = 320
RPC_STREAMS: Final = 1 << 16
"""Calls that our app may have in progress on one connection to the gRPC API: daprd sets no limit, and waits."""
RPC_HEADERS: Final = 65536
"""Longest metadata of an RPC, unless the read buffer is larger (G-3)."""
MIN_PING_INTERVAL_S: Final = 8.0
"""Clients that ask gRPC servers for a sign of life more often are hung up on (G-4)."""
INTERNAL_LIMITS: Final = Limits(
    streams=2048,
    header_list=1 << 20,
    header_list_hard=2 << 20,
    unread=160 << 20,
    ping_interval_s=MIN_PING_INTERVAL_S,
)
RPC_UPKEEP: Final = Upkeep(ping_after_s=10.0, ping_within_s=5.0, idle_s=180.0)
"""Of connections to both gRPC servers (G-4)."""


class Listeners:
    """The ports for our app, for whoever asks for health, and for other sidecars."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.api = Listener("HTTP", logging.getLogger("dapr.runtime.http"))
        self.grpc = Listener("gRPC", logging.getLogger("dapr.runtime.grpc.api"))
        self.public = Listener("public HTTP", logging.getLogger("dapr.runtime.http"))
        self.internal = Listener("internal gRPC", logging.getLogger("dapr.runtime.grpc.internal"))
        self._answer_app: Handler
        self._answer_public: Handler
        self._rpcs: GrpcApi

    # ── binding ────────────────────────────────────────────────────────────────────────────────────
    def reserve_internal(self) -> None:
        """Hold the port for other sidecars before anything else can take it (H-5, H-6).

        Raises:
            StartError: The one that was asked for cannot be had.
        """
        settings = self._settings
        given = settings.internal_listen_address
        # On this host only, unless an address is given.
        addresses = ("127.0.0.1",) if given is None else (given,)
        port = settings.internal_port
        if port is None:
            with contextlib.suppress(OSError):
                self._bind_internal(addresses, own_internal_port(settings.app_id))
                return
            port = 0
        try:
            self._bind_internal(addresses, port)
        except (OSError, OverflowError) as error:
            shown, remedy = f"port {port}", "choose another one with --dapr-internal-grpc-port"
            if _is_of_the_address(error):
                shown, remedy = (
                    ",".join(addresses),
                    "--dapr-internal-grpc-listen-address must be an address of this host",
                )
            raise StartError(f"failed to start internal gRPC server: {shown}: {_reason(error)}; {remedy}") from error

    def _bind_internal(self, addresses: Sequence[str], port: int) -> None:
        for address in addresses:
            self.internal.bind_now(address, self.internal.port or port)

    async def bind_apis(self) -> None:
        """Bind the ports of both APIs, or their sockets.

        Raises:
            StartError: One cannot be had.
        """
        settings = self._settings
        if settings.unix_domain_socket:
            self._bind_socket(self.grpc, "API gRPC", settings.unix_domain_socket, "grpc")
            self._bind_socket(self.api, "HTTP", settings.unix_domain_socket, "http")
            return
        if settings.http_port and settings.http_port == settings.grpc_port:
            raise StartError(
                f"failed to start HTTP server: could not listen on any endpoint: port {settings.http_port} "
                "is given for both the HTTP and the gRPC API; choose another --dapr-grpc-port"
            )
        await self._bind_port(self.grpc, "API gRPC", settings.grpc_port, "--dapr-grpc-port")
        await self._bind_port(self.api, "HTTP", settings.http_port, "--dapr-http-port")

    async def _bind_port(self, listener: Listener, name: str, port: int, option: str) -> None:
        addresses = self._settings.listen_addresses
        optional = LOOPBACK[1:] if addresses == LOOPBACK else ()
        if not await listener.bind(addresses, port, optional=optional):
            failure = f"port {port} is taken or not usable; choose another {option}"
            if _is_of_the_address(listener.failure):
                shown = ",".join(addresses)
                failure = f"{_reason(listener.failure)}; --dapr-listen-addresses {shown} must be addresses of this host"
            raise StartError(f"failed to start {name} server: could not listen on any endpoint: {failure}")

    def _bind_socket(self, listener: Listener, name: str, folder: str, protocol: str) -> None:
        """Serve an API on a Unix domain socket in place of TCP (H-2)."""
        path = Path(folder) / f"dapr-{self._settings.app_id}-{protocol}.socket"
        try:
            listener.bind_unix(path)
        except OSError as error:
            raise StartError(
                f"failed to start {name} server: {path}: {_reason(error)}; "
                "make the folder, or choose another one with --unix-domain-socket"
            ) from error

    def serves_rpcs_behind(self, sock: socket.socket) -> bool:
        """Say whether a socket that we connected leads to one of our own gRPC ports."""
        return self.internal.is_behind(sock) or self.grpc.is_behind(sock)

    # ── serving ────────────────────────────────────────────────────────────────────────────────────
    async def serve_internal(self, server: InboundServer, taker: Taker) -> None:
        """Answer other sidecars; ``taker`` gets their proxied calls."""
        members = self.internal.members
        await self.internal.accept(
            lambda: Http2Server(
                server, limits=INTERNAL_LIMITS, native=True, members=members, taker=taker, upkeep=RPC_UPKEEP
            )
        )
        log.info("Internal gRPC server is running on port %d", self.internal.port)

    async def serve_api(self, api: HttpApi) -> None:
        """Answer our app."""
        settings = self._settings
        options = ServerOptions(
            max_head=settings.read_buffer_size + HEAD_SLACK,
            max_body=settings.max_body_size,
            http2=not settings.http_disable_h2c,
            http2_limits=Limits(header_list=settings.read_buffer_size + HTTP2_HEAD_SLACK),
        )
        self._answer_app = api.handle
        await self.api.accept(lambda: Http1Server(self._answer_app, options, self.api.members))
        if settings.unix_domain_socket:
            log.info("HTTP server listening on UNIX socket: %s", self.api.where)
        else:
            log.info("HTTP server is running on port %d", self.api.port)

    async def serve_grpc(self, api: GrpcApi) -> None:
        """Answer the RPCs of our app."""
        settings = self._settings
        longest = max(RPC_HEADERS, settings.read_buffer_size + HEAD_SLACK)
        limits = Limits(
            streams=RPC_STREAMS, header_list=longest, header_list_hard=4 * longest, ping_interval_s=MIN_PING_INTERVAL_S
        )
        self._rpcs = api
        members = self.grpc.members
        await self.grpc.accept(
            lambda: Http2Server(
                self._rpcs.handle,
                limits=limits,
                native=False,
                members=members,
                taker=self._rpcs,
                upkeep=RPC_UPKEEP,
            )
        )
        if settings.unix_domain_socket:
            log.info("gRPC server listening on UNIX socket: %s", self.grpc.where)
        else:
            log.info("API gRPC server is running on port %d", self.grpc.port)

    async def serve_public(self, api: PublicApi) -> None:
        """Serve health and metadata to whoever may not use the API, if that is wanted (H-131).

        Raises:
            StartError: The port cannot be had (H-8).
        """
        settings = self._settings
        if settings.public_port is None:
            return
        address, port = settings.public_listen_address, settings.public_port
        try:
            self.public.bind_now(address, port)
        except (OSError, OverflowError) as error:
            raise StartError(
                f"listen tcp {address}:{port}: bind: {_reason(error)}; choose another one with --dapr-public-port"
            ) from error
        options = ServerOptions(
            max_head=settings.read_buffer_size + HEAD_SLACK, max_body=None, http2=False, http2_limits=Limits()
        )
        self._answer_public = api.handle
        await self.public.accept(lambda: Http1Server(self._answer_public, options, self.public.members))
        log.info("Public HTTP server is running on port %d", self.public.port)

    def swap(self, api: HttpApi, rpcs: GrpcApi, public: PublicApi) -> None:
        """Answer by these from now on, on open connections too."""
        self._rpcs = rpcs
        self.grpc.hand_over(rpcs.handle, rpcs)
        self._answer_app = api.handle
        self.api.hand_over(api.handle)
        self._answer_public = public.handle
        self.public.hand_over(public.handle)

    def abort(self) -> None:
        """Drop everything that is open."""
        for listener in (self.api, self.grpc, self.public, self.internal):
            listener.abort()


def _is_of_the_address(failure: Exception | None) -> bool:
    """Whether an address, and not its port, is why it could not be bound: it is none of this host's, or no name."""
    if isinstance(failure, OSError):
        return isinstance(failure, socket.gaierror) or failure.errno == errno.EADDRNOTAVAIL
    return False


def _reason(error: Exception | None) -> str:
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
