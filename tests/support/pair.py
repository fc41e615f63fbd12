"""Two sidecars and an app as real processes on loopback, with a registry of their own, for tests from outside."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tieline.cli.children import Child
from tieline.cli.ports import HeldPort
from tieline.cli.wait import is_listening, probe_health

UP_WITHIN_S: Final = 20.0
DOWN_WITHIN_S: Final = 8.0
LOOK_EVERY_S: Final = 0.03
SHOWN: Final = 4000
"""Characters of each log, the last ones."""
APP: Final = Path(__file__).with_name("pair_app.py")


class Pair(NamedTuple):
    """What is up: an app ``mathService`` (see ``pair_app``) with its sidecar, and the sidecar of ``caller``."""

    http_port: int
    """HTTP API of the caller's sidecar."""
    folder: Path
    """State and logs."""

    @property
    def base(self) -> str:
        """URL below which the app's methods are."""
        return f"http://127.0.0.1:{self.http_port}/v1.0/invoke/mathService/method"

    def logs(self) -> str:
        """Return what all three wrote, for the message of a failed test."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text('utf-8', 'replace')[-SHOWN:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


@contextlib.contextmanager
def a_pair(
    folder: Path,
    *,
    caller_flags: Sequence[str] = (),
    callee_flags: Sequence[str] = (),
    caller_environment: Mapping[str, str] | None = None,
) -> Iterator[Pair]:
    """Start all three, wait until calls can be made, and end them afterwards."""
    with contextlib.ExitStack() as stack:
        ports = [HeldPort() for _ in range(7)]
        for port in ports:
            stack.callback(port.release)
            port.before_start()
        app_port, *numbers = [port.number for port in ports]
        start = _Starter(folder, stack)
        start("app", sys.executable, str(APP), str(app_port))
        start.sidecar("mathService", numbers[:3], "--app-port", str(app_port), *callee_flags)
        start.sidecar("caller", numbers[3:], *caller_flags, **(caller_environment or {}))
        pair = Pair(numbers[3], folder)
        _until(pair, lambda: is_listening(("127.0.0.1", app_port)))
        for http_port in (numbers[0], numbers[3]):
            _until(pair, lambda: _is_ready(http_port))  # noqa: B023 - called before the loop goes on
        yield pair


class _Starter:
    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def __call__(self, name: str, *command: str, **more: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("DAPR_", "APP_"))}
        environment.pop("NAMESPACE", None)
        environment = {**environment, **more, "XDG_STATE_HOME": str(self._folder)}
        with (self._folder / f"{name}.log").open("wb") as log:
            child = Child(command, environment=environment, output=log)
        self._stack.callback(_end, child)

    def sidecar(self, app_id: str, ports: Sequence[int], *more: str, **environment: str) -> None:
        http, grpc, internal = map(str, ports)
        flags = ["--app-id", app_id, "--dapr-http-port", http, "--dapr-grpc-port", grpc]
        flags += ["--dapr-internal-grpc-port", internal, "--enable-metrics=false", "--no-mdns", *more]
        self(app_id, sys.executable, "-P", "-m", "tieline", "sidecar", *flags, **environment)


def _is_ready(http_port: int) -> bool:
    return probe_health(("127.0.0.1", http_port)) is None


def _until(pair: Pair, is_up: Callable[[], bool]) -> None:
    end = time.monotonic() + UP_WITHIN_S
    while not is_up():
        assert time.monotonic() < end, f"not up within {UP_WITHIN_S:g} s\n{pair.logs()}"
        time.sleep(LOOK_EVERY_S)


def _end(child: Child) -> None:
    child.terminate()
    child.wait(DOWN_WITHIN_S)
    child.kill()
    child.wait(DOWN_WITHIN_S)
