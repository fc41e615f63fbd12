"""Is the sidecar up?  ``/v1.0/healthz`` and ``/v1.0/healthz/outbound`` (H-133, H-134)."""

from __future__ import annotations

from urllib.parse import unquote_plus

from tieline.api.health import Health
from tieline.api.http.errors import api_error
from tieline.model import Reply


def answer_health(health: Health, query: bytes | None) -> Reply:
    """Answer ``GET /v1.0/healthz``."""
    if health.waiting_for:
        waiting = " ".join(health.waiting_for)
        return api_error(500, "ERR_HEALTH_NOT_READY", f"dapr is not ready: [{waiting}]")
    asked = _asked_app_id(query)
    if asked is not None and asked != health.app_id:
        return api_error(500, "ERR_HEALTH_APPID_NOT_MATCH", "dapr app-id does not match")
    return Reply(204, [])


def answer_outbound(health: Health) -> Reply:
    """Answer ``GET /v1.0/healthz/outbound``."""
    if not health.outbound:
        return api_error(500, "ERR_OUTBOUND_HEALTH_NOT_READY", "dapr outbound is not ready")
    return Reply(204, [])


def _asked_app_id(query: bytes | None) -> str | None:
    """Return the value of ``appid``, empty included; ``None`` if it is not there."""
    for part in (query or b"").split(b"&"):
        name, _, value = part.partition(b"=")
        if unquote_plus(name.decode("latin-1")) == "appid":
            return unquote_plus(value.decode("latin-1"))
    return None
