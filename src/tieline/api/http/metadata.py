"""What this sidecar is: ``/v1.0/metadata`` (H-136, H-137)."""

from __future__ import annotations

import json
from typing import Any, Final

from tieline.api.http.errors import api_error, text_error
from tieline.config.duration import format_duration
from tieline.config.settings import HealthChecks
from tieline.errors import TielineError
from tieline.model import Reply, Request
from tieline.wire.method_path import BadEscape, decode_path

MAX_ATTRIBUTES: Final = 256
"""How many attributes an app may set."""
MAX_ATTRIBUTE_BYTES: Final = 65536
"""The longest key and value of one."""


class Metadata:
    """The facts that the API shows, and the attributes that apps add.

    Attributes:
        features: Names of the features that are on.
        http_endpoints: Names of the endpoints that can be called.
        waiting_for_app: The app port is being awaited; shows in the state of the actor runtime, as clients know it.
    """

    def __init__(
        self,
        *,
        app_id: str,
        version: str,
        features: tuple[str, ...],
        app_port: int | None,
        app_protocol: str,
        channel_address: str,
        max_concurrency: int,
        health_checks: HealthChecks | None = None,
    ) -> None:
        self._app_id = app_id
        self._version = version
        self.features = features
        self._extended: dict[str, str] = {}
        connection: dict[str, Any] = {}
        if app_port:
            connection["port"] = app_port
        connection["protocol"] = app_protocol
        connection["channelAddress"] = channel_address
        if max_concurrency > 0:
            connection["maxConcurrency"] = max_concurrency
        if health_checks is not None:
            connection["health"] = _shown(health_checks, with_path=app_protocol not in ("grpc", "grpcs"))
        self._connection = connection
        self.http_endpoints: tuple[str, ...] = ()
        self.waiting_for_app = False

    def answer(self) -> Reply:
        """Answer ``GET /v1.0/metadata``: members in Dapr's order, on one line."""
        document: dict[str, Any] = {"id": self._app_id, "runtimeVersion": self._version}
        if self.features:
            document["enabledFeatures"] = list(self.features)
        document["extended"] = dict(sorted({**self._extended, "daprRuntimeVersion": self._version}.items()))
        if self.http_endpoints:
            document["httpEndpoints"] = [{"name": name} for name in self.http_endpoints]
        document["appConnectionProperties"] = self._connection
        if self.waiting_for_app:
            document["actorRuntime"] = {"runtimeStatus": "INITIALIZING", "hostReady": False}
        else:
            document["actorRuntime"] = {
                "runtimeStatus": "DISABLED",
                "hostReady": False,
                "placement": "placement: disconnected",
            }
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        return Reply(200, [(b"content-type", b"application/json")], body + b"\n")

    async def set_attribute(self, request: Request, raw_key: bytes) -> Reply:
        """Answer ``PUT /v1.0/metadata/<key>``."""
        try:
            key = decode_path(raw_key.replace(b"+", b" ")).decode("utf-8", "replace")
        except BadEscape as error:
            return text_error(400, f"400 Bad Request: {error}")
        try:
            value = await _read(request)
        except TielineError as error:
            return api_error(400, "ERR_BODY_READ", f"failed to read request body: {error.detail}")
        if len(raw_key) + len(value) > MAX_ATTRIBUTE_BYTES:
            return api_error(413, "ERR_METADATA_TOO_LARGE", f"an attribute is longer than {MAX_ATTRIBUTE_BYTES} bytes")
        if key not in self._extended and len(self._extended) >= MAX_ATTRIBUTES:
            return api_error(400, "ERR_METADATA_FULL", f"more than {MAX_ATTRIBUTES} attributes")
        self._extended[key] = value.decode("utf-8", "replace")
        return Reply(204, [])


async def _read(request: Request) -> bytes:
    body = request.body
    if isinstance(body, bytes):
        return body
    pieces: list[bytes] = []
    size = 0
    while size <= MAX_ATTRIBUTE_BYTES and (piece := await body.read()):
        pieces.append(piece)
        size += len(piece)
    body.abandon()
    return b"".join(pieces)


def _shown(checks: HealthChecks, *, with_path: bool) -> dict[str, Any]:
    """Return how the app's health is probed; durations as Go writes them."""
    return {
        **({"healthCheckPath": checks.path} if with_path else {}),
        "healthProbeInterval": format_duration(checks.interval_s),
        "healthProbeTimeout": format_duration(checks.timeout_s),
        "healthThreshold": checks.threshold,
    }
