"""The names in front of the resolvers: answers at once from memory, asks in the background, explains a miss.

A name that is used steadily is refreshed before its answer gets old, so that calls never wait for a resolver. Nothing
negative is kept: an app that has just come up is found by the next call.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeAlias
from urllib.parse import quote

from tieline.config.spelling import closest
from tieline.errors import ResolverFailed, TielineError, UnknownTarget, untrace
from tieline.model import Endpoint, Target
from tieline.names.resolver import Resolver, Spawn

HIT_S: Final = 1.0
"""How long an answer is used."""
REFRESH_S: Final = 0.5
"""Age at which a used answer is asked for anew in the background."""
OVERTIME_S: Final = 2.0
"""How much longer an answer is used while such a question is open."""
SET_ASIDE_S: Final = 5.0
"""How long a refused address is not used while there are others."""
LATELY_S: Final = 5.0
"""How long a name counts as lately known after it was last seen."""
REPORT_EVERY_S: Final = 60.0
"""Least time between two log lines on the same failing resolver."""
MAX_NAMES: Final = 4096
MAX_SET_ASIDE: Final = 1024
MAX_HINT_BYTES: Final = 512
MAX_HINT_NAMES: Final = 10
MAX_COMPARED: Final = 100
"""Most known names among which a misspelt one is looked for."""
MAX_COMPARED_LENGTH: Final = 100
"""Letters of a name beyond which nobody looks for what it might be a misspelling of."""

_Key: TypeAlias = tuple[str, str]

_log: Final = logging.getLogger("tieline.names")


class _Entry:
    """What is known about one name."""

    __slots__ = ("endpoints", "fresh_until", "refresh_at", "seen_at", "turn")

    def __init__(self, endpoints: Sequence[Endpoint], now: float, turn: int) -> None:
        self.endpoints = endpoints
        self.turn = turn
        self.seen_at = now
        self.refresh_at = now + REFRESH_S
        self.fresh_until = now + HIT_S


class _Miss:
    """Why a name could not be resolved. Each waiting call raises an error of its own made from it."""

    __slots__ = ("_error",)

    def __init__(self, error: TielineError) -> None:
        self._error = error

    def error(self) -> TielineError:
        made = type(self._error)(self._error.text, hint=self._error.hint)
        if isinstance(made, UnknownTarget) and isinstance(self._error, UnknownTarget):
            made.lately_known = self._error.lately_known
        return made


_Flight: TypeAlias = asyncio.Future[_Entry | _Miss]
"""A question on its way; bounded by the calls that wait and ``MAX_NAMES``."""


class NameCache:
    """Endpoints by target, from a chain of resolvers.

    Args:
        resolvers: Asked in order; the first that knows a name wins. Their life is the cache's.
        spawn: Starts look-ups.
        clock: A clock for intervals, in seconds.
        namespace: This sidecar's own, which the names of its apps are written without.
        first: Returns the place at which the turns of a new name begin, given the number of its endpoints; by
            default a random one, so that many callers do not all begin with the same endpoint.
    """

    def __init__(
        self,
        resolvers: Sequence[Resolver],
        *,
        spawn: Spawn,
        clock: Callable[[], float] = time.monotonic,
        namespace: str = "default",
        first: Callable[[int], int] = random.randrange,
    ) -> None:
        self._resolvers = tuple(resolvers)
        self._spawn = spawn
        self._clock = clock
        self._namespace = namespace
        self._first = first
        self._entries: dict[_Key, _Entry] = {}
        self._aside: dict[Endpoint, float] = {}
        self._flights: dict[_Key, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported: dict[str, float] = {}

    # --- life ---

    @property
    def name(self) -> str:
        """What the resolvers are called, in the order they are asked."""
        return ", ".join(resolver.name for resolver in self._resolvers)

    async def start(self) -> None:
        """Start the resolvers. Raises ``StartError``."""
        for resolver in self._resolvers:
            await resolver.start()

    async def announce(self) -> None:
        """Let others find this app, once it can be called (N-7 repaired). Idempotent."""
        for resolver in self._resolvers:
            await resolver.announce()

    async def withdraw(self) -> None:
        """Let nobody find this app any more; the first step of a drain. Idempotent."""
        for resolver in self._resolvers:
            await resolver.withdraw()

    async def aclose(self) -> None:
        """Break off look-ups, and close the resolvers. Idempotent."""
        for task in tuple(self._tasks):
            task.cancel()
        for resolver in reversed(self._resolvers):
            await resolver.aclose()

    # --- picking ---

    def pick_cached(self, target: Target, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """Return an endpoint if that needs no waiting, else ``None``: then ``await pick``.

        Endpoints take turns. Those in ``avoid`` (already tried in this call) and those set aside are passed over
        while there is another.
        """
        key = (target.app_id, target.namespace)
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._clock()
        if now >= entry.refresh_at:
            if now < entry.fresh_until:
                if key not in self._flights:
                    _ = self._take_off(key, target)
            elif key not in self._flights or now >= entry.fresh_until + OVERTIME_S:
                return None
        endpoints = entry.endpoints
        return endpoints[0] if len(endpoints) == 1 else self._next(entry, avoid, now)

    async def pick(self, target: Target, avoid: Collection[Endpoint] = ()) -> Endpoint:
        """Return an endpoint; ask the resolvers first if need be.

        Raises:
            UnknownTarget: Nobody knows the name; the hint says who was asked and which names are known.
            ResolverFailed: No resolver could answer.
        """
        endpoint = self.pick_cached(target, avoid)
        if endpoint is not None:
            return endpoint
        key = (target.app_id, target.namespace)
        flight = self._flights.get(key) or self._take_off(key, target)
        # Shielded, since others wait for the same answer: a caller that goes away must not take it with it.
        answer = await asyncio.shield(flight)
        if isinstance(answer, _Miss):
            raise answer.error()
        return self._next(answer, avoid, self._clock())

    def set_aside(self, endpoint: Endpoint) -> None:
        """Pass over an endpoint that refused, for ``SET_ASIDE_S``; it is still used when there is no other."""
        now = self._clock()
        if len(self._aside) >= MAX_SET_ASIDE:
            self._aside = {other: until for other, until in self._aside.items() if until > now}
        if len(self._aside) >= MAX_SET_ASIDE:
            del self._aside[next(iter(self._aside))]
        self._aside[endpoint] = now + SET_ASIDE_S

    def forget(self, target: Target) -> None:
        """Ask the resolvers anew for the next call to a target."""
        key = (target.app_id, target.namespace)
        self._flights.pop(key, None)
        entry = self._entries.get(key)
        if entry is not None:
            # Made old, not removed: that it was known is part of the answer if it is gone now.
            entry.refresh_at = entry.fresh_until = float("-inf")

    def _next(self, entry: _Entry, avoid: Collection[Endpoint], now: float) -> Endpoint:
        """Return the endpoint whose turn it is: an untried one not set aside, else any untried one, else any."""
        endpoints = entry.endpoints
        count = len(endpoints)
        start = entry.turn
        entry.turn = start + 1
        untried = None
        for step in range(count):
            endpoint = endpoints[(start + step) % count]
            if avoid and endpoint in avoid:
                continue
            if not self._aside or not self._is_aside(endpoint, now):
                entry.turn = start + step + 1
                return endpoint
            untried = untried or endpoint
        return untried or endpoints[start % count]

    def _is_aside(self, endpoint: Endpoint, now: float) -> bool:
        until = self._aside.get(endpoint)
        if until is None:
            return False
        if now < until:
            return True
        del self._aside[endpoint]
        return False

    # --- asking ---

    def _take_off(self, key: _Key, target: Target) -> _Flight:
        """Ask the resolvers for a name in a task that all who want it share."""
        flight: _Flight = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        task = self._spawn(self._fly(key, target, flight), name=f"resolve {target.app_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Also when the task is cancelled, even before its first step: nobody may wait for ever.
        broken_off = _Miss(ResolverFailed(f"look-up of {target.app_id} was broken off"))
        task.add_done_callback(lambda _: self._land(key, flight, broken_off))
        return flight

    async def _fly(self, key: _Key, target: Target, flight: _Flight) -> None:
        try:
            found = await self._ask(target)
        except TielineError as error:
            untrace(error)
            self._land(key, flight, _Miss(error))
        else:
            # One that was forgotten meanwhile may not know yet what made somebody forget it.
            is_current = self._flights.get(key) is flight
            self._land(key, flight, self._keep(key, found) if is_current else _Entry(tuple(found), self._clock(), 0))

    def _land(self, key: _Key, flight: _Flight, answer: _Entry | _Miss) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.done():
            flight.set_result(answer)

    async def _ask(self, target: Target) -> Sequence[Endpoint]:
        """Ask the resolvers in order, and return what the first one says that knows the name."""
        text = ""
        failure: ResolverFailed | None = None
        for resolver in self._resolvers:
            try:
                if found := await resolver.resolve(target):
                    return found
                text = f"couldn't find service: {target.app_id}"
            except UnknownTarget as unknown:
                text = unknown.text
            except ResolverFailed as failed:
                failure = failed
                self._report(resolver, failed)
        if failure is not None and not text:
            raise failure
        raise await self._unknown(target, text or "name resolver not initialized")

    def _report(self, resolver: Resolver, failed: ResolverFailed) -> None:
        now = self._clock()
        if now >= self._reported.get(resolver.name, float("-inf")):
            self._reported[resolver.name] = now + REPORT_EVERY_S
            _log.warning("%s failed: %s", resolver.name, failed.text)

    def _keep(self, key: _Key, endpoints: Sequence[Endpoint]) -> _Entry:
        """Keep an answer; the oldest one goes if there are too many. Turns go on where they were."""
        old = self._entries.pop(key, None)
        if old is None and len(self._entries) >= MAX_NAMES:
            del self._entries[next(iter(self._entries))]
        turn = old.turn if old is not None else self._first(len(endpoints))
        entry = self._entries[key] = _Entry(tuple(endpoints), self._clock(), turn)
        return entry

    # --- explaining ---

    async def _unknown(self, target: Target, text: str) -> UnknownTarget:
        """Make the error for a name that nobody knows, and drop what was known about it."""
        entry = self._entries.get((target.app_id, target.namespace))
        now = self._clock()
        seen = now - entry.seen_at if entry is not None else float("inf")
        self.forget(target)
        error = UnknownTarget(text, hint=await self._hint(target, seen))
        error.lately_known = seen < LATELY_S
        return error

    async def not_there(self, target: Target) -> UnknownTarget:
        """Make the error for a target whose endpoints are known, but said of themselves that they are others'."""
        self.forget(target)
        return UnknownTarget(f"couldn't find service: {target.app_id}", hint=await self._hint(target, float("inf")))

    async def _hint(self, target: Target, seen_s: float) -> str:
        known: list[str] = []
        for resolver in self._resolvers:
            known += [name for name in await resolver.known() if name not in known]
        return miss_hint(self.name, target, known, seen_s, self._namespace)


def miss_hint(
    asked: str, target: Target, known: Sequence[str], seen_s: float = float("inf"), namespace: str = "default"
) -> str:
    """Return one line on an unknown name: what was meant, who was asked, when it was last seen, who is known.

    At most ``MAX_HINT_BYTES``, ASCII; names are percent-encoded, since others choose them. Names that differ from
    the wanted one only in case come first.
    """
    parts = [f"asked: {asked}"] if asked else []
    if ":/" in target.app_id:
        parts.insert(0, "a URL must begin with http:// or https://")
    if meant := _meant(target, known) or _elsewhere(target, known, namespace):
        parts.insert(0, meant)
    if seen_s < 3600:
        parts.append(f"last seen {seen_s:.0f} s ago")
    wanted = target.app_id.lower()
    names = [_encoded(name) for name in sorted(known, key=lambda name: (name.lower() != wanted, name))]
    if not names:
        parts.append("no other app is known; is the app running, with its sidecar?")
        return "; ".join(parts)[:MAX_HINT_BYTES]
    line = "; ".join([*parts, "known now: "])
    shown = _fitting(names, MAX_HINT_BYTES - len(line) - len(" and 4294967295 more"))
    more = len(names) - len(shown)
    return (line + ", ".join(shown) + (f" and {more} more" if more else ""))[:MAX_HINT_BYTES]


def _elsewhere(target: Target, known: Sequence[str], namespace: str) -> str:
    """Say in which other namespaces an app of that ID is known; empty if in none."""
    spaces: list[str] = []
    for name in known:
        app_id, _, said = name.partition(".")
        space = said or namespace
        if app_id == target.app_id and space not in (target.namespace, *spaces):
            spaces.append(space)
    if not spaces:
        return ""
    shown = ", ".join(map(_encoded, spaces[:MAX_HINT_NAMES]))
    return f"{_encoded(target.app_id)} is known in namespace {shown}"


def _meant(target: Target, known: Sequence[str]) -> str:
    """Return a question about the known name that is most like the wanted one; empty if none is."""
    wanted = target.app_id
    if len(wanted) > MAX_COMPARED_LENGTH or f"{wanted}.{target.namespace}" in known or wanted in known:
        return ""
    by_id = {
        name.partition(".")[0]: name for name in reversed(known[:MAX_COMPARED]) if len(name) <= MAX_COMPARED_LENGTH
    }
    guess = closest(wanted, by_id)
    if not guess:
        return ""
    rule = " names are case-sensitive" if guess != wanted and guess.lower() == wanted.lower() else ""
    return f'did you mean "{_encoded(by_id[guess])}"?{rule}'


def _encoded(name: str) -> str:
    return quote(name, safe="", errors="surrogatepass")


def _fitting(names: Sequence[str], room: int) -> list[str]:
    """Return the first names, at most ``MAX_HINT_NAMES``, that fit into some bytes, two more for each."""
    shown: list[str] = []
    for name in names[:MAX_HINT_NAMES]:
        room -= len(name) + 2
        if room < 0:
            break
        shown.append(name)
    return shown
