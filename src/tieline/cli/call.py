"""One call to a sidecar's HTTP API whose body and answer are streamed, and what became of it."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from tieline.cli.api import Connection, NotReached, shown
from tieline.cli.wait import Address

PIECE: Final = 65536
"""Bytes taken at once of an answer."""

ANSWERED: Final = 0
FAILED: Final = 1
NO_SIDECAR: Final = 3
TIMED_OUT: Final = 4
"""Exit codes of ``tieline invoke``, beside 2 for wrong arguments."""


class Body(NamedTuple):
    """What is sent: its pieces, and how many bytes they are if that is known."""

    pieces: Iterator[bytes]
    length: int | None


class Call(NamedTuple):
    """One call."""

    address: Address
    verb: str
    path: str
    headers: Sequence[tuple[str, str]]
    body: Body | None
    timeout_s: float | None


class Head(NamedTuple):
    """The beginning of an answer."""

    status: int
    reason: str
    version: str
    headers: Sequence[tuple[str, str]]
    took_s: float

    def header(self, name: str) -> str:
        """Return the first value of a field, empty without one."""
        return next((value for key, value in self.headers if key.lower() == name), "")


class Report(Protocol):
    """Is told how a call goes, and returns the exit code in the end."""

    def knows(self, text: str) -> None: ...
    def calling(self, through: str, address: Address) -> None: ...
    def answered(self, head: Head) -> None: ...
    def piece(self, data: bytes) -> None: ...
    def over(self) -> int: ...
    def broke_off(self, text: str) -> int: ...
    def not_reached(self, text: str) -> int: ...
    def timed_out(self, text: str) -> int: ...


def perform(call: Call, report: Report) -> int:
    """Make the call and return what the report makes of it."""
    connection = Connection(call.address, call.timeout_s)
    sender = _Sender(connection, call.body)
    answered = False
    try:
        started = time.perf_counter()
        _begin(connection, call)
        sender.start()
        response = connection.getresponse()
        answered = True
        report.answered(_head_of(response, time.perf_counter() - started))
        _read(response, call.verb, report)
        return report.over()
    except NotReached as error:
        return report.not_reached(f"no sidecar answers: {error}.")
    except TimeoutError:
        where = "the answer was not over" if answered else f"no answer through {shown(call.address)}"
        return report.timed_out(f"{where} within {call.timeout_s:g} s")
    except (OSError, http.client.HTTPException) as error:
        if sender.failure is not None:
            return report.broke_off(f"the body could not be read: {sender.failure}")
        return report.broke_off(_what(error, answered, call.address))
    finally:
        connection.close()


def _begin(connection: Connection, call: Call) -> None:
    """Send the head."""
    own = {name.lower() for name, _ in call.headers}
    connection.putrequest(call.verb, call.path, skip_host="host" in own, skip_accept_encoding=True)
    for name, value in call.headers:
        # As typed: what is no Latin-1 goes as the bytes that the terminal gave.
        connection.putheader(name, value.encode("utf-8", "surrogateescape"))
    if call.body is not None and call.body.length is None:
        connection.putheader("Transfer-Encoding", "chunked")
    elif call.body is not None or call.verb in ("POST", "PUT", "PATCH"):
        connection.putheader("Content-Length", str(call.body.length or 0 if call.body else 0))
    connection.endheaders()


class _Sender:
    """Sends a body from a thread of its own, so that an answer is seen that comes before its end.

    Attributes:
        failure: Why the body could not be read to its end.
    """

    def __init__(self, connection: Connection, body: Body | None) -> None:
        self._connection = connection
        self._body = body
        self.failure: OSError | ValueError | None = None

    def start(self) -> None:
        if self._body is not None and self._body.length != 0:
            threading.Thread(target=self._run, args=(self._body,), name="body", daemon=True).start()

    def _run(self, body: Body) -> None:
        try:
            self._send(body)
        except (OSError, http.client.HTTPException):
            return  # the sidecar takes no more of it: its answer, or the want of one, says why

    def _send(self, body: Body) -> None:
        sock = self._connection.sock
        left = body.length
        while piece := self._next(body):
            if left is None:
                sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            else:
                # A file that grows meanwhile is sent as long as it was.
                sock.sendall(piece[:left])
                left -= min(left, len(piece))
                if not left:
                    return
        if left:
            self._give_up(ValueError("the file became shorter while it was sent"))
        if left is None and self.failure is None:
            sock.sendall(b"0\r\n\r\n")

    def _next(self, body: Body) -> bytes:
        try:
            return next(body.pieces, b"")
        except (OSError, ValueError) as error:
            self._give_up(error)
            return b""

    def _give_up(self, error: OSError | ValueError) -> None:
        """End the call: half a body must not pass for a whole one."""
        if self.failure is None:
            self.failure = error
            self._connection.abort()


def _head_of(response: http.client.HTTPResponse, took_s: float) -> Head:
    version = "HTTP/1.0" if response.version == 10 else "HTTP/1.1"
    # http.client reads fields as Latin-1; what an app sent as UTF-8 is shown as such.
    headers = [(name, _decoded(value)) for name, value in response.getheaders()]
    return Head(response.status, _decoded(response.reason), version, headers, took_s)


def _decoded(value: str) -> str:
    raw = value.encode("latin-1", "replace")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return value


def _read(response: http.client.HTTPResponse, verb: str, report: Report) -> None:
    """Pass the answer on as it comes.

    Raises:
        http.client.IncompleteRead: It ended before its end.
    """
    declared = None if response.chunked or verb == "HEAD" else response.length
    got = 0
    while piece := response.read1(PIECE):
        got += len(piece)
        report.piece(piece)
    if declared is not None and got < declared:
        raise http.client.IncompleteRead(b"", declared - got)


def _what(error: Exception, answered: bool, address: Address) -> str:
    if answered:
        return "the answer broke off before its end: the app or a sidecar on the way failed or was stopped"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
        return f"{shown(address)} closed the connection without an answer"
    if isinstance(error, OSError):
        return f"{shown(address)}: {(error.strerror or str(error)).lower()}"
    return f"what {shown(address)} answers is no HTTP: is it the API port of a sidecar?"
