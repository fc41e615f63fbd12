"""A stand-in for a sidecar, run as a process: says how it was started and answers health checks and calls.

``--behave`` chooses what else it does: ``refuse`` ends with a fatal line, ``deaf`` never serves, ``drain`` takes a
moment to stop and looks for the app then, ``end<n>`` ends by itself with that code once the app listens, ``stubborn``
ignores SIGTERM, ``steal`` lets another program have its port the first time (the file that it is given tells).
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

APPS: dict[str, int] = {}


class Handler(BaseHTTPRequestHandler):
    """Health, and invocation of apps that are known by the shared folder ``FAKE_APPS``."""

    def do_GET(self) -> None:
        self.send_response(204 if self.path in ("/v1.0/healthz", "/v1.0/healthz/outbound") else 404)
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target, _, method = self.path.removeprefix("/v1.0/invoke/").partition("/method/")
        if target.startswith("http://") or target in ("mathHTTPEndpoint", "mathGrpc"):
            target = "mathService"  # which is to answer for all others
        known = Path(os.environ["XDG_STATE_HOME"]) / target.partition(".")[0]
        if not known.exists():
            self.send_response(500)
            self.send_header("tieline-cause", "name-unknown")
            self.send_header("tieline-hint", "start it")
            self.end_headers()
            return
        app = http.client.HTTPConnection("127.0.0.1", int(known.read_text()), timeout=5)
        app.request("POST", "/" + method, body)
        answer = app.getresponse()
        self.send_response(answer.status)
        self.end_headers()
        self.wfile.write(answer.read())
        app.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


def flag(name: str, otherwise: str = "") -> str:
    """Return the value of a flag."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else otherwise


def main() -> None:
    """Behave as asked until SIGTERM."""
    behave = flag("--behave")
    print(json.dumps({"sidecar": sys.argv[1:], "own_group": os.getpgrp() == os.getpid()}), flush=True)
    if behave == "refuse":
        print('level=fatal msg="parameter app-id cannot contain dots"', flush=True)
        sys.exit(1)
    port = int(flag("--dapr-http-port"))
    if behave.startswith("steal:"):
        steal(Path(behave.removeprefix("steal:")), port)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behave == "stubborn" else stop)
    if behave == "drain":
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=drain).start())
    signal.signal(signal.SIGHUP, lambda *_: print("sidecar got SIGHUP", flush=True))
    if behave == "deaf":
        signal.pause()
    if "--app-port" in sys.argv and "XDG_STATE_HOME" in os.environ:
        (Path(os.environ["XDG_STATE_HOME"]) / flag("--app-id")).write_text(flag("--app-port"))
    if behave.startswith("end"):
        threading.Thread(target=end_when_app_listens, args=(int(behave.removeprefix("end")),), daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def stop(number: int, frame: FrameType | None) -> None:
    """End in good order."""
    print("sidecar got SIGTERM", flush=True)
    os._exit(0)


def drain() -> None:
    """Let calls in progress finish, for which the app must be there."""
    time.sleep(0.3)
    with socket.socket() as probe:
        there = probe.connect_ex(("127.0.0.1", int(flag("--app-port")))) == 0
    print(f"at the end of the drain the app listens: {there}", flush=True)
    os._exit(0)


def end_when_app_listens(code: int) -> None:
    """End by itself, but not before the app is up."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(flag("--app-port"))), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            os._exit(code)


def steal(mark: Path, port: int) -> None:
    """The first time, end as if another program had come first; that program then stays for a while."""
    if mark.exists():
        return
    code = (
        "import socket,sys,time; s=socket.socket(); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1);"
        f"s.bind(('',{port})); s.listen(); print('x',flush=True); time.sleep(20)"
    )
    thief = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert thief.stdout is not None
    thief.stdout.readline()
    mark.write_text(str(thief.pid))
    sys.exit(1)


if __name__ == "__main__":
    main()
