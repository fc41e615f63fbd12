"""The path of a call that another sidecar makes to our app."""

from __future__ import annotations

from typing import Final

from tieline.app.channel import AppChannel
from tieline.errors import AppMissing, GrpcCode, TielineError
from tieline.middleware.chain import Handler, Middleware, chain
from tieline.model import Headers, Invocation, Reply
from tieline.wire.headers import identity

MAX_CALLERS: Final = 1024
"""Callers whose identity fields are remembered ready-made."""
MAX_NAME: Final = 256
"""Those with longer names are not."""


class ToApp:
    """The end of the path: our app."""

    def __init__(self, channel: AppChannel | None, app_id: str) -> None:
        self._channel = channel
        self._app_id = app_id
        self._identities: dict[tuple[str, str], Headers] = {}

    async def __call__(self, call: Invocation) -> Reply:
        if self._channel is None:
            raise AppMissing(
                "app channel is not initialized",
                hint=f"the sidecar of {self._app_id} was started without an app: give it --app-port",
                grpc_code=GrpcCode.INTERNAL,
            )
        record = call.record
        caller = (record.caller, record.caller_namespace)
        fields = self._identities.get(caller)
        if fields is None:
            # Who calls by gRPC need not say who it is.
            fields = [field for field in identity(*caller, self._app_id) if field[1]]
            if len(caller[0]) + len(caller[1]) <= MAX_NAME:
                if len(self._identities) >= MAX_CALLERS:
                    self._identities.clear()
                self._identities[caller] = fields
        try:
            return await self._channel.call(call, fields)
        except TielineError as error:
            # The caller's sidecar shows this text; it is how daprd puts it.
            error.text = f"error invoking app channel: {error.detail}"
            error.grpc_code = GrpcCode.INTERNAL
            raise


def inbound(*, observe: Middleware, end: Handler) -> Handler:
    """Assemble the inbound path; the order below is the order of travel."""
    return chain(observe, end=end)
