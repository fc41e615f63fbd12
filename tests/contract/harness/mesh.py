"""A set-up of recorded exchanges: sidecar processes and scripted apps on loopback, with a name table of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.contract.harness.apps import App, Stage
from tests.contract.harness.stream import Message, Stream, play, read_body, read_head
from tests.support.mesh import free_port
from tests.support.names import DAPR_SCHEMA

Json = dict[str, Any]

READY_S: Final = 20.0
"""How long a sidecar may take until it is ready, on a busy machine."""
STOP_S: Final = 5.0
POLL_S: Final = 0.01
SHOWN_CHARACTERS: Final = 4000
_KINDS: Final = ("http", "grpc", "internal", "metrics", "public")
_PLACEHOLDER: Final = re.compile(r"\{\{([\w.-]+)\}\}")
_READ_BY_A_SIDECAR: Final = re.compile(r"DAPR_|APP_|OTEL_|NAMESPACE$|POD_NAME$|https?_proxy$", re.IGNORECASE)
_MIGRATED: Final = "INSERT INTO metadata VALUES ('nr-migrations', '1')"
_FAR_S: Final = 3600
"""Rows of the test's own are dated so far ahead, so that they do not grow stale while it runs."""


def clean_environ(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a sidecar: ours without what a sidecar reads, and ``more``."""
    kept = {name: value for name, value in os.environ.items() if not _READ_BY_A_SIDECAR.match(name)}
    return {**kept, "DAPR_HOST_IP": "127.0.0.1", **more}


def get(port: int, path: str, *, within_s: float = 5.0) -> Message:
    """Ask for ``path`` on a connection of its own.

    Raises:
        OSError: Nobody answers.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=within_s) as sock:
        play(sock, [{"text": f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"}])
        stream = Stream(sock)
        answer = read_head(stream)
        if answer is None:
            raise ConnectionError(f"no answer to {path} on port {port}")
        read_body(stream, answer, bodiless=answer.status == "204")
        return answer


def accepts(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Mesh:
    """The sidecars and apps of one set-up.

    Args:
        setup: ``apps`` by name; ``sidecars`` by name, each with ``app_id``, ``app``, ``flags``, ``env``, ``config``
            (of its Configuration's ``spec``) and ``resources``; ``rows`` of the name table, address by app ID;
            apps that are ``down`` after the start, or come ``late``; the health path that is awaited (``ready``);
            the path at which apps say that they are not well (``unwell``).
        folder: For files and logs.

    Attributes:
        ports: By placeholder: the name of an app, ``<sidecar>.http`` and the like, and ``closed``.
    """

    def __init__(self, setup: Json, folder: Path) -> None:
        self._setup = setup
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stage = Stage()
        self.apps = {name: App(name, self.stage, setup.get("unwell", "")) for name in setup["apps"]}
        self._nobody = App("closed", self.stage)
        self.ports = {name: app.port for name, app in self.apps.items()} | {"closed": self._nobody.port}
        self.ports |= {f"{name}.{kind}": free_port() for name in setup["sidecars"] for kind in _KINDS}

    # ── placeholders ───────────────────────────────────────────────────────────────────────────────
    def fill(self, text: str) -> str:
        """Put port numbers and the host's name in place of ``{{placeholders}}``."""
        return _PLACEHOLDER.sub(lambda found: self._meaning(found[1]), text)

    def _meaning(self, name: str) -> str:
        return socket.gethostname() if name == "hostname" else str(self.ports[name])

    def _filled(self, value: Any) -> Any:
        return json.loads(self.fill(json.dumps(value)))

    # ── life ───────────────────────────────────────────────────────────────────────────────────────
    def start(self) -> None:
        """Start all of it, and return when the sidecars are ready.

        Raises:
            RuntimeError: A sidecar did not become ready; the text holds the beginning of its log.
        """
        for name, app in self.apps.items():
            if name not in self._setup.get("late", ()):
                app.serve()
        self._write_rows(self._filled(self._setup.get("rows", {})))
        sidecars: Json = self._filled(self._setup["sidecars"])
        for name, sidecar in sidecars.items():
            self._launch(name, sidecar)
        for name in sidecars:
            self._await(name)
        for name in self._setup.get("down", ()):
            self.apps[name].go_down()
        for name in sidecars if "down" in self._setup else ():
            get(self.ports[f"{name}.http"], "/v1.0/healthz")  # behind this, it has seen its connections end

    @property
    def alive(self) -> bool:
        """Whether all of its sidecars run."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes.values())

    def exit_code(self, name: str) -> int:
        """Return the exit code of a sidecar that is about to end."""
        return self._processes[name].wait(15)

    def log(self, name: str) -> str:
        """Everything that a sidecar has written."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End all of it."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for app in (*self.apps.values(), self._nobody):
            app.close()

    def _write_rows(self, rows: Mapping[str, str]) -> None:
        later = int(time.time()) + _FAR_S
        with contextlib.closing(sqlite3.connect(self._folder / "names.db")) as database, database:
            for statement in (*DAPR_SCHEMA, _MIGRATED):
                database.execute(statement)
            for app_id, address in rows.items():
                row = (f"row-{app_id}", address, app_id, "", later)
                database.execute("INSERT INTO hosts VALUES (?, ?, ?, ?, ?)", row)

    def _launch(self, name: str, sidecar: Json) -> None:
        folder = self._folder / name
        (folder / "resources").mkdir(parents=True)
        names = {"component": "sqlite", "configuration": {"connectionString": str(self._folder / "names.db")}}
        spec = {"nameResolution": names, **sidecar.get("config", {})}
        config = {"apiVersion": "dapr.io/v1alpha1", "kind": "Configuration", "metadata": {"name": name}, "spec": spec}
        (folder / "config.yaml").write_text(json.dumps(config))
        resources = "\n---\n".join(json.dumps(document) for document in sidecar.get("resources", ()))
        (folder / "resources" / "all.yaml").write_text(resources)
        flags = {
            "app-id": sidecar["app_id"],
            "dapr-listen-addresses": "127.0.0.1",
            "dapr-http-port": self.ports[f"{name}.http"],
            "dapr-grpc-port": self.ports[f"{name}.grpc"],
            "dapr-internal-grpc-listen-address": "127.0.0.1",
            "dapr-internal-grpc-port": self.ports[f"{name}.internal"],
            "dapr-public-listen-address": "127.0.0.1",
            "dapr-public-port": self.ports[f"{name}.public"],
            "metrics-listen-address": "127.0.0.1",
            "metrics-port": self.ports[f"{name}.metrics"],
            "config": folder / "config.yaml",
            "resources-path": folder / "resources",
        }
        if "app" in sidecar:
            flags["app-port"] = self.ports[sidecar["app"]]
        arguments = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        command = [sys.executable, "-m", "tieline", "sidecar", *arguments, *sidecar.get("flags", ())]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command, env=clean_environ(sidecar.get("env", {})), stdout=log, stderr=log, cwd=folder
            )

    def _await(self, name: str) -> None:
        path = f"/v1.0/{self._setup.get('ready', 'healthz')}"
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._processes[name].poll() is None:
            with contextlib.suppress(OSError):
                if get(self.ports[f"{name}.http"], path).status == "204":
                    return
            time.sleep(POLL_S)
        raise RuntimeError(f"sidecar {name} did not become ready:\n{self.log(name)[:SHOWN_CHARACTERS]}")
