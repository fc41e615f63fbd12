"""A steady stream of calls with unique ids, and the account of what became of each."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field

from tests.support.app import Exchange
from tests.support.http1 import Broken, Client
from tests.support.mesh import Sidecar, invoke_path, until


class Ledger:
    """An app that writes down which ids it ran; its answer names the id."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.body()
        number = exchange.target.rpartition("=")[2]
        self.runs[number] += 1
        exchange.answer(200, number.encode())


@dataclass
class Outcome:
    """What became of the calls.

    Attributes:
        succeeded: Ids by verb.
        failed: What callers were told, by verb: ``(id, status or 0, text)``.
    """

    succeeded: dict[str, list[str]] = field(default_factory=lambda: {"GET": [], "POST": []})
    failed: dict[str, list[tuple[str, int, str]]] = field(default_factory=lambda: {"GET": [], "POST": []})
    slowest_s: float = 0.0


class Load:
    """Calls at a fixed rate, begun on time whatever became of the ones before; GET and POST in turns."""

    def __init__(self, caller: Sidecar, app_id: str, *, rate: float) -> None:
        self._caller = caller
        self._app_id = app_id
        self._pause = 1 / rate
        self._idle: list[Client] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self.outcome = Outcome()
        self._driver = asyncio.create_task(self._drive())

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            call = asyncio.create_task(self._call(str(next(self._numbers))))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            due += self._pause
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _call(self, number: str) -> None:
        verb = "POST" if int(number) % 2 else "GET"
        began = asyncio.get_running_loop().time()
        client = self._idle.pop() if self._idle else await Client.open(self._caller.port)
        path = invoke_path(self._app_id, f"run?id={number}")
        client.send(verb, path, (), number.encode() if verb == "POST" else None)
        try:
            answer = await client.answer(verb)
        except Broken:
            self.outcome.failed[verb].append((number, 0, "closed"))
            return
        if answer.whole and answer.header("connection") != "close":
            self._idle.append(client)
        expected = (number.encode(),) if verb == "POST" else (number.encode(), b"")
        if answer.status == 200 and answer.whole and answer.body in expected:
            self.outcome.succeeded[verb].append(number)
        else:
            self.outcome.failed[verb].append((number, answer.status, answer.body.decode("latin-1")))
        self.outcome.slowest_s = max(self.outcome.slowest_s, asyncio.get_running_loop().time() - began)

    async def done(self, count: int, within_s: float = 20.0) -> None:
        """Return when ``count`` more calls have ended."""
        have = self._ended() + count
        await until(lambda: self._ended() >= have, within_s)

    def _ended(self) -> int:
        outcome = self.outcome
        return sum(len(ids) for ids in outcome.succeeded.values()) + sum(
            len(calls) for calls in outcome.failed.values()
        )

    async def stop(self) -> Outcome:
        """Begin no more calls, and return when all have ended."""
        self._driver.cancel()
        await asyncio.gather(self._driver, *self._calls, return_exceptions=True)
        for client in self._idle:
            client.close()
        return self.outcome
