"""The parts of proxied calls: made of a sidecar's settings, and joined."""

from __future__ import annotations

from collections.abc import Callable

from tieline.app.grpc_channel import CONNECT_WITHIN_S, GrpcChannel
from tieline.app.rpc_route import APP_LIMITS, Channel, RpcRoute
from tieline.config.settings import Settings
from tieline.inbound.proxied import ProxiedCalls
from tieline.model import CallRecord
from tieline.names.cache import NameCache
from tieline.net.deadlines import Deadlines
from tieline.net.dial import LeadsBackCheck
from tieline.net.http2 import Upkeep
from tieline.net.http2_pool import Http2Pool
from tieline.outbound.proxy import PeerRoute, Proxy
from tieline.wire.grpc.proxied import NewTraces


class Proxying:
    """What proxied calls go through.

    Args:
        channel: To our app; ``None`` if there is none. One that speaks gRPC shares its connections.
        peers: Connections to other sidecars.
        over: Is told of each call that is over.
        leads_back: Whether a socket leads to this sidecar's own gRPC ports.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        channel: Channel | None,
        peers: Http2Pool,
        over: Callable[[CallRecord], None],
        leads_back: LeadsBackCheck,
    ) -> None:
        self._settings = settings
        self._peers = peers
        self._over = over
        self._deadlines = Deadlines()
        self._pool = channel.pool if isinstance(channel, GrpcChannel) else _make_pool()
        self._app = RpcRoute(
            host=settings.app_channel_address,
            port=settings.app_port or 0,
            channel=channel,
            pool=self._pool,
            limit=settings.max_body_size,
            over=over,
            secure=settings.app_protocol == "grpcs",
            leads_back=leads_back,
        )

    def make_proxy(self, names: NameCache, *, traced: bool) -> Proxy:
        """Make what takes the calls of our app. ``traced``: whether they carry a trace context of ours."""
        settings = self._settings
        return Proxy(
            app_id=settings.app_id,
            namespace=settings.namespace,
            peers=PeerRoute(names, self._peers, limit=settings.max_body_size, over=self._over),
            app=self._app,
            over=self._over,
            deadlines=self._deadlines,
            new_traces=NewTraces(),
            traced=traced,
            drop_token=settings.api_token is not None,
            app_token=settings.app_api_token or "",
        )

    def make_calls(self, *, traced: bool) -> ProxiedCalls:
        """Make what takes the calls of other sidecars."""
        settings = self._settings
        return ProxiedCalls(
            app_id=settings.app_id,
            namespace=settings.namespace,
            app=self._app,
            over=self._over,
            deadlines=self._deadlines,
            traced=traced,
            app_token=settings.app_api_token or "",
        )

    def close(self) -> None:
        """Let go of all connections to the app."""
        self._pool.close()


def _make_pool() -> Http2Pool:
    """Make the connections to an app that is said to speak another protocol, and may speak gRPC all the same."""
    return Http2Pool(
        native=False,
        limits=APP_LIMITS,
        upkeep=Upkeep(settings_within_s=CONNECT_WITHIN_S, ping_after_s=None),
        connect_within_s=CONNECT_WITHIN_S,
        more_when_full=False,
        keeps_last=True,
    )
