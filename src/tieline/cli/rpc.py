"""A gRPC client for commands: one connection to a sidecar's gRPC API, and calls of any shape on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, Protocol

from tieline.cli.api import CONNECT_TIMEOUT_S, NotReached, shown
from tieline.cli.wait import Address
from tieline.errors import Cancelled, GrpcCode, TielineError
from tieline.model import MAX_CHUNK, AnyBody, Endpoint, Headers, Reply, RpcStatus
from tieline.net.dial import open_socket
from tieline.net.http2 import Upkeep
from tieline.net.http2_client import Http2Client, StreamCut
from tieline.net.loop import connect_on
from tieline.wire.grpc.messages import ENCODINGS, BadMessages, MessageReader, frame
from tieline.wire.grpc.status import CONTENT_TYPE, read_status, status_of_http, status_of_reset, without_status
from tieline.wire.http2 import Limits
from tieline.wire.http2.hpack import flagged

MAX_MESSAGE: Final = 256 << 20
"""The longest message that is taken, in bytes."""
_UPKEEP: Final = Upkeep(ping_after_s=None)
"""gRPC servers hang up on clients that ping often, and a command waits as long as its user does."""
_NO_STATUS: Final = RpcStatus(GrpcCode.UNKNOWN, "the answer ended without a status")


class Broken(Exception):
    """The call broke off; the text says how."""


class Ended(NamedTuple):
    """How an RPC ended, and its trailer metadata."""

    status: RpcStatus
    trailers: Headers


class Listener(Protocol):
    """Is told what comes of an RPC, before its end."""

    def begun(self, headers: Headers) -> None: ...
    def message(self, data: bytes) -> None: ...


class Channel:
    """One connection; made by ``connect``."""

    def __init__(self, connection: Http2Client, authority: str) -> None:
        self._connection = connection
        self._authority = authority.encode("utf-8", "surrogateescape")

    @classmethod
    async def connect(cls, address: Address) -> Channel:
        """Connect and wait for the server's SETTINGS.

        Raises:
            NotReached: Nobody answers there in time, or it is no HTTP/2.
        """
        try:
            connection = await _connected(address)
            await connection.ready
        except TimeoutError as error:
            raise NotReached(f"{shown(address)} did not answer within {CONNECT_TIMEOUT_S:g} s") from error
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise NotReached(f"{shown(address)}: {reason.lower()}") from error
        except TielineError as error:
            raise NotReached(f"{shown(address)}: {error.text}: is it the gRPC port of a sidecar?") from error
        return cls(connection, "localhost" if isinstance(address, str) else shown(address))

    async def call(
        self,
        path: bytes,
        metadata: Headers,
        messages: Sequence[bytes] | AsyncIterator[bytes],
        listener: Listener,
        timeout: bytes = b"",
    ) -> Ended:
        """Make an RPC; return how it ended, whether well or not.

        Args:
            path: As ``:path``, e.g. ``b"/shop.Orders/New"``.
            messages: What is sent; whatever their iterator raises ends the call and is raised here.
            timeout: As ``grpc-timeout``.

        Raises:
            Broken: The connection was lost, or what came is no gRPC.
        """
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", self._authority)]
        head += [(b"content-type", CONTENT_TYPE), (b"te", b"trailers"), (b"grpc-accept-encoding", ENCODINGS)]
        if timeout:
            head.append((b"grpc-timeout", timeout))
        body: AnyBody
        outgoing = None
        if isinstance(messages, Sequence):
            body = b"".join(map(frame, messages))
        else:
            body = outgoing = _Outgoing(messages)
        try:
            reply = await self._connection.request(flagged([*head, *metadata]), body)
            return await _received(reply, listener)
        except StreamCut as error:
            _raise_failure(outgoing)
            return Ended(RpcStatus(status_of_reset(error.reset_code), error.text), [])
        except BadMessages as error:
            raise Broken(f"the answer is broken: {error.text}") from error
        except TielineError as error:
            _raise_failure(outgoing)
            raise Broken(error.text) from error

    async def aclose(self) -> None:
        """End the connection, and calls in progress with it; what they are told is still sent."""
        self._connection.close()
        # One turn of the loop writes it, in the next the socket is closed.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._connection.abort()


def _raise_failure(outgoing: _Outgoing | None) -> None:
    if outgoing is not None and outgoing.failure is not None:
        raise outgoing.failure


async def _connected(address: Address) -> Http2Client:
    def make() -> Http2Client:
        return Http2Client(limits=Limits(), native=False, upkeep=_UPKEEP)

    if isinstance(address, str):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await asyncio.get_running_loop().create_unix_connection(make, address)
            return connection
    host, port = address
    sock = await open_socket(Endpoint(host.strip("[]"), port), CONNECT_TIMEOUT_S)
    protocol = await connect_on(make, sock)
    assert isinstance(protocol, Http2Client)
    return protocol


async def _received(reply: Reply, listener: Listener) -> Ended:
    """Read an answer to its end."""
    early = read_status(reply.headers)
    if early is not None and reply.body == b"":
        return Ended(early, without_status(reply.headers))
    kind = _value(reply.headers, b"content-type")
    if reply.status != 200 or not kind.startswith(CONTENT_TYPE):
        reply.drop_body()
        return Ended(status_of_http(reply.status, kind), without_status(reply.headers))
    listener.begun(reply.headers)
    reader = MessageReader(MAX_MESSAGE, _value(reply.headers, b"grpc-encoding"))
    if isinstance(reply.body, bytes):
        _pass_on(reader, reply.body, listener)
        trailers = reply.trailers or []
    else:
        while piece := await reply.body.read():
            _pass_on(reader, piece, listener)
        trailers = reply.body.trailers
    reader.check_end()
    return Ended(read_status(trailers) or _NO_STATUS, without_status(trailers))


def _pass_on(reader: MessageReader, piece: bytes, listener: Listener) -> None:
    reader.feed(piece)
    while (message := reader.next()) is not None:
        listener.message(message)


def _value(headers: Headers, wanted: bytes) -> bytes:
    return next((value for name, value in headers if name == wanted), b"")


class _Outgoing:
    """Messages on their way out, as the body of a request.

    Attributes:
        failure: What their iterator raised.
    """

    def __init__(self, messages: AsyncIterator[bytes]) -> None:
        self.trailers: Headers = []
        self._messages = messages
        self._framed = b""
        self._sent = 0
        self.failure: Exception | None = None

    async def read(self) -> bytes:
        """See ``model.Body``."""
        if self._sent == len(self._framed):
            try:
                message = await anext(self._messages, None)
            except Exception as error:
                self.failure = error
                raise Cancelled("the input is broken") from error
            if message is None:
                return b""
            self._framed, self._sent = frame(message), 0
        piece = self._framed[self._sent : self._sent + MAX_CHUNK]
        self._sent += len(piece)
        return piece

    def abandon(self) -> None:
        """Nothing to stop: whoever types goes on typing."""
