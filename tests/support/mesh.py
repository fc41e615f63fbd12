"""Real sidecar processes on loopback, with apps of the test's own behind them; whatever was started is ended."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.app import App, Handler
from tests.support.http1 import Answer, ask

if TYPE_CHECKING:  # grpcio is imported by the tests that use it
    from tests.support.grpc_app import Answer as RpcAnswer
    from tests.support.grpc_app import GrpcApp, GrpcClient
    from tests.support.grpc_app import Handler as RpcHandler

START_S = 15.0
"""How long a sidecar may take to say that it is healthy, on a busy machine."""
STOP_S = 10.0
PORTS = range(12000, 31000)
"""Below the ports that the kernel gives to outgoing connections, so that none of those takes one of ours."""
SHOWN_LINES = 60
KEPT_PORTS = 256
"""So many ports, the last ones, are kept from other processes."""
_ROOT = Path(__file__).parents[2]
_given: Final[deque[int]] = deque()
_LOCKS: Final = Path(tempfile.gettempdir()) / f"tieline-test-ports-{os.getuid()}"
_LOCKS.mkdir(mode=0o700, exist_ok=True)


def free_port() -> int:
    """Return a TCP port of loopback on which nothing listens now, and which nobody else was given.

    Other test processes are kept from it by a lock that ends with this process.
    """
    while True:
        port = random.choice(PORTS)
        lock = os.open(_LOCKS / str(port), os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _given.append(lock)
        if len(_given) > KEPT_PORTS:
            os.close(_given.popleft())
        return port


async def until(what: Callable[[], bool] | Callable[[], Awaitable[bool]], within_s: float = 5.0) -> None:
    """Return once ``what`` is true; for what happens in another process, where no event can tell."""
    async with asyncio.timeout(within_s):
        while True:
            answer = what()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


class Process:
    """One process with its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(environ), cwd=_ROOT
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code; ``None`` while it runs."""
        return self._popen.poll()

    def log(self) -> str:
        """Everything it has written."""
        return self._log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    async def wait(self, within_s: float = STOP_S) -> int:
        """Return its exit code once it has ended."""
        await until(lambda: self.code is not None, within_s)
        assert self.code is not None
        return self.code

    async def says(self, text: str, within_s: float = 5.0) -> None:
        """Return once its output contains ``text``."""
        await until(lambda: text in self.log(), within_s)

    def kill(self) -> None:
        """End it at once; idempotent."""
        if self.code is None:
            self._popen.kill()
        self._popen.wait()

    def resident(self) -> int:
        """Return its resident memory in bytes (``VmRSS``)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"{self.name} has no memory: it ended with {self.code}")

    def descriptors(self) -> int:
        """Return how many files and sockets it has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


class Sidecar(Process):
    """A ``tieline sidecar`` process.

    Attributes:
        port: Of its HTTP API.
        grpc: Port of its gRPC API.
        internal: Port for other sidecars.
    """

    def __init__(
        self,
        app_id: str,
        command: Sequence[str],
        log: Path,
        environ: Mapping[str, str],
        *,
        port: int,
        grpc: int,
        internal: int,
    ) -> None:
        super().__init__(app_id, command, log, environ)
        self.app_id = app_id
        self.port = port
        self.grpc = grpc
        self.internal = internal

    async def healthy(self, path: str = "/v1.0/healthz", within_s: float = START_S) -> None:
        """Return once it is ready."""

        async def is_healthy() -> bool:
            if self.code is not None:
                raise AssertionError(f"{self.name} ended with {self.code}:\n{self.log()}")
            try:
                return (await ask(self.port, "GET", path)).status == 204
            except OSError:
                return False

        await until(is_healthy, within_s)

    async def ask(
        self,
        verb: str,
        path: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        within_s: float = 20.0,
    ) -> Answer:
        """Send one request to its HTTP API on a connection of its own."""
        return await ask(self.port, verb, path, headers=headers, body=body, within_s=within_s)

    async def call(
        self,
        app_id: str,
        method: str,
        verb: str = "GET",
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        within_s: float = 20.0,
    ) -> Answer:
        """Invoke a method of an app."""
        path = invoke_path(app_id, method)
        return await self.ask(verb, path, headers=headers, body=body, within_s=within_s)


def invoke_path(app_id: str, method: str) -> str:
    """Return the path of an invocation on the HTTP API."""
    return f"/v1.0/invoke/{app_id}/method/{method}"


class Mesh:
    """The sidecars and apps of one test, with a registry of their own.

    ``aclose`` ends all of them and prints what the processes wrote, which pytest shows if the test failed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[Process] = []
        self._apps: list[App | GrpcApp | GrpcClient] = []
        self.state = folder / "state"
        self.state.mkdir()

    @property
    def environ(self) -> dict[str, str]:
        """What processes of the mesh are started with."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAPR_", "APP_", "OTEL_"))}
        path = [*filter(None, [os.environ.get("PYTHONPATH")]), str(_ROOT)]
        return {**kept, "XDG_STATE_HOME": str(self.state), "PYTHONPATH": os.pathsep.join(path)}

    async def app(self, handler: Handler, *, port: int = 0) -> App:
        """Start an app in this process."""
        app = App(handler)
        await app.start(port)
        self._apps.append(app)
        return app

    async def grpc_app(
        self,
        answers: dict[str, RpcAnswer | RpcHandler] | None = None,
        *,
        port: int = 0,
        max_streams: int | None = None,
    ) -> GrpcApp:
        """Start a gRPC app in this process."""
        from tests.support.grpc_app import GrpcApp

        app = GrpcApp(answers, max_streams=max_streams)
        await app.start(port)
        self._apps.append(app)
        return app

    def grpc_client(self, sidecar: Sidecar | int) -> GrpcClient:
        """Return a client, on a connection of its own, of a sidecar's gRPC API or any other port."""
        from tests.support.grpc_app import GrpcClient

        client = GrpcClient(sidecar if isinstance(sidecar, int) else sidecar.grpc)
        self._apps.append(client)
        return client

    async def sidecar(
        self,
        app_id: str,
        app: App | GrpcApp | int | None = None,
        *flags: str,
        port: int = 0,
        grpc: int = 0,
        internal: int = 0,
        environ: Mapping[str, str] | None = None,
        quiet: bool = True,
        mdns: bool = False,
        main: Sequence[str] = ("-m", "tieline", "sidecar"),
        wait: str | None = "/v1.0/healthz",
    ) -> Sidecar:
        """Start a sidecar, and wait until it is ready unless ``wait`` is ``None``.

        An app other than ``App`` and ``GrpcApp`` is told by its port, and its protocol by a flag.
        ``quiet``: it makes no call of its own to the app. ``mdns``: it may find, and be found by, the sidecars of
        other tests; only for a network of the test's own.
        """
        port = port or free_port()
        grpc = grpc or free_port()
        internal = internal or free_port()
        command = [
            sys.executable, *main, "--app-id", app_id, "--dapr-http-port", str(port),
            "--dapr-grpc-port", str(grpc), "--dapr-internal-grpc-port", str(internal),
            "--metrics-port", str(free_port()),
        ]  # fmt: skip
        if not mdns:
            command.append("--no-mdns")
        if quiet:
            command += ["--disable-init-endpoints", "config"]
        if app is not None:
            command += ["--app-port", str(app if isinstance(app, int) else app.port)]
            if not isinstance(app, App | int):
                command += ["--app-protocol", "grpc"]
        log = self._folder / f"{len(self._processes)}-{app_id}.log"
        sidecar = Sidecar(
            app_id, [*command, *flags], log, {**self.environ, **(environ or {})},
            port=port, grpc=grpc, internal=internal,
        )  # fmt: skip
        self._processes.append(sidecar)
        if wait is not None:
            await sidecar.healthy(wait)
        return sidecar

    def keep(self, process: Process) -> None:
        """End a process that somebody else started with the mesh."""
        self._processes.append(process)

    def process(self, name: str, command: Sequence[str], fds: Sequence[int] = ()) -> Process:
        """Start another program; it inherits ``fds`` under their numbers."""
        for fd in fds:
            os.set_inheritable(fd, True)
        log = self._folder / f"{len(self._processes)}-{name}.log"
        process = (
            InheritingProcess(name, command, log, self.environ, fds)
            if fds
            else Process(name, command, log, self.environ)
        )
        self._processes.append(process)
        return process

    async def aclose(self) -> None:
        """End everything."""
        for process in self._processes:
            process.kill()
            lines = process.log().splitlines()
            print(f"── {process.name} (ended with {process.code}), last lines:")
            print("\n".join(lines[-SHOWN_LINES:]))
        for app in self._apps:
            await app.aclose()


class InheritingProcess(Process):
    """A process that is handed open sockets."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environ: Mapping[str, str], fds: Sequence[int]
    ) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environ),
                cwd=_ROOT,
                pass_fds=fds,
            )


class Pair:
    """A callee with its app, and a caller.

    Attributes:
        caller: A sidecar without an app.
        callee: Sidecar of ``app``, known as ``callee``.
    """

    def __init__(self, caller: Sidecar, callee: Sidecar, app: App) -> None:
        self.caller = caller
        self.callee = callee
        self.app = app

    def entry(self, way: str) -> Sidecar:
        """Return the sidecar to call ``callee`` by: its own for ``self``, the caller's for ``remote``."""
        return self.callee if way == "self" else self.caller


async def start_pair(mesh: Mesh, handler: Handler, *flags: str, caller_flags: Sequence[str] = ()) -> Pair:
    """Start an app with its sidecar, and a sidecar that calls it; ``flags`` are the callee's."""
    app = await mesh.app(handler)
    callee, caller = await asyncio.gather(
        mesh.sidecar("callee", app, *flags), mesh.sidecar("caller", None, *caller_flags)
    )
    app.seen.clear()
    return Pair(caller, callee, app)
