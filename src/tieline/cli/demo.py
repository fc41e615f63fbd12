"""``tieline demo``: two apps, a caller, their sidecars and a few calls in a few seconds, and nothing left behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import click

from tieline.cli import INTERRUPTED
from tieline.cli.children import Child, Guard, describe
from tieline.cli.console import Console
from tieline.cli.ports import HeldPort
from tieline.cli.supervise import POLL_S, SIDECAR_COMMAND
from tieline.cli.wait import is_listening, probe_health

START_TIMEOUT_S: Final = 15.0
CALL_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 6.0
MAX_SHOWN: Final = 8192
"""Bytes read of an answer."""
LINES_SHOWN: Final = 5
"""Last lines of a log that are shown when something did not start."""
BODY: Final = '{"arg1": 10, "arg2": 23}'
JSON_TYPE: Final = "application/json"
_TOLD: Final = {"tieline-cause": "why?", "tieline-hop": "where?", "tieline-hint": "what to do?"}
"""Headers that explain a failure, and the question that each answers."""


class DemoFailed(Exception):
    """The demo could not be set up; the text says what failed."""


class Step(NamedTuple):
    """One call and what it must give."""

    title: str
    target: str
    method: str
    status: int
    body: str | None
    """``None`` if any will do."""
    cause: str = ""


ENDPOINT: Final = "mathHTTPEndpoint"
APP_URL: Final = "{app}"
"""Stands in a step's target for the URL of the app."""

STEPS: Final = (
    Step("Call the method add of the app mathService", "mathService", "add", 200, "33"),
    Step("A method may be a path", "mathService", "api/v1/add", 200, "33"),
    Step("The same app, with its namespace", "mathService.default", "add", 200, "33"),
    Step("An address outside the mesh that has a name, an HTTPEndpoint", ENDPOINT, "add", 200, "33"),
    Step("Any URL", APP_URL, "add", 200, "33"),
    Step("An app that speaks gRPC: the call is the same", "mathGrpc", "add", 200, "33"),
    Step("An app that does not exist: the failure explains itself", "nobody", "add", 500, None, "name-unknown"),
)


class Answer(NamedTuple):
    """What a call gave."""

    status: int
    body: str
    told: dict[str, str]
    """The headers that explain a failure, those that are there."""
    took_s: float


@click.command("demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--keep", is_flag=True, help="Stay up until Ctrl-C, so that you can try calls of your own.")
def command(keep: bool) -> int:
    """Show a call between two apps, and a call that fails, in a few seconds.

    Starts the apps mathService and mathGrpc and a caller, each with a sidecar, on free ports of this host, with a
    registry of their own in a temporary folder, and calls the apps by their names, and as one outside the mesh. Exit
    code 0 only if all answers were right.
    """
    return demo(Console(), keep=keep)


def demo(console: Console, *, keep: bool = False, sidecar_command: Sequence[str] = SIDECAR_COMMAND) -> int:
    """Run the demo in the main thread; return 0 if all answers were right, else 1."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        console.info("Starting the apps mathService and mathGrpc, their sidecars, and the sidecar of a caller.\n")
        with _Stage(sidecar_command) as stage:
            stage.bring_up()
            right = [_show(console, number, step, stage) for number, step in enumerate(STEPS, 1)]
            if keep:
                _stay(console)
    except DemoFailed as error:
        console.fail(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    if not all(right):
        console.fail(f"{right.count(False)} of {len(right)} answers were not what they should be.")
        return 1
    console.success("All answers were right." + ("" if keep else ' To try them yourself: "tieline demo --keep".'))
    return 0


def _stay(console: Console) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        console.info("Still up: try the lines above. Ctrl-C ends it.")
        threading.Event().wait()


class _Stage:
    """Two apps, their sidecars and a caller's sidecar, with a state folder of their own; leaves nothing behind."""

    def __init__(self, sidecar_command: Sequence[str]) -> None:
        self._sidecar_command = tuple(sidecar_command)
        self._folder = tempfile.TemporaryDirectory(prefix="tieline-demo-")
        self._children: list[Child] = []
        self._guard = Guard()
        self._ports = [HeldPort() for _ in range(11)]
        self._app_port, *self._callee_ports = [port.number for port in self._ports[:4]]
        self._grpc_app_port, *self._grpc_callee_ports = [port.number for port in self._ports[4:8]]
        self._caller_ports = [port.number for port in self._ports[8:]]

    @property
    def app_url(self) -> str:
        """Where the app listens."""
        return f"http://127.0.0.1:{self._app_port}"

    @property
    def http_port(self) -> int:
        """The HTTP API of the caller's sidecar."""
        return self._caller_ports[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end = time.monotonic() + STOP_TIMEOUT_S
        try:
            for child in self._children:
                child.terminate()
            while not all(child.gone for child in self._children) and time.monotonic() < end:
                time.sleep(POLL_S)
        finally:
            for child in self._children:
                child.kill()
                child.wait(STOP_TIMEOUT_S)
            self._guard.release()
            for port in self._ports:
                port.release()
            self._folder.cleanup()

    def bring_up(self) -> None:
        """Start all of them and wait until a call can be made.

        Raises:
            DemoFailed: One of them did not start.
        """
        for port in self._ports:
            port.before_start()
        app = self._start_app("app", "tieline.cli.demo_app", self._app_port)
        grpc_app = self._start_app("gRPC app", "tieline.cli.demo_grpc_app", self._grpc_app_port)
        callee = self._start_sidecar("mathService", self._callee_ports, "--app-port", str(self._app_port))
        flags = ("--app-port", str(self._grpc_app_port), "--app-protocol", "grpc")
        grpc_callee = self._start_sidecar("mathGrpc", self._grpc_callee_ports, *flags)
        caller = self._start_sidecar("caller", self._caller_ports, "--resources-path", str(self._write_resources()))
        self._wait_for(app, "app", lambda: is_listening(("127.0.0.1", self._app_port)))
        self._wait_for(grpc_app, "gRPC app", lambda: is_listening(("127.0.0.1", self._grpc_app_port)))
        self._wait_for(callee, "mathService", lambda: _is_up(self._callee_ports[0]))
        self._wait_for(grpc_callee, "mathGrpc", lambda: _is_up(self._grpc_callee_ports[0]))
        self._wait_for(caller, "caller", lambda: _is_up(self._caller_ports[0]))

    def _write_resources(self) -> Path:
        """Write what the caller's sidecar is to know of the world outside; return the folder."""
        folder = Path(self._folder.name) / "resources"
        folder.mkdir()
        (folder / "math.yaml").write_text(
            "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\n"
            f"metadata:\n  name: {ENDPOINT}\nspec:\n  baseUrl: {self.app_url}\n"
        )
        return folder

    def _start_app(self, name: str, module: str, port: int) -> Child:
        return self._start(name, (sys.executable, "-P", "-m", module, str(port)))

    def _start_sidecar(self, app_id: str, ports: Sequence[int], *more: str) -> Child:
        http_port, grpc_port, internal_port = map(str, ports)
        flags = ["--app-id", app_id, "--dapr-http-port", http_port, "--dapr-grpc-port", grpc_port]
        flags += ["--dapr-internal-grpc-port", internal_port, "--enable-metrics=false", *more]
        return self._start(app_id, (*self._sidecar_command, *flags))

    def _start(self, name: str, command: Sequence[str]) -> Child:
        # No variable of ours may change what the demo shows, nor may its apps appear in the user's registry.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("DAPR_", "APP_"))}
        environment.pop("NAMESPACE", None)
        environment["XDG_STATE_HOME"] = self._folder.name
        try:
            with self._log_of(name).open("wb") as log:
                child = Child(command, environment=environment, output=log)
        except OSError as error:
            raise DemoFailed(f"{command[0]} could not be started: {error}") from error
        self._children.append(child)
        self._guard.watch(child)
        return child

    def _wait_for(self, child: Child, name: str, is_up: Callable[[], bool]) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while not is_up():
            returncode = child.returncode
            if returncode is not None:
                raise DemoFailed(f'"{name}" could not start ({describe(returncode)}).{self._last_lines(name)}')
            if time.monotonic() > end:
                raise DemoFailed(f'"{name}" was not up after {START_TIMEOUT_S:g} s.{self._last_lines(name)}')
            time.sleep(POLL_S)

    def _last_lines(self, name: str) -> str:
        lines = self._log_of(name).read_text("utf-8", "replace").splitlines()[-LINES_SHOWN:]
        return " Its last lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""

    def _log_of(self, name: str) -> Path:
        return Path(self._folder.name) / f"{name}.log"


def _is_up(http_port: int) -> bool:
    return probe_health(("127.0.0.1", http_port)) is None


def _show(console: Console, number: int, step: Step, stage: _Stage) -> bool:
    """Make one call, print it so that it can be repeated, and tell whether the answer was right."""
    http_port = stage.http_port
    path = f"/v1.0/invoke/{step.target.replace(APP_URL, stage.app_url)}/method/{step.method}"
    console.plain(f"{number}. {step.title}")
    url = f"http://127.0.0.1:{http_port}{path}"
    console.plain(f"   curl -i {url} \\\n     -H {shlex.quote('Content-Type: ' + JSON_TYPE)} -d {shlex.quote(BODY)}")
    try:
        answer = _call(http_port, path)
    except (OSError, http.client.HTTPException) as error:
        console.plain(f"   no answer: {error or type(error).__name__}\n")
        return False
    console.plain(f"   {answer.status} {answer.body.strip()}  ({answer.took_s * 1000:.1f} ms)")
    for name, value in answer.told.items():
        console.plain(f"   {_TOLD[name]:12} {name}: {value}")
    console.plain("")
    return _is_right(step, answer)


def _is_right(step: Step, answer: Answer) -> bool:
    if answer.status != step.status or answer.told.get("tieline-cause", "") != step.cause:
        return False
    return step.body is None or answer.body.strip() == step.body


def _call(http_port: int, path: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=CALL_TIMEOUT_S)
    started = time.perf_counter()
    try:
        connection.request("POST", path, BODY, {"Content-Type": JSON_TYPE})
        response = connection.getresponse()
        body = response.read(MAX_SHOWN).decode("utf-8", "replace")
    finally:
        connection.close()
    told = {name: value for name in _TOLD if (value := response.headers.get(name))}
    return Answer(response.status, body, told, time.perf_counter() - started)
