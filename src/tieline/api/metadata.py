"""What this sidecar is, as both faces of the API tell it, and the attributes that apps add (H-136, G-21)."""

from __future__ import annotations

from typing import Any, Final

from tieline.config.duration import format_duration
from tieline.config.settings import HealthChecks
from tieline.errors import TielineError
from tieline.model import Cause

MAX_ATTRIBUTES: Final = 256
"""How many attributes an app may set."""
MAX_ATTRIBUTE_BYTES: Final = 65536
"""The longest key and value of one."""


class AttributeTooLong(TielineError):
    """Key and value of an attribute are over ``MAX_ATTRIBUTE_BYTES``."""

    cause = Cause.TOO_LARGE
    http_status = 413
    code = "ERR_METADATA_TOO_LARGE"

    def __init__(self) -> None:
        super().__init__(f"an attribute is longer than {MAX_ATTRIBUTE_BYTES} bytes")


class TooManyAttributes(TielineError):
    """There are ``MAX_ATTRIBUTES`` attributes already."""

    cause = Cause.TOO_LARGE
    http_status = 400
    code = "ERR_METADATA_FULL"

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_ATTRIBUTES} attributes")


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

    def document(self) -> dict[str, Any]:
        """Return what is told: members in Dapr's order and under their names in JSON, absent where there is nothing."""
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
        return document

    def attribute(self, key: str) -> str:
        """Return an attribute that was set; empty if it was not."""
        return self._extended.get(key, "")

    def set_attribute(self, key: str, value: str, *, size: int) -> None:
        """Store what an app says (H-137, G-22); our version stays as it is, whatever it says of it.

        Args:
            size: Bytes of key and value as they came.

        Raises:
            AttributeTooLong, TooManyAttributes: See there.
        """
        if size > MAX_ATTRIBUTE_BYTES:
            raise AttributeTooLong
        if key not in self._extended and len(self._extended) >= MAX_ATTRIBUTES:
            raise TooManyAttributes
        self._extended[key] = value


def _shown(checks: HealthChecks, *, with_path: bool) -> dict[str, Any]:
    """Return how the app's health is probed; durations as Go writes them."""
    return {
        **({"healthCheckPath": checks.path} if with_path else {}),
        "healthProbeInterval": format_duration(checks.interval_s),
        "healthProbeTimeout": format_duration(checks.timeout_s),
        "healthThreshold": checks.threshold,
    }
