"""A client of a sidecar's HTTP API, for commands: over TCP or a Unix domain socket, one deadline for all of a call."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from tieline.cli.wait import Address

CONNECT_TIMEOUT_S: Final = 5.0
"""A sidecar of this host accepts at once, or never."""
TOKEN_VARIABLE: Final = "DAPR_API_TOKEN"  # noqa: S105 - its name, no token
MAX_ANSWER: Final = 1 << 20
"""Bytes read of an answer of a sidecar's own, which are short."""


class NotReached(Exception):
    """No connection to the API could be opened; the text says why."""


class BadToken(Exception):
    """A token cannot be sent in a header; the text says so, and not what it is."""


def token_of(environ: Mapping[str, str]) -> str:
    """Return the token to send, empty for none.

    Raises:
        BadToken: It cannot be sent.
    """
    return checked_token(environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE)


def checked_token(token: str, name: str) -> str:
    """Return a token that can be sent; ``name`` is where it comes from.

    Raises:
        BadToken: It cannot.
    """
    if any((letter < " " and letter != "\t") or letter == "\x7f" for letter in token):
        raise BadToken(f"{name} has a control character, such as a line end, so it cannot be sent: set it without")
    return token


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    app: str = ""
    """How a sidecar's app is, ``<state>; <last probe>``; empty where the answer does not say."""


def shown(address: Address) -> str:
    """Return an address as people write it."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _DeadlineSocket(socket.socket):
    """A socket on which everything together takes no longer than until ``deadline``, in seconds of ``monotonic``."""

    deadline: float | None = None

    def arm(self) -> None:
        """Have the next operation end in time."""
        if self.deadline is None:
            self.settimeout(None)
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.arm()
        return super().recv_into(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.arm()
        super().sendall(*args, **kwargs)


class Connection(http.client.HTTPConnection):
    """One connection to an API.

    Args:
        address: Where.
        timeout_s: For everything on it together; ``None`` for no limit but that on connecting.
    """

    def __init__(self, address: Address, timeout_s: float | None) -> None:
        super().__init__("localhost" if isinstance(address, str) else address[0].strip("[]"))
        if not isinstance(address, str):
            self.port = address[1]
        self._address = address
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def connect(self) -> None:
        """Connect.

        Raises:
            NotReached: Nobody answers there.
            TimeoutError: The deadline is over.
        """
        try:
            self.sock = self._connected()
        except TimeoutError as error:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise
            raise NotReached(f"{shown(self._address)} did not answer within {CONNECT_TIMEOUT_S:g} s") from error
        except OSError as error:
            raise NotReached(f"{shown(self._address)}: {(error.strerror or str(error)).lower()}") from error

    def abort(self) -> None:
        """Cut the connection, from another thread."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> socket.socket:
        if isinstance(self._address, str):
            return self._connected_to(socket.AF_UNIX, self._address)
        host, port = self._address
        failure: OSError | None = None
        for family, _, _, _, place in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            try:
                return self._connected_to(family, place)
            except OSError as error:
                failure = failure or error
        raise failure or OSError("no such host")

    def _connected_to(self, family: int, place: Any) -> socket.socket:
        sock = _DeadlineSocket(family, socket.SOCK_STREAM)
        try:
            limit = CONNECT_TIMEOUT_S
            if self._deadline is not None:
                limit = min(limit, max(0.001, self._deadline - time.monotonic()))
            sock.settimeout(limit)
            sock.connect(place)
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.deadline = self._deadline
        except OSError:
            sock.close()
            raise
        return sock


def ask(
    address: Address,
    verb: str,
    path: str,
    *,
    timeout_s: float,
    token: str = "",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Make one short call to a sidecar's own API.

    Raises:
        NotReached: Nobody answers there in time, or it is no HTTP.
    """
    connection = Connection(address, timeout_s)
    try:
        # As bytes: any that a variable holds, and not only those of Latin-1.
        shown_token = {"dapr-api-token": os.fsencode(token)} if token else {}
        connection.request(verb, path, body, {**shown_token, **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.read(MAX_ANSWER), unquote(response.headers.get("tieline-app", "")))
    except TimeoutError as error:
        raise NotReached(f"{shown(address)} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise NotReached(f"{shown(address)}: {(error.strerror or str(error)).lower()}") from error
    except http.client.HTTPException as error:
        raise NotReached(f"{shown(address)}: the answer is no HTTP: another program has this port") from error
    finally:
        connection.close()
