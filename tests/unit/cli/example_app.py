"""An app to be run by ``tieline run``: prints its environment, then behaves as its second argument says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from types import FrameType

NAMES = ("APP_ID", "APP_PORT", "APP_PROTOCOL", "APP_CHANNEL_ADDRESS", "DAPR_HTTP_PORT", "DAPR_GRPC_PORT")


def say(text: str) -> None:
    """Print at once, in one piece."""
    os.write(1, (text + "\n").encode())


def on_term(number: int, frame: FrameType | None) -> None:
    """End with a code of our own."""
    say("app got SIGTERM")
    os._exit(7)


def main() -> None:
    """Listen on the port given, unless told otherwise."""
    port, mode = int(sys.argv[1]), sys.argv[2]
    environment = {name: os.environ.get(name) for name in (*NAMES, "DAPR_METRICS_PORT", "OTHER")}
    say("ENV " + json.dumps(environment))
    os.write(2, b"this is stderr\n")
    if mode.startswith("now"):
        sys.exit(int(mode.removeprefix("now")))
    if mode == "killself":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "termcode":
        signal.signal(signal.SIGTERM, on_term)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "child":
        # The child takes longer to stop than its parent, and is the one that counts.
        child = subprocess.Popen([sys.executable, __file__, "0", "slow"])
        say(f"CHILD {child.pid}")
    if mode == "slow":
        signal.signal(signal.SIGTERM, lambda *_: say("child got SIGTERM") or os._exit(0))  # type: ignore[func-returns-value]
    if mode not in ("nolisten", "slow"):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
    say(f"{mode} is up")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
