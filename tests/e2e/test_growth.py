"""After many calls that went wrong in every way, a sidecar has as many sockets, tasks and bytes as before."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

from tests.support.app import Exchange
from tests.support.h2peer import H2Client
from tests.support.http1 import Broken, Client
from tests.support.mesh import Mesh, Sidecar, invoke_path, until

CALLS = 2000
GROWTH = 4 << 20


async def every_way(exchange: Exchange) -> None:
    """Answer as the target says."""
    how = exchange.target.lstrip("/")
    if how == "hang":
        await exchange.gone()
        return
    if how == "unread":
        exchange.answer(200, b"early")
        await exchange.writer.drain()
        exchange.close()
        return
    await exchange.body()
    if how == "fail":
        exchange.answer(500, b"x" * 5000)
    elif how == "close":
        exchange.close()
    elif how == "garbage":
        exchange.writer.write(b"garbage\r\n\r\n")
        exchange.close()
    elif how == "short":
        exchange.begin_chunked()
        exchange.chunk(b"begun")
        exchange.close()
    elif how == "large":
        exchange.begin_chunked()
        for _ in range(4):
            exchange.chunk(b"x" * 50_000)
        exchange.end_chunks()
    else:
        exchange.answer(200, b"fine")


class Tasks:
    """Asks a sidecar for the number of its tasks."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tasks"

    async def count(self, sidecar: Sidecar) -> int:
        file = self._file.with_name(f"tasks-{sidecar.app_id}")
        file.unlink(missing_ok=True)
        sidecar.signal(signal.SIGUSR1)
        await until(file.exists)
        return int(file.read_text().split()[0])


async def go_wrong(entry: Sidecar, number: int) -> None:
    """Make one of a number of calls that end in different ways."""
    how = ["fine", "fail", "close", "garbage", "short", "large", "hang", "unread", "unknown", "too-large"][number % 10]
    path = invoke_path("nobody" if how == "unknown" else "callee", how)
    client = await Client.open(entry.port)
    with contextlib.suppress(Broken, ConnectionError, TimeoutError):
        if how == "too-large":
            client.send("POST", path, [("Transfer-Encoding", "chunked")])
            client.chunk(b"x" * 70_000)
            client.end_chunks()
            await client.answer()
        elif how == "hang":
            client.send("POST", path, (), b"x")
            await asyncio.sleep(0.01)
        elif how == "large" and number % 20 > 9:
            client.send("GET", path)
            await client.head()
        else:
            client.send("POST", path, (), b"x" * 2000)
            await client.answer()
    client.close()


async def test_sockets_tasks_and_memory_do_not_grow(mesh: Mesh, tmp_path: Path) -> None:
    tasks = Tasks(tmp_path)
    app = await mesh.app(every_way)
    counted = ("-m", "tests.support.counted", "sidecar")
    callee = await mesh.sidecar("callee", app, environ={"TIELINE_TASKS": str(tmp_path / "tasks-callee")}, main=counted)
    caller = await mesh.sidecar(
        "caller", None, "--max-body-size", "64Ki",
        environ={"TIELINE_TASKS": str(tmp_path / "tasks-caller")}, main=counted,
    )  # fmt: skip

    async def batch(calls: int) -> None:
        at_once = asyncio.Semaphore(20)

        async def one(number: int) -> None:
            async with at_once:
                await go_wrong(callee if number % 3 == 0 else caller, number)

        await asyncio.gather(*map(one, range(calls)))
        h2 = await H2Client.open(caller.port)
        for number in range(calls // 20):
            stream = await h2.request("POST", invoke_path("callee", "hang" if number % 2 else "short"), body=b"x")
            if number % 2:
                await stream.cancel()
            else:
                await stream.whole()
        h2.close()

    async def settled(sidecar: Sidecar, sockets: int) -> bool:
        return sidecar.descriptors() <= sockets

    async def same(sidecar: Sidecar) -> bool:
        return await tasks.count(sidecar) <= running[sidecar]

    await callee.call("callee", "fine")
    await caller.call("callee", "fine")
    descriptors = {sidecar: sidecar.descriptors() for sidecar in (callee, caller)}
    running = {sidecar: await tasks.count(sidecar) for sidecar in (callee, caller)}
    for _ in range(6):  # until what memory is used once for all is used
        await batch(CALLS)
    resident = {sidecar: sidecar.resident() for sidecar in (callee, caller)}
    await batch(CALLS)

    for sidecar in (callee, caller):
        # Idle connections to the app go after some seconds.
        await until(lambda sidecar=sidecar: settled(sidecar, descriptors[sidecar]), 10)
        await until(lambda sidecar=sidecar: same(sidecar), 10)
        assert sidecar.resident() - resident[sidecar] < GROWTH
    assert (await caller.call("callee", "fine")).status == 200
