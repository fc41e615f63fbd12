"""Two sidecars and an app that outlive every attack on them, and the question whether they are as they were before."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.support.app import App, Exchange, Handler
from tests.support.http1 import Client
from tests.support.mesh import Mesh, Sidecar, invoke_path, until

CLOSED_WITHIN_S = 5.0
SETTLED_WITHIN_S = 5.0
OUTCRIES = ("Traceback", "a handler failed", "never retrieved", "was destroyed", "task upload failed")
"""What no sidecar writes, whoever calls it."""
WAYS = ("self", "remote")


class World:
    """The sidecar ``callee`` with its app, and ``caller``.

    Attributes:
        handler: What the app does with a request; ``echo`` unless a test sets it.
        mesh: Theirs.
        registry: The file in which both are found.
    """

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.mesh = mesh
        self._folder = folder
        self.registry = mesh.state / "tieline" / "registry.db"
        self._before: dict[Sidecar, tuple[int, int]] = {}
        self.handler: Handler = echo
        self.app: App
        self.callee: Sidecar
        self.caller: Sidecar

    async def start(self) -> None:
        """Start all three and note what they hold when nothing is wrong."""
        self.app = await self.mesh.app(self._answer)
        self.callee, self.caller = await asyncio.gather(
            self._sidecar("callee", self.app), self._sidecar("caller", None)
        )
        await self._call_both()
        await self.note()

    async def note(self) -> None:
        """Take what both hold now for what they hold when nothing is wrong."""
        for sidecar in (self.callee, self.caller):
            self._before[sidecar] = (self._held(sidecar), await self._tasks(sidecar))
        self._forget()

    async def _sidecar(self, app_id: str, app: App | int | None, *flags: str) -> Sidecar:
        main = ("-m", "tests.support.counted", "sidecar")
        environ = {"TIELINE_TASKS": str(self._folder / f"tasks-{app_id}")}
        return await self.mesh.sidecar(app_id, app, *flags, main=main, environ=environ)

    async def _answer(self, exchange: Exchange) -> None:
        await self.handler(exchange)

    async def _call_both(self) -> None:
        for sidecar in (self.callee, self.caller):
            assert (await sidecar.call("callee", "fine", "POST", body=b"ping", within_s=5)).body == b"ping"

    async def _tasks(self, sidecar: Sidecar) -> int:
        file = self._folder / f"tasks-{sidecar.app_id}"
        file.unlink(missing_ok=True)
        sidecar.signal(signal.SIGUSR1)
        await until(file.exists)
        return int(file.read_text().split()[0])

    def _held(self, sidecar: Sidecar) -> int:
        """Return its descriptors, less its connections to the app: it keeps idle ones for some seconds."""
        return sidecar.descriptors() - (self._app_connections() if sidecar is self.callee else 0)

    def _app_connections(self) -> int:
        return len(self.app._tasks)

    def _rest(self) -> None:
        """Let the app do what is right again."""
        self.handler = echo

    def _forget(self) -> None:
        """Forget what the app has seen."""
        self.app.seen.clear()

    def entry(self, way: str) -> Sidecar:
        """Return the sidecar at whose API the app is called: its own, or another."""
        return self.callee if way == "self" else self.caller

    @property
    def targets(self) -> list[str]:
        """What the app was asked for since the test began, less the calls that only ask whether all is well."""
        return [exchange.target for exchange in self.app.seen if exchange.target != "/fine"]

    async def calm(self) -> None:
        """Check that both sidecars answer, hold no more than before, and have complained of nothing."""
        self._rest()
        await self._call_both()
        for sidecar, before in self._before.items():
            now = before

            async def is_as_before(sidecar: Sidecar = sidecar, before: tuple[int, int] = before) -> bool:
                nonlocal now
                now = (self._held(sidecar), await self._tasks(sidecar))
                return now[0] <= before[0] and now[1] <= before[1]

            try:
                await until(is_as_before, SETTLED_WITHIN_S)
            except TimeoutError:
                text = f"{sidecar.app_id} holds {now} descriptors and tasks, {before} before"
                raise AssertionError(text) from None
            log = sidecar.log()
            assert not [line for line in log.splitlines() if any(outcry in line for outcry in OUTCRIES)], log[-4000:]
        self._forget()


async def echo(exchange: Exchange) -> None:
    """Answer with what was sent, if all of it came."""
    exchange.answer(200, await exchange.body(), [("X-Target", exchange.target)])


async def never(exchange: Exchange) -> None:
    """Say nothing until the sidecar leaves."""
    await exchange.gone()


def script(*pieces: bytes, then: str = "close") -> Handler:
    """Return an app that reads the request, writes these bytes, and closes or waits for the sidecar to do so."""

    async def handle(exchange: Exchange) -> None:
        await exchange.body()
        for piece in pieces:
            exchange.writer.write(piece)
            with contextlib.suppress(ConnectionError):
                await exchange.writer.drain()
        if then == "close":
            exchange.close()
        elif then == "wait":
            await exchange.gone()

    return handle


async def say(port: int, *pieces: bytes, within_s: float = CLOSED_WITHIN_S) -> bytes:
    """Send bytes on a connection of its own, and return everything that comes until the sidecar closes it."""
    async with asyncio.timeout(within_s):
        client = await Client.open(port)
        heard = b""
        try:
            for piece in pieces:
                client.writer.write(piece)
                await client.writer.drain()
            while data := await client.reader.read(65536):
                heard += data
        except ConnectionError:
            pass
        finally:
            client.close()
        return heard


def request(
    method: str, verb: str = "GET", headers: Sequence[str] = (), body: bytes = b"", *, version: str = "1.1"
) -> bytes:
    """Return a call of the app as bytes; framing is up to ``headers``."""
    lines = [f"{verb} {invoke_path('callee', method)} HTTP/{version}", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


async def together(one: Callable[[int], Awaitable[None]], times: int, at_once: int = 50) -> None:
    """Do something many times, some at once."""
    turn = asyncio.Semaphore(at_once)

    async def run(number: int) -> None:
        async with turn:
            await one(number)

    await asyncio.gather(*map(run, range(times)))
