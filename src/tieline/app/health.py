"""Is our app well?  Asks it at intervals, and says what its answers mean for calls to it (H-118…H-120)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final, Protocol
from urllib.parse import quote

from tieline.config.settings import HealthChecks
from tieline.errors import AppUnhealthy, TielineError
from tieline.model import Cause

log = logging.getLogger("dapr.apphealth")

FAILED_STATUS: Final = 500
"""What a probe without an answer counts as, as in Dapr's metrics."""
_SAFE: Final = "!$%&'()*+,-./:;=?@[]_~"
"""What is sent as it stands in the option; what is percent-encoded there already stays so."""


class Probed(Protocol):
    """An app that can be asked how it is."""

    unhealthy: Callable[[], TielineError] | None
    """Makes the error that a call to the app ends with at once; ``None`` lets calls through."""

    async def probe(self, target: bytes, timeout_s: float) -> int:
        """Ask once, and return the status of the answer: HTTP's, or 0 of an RPC that ended well.

        Raises:
            TielineError: There was none in time, or the RPC failed; then it has a ``grpc_code``.
        """
        ...


class ProbeListener(Protocol):
    """Is told how each probe ended."""

    def record_probe(self, status: int, seconds: float) -> None:
        """Count a probe over HTTP; ``FAILED_STATUS`` if there was no answer."""
        ...

    def record_rpc_probe(self, code: int, seconds: float) -> None:
        """Count a probe over gRPC."""
        ...


class AppHealth:
    """What the probes so far amount to. Pure: whoever tells it a result tells it the time, in seconds, too.

    ``where`` and ``wanted`` are what is asked, and what it has to answer.

    The app starts unhealthy, one good probe makes it healthy, and ``threshold`` bad ones in a row unhealthy again. In
    ``daprd`` a good one between bad ones does not start the count anew (H-119); here it does, as Dapr's documentation
    says.
    """

    def __init__(self, where: str, threshold: int, wanted: str = "2xx") -> None:
        self.healthy = False
        self._where = where
        self._wanted = wanted
        self._threshold = threshold
        self._failed = 0
        self._last = ""
        self._last_at = 0.0

    def succeeded(self) -> bool:
        """A probe was good. Return whether the app turns healthy by it."""
        self._failed = 0
        turned = not self.healthy
        self.healthy = True
        return turned

    def failed(self, what: str, at: float) -> bool:
        """A probe was bad, as ``what`` says after the path. Return whether the app turns unhealthy by it."""
        self._failed += 1
        self._last, self._last_at = what, at
        turned = self.healthy and self._failed >= self._threshold
        if turned:
            self.healthy = False
        return turned

    def refusal(self, now: float) -> AppUnhealthy:
        """Return the error of a call that is not let through."""
        if not self._failed:
            hint = f"the app's health is checked at {self._where} for the first time: try again in a moment"
        else:
            hint = (
                f"{self._last_failure(now)}; the app gets calls again as soon as it answers there with {self._wanted}"
            )
        return AppUnhealthy("app is not in a healthy state", hint=hint)

    def told(self, now: float, *, heard: bool) -> str:
        """Return the state and the last probe, in one line; ``heard`` says whether there was one."""
        if not heard:
            return f"unknown; {self._where} is checked for the first time"
        state = "healthy" if self.healthy else "unhealthy"
        return f"{state}; {self._last_failure(now) if self._failed else f'{self._where} is well'}"

    def _last_failure(self, now: float) -> str:
        times = "once" if self._failed == 1 else f"{self._failed} times in a row"
        return f"{self._where} {self._last}, {times}, last {max(now - self._last_at, 0):.1f} s ago"


class Prober:
    """Probes an app: at once when it runs, then at every interval, one probe at a time.

    Calls to the app are let through, or not, by the attribute ``unhealthy`` of ``app``.

    Attributes:
        heard: Set once the first probe has ended, however it did.
        well: Set while the app is healthy.
        ill: Set while it is not.
        listener: Is told of each probe, if there is one.

    Args:
        rpc: Name of the RPC by which the app is probed; empty if by HTTP, at the path of the option.
        clock: Seconds, ever rising; tests put their own there, and their own ``sleep``.
    """

    def __init__(
        self,
        app: Probed,
        checks: HealthChecks,
        listener: ProbeListener | None = None,
        *,
        rpc: str = "",
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._app = app
        self._checks = checks
        self.listener = listener
        self._clock = clock
        self._sleep = sleep
        self._target = probe_target(checks.path)
        self._rpc = rpc
        self._health = AppHealth(rpc or checks.path, checks.threshold, "OK" if rpc else "2xx")
        self.heard = asyncio.Event()
        self.well = asyncio.Event()
        self.ill = asyncio.Event()

    async def run(self) -> None:
        """Probe until cancelled."""
        log.info("App health probes starting")
        self.ill.set()
        self._app.unhealthy = self._refusal
        due = self._clock()
        try:
            while True:
                await self._probe()
                # By the clock rather than by pauses, so that it does not drift; what was slept through is left out.
                due = max(due + self._checks.interval_s, self._clock())
                await self._sleep(due - self._clock())
        finally:
            log.info("App health probes stopping")

    async def _probe(self) -> None:
        began = self._clock()
        status, reason, what = FAILED_STATUS, "", ""
        try:
            status = await self._app.probe(self._target, self._checks.timeout_s)
        except TielineError as error:
            reason = error.text if self._rpc else f"Network error: {error.text}"
            if error.grpc_code is not None:
                status = int(error.grpc_code)
            what = f"gave no answer in {self._checks.timeout_s:g} s" if error.cause is Cause.TIMEOUT else _ending(error)
        else:
            if not (200 <= status <= 299 or (self._rpc and status == 0)):
                reason, what = f"Health check failed with status code: {status}", f"answered {status}"
        now = self._clock()
        if self.listener is not None:
            record = self.listener.record_rpc_probe if self._rpc else self.listener.record_probe
            record(status, now - began)
        if not reason:
            if self._health.succeeded():
                log.info("App entered healthy status")
                self._app.unhealthy = None
                self.ill.clear()
                self.well.set()
        elif self._health.failed(what, now):
            log.warning("App entered un-healthy status: %s", reason)
            self._app.unhealthy = self._refusal
            self.well.clear()
            self.ill.set()
        self.heard.set()

    def told(self) -> str:
        """Return how the app is and how its last probe went, in one line (``tieline-app``)."""
        return self._health.told(self._clock(), heard=self.heard.is_set())

    def _refusal(self) -> TielineError:
        return self._health.refusal(self._clock())


def probe_target(path: str) -> bytes:
    """Return the path of the option as it is sent: without a fragment, with what may not stand in a URL encoded."""
    return quote(path.partition("#")[0], safe=_SAFE, errors="surrogateescape").encode("ascii")


def _ending(error: TielineError) -> str:
    """Say how a probe failed, in the words that follow its path: the URL stands in front of the reason."""
    reason = error.text.rpartition('": ')[2]
    return f"failed ({reason})"
