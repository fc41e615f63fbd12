"""Is the sidecar up?  ``/v1.0/healthz`` and ``/v1.0/healthz/outbound`` (H-133, H-134)."""

from __future__ import annotations

from urllib.parse import unquote_plus

from tieline.api.http.errors import api_error
from tieline.model import Reply


class Health:
    """What is ready; the sidecar tells it as it starts and stops.

    Attributes:
        outbound: Calls from our app are taken.
        waiting_for: Names of what is not up yet; nothing in it means ready.
    """

    def __init__(self, app_id: str) -> None:
        self._app_id = app_id
        self.outbound = False
        self.waiting_for: list[str] = ["runtime"]

    def answer(self, query: bytes | None) -> Reply:
        """Answer ``GET /v1.0/healthz``."""
        if self.waiting_for:
            waiting = " ".join(self.waiting_for)
            return api_error(500, "ERR_HEALTH_NOT_READY", f"dapr is not ready: [{waiting}]")
        asked = _asked_app_id(query)
        if asked is not None and asked != self._app_id:
            return api_error(500, "ERR_HEALTH_APPID_NOT_MATCH", "dapr app-id does not match")
        return Reply(204, [])

    def answer_outbound(self) -> Reply:
        """Answer ``GET /v1.0/healthz/outbound``."""
        if not self.outbound:
            return api_error(500, "ERR_OUTBOUND_HEALTH_NOT_READY", "dapr outbound is not ready")
        return Reply(204, [])


def _asked_app_id(query: bytes | None) -> str | None:
    """Return the value of ``appid``, empty included; ``None`` if it is not there."""
    for part in (query or b"").split(b"&"):
        name, _, value = part.partition(b"=")
        if unquote_plus(name.decode("latin-1")) == "appid":
            return unquote_plus(value.decode("latin-1"))
    return None
