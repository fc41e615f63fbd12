"""The way of proxied calls to our own app: dialled as gRPC, whatever protocol the app is said to speak (G-86)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from tieline.app.slots import Slots
from tieline.errors import AppBroken, AppMissing, AppUnhealthy, AppUnreachable, GrpcCode, PeerUnreachable, TielineError
from tieline.model import CallRecord
from tieline.net.dial import LeadsBackCheck
from tieline.net.http2_client import Http2Client
from tieline.net.http2_pool import Http2Pool
from tieline.net.relay import Place, Relay
from tieline.resiliency.again import pause_before_retry
from tieline.wire.http2 import Limits

APP_LIMITS = Limits(streams=1, header_list=1 << 20, header_list_hard=2 << 20, unread=160 << 20)
"""For the connections to the app: whatever the head of its answer may be, it comes through; and clients that stop
reading hold up no others, as between sidecars."""


class Channel(Protocol):
    """What calls to the app have in common, however they are made.

    Attributes:
        unhealthy: Makes the error of a call while the app's health checks fail; ``None`` lets calls through.
        slots: ``None`` if there may be any number of calls at a time.
    """

    unhealthy: Callable[[], TielineError] | None

    @property
    def slots(self) -> Slots | None:
        """See above."""


class RpcRoute:
    """See ``net.relay.Route``.

    Args:
        host: IP address or name, IPv6 in brackets or not.
        port: 0 if there is no app.
        channel: ``None`` if there is no app.
        limit: Longest message in bytes.
        secure: The app speaks TLS.
        leads_back: Whether a socket leads to this sidecar itself; ``None`` if it cannot.
        over: Is told of each call that is over.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        channel: Channel | None,
        pool: Http2Pool,
        limit: int | None,
        over: Callable[[CallRecord], None],
        secure: bool = False,
        leads_back: LeadsBackCheck | None = None,
    ) -> None:
        self.limit = limit
        self._host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        self._port = port
        self._channel = channel
        self._pool = pool
        self._key = (self._host, port)
        self._over = over
        self._leads_back = leads_back
        self._good: Http2Client | None = None
        """Leads to the app, not back here: looked at last."""
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self._place = Place(f"{shown}:{port}".encode(), secure=secure)

    def ready(self, relay: Relay) -> Http2Client | None:
        """See ``Route``."""
        channel = self._channel
        if channel is None:
            raise AppMissing(
                "app channel is not initialized",
                hint="the sidecar of the called app was started without an app: give it --app-port",
                grpc_code=GrpcCode.UNAVAILABLE,
            )
        if channel.unhealthy is not None:
            raise AppUnhealthy("app is not in a healthy state", grpc_code=GrpcCode.UNAVAILABLE)
        relay.place = self._place
        slots = channel.slots
        if slots is not None:
            if not slots.take():
                return None
            relay.slot = slots
        client = self._pool.ready(self._key)
        if client is not self._good and client is not None:
            self._check(client)
        return client

    def _check(self, client: Http2Client) -> None:
        """Refuse a connection that leads back to this sidecar: its calls would go round and round."""
        if self._leads_back is not None and self._leads_back(client.socket):
            client.abort()
            raise AppUnreachable(
                f"port {self._port} is this sidecar's own",
                hint="--app-port must be the port of the app",
                grpc_code=GrpcCode.UNAVAILABLE,
            )
        self._good = client

    async def open(self, relay: Relay, after: TielineError | None) -> Http2Client:
        """See ``Route``."""
        if after is not None:
            pause = pause_before_retry(after, b"POST", relay.tries - 1, body_ready=True)
            if pause is None:
                raise self._explained(after)
            if pause:
                await asyncio.sleep(pause)
        channel = self._channel
        assert channel is not None
        slots = channel.slots
        if slots is not None and relay.slot is None:
            waited_from = perf_counter()
            await slots.acquire()
            relay.slot = slots
            relay.record.waited_s = perf_counter() - waited_from
        began = perf_counter()
        try:
            try:
                return await self._connect()
            except PeerUnreachable:
                return await self._connect()  # once more at once (G-82)
        except PeerUnreachable as error:
            raise self._explained(error) from error
        finally:
            relay.record.connecting_s += perf_counter() - began

    async def _connect(self) -> Http2Client:
        connection = await self._pool.connection(self._host, self._port, self._key)
        await connection.wait_turn()
        self._check(connection)
        return connection

    def _explained(self, error: TielineError) -> AppUnreachable:
        return AppUnreachable(
            error.text,
            hint="start the app, or check --app-port and --app-channel-address; the app must speak gRPC",
            grpc_code=GrpcCode.UNAVAILABLE,
        )

    def is_sidecar(self, client: Http2Client) -> bool:
        """See ``Route``."""
        return False

    def lost(self, text: str) -> TielineError:
        """See ``Route``."""
        return AppBroken(text, hint="the app broke off the call: look into its log", grpc_code=GrpcCode.UNAVAILABLE)

    def over(self, relay: Relay) -> None:
        """See ``Route``."""
        slots, relay.slot = relay.slot, None
        if slots is not None:
            slots.release()
        record = relay.record
        record.rpc_code = relay.code
        record.duration_s = perf_counter() - record.started
        self._over(record)
