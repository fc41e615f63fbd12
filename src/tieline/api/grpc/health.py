"""``grpc.health.v1``: what probes and clients ask whether the sidecar is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from tieline.api.grpc.answers import RpcAnswer, failed, succeeded
from tieline.api.grpc.calls import RpcCall, unreadable
from tieline.api.grpc.conversation import Conversation
from tieline.api.health import Health
from tieline.config.grpc_apis import DAPR_SERVICE
from tieline.errors import GrpcCode
from tieline.model import Reply

SERVICE: Final = "grpc.health.v1.Health"
_SERVING: Final = 1
_NOT_SERVING: Final = 2
_SERVICE_UNKNOWN: Final = 3


class HealthRpcs:
    """Of the whole sidecar, which is the service without a name, and of the services that it offers.

    The whole is up when ``/v1.0/healthz`` says so, a service when ``/v1.0/healthz/outbound`` does.
    """

    def __init__(self, health: Health) -> None:
        self._health = health

    async def check(self, rpc: RpcCall, message: bytes) -> RpcAnswer:
        """``Check``."""
        status = state(self._health, _asked(message))
        if status == _SERVICE_UNKNOWN:
            return failed(GrpcCode.NOT_FOUND, "unknown service")
        return succeeded(_rendered(status), [])

    async def watch(self, rpc: RpcCall) -> Reply:
        """``Watch``: the state now, and again whenever it is another."""
        return Reply(200, [], Watch(rpc, self._health))


class Watch(Conversation):
    """The states of one service, from the first to the last."""

    def __init__(self, rpc: RpcCall, health: Health) -> None:
        super().__init__(rpc, health)
        self._service: str | None = None
        self._last = 0
        self._changed = asyncio.Event()

    async def next(self) -> bytes | None:
        """See ``Conversation``."""
        if self._service is None:
            message = await self.receive()
            self._service = _asked(message or b"")
        while (status := state(self._health, self._service)) == self._last:
            self._changed.clear()
            await self._changed.wait()
        self._last = status
        return _rendered(status)

    def last_words(self) -> bytes | None:
        """See ``Conversation``: that it no longer serves, if it did."""
        if self._last != _SERVING:
            return None
        self._last = _NOT_SERVING
        return _rendered(_NOT_SERVING)

    def _told(self) -> None:
        self._changed.set()
        super()._told()


def state(health: Health, service: str) -> int:
    """Return the state of a service, as a number of ``HealthCheckResponse.ServingStatus``."""
    if not service:
        return _NOT_SERVING if health.waiting_for else _SERVING
    if service not in (DAPR_SERVICE, SERVICE):
        return _SERVICE_UNKNOWN
    return _SERVING if health.outbound and not health.leaving else _NOT_SERVING


def _asked(message: bytes) -> str:
    """Return the name of the service that a request is about.

    Raises:
        BadMessages: It is no request.
    """
    messages = _messages()
    try:
        return str(messages.request.FromString(message).service)
    except messages.error as error:
        raise unreadable(error) from error


def _rendered(status: int) -> bytes:
    message: bytes = _messages().response(status=status).SerializeToString()
    return message


class _Messages(NamedTuple):
    """What protobuf is needed for, imported at the first call."""

    request: Any
    response: Callable[..., Any]
    error: type[Exception]


@cache
def _messages() -> _Messages:
    from google.protobuf.message import DecodeError

    from tieline._generated.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    return _Messages(HealthCheckRequest, HealthCheckResponse, DecodeError)
