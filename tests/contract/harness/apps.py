"""Apps that play a script: raw HTTP/1.1 servers that answer each request as told, and keep what they saw."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from typing import Final

from tests.contract.harness.stream import Message, Step, Stream, play, read_body, read_head

Reply = Sequence[Step]
"""What an app sends for one request; if its first step is ``early``, it does so before it reads the body."""

OK: Final[Reply] = [{"text": "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"}]
NOT_THERE: Final[Reply] = [{"text": "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"}]
"""The answer to what a sidecar asks its app at its start."""
UNWELL: Final[Reply] = [{"text": "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"}]
"""The answer to a probe of its health."""
IDLE_S: Final = 60.0
"""How long an app keeps a connection on which nothing comes."""


class Stage:
    """What all apps of a mesh share: the replies to play next, and the ledger of requests."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._replies: list[Reply] = [NOT_THERE]
        self._ledger: list[Message] = []
        self._active = 0
        self.peak = 0
        """Most calls that were at the apps at one time."""

    def begin(self, replies: Sequence[Reply]) -> None:
        """Start a new scene: an empty ledger, and replies of which the last one repeats."""
        with self._changed:
            self._replies = list(replies)
            self._ledger = []
            self._active = self.peak = 0

    def enter(self, request: Message) -> Reply:
        """Note a request whose head has come, and return the reply to it."""
        with self._changed:
            self._ledger.append(request)
            self._active += 1
            self.peak = max(self.peak, self._active)
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def leave(self) -> None:
        """The exchange with an app has ended."""
        with self._changed:
            self._active -= 1
            self._changed.notify_all()

    def settled(self, count: int, within_s: float) -> list[Message]:
        """Return the ledger once it holds ``count`` requests and no app is busy, or when the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._active <= 0 and len(self._ledger) >= count, within_s)
            return list(self._ledger)


class App:
    """One app on a port of loopback, which it holds from the start: until it serves, connections are refused.

    Args:
        probed: Path of health probes, which it always fails; they are no part of the scene. Empty for none.
    """

    def __init__(self, name: str, stage: Stage, probed: str = "") -> None:
        self.name = name
        self._probe = f"GET {probed} HTTP/1.1" if probed else ""
        self._stage = stage
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def serve(self) -> None:
        """Come up."""
        self._listener.listen(128)
        self._start(self._accept)

    def go_down(self) -> None:
        """End the open connections, and refuse new ones; the port stays held."""
        with self._lock:
            for sock in (self._listener, *self._open):
                with contextlib.suppress(OSError):  # not connected, or not listening
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Go down for good. Idempotent."""
        self.go_down()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _start(self, work: object, *args: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=args, daemon=True, name=f"app {self.name}")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(sock)
            self._start(self._converse, sock)

    def _converse(self, sock: socket.socket) -> None:
        sock.settimeout(IDLE_S)
        stream = Stream(sock)
        with sock:
            while (request := read_head(stream)) is not None:
                if request.start == self._probe:
                    if not play(sock, UNWELL):
                        break
                    continue
                request.at = self.name
                reply = self._stage.enter(request)
                try:
                    if not self._exchange(sock, stream, request, reply):
                        break
                except OSError:
                    break
                finally:
                    self._stage.leave()
            with self._lock:
                self._open.discard(sock)

    def _exchange(self, sock: socket.socket, stream: Stream, request: Message, reply: Reply) -> bool:
        """Read the body and reply, or the other way round; return whether the connection goes on."""
        early = bool(reply) and "early" in reply[0]
        if early and not play(sock, reply):
            return False
        read_body(stream, request)
        return early or play(sock, reply)
