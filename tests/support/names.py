"""What tests of names share: facts, files in Dapr's form, and time that only moves when told."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tieline.model import Target
from tieline.names.resolver import InstanceFacts

NOW = 1_795_420_707
"""The Unix time at which tests begin."""

FACTS = InstanceFacts(
    app_id="orders",
    namespace="default",
    host_address="10.77.0.1",
    http_port=3500,
    grpc_port=50001,
    internal_port=3502,
    app_port=8080,
    pid=4711,
    started=NOW - 1.5,
)

DAPR_SCHEMA = (
    "CREATE TABLE metadata (key text NOT NULL PRIMARY KEY, value text NOT NULL)",
    (
        "CREATE TABLE hosts (registration_id text NOT NULL PRIMARY KEY, address text NOT NULL, app_id text NOT NULL,"
        " namespace text NOT NULL, last_update integer NOT NULL)"
    ),
    "CREATE UNIQUE INDEX hosts_address_idx ON hosts (address)",
    "CREATE INDEX hosts_last_update_idx ON hosts (last_update)",
)
"""The tables as another program makes them."""


def facts(**changes: Any) -> InstanceFacts:
    return replace(FACTS, **changes)


def target(app_id: str, namespace: str = "default") -> Target:
    return Target(app_id, namespace, app_id)


def spawn(work: Coroutine[Any, Any, None], /, *, name: str) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work, name=name)


def sql(path: Path, *statements: str | tuple[str, tuple[object, ...]]) -> list[Any]:
    """Run statements as another program would, and return the rows of the last one."""
    db = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        rows: list[Any] = []
        for statement in statements:
            text, args = (statement, ()) if isinstance(statement, str) else statement
            rows = db.execute(text, args).fetchall()
        return rows
    finally:
        db.close()


def write_row(path: Path, address: str, app_id: str, *, age: int = 0, namespace: str = "") -> None:
    """Write a row as ``daprd`` does."""
    row = (f"id-{address}", address, app_id, namespace, NOW - age)
    sql(path, ("REPLACE INTO hosts VALUES (?, ?, ?, ?, ?)", row))


@dataclass
class Clock:
    """Time that moves when told; also a ``sleep`` that returns at once, having moved it."""

    now: float = float(NOW)
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dataclass
class Pulse:
    """An asynchronous ``sleep`` that ends when the test says so."""

    asked: list[float] = field(default_factory=list)
    asleep: asyncio.Event = field(default_factory=asyncio.Event)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.asleep.set()
        await self._wake.wait()
        self._wake.clear()

    async def beat(self) -> None:
        """Let the sleeper go, and wait until it sleeps again."""
        await self.asleep.wait()
        self.asleep.clear()
        self._wake.set()
        await self.asleep.wait()
