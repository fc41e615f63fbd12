"""A pair of sidecars whose app says by gRPC whatever bytes the test has it say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from tests.e2e.hostile.world import World
from tests.support.grpc_app import GrpcClient, Metadata, Outcome, invoke_response
from tests.support.http2 import data, headers
from tests.support.mesh import Mesh, Sidecar
from tieline.model import Headers
from tieline.wire.grpc.messages import frame as message
from tieline.wire.http2 import frames
from tieline.wire.http2.frames import DATA, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame, window_update

Script = Callable[[int], Iterable[bytes | None]]
"""Returns what is written, piece by piece, in answer to the request on a stream; ``None`` hangs up."""

TO_CALLEE: Metadata = [("dapr-app-id", "callee")]
METHOD = "/test.Raw/Method"
HEAD: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
DONE: Headers = [(b"grpc-status", b"0")]
ANSWER = message(invoke_response(b"fine", "text/plain"))


def cut(number: int, body: bytes) -> bytes:
    """Return DATA frames that bring a body."""
    size = frames.DEFAULT_MAX_FRAME
    return b"".join(data(number, body[at : at + size]) for at in range(0, len(body), size))


def answer(number: int, body: bytes = ANSWER, *, head: Headers = HEAD, done: Headers = DONE) -> bytes:
    """Return the frames of an answer."""
    return headers(number, head, end=False) + cut(number, body) + headers(number, done)


def fine(number: int) -> list[bytes]:
    """Answer well."""
    return [answer(number)]


class RawApp:
    """A server that answers each request, once it has ended, as ``script`` says.

    Attributes:
        early: Answer as soon as the head of a request is there.
        reads: Give credit back for what came.
        requests: How many came.
        resets: Codes of the RST_STREAM frames that came.
        accepted: Connections that ever came; ``open`` are there now.
    """

    def __init__(self) -> None:
        self.script: Script = fine
        self.early = False
        self.reads = True
        self.requests = 0
        self.resets: list[int] = []
        self.accepted = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on loopback."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open.add(writer)
        writer.write(frames.settings({}))
        try:
            await reader.readexactly(len(PREFACE))
            while True:
                head = await reader.readexactly(frames.HEADER_SIZE)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                await self._hear(writer, head[3], head[4], int.from_bytes(head[5:], "big"), payload)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()

    async def _hear(self, writer: asyncio.StreamWriter, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & frames.ACK:
            writer.write(frame(kind, frames.ACK, 0, b"" if kind == SETTINGS else payload))
        elif kind == RST_STREAM:
            self.resets.append(int.from_bytes(payload, "big"))
        elif kind in (DATA, HEADERS):
            if kind == DATA and payload and self.reads:
                writer.write(window_update(0, len(payload)) + window_update(number, len(payload)))
            if (kind == HEADERS) if self.early else flags & frames.END_STREAM:
                self.requests += 1
                for piece in self.script(number):
                    if piece is None:
                        writer.close()
                        return
                    writer.write(piece)
                    await writer.drain()

    def hang_up(self) -> None:
        """Drop all connections."""
        for writer in list(self.open):
            writer.transport.abort()

    async def aclose(self) -> None:
        """End at once."""
        if self._server is not None:
            self._server.close()
        self.hang_up()


class GrpcWorld(World):
    """The sidecar ``callee`` with a raw app, and ``caller``; clients of grpcio's that live as long."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        super().__init__(mesh, folder)
        self.raw = RawApp()
        self._clients: dict[Sidecar, GrpcClient] = {}

    async def start(self) -> None:
        await self.raw.start()
        self.callee, self.caller = await asyncio.gather(
            self._sidecar("callee", self.raw.port, "--app-protocol", "grpc"), self._sidecar("caller", None)
        )
        self._clients = {sidecar: self.mesh.grpc_client(sidecar) for sidecar in (self.callee, self.caller)}
        await self._call_both()
        await self.note()

    async def invoke(self, way: str, data: bytes = b"x", timeout: float | None = 10.0) -> Outcome:
        """Call the app by ``InvokeService``."""
        return await self._clients[self.entry(way)].invoke("callee", "method", data, timeout=timeout)

    async def proxied(self, way: str, data: bytes = b"x", timeout: float | None = 10.0) -> Outcome:
        """Call a method of the app's own."""
        return await self._clients[self.entry(way)].call(METHOD, data, metadata=TO_CALLEE, timeout=timeout)

    async def _call_both(self) -> None:
        for way in ("self", "remote"):
            for face in (self.invoke, self.proxied):
                outcome = await face(way)
                if outcome.code is grpc.StatusCode.UNAVAILABLE:
                    outcome = await face(way)  # the first met the end of a connection to the app that an attack broke
                assert outcome.messages == [ANSWER[5:]], outcome

    def _app_connections(self) -> int:
        return len(self.raw.open)

    def _rest(self) -> None:
        self.raw.script = fine
        self.raw.early = False
        if not self.raw.reads:
            self.raw.reads = True
            self.raw.hang_up()  # the credit that was not given is lost

    def _forget(self) -> None:
        self.raw.resets.clear()

    async def aclose(self) -> None:
        """End the app."""
        await self.raw.aclose()
