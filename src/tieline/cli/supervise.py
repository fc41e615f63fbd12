"""``tieline run`` itself: a sidecar and an app, started in order, watched, and ended together.

Everything that can happen arrives in one queue: a process ended, the user wants to stop. The main thread waits
there, so there is one place that decides and nothing to lock.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from types import FrameType
from typing import Final

from tieline.cli import INTERRUPTED
from tieline.cli.api import BadToken, NotReached, ask, checked_token, token_of
from tieline.cli.children import Child, Guard, describe, exit_code
from tieline.cli.console import Console, relay
from tieline.cli.ports import HeldPort, is_free
from tieline.cli.wait import Address, is_listening, probe_outbound
from tieline.net.terminal import ends_with_terminal, has_terminal

# -P: a file of the user's in the working directory must not stand in for a module of ours.
SIDECAR_COMMAND: Final = (sys.executable, "-P", "-m", "tieline", "sidecar")
PORT_TRIES: Final = 3
"""How often the sidecar is started if another program snatches one of its ports."""
POLL_S: Final = 0.03
"""Pause between two looks at something that cannot tell us: is the API up, does the app listen."""
METADATA_TIMEOUT_S: Final = 5.0
"""How long the sidecar may take to note one attribute."""
STATUS_OF_FAILURE: Final = 1
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_ANY_ADDRESS: Final = frozenset({"", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports of the sidecar; 0 means any free one."""

    http: int = 0
    grpc: int = 0
    internal: int = 0
    metrics: int = 0
    profile: int | None = None
    """``None`` without profiling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        app_id: App ID.
        command: Program and arguments of the app; empty for a sidecar alone.
        app_port: Port that the app will listen on; 0 if none.
        app_protocol: As ``APP_PROTOCOL`` will say it.
        app_address: Where the sidecar reaches the app.
        ports: The sidecar's.
        listen_addresses: Of the sidecar's APIs; empty for its default.
        socket_folder: Of the APIs' Unix domain sockets; empty for none.
        resources: Folders that must exist.
        sidecar_flags: Passed on as they are.
        drain_s: How long the sidecar lets calls in progress finish before its end; ``None`` for no limit.
        as_json: Status lines as JSON.
    """

    app_id: str
    command: tuple[str, ...] = ()
    app_port: int = 0
    app_protocol: str = "http"
    app_address: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    listen_addresses: tuple[str, ...] = ()
    socket_folder: str = ""
    resources: tuple[str, ...] = ()
    sidecar_flags: tuple[str, ...] = ()
    drain_s: float | None = 5.0
    as_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long to wait, in seconds."""

    sidecar_start_s: float = 60.0
    app_listen_s: float = 30.0
    stop_s: float = 6.0
    """From the app's SIGTERM to its SIGKILL."""
    beyond_drain_s: float = 1.0
    """The same for the sidecar, beyond the time that its calls have to finish."""
    after_kill_s: float = 2.0


class NotStarted(Exception):
    """Nothing was started; the text says why and what to do."""


class _Event(Enum):
    SIGNAL = auto()
    RELOAD = auto()
    SIDECAR_ENDED = auto()
    APP_ENDED = auto()


def supervise(
    plan: Plan,
    console: Console,
    *,
    sidecar_command: Sequence[str] = SIDECAR_COMMAND,
    limits: Limits | None = None,
) -> int:
    """Run until the app or the sidecar ends or the user stops it. Call it in the main thread: it takes signals.

    Returns:
        The app's own exit code, or 128 and the number of the signal that ended it, unless that was the SIGTERM
        passed on because the user asked us to stop: then 0. 1 if nothing could be started or the sidecar failed.
    """
    run = _Run(plan, console, tuple(sidecar_command), limits or Limits())
    try:
        with run.signals():
            return run.run()
    except NotStarted as error:
        console.fail(str(error))
        return STATUS_OF_FAILURE
    finally:
        run.clean_up()


class _Run:
    def __init__(self, plan: Plan, console: Console, sidecar_command: tuple[str, ...], limits: Limits) -> None:
        self._plan = plan
        self._console = console
        self._sidecar_command = sidecar_command
        self._limits = limits
        # Reentrant, unlike queue.Queue: a signal may arrive while the main thread is just taking an event.
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._held: dict[str, HeldPort] = {}
        self._sidecar: Child | None = None
        self._app: Child | None = None
        self._relays: list[threading.Thread] = []
        self._guard = Guard()
        self._reload_asked = False
        self._is_up = False

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn the signals that ask us to stop, or to read files anew, into events."""
        ends_with_it = ends_with_terminal()

        def on_signal(number: int, frame: FrameType | None) -> None:
            hung_up = number not in (signal.SIGINT, signal.SIGTERM)
            # A terminal that was closed hangs up too, and ends what runs in it.
            is_reload = hung_up and not (ends_with_it and not has_terminal())
            self._events.put(_Event.RELOAD if is_reload else _Event.SIGNAL)

        names = ("SIGINT", "SIGTERM", "SIGHUP")
        numbers = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
        before = [(number, signal.signal(number, on_signal)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def run(self) -> int:
        self._check()
        event = self._bring_up_sidecar()
        if event is None and self._plan.command:
            self._start_app()
        if event is None:
            self._tell_processes()
            self._pass_on_reloads()
            subject = "Both Dapr and your app logs" if self._app else "Dapr logs"
            self._console.success(f"You're up and running! {subject} will appear here.\n")
            event = self._watch()
            return self._end(event)
        if event is _Event.SIGNAL:
            self._end(event)
            return INTERRUPTED
        self._console.fail(f"The sidecar could not start ({self._how(self._sidecar)}); its last line above says why.")
        return STATUS_OF_FAILURE

    def clean_up(self) -> None:
        """Leave no process and no port behind, whatever happened."""
        for child in self._children():
            child.kill()
        self._guard.release()
        self._release_ports()

    # Before anything is started

    def _check(self) -> None:
        plan = self._plan
        try:
            token_of(os.environ)
            checked_token(os.environ.get("APP_API_TOKEN", ""), "APP_API_TOKEN")
        except BadToken as error:
            raise NotStarted(f"{error}.") from error
        for folder in plan.resources:
            if not Path(folder).exists():
                raise NotStarted(
                    f'error validating resources path ["{folder}"] : stat {folder}: no such file or directory'
                )
        if not plan.command:
            self._console.plain("WARNING: no application command found.")
            return
        self._check_command(plan.command[0])
        if self._app_is_here() and is_listening(self._app_endpoint()):
            raise NotStarted(
                f"App port {plan.app_port} is taken by another program, so your app could not listen there. "
                "Stop that program or give another --app-port."
            )
        for name in ("DAPR_HTTP_ENDPOINT", "DAPR_GRPC_ENDPOINT"):
            if os.environ.get(name):
                self._console.warn(
                    f"{name} is set: SDKs will call {os.environ[name]} and not this sidecar. "
                    "Unset it if you did not mean so."
                )

    @staticmethod
    def _check_command(name: str) -> None:
        if shutil.which(name) is not None:
            return
        if " " in name and shutil.which(name.split()[0]) is not None:
            reason = f"no such program; leave out the quotes around it: -- {name}"
        elif not os.path.dirname(name):  # noqa: PTH120 - "./app" has a folder here and none as a Path
            reason = "executable file not found in $PATH"
        elif not Path(name).exists():
            reason = "no such file or directory"
        elif Path(name).is_dir():
            reason = "is a directory"
        else:
            reason = "permission denied; make it executable, or put the program that runs it in front"
        raise NotStarted(f'Failed to find command {name}: exec: "{name}": {reason}')

    def _app_is_here(self) -> bool:
        return bool(self._plan.app_port) and self._app_endpoint()[0] in _LOOPBACK

    def _app_endpoint(self) -> tuple[str, int]:
        return self._plan.app_address.strip("[]"), self._plan.app_port

    # The sidecar

    def _bring_up_sidecar(self) -> _Event | None:
        """Start the sidecar until its API is up; return what came between, if anything did."""
        for left in reversed(range(PORT_TRIES)):
            self._hold_ports()
            self._start_sidecar()
            event = self._wait_for_api()
            self._release_ports()
            snatched = self._snatched_port() if event is _Event.SIDECAR_ENDED and left else None
            if snatched is None:
                return event
            self._console.warn(f"Port {snatched} was taken meanwhile; starting the sidecar on other ports.")
        return None

    def _hold_ports(self) -> None:
        wanted = self._plan.ports
        for name, label, number in (
            ("http", "HTTPPort", wanted.http),
            ("grpc", "GRPCPort", wanted.grpc),
            ("metrics", "MetricsPort", wanted.metrics),
            ("internal", "InternalGRPCPort", wanted.internal),
            ("profile", "ProfilePort", wanted.profile),
        ):
            if number is None:
                continue
            try:
                self._held[name] = self._hold(number)
            except OSError as error:
                text = f"invalid configuration for {label}. Port {number} is not available"
                raise NotStarted(f"{text} ({os.strerror(error.errno) if error.errno else error}).") from error

    def _hold(self, number: int) -> HeldPort:
        held = HeldPort(number)
        if number or held.number != self._plan.app_port:
            return held
        # A free port, but the app will want it.
        other = HeldPort()
        held.release()
        return other

    def _release_ports(self) -> None:
        for port in self._held.values():
            port.release()

    def _snatched_port(self) -> int | None:
        """Return a port of our choice that another program has now."""
        for name, port in self._held.items():
            if not getattr(self._plan.ports, name) and not is_free(port.number):
                return port.number
        return None

    def _start_sidecar(self) -> None:
        plan = self._plan
        http, grpc = self._held["http"].number, self._held["grpc"].number
        if plan.socket_folder:
            at = f"HTTP Socket: {self._socket_path('http')}. gRPC Socket: {self._socket_path('grpc')}"
        else:
            at = f"HTTP Port: {http}. gRPC Port: {grpc}"
        self._console.info(f"Starting Dapr with id {plan.app_id}. {at}")
        for port in self._held.values():
            port.before_start()
        try:
            self._sidecar = sidecar = Child((*self._sidecar_command, *self._sidecar_arguments()))
        except OSError as error:
            raise NotStarted(f"The sidecar could not be started: {error}") from error
        self._guard.watch(sidecar)
        sidecar.on_end(lambda: self._events.put(_Event.SIDECAR_ENDED))

    def _sidecar_arguments(self) -> list[str]:
        plan = self._plan
        arguments = ["--app-id", plan.app_id]
        if plan.app_port:
            arguments += ["--app-port", str(plan.app_port)]
        for name, flag in (
            ("http", "--dapr-http-port"),
            ("grpc", "--dapr-grpc-port"),
            ("internal", "--dapr-internal-grpc-port"),
            ("metrics", "--metrics-port"),
            ("profile", "--profile-port"),
        ):
            if name in self._held:
                arguments += [flag, str(self._held[name].number)]
        return [*arguments, *plan.sidecar_flags]

    def _wait_for_api(self) -> _Event | None:
        """Wait until outbound calls are taken; a sidecar that stays silent is only warned about."""
        end = time.monotonic() + self._limits.sidecar_start_s
        address = self._api_address()
        while time.monotonic() < end:
            failure = probe_outbound(address)
            event = self._next(None if failure is None else POLL_S)
            if event is not None or failure is None:
                return event
        self._console.warn("Dapr sidecar might not be responding.")
        return None

    def _api_address(self) -> Address:
        if self._plan.socket_folder:
            return self._socket_path("http")
        first = self._plan.listen_addresses[0].strip("[]") if self._plan.listen_addresses else ""
        return ("127.0.0.1" if first in _ANY_ADDRESS else first, self._held["http"].number)

    def _socket_path(self, api: str) -> str:
        return str(Path(self._plan.socket_folder) / f"dapr-{self._plan.app_id}-{api}.socket")

    # The app

    def _start_app(self) -> None:
        command = self._plan.command
        try:
            self._app = app = Child(command, environment=self._app_environment(os.environ), output=subprocess.PIPE)
        except OSError as error:
            self._stop(drains=False)
            raise NotStarted(f"Failed to start {command[0]}: {error.strerror or error}") from error
        self._guard.watch(app)
        self._relays = [
            relay(app.stdout, self._console.out, "app output"),
            relay(app.stderr, self._console.err, "app errors"),
        ]
        app.on_end(lambda: self._events.put(_Event.APP_ENDED))

    def _tell_processes(self) -> None:
        """Let the sidecar say who started it and what its app is, for ``list`` and ``stop`` (K-14)."""
        told = {"cliPID": str(os.getpid())}
        if self._app is not None:
            told |= {"appPID": str(self._app.pid), "appCommand": " ".join(self._plan.command)}
        address = self._api_address()
        # Beside all else: nobody needs it to be there at once.
        threading.Thread(target=_put_metadata, args=(address, told), name="metadata", daemon=True).start()

    def _app_environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """Return our environment with the app's variables set, whatever they were (K-13)."""
        plan = self._plan
        # Lines of a Python app should appear when they are printed, although its output is a pipe.
        environment = {"PYTHONUNBUFFERED": "1", **ours}
        environment["APP_ID"] = plan.app_id
        environment["APP_PROTOCOL"] = plan.app_protocol
        environment["APP_CHANNEL_ADDRESS"] = plan.app_address
        if plan.app_port:
            environment["APP_PORT"] = str(plan.app_port)
        environment["DAPR_HTTP_PORT"] = str(self._held["http"].number)
        environment["DAPR_GRPC_PORT"] = str(self._held["grpc"].number)
        environment["DAPR_METRICS_PORT"] = str(self._held["metrics"].number)
        return environment

    def _watch(self) -> _Event:
        """Wait for an end; meanwhile say so if the app never listens."""
        if self._app is not None and self._app_is_here():
            end = time.monotonic() + self._limits.app_listen_s
            while not is_listening(self._app_endpoint()):
                event = self._next(POLL_S)
                if event is not None:
                    return event
                if time.monotonic() > end:
                    self._warn_not_listening()
                    break
        while True:
            event = self._next(None, waits=True)
            if event is not None:
                return event

    def _pass_on_reloads(self) -> None:
        """From now on the sidecar takes a hang-up as a wish to reload: before that it would die of it."""
        self._is_up = True
        if self._reload_asked:
            self._reload()

    def _reload(self) -> None:
        if not self._is_up:
            self._reload_asked = True
        elif self._sidecar is not None:
            self._console.info("Hang-up received: the sidecar reads its files anew")
            self._sidecar.reload()

    def _warn_not_listening(self) -> None:
        host, port = self._app_endpoint()
        self._console.warn(
            f"Your app has not listened on {host}:{port} for {self._limits.app_listen_s:g} s; calls to it fail until "
            "it does. Is --app-port the port that it uses?"
        )

    # The end

    def _end(self, event: _Event) -> int:
        if event is _Event.SIGNAL:
            self._console.info("\nterminated signal received: shutting down")
        elif event is _Event.APP_ENDED:
            self._console.info(f"\nThe app has ended ({self._how(self._app)}): shutting down")
        else:
            self._console.info(f"\nThe sidecar has ended ({self._how(self._sidecar)}): shutting down")
        self._stop(drains=event is _Event.SIGNAL)
        return self._code(event)

    def _code(self, event: _Event) -> int:
        sidecar_failed = event is _Event.SIDECAR_ENDED and self._sidecar is not None and self._sidecar.returncode != 0
        if sidecar_failed:
            return STATUS_OF_FAILURE
        returncode = self._app.returncode if self._app is not None else 0
        if returncode is None:  # unkillable, so not even its parent gets to know
            return STATUS_OF_FAILURE
        asked_to = event is not _Event.APP_ENDED and returncode == -signal.SIGTERM
        return 0 if asked_to else exit_code(returncode)

    def _stop(self, *, drains: bool) -> None:
        """Ask both to stop, wait, and kill what is left; at a second signal at once.

        Args:
            drains: The app stays until the calls that it answers are over, which is when the sidecar has ended.
        """
        limits, drain_s = self._limits, self._plan.drain_s
        patient = True
        if drains and self._sidecar is not None:
            longest = None if drain_s is None else drain_s + limits.beyond_drain_s
            patient = self._stop_these([self._sidecar], longest, "The sidecar has not ended")
        if patient:
            self._stop_these(self._children(), limits.stop_s, "Not stopped")
        for child in self._children():
            child.kill()
            child.wait(self._limits.after_kill_s)
        for thread in self._relays:
            # Bounded: a process that left the group may keep the pipe open for ever.
            thread.join(self._limits.after_kill_s)
        self._tell_end(self._sidecar, "Dapr")
        self._tell_end(self._app, "App")

    def _stop_these(self, children: Sequence[Child], longest_s: float | None, late: str) -> bool:
        """Ask for an end, and wait for it; what is late is killed. Return false if the user lost patience."""
        end = None if longest_s is None else time.monotonic() + longest_s
        for child in children:
            child.terminate()
        while not all(child.gone for child in children):
            if self._next(POLL_S) is _Event.SIGNAL:
                self._console.warn("Signal received again: killing what is left")
                return False
            if end is not None and time.monotonic() > end:
                self._console.warn(f"{late} within {longest_s:g} s: killing what is left")
                break
        for child in children:
            child.kill()
        return True

    def _tell_end(self, child: Child | None, name: str) -> None:
        if child is None:
            return
        if child.returncode in (0, -signal.SIGTERM):
            self._console.success(f"Exited {name} successfully")
        else:
            self._console.fail(f"Error exiting {name}: {self._how(child)}")

    def _children(self) -> list[Child]:
        return [child for child in (self._app, self._sidecar) if child is not None]

    def _next(self, timeout_s: float | None, *, waits: bool = False) -> _Event | None:
        """Return the next event; wait so long for it, or not at all if ``None``, or for ever if ``waits``.

        A wish to reload is seen to here, and nobody else's business.
        """
        try:
            event = self._events.get(waits or timeout_s is not None, timeout_s)
        except queue.Empty:
            return None
        if event is not _Event.RELOAD:
            return event
        self._reload()
        return None

    def _how(self, child: Child | None) -> str:
        returncode = child.returncode if child is not None else None
        return "still running" if returncode is None else describe(returncode)


def _put_metadata(address: Address, told: Mapping[str, str]) -> None:
    """Set attributes of the sidecar; one that does not take them works all the same."""
    token = token_of(os.environ)
    for key, value in told.items():
        try:
            ask(
                address,
                "PUT",
                f"/v1.0/metadata/{key}",
                timeout_s=METADATA_TIMEOUT_S,
                token=token,
                body=os.fsencode(value),
            )
        except NotReached:
            return
