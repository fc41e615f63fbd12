"""Is the sidecar ready for calls from its app?  Asks ``/v1.0/healthz/outbound``, once or until it is."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO, TypeAlias

PROBE_INTERVAL_S: Final = 0.1
LINE_INTERVAL_S: Final = 1.0
"""Least time between two lines that say why it is not ready yet."""
PROBE_TIMEOUT_S: Final = 0.5
WAIT_TIMEOUT_S: Final = 60.0
MAX_STATUS_LINE: Final = 256
"""Bytes read of an answer: its status line is enough."""

HEALTH_PATH: Final = "/v1.0/healthz"
OUTBOUND_PATH: Final = "/v1.0/healthz/outbound"
NO_CONTENT: Final = 204

Address: TypeAlias = tuple[str, int] | str
"""Host and port, or the path of a Unix domain socket."""


def wait_outbound(
    port: int,
    *,
    timeout_s: float = WAIT_TIMEOUT_S,
    out: TextIO | None = None,
    probe: Callable[[Address], str | None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Wait until the sidecar on this host takes calls (``--wait``, H-13).

    Args:
        port: HTTP API port.
        timeout_s: How long at most.
        out: Where the reasons are written; standard output if ``None``.
        probe: One try: ``None`` if ready, else the reason. The other two are for tests as well.
        clock: Seconds that only grow.
        sleep: Waits so many seconds.

    Returns:
        Always 0, ready or not, as scripts written for Dapr expect.
    """
    stream = sys.stdout if out is None else out
    ask = probe_outbound if probe is None else probe
    end = clock() + timeout_s
    next_line = clock()
    while True:
        failure = ask(("localhost", port))
        if failure is None:
            return 0
        now = clock()
        if now >= next_line:
            next_line = now + LINE_INTERVAL_S
            print(f"Dapr outbound NOT ready yet: {failure} (http://localhost:{port})", file=stream, flush=True)
        if now + PROBE_INTERVAL_S > end:
            break
        sleep(PROBE_INTERVAL_S)
    print(f"timeout waiting for Dapr to become outbound ready. Last error: {failure}", file=stream, flush=True)
    return 0


def probe_outbound(address: Address, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """Ask once; return ``None`` if outbound calls are taken, else the reason why not."""
    return _probe(address, OUTBOUND_PATH, timeout_s)


def probe_health(address: Address, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """Ask once; return ``None`` if all is up, so that others find the app, else the reason why not."""
    return _probe(address, HEALTH_PATH, timeout_s)


def _probe(address: Address, path: str, timeout_s: float) -> str | None:
    try:
        status = _status_of(address, path, timeout_s)
    except (OSError, ValueError) as error:
        return str(error)
    return None if status == NO_CONTENT else f"health check returned status {status}"


def _status_of(address: Address, path: str, timeout_s: float) -> int:
    # Not http.client: it costs 20 ms to import, and the sidecar's own start waits behind this.
    with _connect(address, timeout_s) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("ascii"))
        head = b""
        while b"\r\n" not in head and len(head) < MAX_STATUS_LINE:
            piece = connection.recv(MAX_STATUS_LINE)
            if not piece:
                break
            head += piece
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ValueError("the answer is no HTTP: another program has this port")
    return int(words[1])


def _connect(address: Address, timeout_s: float) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=timeout_s)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def is_listening(address: tuple[str, int], timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Whether anybody accepts connections there."""
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except OSError:
        return False
    return True
