"""Starts the app and the pairs of sidecars, waits until a call goes all the way through, and ends them again."""

import argparse
import asyncio
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bench import app, envoy, procfs, rpc_app
from bench.errors import BenchError
from bench.load import ClosedLoop, Outcome, Work
from bench.rpc_load import Rpcs, open_lanes

ROLES = ("callee", "caller")
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
ANSWER_BYTES = 1024
CALL_PATH = f"{envoy.CALL_PREFIX}bytes/{ANSWER_BYTES}"
RPC_PATH = "/bench.Echo/Call"

# Every name that a command template may use in braces, besides {app}, the port of the app.
PORT_NAMES = tuple(f"{role}_{use}" for role in ROLES for use in ("http", "grpc", "internal", "metrics"))
PORT_FLAGS = {
    "--dapr-http-port": "http",
    "--dapr-grpc-port": "grpc",
    "--dapr-internal-grpc-port": "internal",
    "--metrics-port": "metrics",
}
# The default of 4 MiB would end the long upload; a limit is no buffer.
LONG_BODY_FLAGS = ["--max-body-size", "512Mi"]


class Process:
    """One process of ours: started on construction, its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log_path = log_path
        with log_path.open("wb") as log:
            try:
                self.popen = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
                )
            except OSError as error:
                raise BenchError(f"cannot start {name}: {command[0]}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self.popen.pid

    def check_alive(self) -> None:
        """Raise if it has ended, with the last thing it said."""
        status = self.popen.poll()
        if status is not None:
            raise BenchError(f"{self.name} ended with status {status}: {self.last_words()}")

    def last_words(self) -> str:
        """Return the last line of its output."""
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "(no output)"

    def stop(self) -> None:
        """End it, gently first; idempotent."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()


class Maker(Protocol):
    """Knows how one kind of sidecar is started.

    Attributes:
        name: Column of the table: ``ours`` or ``envoy``.
    """

    @property
    def name(self) -> str: ...

    def command(self, role: str, ports: Mapping[str, int], run_dir: Path, *, long_bodies: bool) -> list[str]:
        """Return the command line of the ``caller`` or ``callee``."""
        ...

    def environment(self, run_dir: Path) -> dict[str, str]:
        """Return what both of a pair need in their environment."""
        ...


@dataclass(frozen=True, slots=True)
class Ours:
    """A pair started by one launcher and the flags of Dapr's sidecar, or by a template a role.

    Attributes:
        launcher: Command that the flags of the role are added to.
        templates: Whole command lines by role, with port names in braces; a role that is missing uses the launcher.
        rpc: The app speaks gRPC.
    """

    launcher: str
    templates: Mapping[str, str]
    name: str = "ours"
    rpc: bool = False

    def command(self, role: str, ports: Mapping[str, int], run_dir: Path, *, long_bodies: bool) -> list[str]:
        template = self.templates.get(role)
        if template is not None:
            try:
                return shlex.split(template.format_map(dict(ports)))
            except (KeyError, ValueError, IndexError) as error:
                known = " ".join(f"{{{name}}}" for name in ("app", *PORT_NAMES))
                raise BenchError(f"--ours-{role}: bad placeholder {error}; there are: {known}") from error
        flags = ["--app-id", role]
        if role == "callee":
            flags += ["--app-port", str(ports["app"])]
            if self.rpc:
                flags += ["--app-protocol", "grpc"]
        for flag, use in PORT_FLAGS.items():
            flags += [flag, str(ports[f"{role}_{use}"])]
        return shlex.split(self.launcher) + flags + (LONG_BODY_FLAGS if long_bodies else [])

    def environment(self, run_dir: Path) -> dict[str, str]:
        # The two find each other by the registry in this folder, and meet nobody else's sidecars.
        return {"XDG_STATE_HOME": str(run_dir)}


def add_ours(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a sidecar of ours is started; see ``ours``."""
    parser.add_argument("--ours", metavar="COMMAND", help="the sidecar's command; Dapr's flags of the role are added")
    names = " ".join(f"{{{name}}}" for name in ("app", *PORT_NAMES))
    for role in ROLES:
        text = f"whole command of the {role} instead, with ports as {names}"
        parser.add_argument(f"--ours-{role}", metavar="TEMPLATE", help=text)


def ours(options: argparse.Namespace) -> Ours:
    """Return our pair as the options describe it; without any, the one installed beside this Python."""
    given = {"caller": options.ours_caller, "callee": options.ours_callee}
    templates = {role: template for role, template in given.items() if template is not None}
    launcher = options.ours or ("" if len(templates) == len(ROLES) else default_launcher())
    return Ours(launcher, templates)


def default_launcher() -> str:
    """Return the command of the sidecar installed beside this Python."""
    program = Path(sys.executable).parent / "tieline"
    found = str(program) if program.is_file() else shutil.which("tieline")
    if found is None:
        raise BenchError(f"no sidecar to measure: run `{sys.executable} -m pip install -e .`, or give --ours")
    return f"{shlex.quote(found)} sidecar"


@dataclass(frozen=True, slots=True)
class Envoy:
    """A pair of Envoys; they take a configuration file each, and no notice of long bodies.

    ``rpc``: client and app speak HTTP/2.
    """

    program: Path
    name: str = "envoy"
    rpc: bool = False

    def command(self, role: str, ports: Mapping[str, int], run_dir: Path, *, long_bodies: bool) -> list[str]:
        if role == "caller":
            listen_port = ports["caller_grpc" if self.rpc else "caller_http"]
            config = envoy.caller_config(listen_port=listen_port, callee_port=ports["callee_internal"], rpc=self.rpc)
        else:
            config = envoy.callee_config(listen_port=ports["callee_internal"], app_port=ports["app"], rpc=self.rpc)
        config_path = run_dir / f"{role}.json"
        config_path.write_text(json.dumps(config, indent=1))
        return envoy.command(self.program, config_path)

    def environment(self, run_dir: Path) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class Pair:
    """A running caller and callee, through which a call has gone."""

    name: str
    caller: Process
    callee: Process
    work: Work

    def cpu_ns(self) -> tuple[int, int]:
        """Return CPU time used so far by the caller and the callee."""
        return procfs.cpu_ns(self.caller.pid), procfs.cpu_ns(self.callee.pid)

    def stop(self) -> None:
        """End both."""
        self.caller.stop()
        self.callee.stop()


class House:
    """Everything that runs during one bench; ``close`` ends all of it.

    Attributes:
        app_port: Where the app answers.
    """

    def __init__(self, run_dir: Path, start_timeout_s: float = START_TIMEOUT_S) -> None:
        self.run_dir = run_dir
        self.start_timeout_s = start_timeout_s
        self.started: list[Process] = []
        self.pairs: dict[str, Pair] = {}
        self.folders = 0
        self.app_port, self.rpc_app_port = free_ports(2)
        self.rpc_app: Process | None = None

    def start_app(self) -> Process:
        """Start the app and wait until it accepts."""
        process = self.start("the app", [sys.executable, str(Path(app.__file__)), str(self.app_port)], self.run_dir, {})
        wait_for_port(process, self.app_port, self.start_timeout_s)
        return process

    def pair(self, maker: Maker) -> Pair:
        """Return the pair that the CPU, latency and throughput rows share; started at first use."""
        if maker.name not in self.pairs:
            self.pairs[maker.name] = self.start_pair(maker)
        return self.pairs[maker.name]

    def start_pair(self, maker: Maker, *, long_bodies: bool = False) -> Pair:
        """Start the callee, then the caller, then wait until a call gets its answer."""
        folder = self.new_folder()
        ports = self.new_ports()
        environment = maker.environment(folder)
        processes: dict[str, Process] = {}
        for role, port in (("callee", "callee_internal"), ("caller", "caller_http")):
            command = maker.command(role, ports, folder, long_bodies=long_bodies)
            processes[role] = self.start(f"the {role} of {maker.name}", command, folder, environment)
            wait_for_port(processes[role], ports[port], self.start_timeout_s)
        work = Work(port=ports["caller_http"], path=CALL_PATH, answer_bytes=ANSWER_BYTES)
        wait_for_call(processes["caller"], work, self.start_timeout_s)
        for process in processes.values():
            if procfs.children(process.pid):
                raise BenchError(f"{process.name} is a launcher with a child process: give the program itself")
        return Pair(maker.name, processes["caller"], processes["callee"], work)

    def rpc_pair(self, maker: Maker) -> Pair:
        """Return the pair that the gRPC rows share; started at first use."""
        name = f"{maker.name}, gRPC"
        if name not in self.pairs:
            self.pairs[name] = self.start_rpc_pair(maker)
        return self.pairs[name]

    def start_rpc_pair(self, maker: Maker, wrap: Callable[[Maker], Maker] = lambda maker: maker) -> Pair:
        """Start the app that speaks gRPC, a pair for it, and wait until a call gets its answer.

        ``wrap``: Returns how the sidecars are started, given how they would be.
        """
        if not isinstance(maker, (Ours, Envoy)):
            raise BenchError(f"{maker.name} is measured without gRPC")
        maker = wrap(replace(maker, rpc=True))
        if self.rpc_app is None:
            command = [sys.executable, str(Path(rpc_app.__file__)), str(self.rpc_app_port)]
            self.rpc_app = self.start("the gRPC app", command, self.run_dir, {})
            wait_for_port(self.rpc_app, self.rpc_app_port, self.start_timeout_s)
        folder = self.new_folder()
        ports = {**self.new_ports(), "app": self.rpc_app_port}
        processes: dict[str, Process] = {}
        for role, port in (("callee", "callee_internal"), ("caller", "caller_grpc")):
            command = maker.command(role, ports, folder, long_bodies=False)
            processes[role] = self.start(
                f"the {role} of {maker.name}, gRPC", command, folder, maker.environment(folder)
            )
            wait_for_port(processes[role], ports[port], self.start_timeout_s)
        work = Rpcs(port=ports["caller_grpc"], path=RPC_PATH, answer_bytes=ANSWER_BYTES, target="callee")
        wait_for_rpc(processes["caller"], work, self.start_timeout_s)
        return Pair(maker.name, processes["caller"], processes["callee"], work)

    def start(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Process:
        """Start a process that ``close`` will end."""
        process = Process(name, command, folder / f"{name.replace(' ', '-')}.log", environment)
        self.started.append(process)
        return process

    def new_folder(self) -> Path:
        """Return an empty folder of its own for a pair."""
        self.folders += 1
        folder = self.run_dir / str(self.folders)
        folder.mkdir()
        return folder

    def new_ports(self) -> dict[str, int]:
        """Return a free port for each name that a command may use."""
        return {"app": self.app_port, **dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))}

    def cpu_ns(self) -> int:
        """Return the CPU time used so far by everything that runs here, the load generator included."""
        running = [process.pid for process in self.started if process.popen.poll() is None]
        return time.process_time_ns() + sum(map(procfs.cpu_ns, running))

    def close(self) -> None:
        """End every process, the last started first."""
        while self.started:
            self.started.pop().stop()


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_for_port(process: Process, port: int, timeout_s: float) -> None:
    """Wait until something accepts connections."""
    deadline = time.monotonic() + timeout_s
    while True:
        process.check_alive()
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise BenchError(f"{process.name} does not listen on {port}: {process.last_words()}") from None
        time.sleep(0.02)


def wait_for_call(process: Process, work: Work, timeout_s: float) -> None:
    """Wait until one call gets the right answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        process.check_alive()
        seen = try_call(work)
        if seen == "":
            return
        if time.monotonic() > deadline:
            raise BenchError(f"no call gets through {process.name}: {seen}")
        time.sleep(0.05)


def wait_for_rpc(process: Process, work: Rpcs, timeout_s: float) -> None:
    """Wait until one call by gRPC gets the right answer."""

    async def call() -> Outcome:
        load = ClosedLoop()
        load.use(await open_lanes(work, load, 1))
        try:
            return await load.run(1)
        finally:
            load.close()

    deadline = time.monotonic() + timeout_s
    while True:
        process.check_alive()
        try:
            seen = str(dict(asyncio.run(call()).errors))
        except (BenchError, TimeoutError) as error:
            seen = str(error)
        if seen == "{}":
            return
        if time.monotonic() > deadline:
            raise BenchError(f"no call gets through {process.name}: {seen}")
        time.sleep(0.05)


def try_call(work: Work) -> str:
    """Make one call; return "" for the right answer, or else what came."""
    try:
        status, body = get(work.port, work.path, timeout_s=5.0)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    if status == 200 and len(body) == work.answer_bytes:
        return ""
    return f"{status} {body[:200].decode(errors='replace')}"


def get(port: int, path: str, *, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body of one GET on a fresh connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
