"""What a running sidecar can tell about itself at any moment: read when metrics are asked for, and free until then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import Protocol

from tieline.telemetry.metrics import Metrics


class Watched(Protocol):
    """A listener, as far as it is watched."""

    @property
    def members(self) -> Sized:
        """Its open connections."""
        ...

    @property
    def in_progress(self) -> int:
        """How many calls they have in progress."""
        ...


def add_readings(
    metrics: Metrics,
    *,
    version: str,
    listeners: Mapping[str, Watched],
    peer_connections: Callable[[], int],
    waiting_for_app: Callable[[], int | None],
) -> None:
    """Have them shown.

    Args:
        listeners: By the name that users see.
        peer_connections: Open connections to other sidecars.
        waiting_for_app: Calls that wait for a slot at the app; ``None`` if there is no limit.
    """
    metrics.add_reading(
        "tieline_connections",
        "gauge",
        "Open connections that were accepted, by the listener that accepted them.",
        ("listener",),
        lambda: [((name,), len(listener.members)) for name, listener in listeners.items()],
    )
    metrics.add_reading(
        "tieline_requests_in_progress",
        "gauge",
        "Requests that came in and are not answered to the end yet, by the listener.",
        ("listener",),
        lambda: [((name,), listener.in_progress) for name, listener in listeners.items()],
    )
    metrics.add_reading(
        "tieline_peer_connections",
        "gauge",
        "Open connections to other sidecars.",
        (),
        lambda: [((), peer_connections())],
    )
    metrics.add_reading(
        "tieline_app_calls_waiting",
        "gauge",
        "Calls that wait until --app-max-concurrency lets them go to the app.",
        (),
        lambda: [] if (waiting := waiting_for_app()) is None else [((), waiting)],
    )
    metrics.add_reading("tieline_info", "gauge", "The version that runs.", ("version",), lambda: [((version,), 1)])
