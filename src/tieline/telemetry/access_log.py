"""One log line for each call that failed, at either sidecar, so that no failure is silent on one side."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from tieline.model import Attempt, CallRecord

FAILURES_PER_S: Final = 10
"""How many failures a second are logged for long."""
FAILURE_BURST: Final = 50
"""How many are logged at once after a quiet time."""
MAX_TEXT: Final = 512
"""The longest text of a field, in characters: callers choose methods and app IDs."""
MAX_ATTEMPTS_SHOWN: Final = 8

_log: Final = logging.getLogger("dapr.runtime.direct_messaging")


class FailureLog:
    """Writes failed calls, inbound and outbound, within a budget of lines (a token bucket).

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = float(FAILURE_BURST)
        self._filled = clock()
        self._suppressed = 0

    def log_failure(self, record: CallRecord) -> None:
        """Write one info line about a call that has a cause; a call without one is none of ours."""
        if record.cause is None or not _log.isEnabledFor(logging.INFO):
            return
        if not self._take_token():
            self._suppressed += 1
            return
        self.flush()
        side = "inbound" if record.inbound else "outbound"
        _log.info("%s call failed: %s", side, _short(record.detail or record.cause), extra={"fields": _fields(record)})

    def flush(self) -> None:
        """Write how many failures were left out, if any were; also meant for shutdown."""
        if self._suppressed:
            _log.info(
                "%d failed calls were not logged, being over %d a second",
                self._suppressed,
                FAILURES_PER_S,
                extra={"fields": {"suppressed": self._suppressed}},
            )
            self._suppressed = 0

    def _take_token(self) -> bool:
        now = self._clock()
        self._tokens = min(float(FAILURE_BURST), self._tokens + (now - self._filled) * FAILURES_PER_S)
        self._filled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def _fields(record: CallRecord) -> dict[str, object]:
    fields: dict[str, object] = {
        "cause": str(record.cause),
        "hop": str(record.hop or ""),
        "target": _short(record.target.addressed if record.target else ""),
        "method": _short(record.method),
        "verb": _short(record.verb),
        "status": record.status,
        "duration": round(record.duration_s * 1000, 3),
        "trace_id": record.trace_id,
        "attempts": _attempts(record.attempts),
        "hint": _short(record.hint),
    }
    if record.caller:
        fields["caller"] = _short(record.caller)
        fields["caller_verified"] = record.caller_verified
    return fields


def _attempts(attempts: tuple[Attempt, ...]) -> str:
    """Return ``127.0.0.1:50002 peer-unreachable, …``, the last ones if there were many."""
    shown = [f"{a.endpoint or '-'} {a.outcome or 'unfinished'}" for a in attempts[-MAX_ATTEMPTS_SHOWN:]]
    left_out = len(attempts) - len(shown)
    return ", ".join([f"{left_out} more", *shown] if left_out else shown)


def _short(value: str | bytes) -> str:
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
