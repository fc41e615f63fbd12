"""The path of a call that our app makes."""

from __future__ import annotations

from collections.abc import Awaitable

from tieline.app.channel import AppChannel
from tieline.errors import AppMissing
from tieline.middleware.chain import Handler, Middleware, chain
from tieline.model import Headers, Invocation, Reply, Target
from tieline.outbound.external import External
from tieline.outbound.peer import PeerCaller
from tieline.wire.method_path import is_url


class Local:
    """Self invocation: straight to our own app, with no other sidecar and no look-up."""

    def __init__(self, channel: AppChannel | None, identity: Headers) -> None:
        self._channel = channel
        self._identity = identity

    async def call(self, call: Invocation) -> Reply:
        """Call our own app.

        Raises:
            AppMissing: There is none.
            TielineError: See ``AppChannel.call``.
        """
        if self._channel is None:
            raise AppMissing(
                "cannot invoke local endpoint: app channel not initialized",
                hint="this sidecar was started without an app: give it --app-port",
            )
        call.record.local = True
        return await self._channel.call(call, self._identity)


class Dispatch:
    """The end of the path: an endpoint outside, our own app, or another sidecar (H-27)."""

    def __init__(self, *, app_id: str, namespace: str, local: Local, peer: PeerCaller, external: External) -> None:
        self._app_id = app_id
        self._namespace = namespace
        self._local = local
        self._peer = peer
        self._external = external
        self._endpoints = external.endpoints

    def is_external(self, target: Target) -> bool:
        """Whether a call would leave the mesh."""
        return target.app_id in self._endpoints or (not target.app_id and is_url(target.addressed))

    def __call__(self, call: Invocation) -> Awaitable[Reply]:
        target = call.target
        if self._endpoints:
            # An endpoint goes before an app of the same name, our own included.
            endpoint = self._endpoints.get(target.app_id)
            if endpoint is not None:
                return endpoint.call(call)
        if target.app_id == self._app_id and target.namespace == self._namespace:
            return self._local.call(call)
        if not target.app_id and is_url(target.addressed):
            return self._external.call_url(call)
        return self._peer.call(call)


def outbound(*, observe: Middleware, attempts: Middleware, end: Handler) -> Handler:
    """Assemble the outbound path; the order below is the order of travel."""
    return chain(
        # Outermost: it sees how the call ended after all tries.
        observe,
        # Each try resolves anew, so that a peer that moved is found.
        attempts,
        end=end,
    )
