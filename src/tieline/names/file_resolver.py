"""Resolving by a shared SQLite file without ever blocking the event loop, and without failing calls when it breaks.

All work on the file is done by one thread of the resolver's own, made at the first use. While the file is locked,
damaged or gone, calls go on with the last known addresses for a while; the heartbeat comes back to the file again
and again, and registers anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from tieline.errors import ResolverFailed, StartError, UnknownTarget
from tieline.model import Endpoint, Target
from tieline.names.hosts_file import FileTrouble, HostsFile
from tieline.names.resolver import Spawn

T = TypeVar("T")

STALE_S: Final = 60.0
"""How long last known addresses are used while the file cannot be read."""
MAX_REMEMBERED: Final = 1024
"""Most names whose last known addresses are kept."""

_log: Final = logging.getLogger("tieline.names")


class FileResolver:
    """A resolver on a ``HostsFile``.

    Args:
        name: As in ``Resolver``.
        file: Used by this resolver alone.
        namespace: The sidecar's own.
        heartbeat_s: Pause between two renewals of the own row.
        spawn: Starts the heartbeat.
        unknown_text: What an ``UnknownTarget`` says about an app ID.
        accept: Whether an address from the file may be dialled.
        start_error: Makes the error for a file that cannot be used at the start; ``None`` to start all the same,
            with a warning, and to try again later.
        sleep: Waits some seconds.
        clock: A clock for intervals, in seconds.
    """

    def __init__(
        self,
        name: str,
        file: HostsFile,
        *,
        namespace: str,
        heartbeat_s: float,
        spawn: Spawn,
        unknown_text: Callable[[str], str],
        accept: Callable[[Endpoint], bool] = lambda _: True,
        start_error: Callable[[str], StartError] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._file = file
        self._namespace = namespace
        self._heartbeat_s = heartbeat_s
        self._spawn = spawn
        self._unknown_text = unknown_text
        self._accept = accept
        self._start_error = start_error
        self._sleep = sleep
        self._clock = clock
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False
        self._announced = False
        self._turn = asyncio.Lock()
        self._life = asyncio.Lock()
        self._heart: asyncio.Task[None] | None = None
        self._health = _Health(name)
        self._remembered: dict[tuple[str, str], tuple[Sequence[Endpoint], float]] = {}

    async def start(self) -> None:
        try:
            await self._run(self._file.open)
        except FileTrouble as trouble:
            if self._start_error is not None:
                raise self._start_error(trouble.text) from trouble
            self._health.fell_ill("reading", trouble)

    async def announce(self) -> None:
        async with self._life:
            if self._heart is not None or self._closed:
                return
            self._announced = True  # a cancelled announcement may still reach the file
            await self._write(self._file.register)
            self._heart = self._spawn(self._beat(), name=f"heartbeat of {self.name}")

    async def withdraw(self) -> None:
        async with self._life:
            if not self._announced:
                return
            heart, self._heart = self._heart, None
            if heart is not None:
                heart.cancel()
                await asyncio.wait([heart])
            await self._write(self._file.remove)
            self._announced = False

    async def resolve(self, target: Target) -> Sequence[Endpoint]:
        key = (target.app_id, target.namespace)
        try:
            rows = await self._run(lambda: self._file.look_up(*key))
        except FileTrouble as trouble:
            self._health.fell_ill("reading", trouble)
            if remembered := self._recall(key):
                return remembered
            raise ResolverFailed(trouble.text, hint=f"the file of the {self.name} cannot be read") from trouble
        self._health.is_well("reading")
        return self._judge(target, rows)

    async def known(self) -> Sequence[str]:
        try:
            rows = await self._run(self._file.known)
        except (FileTrouble, ResolverFailed):
            rows = list(self._remembered)
        return [app if space in ("", self._namespace) else f"{app}.{space}" for app, space in rows]

    async def aclose(self) -> None:
        await self.withdraw()
        self._closed = True
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.get_running_loop().run_in_executor(worker, self._file.close)
            worker.shutdown(wait=False)

    async def renew(self) -> None:
        """Make the own row fresh, or write it again if it was lost (N-34). The heartbeat does this by itself."""
        if await self._write(self._file.renew) is False:
            _log.warning("registration in the %s was lost; registered again", self.name)

    async def _beat(self) -> None:
        while True:
            await self._sleep(self._heartbeat_s)
            await self.renew()

    async def _write(self, job: Callable[[], T]) -> T | None:
        """Run a job that writes; ``None`` if it failed, which is logged once until one succeeds."""
        try:
            result = await self._run(job)
        except FileTrouble as trouble:
            self._health.fell_ill("writing", trouble)
            return None
        self._health.is_well("writing")
        return result

    async def _run(self, job: Callable[[], T]) -> T:
        """Run a job on the file in the worker thread; one at a time, the others wait here."""
        async with self._turn:
            if self._closed:
                raise ResolverFailed(f"the {self.name} is closed")
            if self._worker is None:
                self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"tieline-{self.name}")
            return await asyncio.get_running_loop().run_in_executor(self._worker, job)

    def _judge(self, target: Target, rows: list[str]) -> Sequence[Endpoint]:
        """Turn the addresses of an app into endpoints; those that cannot or must not be dialled are left out."""
        key = (target.app_id, target.namespace)
        parsed = [endpoint for row in rows if (endpoint := parse_address(row)) is not None]
        usable = [endpoint for endpoint in parsed if self._accept(endpoint)]
        if usable:
            self._remember(key, usable)
            return usable
        if self._file.is_settling and (remembered := self._recall(key)):
            return remembered
        self._remembered.pop(key, None)
        if rows and not parsed:
            raise ResolverFailed(_unusable(target, rows[0]))
        raise UnknownTarget(self._unknown_text(target.app_id))

    def _remember(self, key: tuple[str, str], endpoints: Sequence[Endpoint]) -> None:
        self._remembered.pop(key, None)
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[key] = (endpoints, self._clock())

    def _recall(self, key: tuple[str, str]) -> Sequence[Endpoint]:
        endpoints, at = self._remembered.get(key, ((), 0.0))
        return endpoints if self._clock() - at < STALE_S else ()


class _Health:
    """Says once that the file cannot be used, and once that all is well again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._ill: set[str] = set()

    def fell_ill(self, what: str, trouble: FileTrouble) -> None:
        if not self._ill:
            _log.warning("%s: %s; going on with what is known, and trying again", self._name, trouble.text)
        self._ill.add(what)

    def is_well(self, what: str) -> None:
        if self._ill:
            self._ill.discard(what)
            if not self._ill:
                _log.info("%s: works again", self._name)


def parse_address(text: str) -> Endpoint | None:
    """Return the endpoint of ``host:port`` or ``[IPv6]:port``, ``None`` if it is neither."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        return None
    return Endpoint(host, int(port))


def _unusable(target: Target, address: str) -> str:
    if not address:
        return f"resolver returned empty address for app id {target.namespace}/{target.app_id}"
    return f"address {address[:200]}: no host and port"
