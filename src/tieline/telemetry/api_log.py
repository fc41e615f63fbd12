"""One line for each call of the API, if the user wants that (H-132, O-44)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Final

from tieline.errors import TielineError
from tieline.model import Body, Headers

MAX_TEXT: Final = 4096
"""The longest path or user agent in a line, in characters."""

_log: Final = logging.getLogger("dapr.runtime.http-info")
_grpc_log: Final = logging.getLogger("dapr.runtime.grpc.api-info")


class ApiLog:
    """Writes the lines, whatever the log level is.

    Attributes:
        obfuscate: Show the name of the API in place of verb and path.
        omit_health: Leave out requests for health.
    """

    def __init__(self, *, obfuscate: bool, omit_health: bool) -> None:
        self.obfuscate = obfuscate
        self.omit_health = omit_health
        _log.setLevel(logging.INFO)

    def write(self, method: str, status: int, size: int, began: float, user_agent: bytes) -> None:
        """Write a line.

        Args:
            method: Verb and path, or the name of the API.
            size: Body bytes of the answer.
            began: When the request came, by ``time.perf_counter``.
        """
        fields: dict[str, object] = {
            "code": status,
            "duration": int((perf_counter() - began) * 1000),
            "method": method[:MAX_TEXT],
            "size": size,
        }
        if user_agent:
            fields["useragent"] = user_agent.decode("utf-8", "surrogateescape")[:MAX_TEXT]
        _log.info("HTTP API Called", extra={"fields": fields})


class GrpcApiLog:
    """Writes the lines of the gRPC API, whatever the log level is; nothing is hidden or left out of them (O-44)."""

    def __init__(self) -> None:
        _grpc_log.setLevel(logging.INFO)

    def write(self, path: bytes, code: int, began: float, user_agent: bytes) -> None:
        """Write a line (G-114).

        Args:
            path: Of the RPC.
            code: By which it ended.
            began: When it came, by ``time.perf_counter``.
        """
        fields: dict[str, object] = {
            "code": code,
            "duration": int((perf_counter() - began) * 1000),
            "method": path.decode("utf-8", "surrogateescape")[:MAX_TEXT],
        }
        if user_agent:
            fields["useragent"] = user_agent.decode("utf-8", "surrogateescape")[:MAX_TEXT]
        _grpc_log.info("gRPC API Called", extra={"fields": fields})


class LoggedBody:
    """A streamed answer that is told about when it ends, breaks off, or is dropped."""

    __slots__ = ("_body", "_size", "_told", "trailers")

    def __init__(self, body: Body, told: Callable[[int], None]) -> None:
        self._body = body
        self._size = 0
        self._told: Callable[[int], None] | None = told
        self.trailers: Headers = body.trailers

    async def read(self) -> bytes:
        """See ``model.Body``."""
        try:
            piece = await self._body.read()
        except TielineError:
            self._tell()
            raise
        if piece:
            self._size += len(piece)
        else:
            self.trailers = self._body.trailers
            self._tell()
        return piece

    def abandon(self) -> None:
        """See ``model.Body``."""
        self._tell()
        self._body.abandon()

    def _tell(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(self._size)
