"""An HTTP/2 client and server on the ``h2`` library: the other opinion on what HTTP/2 is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

Fields = list[tuple[str, str]]
GOAWAY = 7


class H2Stream:
    """One exchange, as the client hears it.

    Attributes:
        reset_code: Of the server's RST_STREAM; ``None`` without one.
        ended: END_STREAM has come.
        lost: The connection ended before the stream did.
    """

    def __init__(self, client: H2Client, number: int) -> None:
        self._client = client
        self.number = number
        self.headers: Fields = []
        self.trailers: Fields = []
        self.data = bytearray()
        self.reset_code: int | None = None
        self.ended = False
        self.lost = False
        self.changed = asyncio.Event()

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.ended or self.reset_code is not None or self.lost

    @property
    def status(self) -> int:
        """The status of the answer; 0 before it."""
        return next((int(value) for name, value in self.headers if name == ":status"), 0)

    def header(self, name: str) -> str | None:
        """Return the first value of a field of the answer."""
        return next((value for known, value in self.headers if known == name), None)

    async def until(self, what: Callable[[], bool], within_s: float = 10.0) -> None:
        """Return when ``what`` is true; it is asked whenever something came."""
        async with asyncio.timeout(within_s):
            while not what():
                self.changed.clear()
                await self.changed.wait()

    async def whole(self, within_s: float = 20.0) -> H2Stream:
        """Return when the exchange is over, well or not."""
        await self.until(lambda: self.over, within_s)
        return self

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the request's body, as the server takes it."""
        connection = self._client.h2
        at = 0
        while at < len(data):
            room = min(connection.local_flow_control_window(self.number), connection.max_outbound_frame_size)
            if room <= 0:
                self.changed.clear()
                await self.changed.wait()
                continue
            connection.send_data(self.number, data[at : at + room])
            at += room
            await self._client.flush()
        if end:
            connection.end_stream(self.number)
            await self._client.flush()

    async def send_trailers(self, trailers: Fields) -> None:
        """End the request with trailers."""
        self._client.h2.send_headers(self.number, trailers, end_stream=True)
        await self._client.flush()

    async def cancel(self) -> None:
        """Reset the stream."""
        self._client.h2.reset_stream(self.number, h2.errors.ErrorCodes.CANCEL)
        await self._client.flush()


class H2Client:
    """One connection by prior knowledge.

    ``reads`` False grants no credit back for what came: a reader that stops.

    Attributes:
        terminated: Error code of the server's GOAWAY; ``None`` without one.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, reads: bool) -> None:
        self._reader = reader
        self._writer = writer
        self.reads = reads
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._streams: dict[int, H2Stream] = {}
        self._task: asyncio.Task[None] | None = None
        self._unread = b""
        self.terminated: int | None = None

    @classmethod
    async def open(cls, port: int, *, reads: bool = True) -> H2Client:
        """Connect to loopback."""
        client = cls(*await asyncio.open_connection("127.0.0.1", port), reads=reads)
        client.h2.initiate_connection()
        await client.flush()
        client._task = asyncio.create_task(client._run())
        return client

    async def request(
        self,
        verb: str,
        path: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        *,
        end: bool = True,
        authority: str = "localhost",
    ) -> H2Stream:
        """Send a request; without ``end`` its body goes on with ``H2Stream.send``."""
        number = self.h2.get_next_available_stream_id()
        stream = self._streams[number] = H2Stream(self, number)
        fields = [(":method", verb), (":path", path), (":scheme", "http"), (":authority", authority), *headers]
        self.h2.send_headers(number, fields, end_stream=end and not body)
        await self.flush()
        if body:
            await stream.send(body, end=end)
        return stream

    async def connect(
        self, path: str, headers: Sequence[tuple[str, str]] = (), *, protocol: str = "websocket"
    ) -> H2Stream:
        """Send an extended CONNECT (RFC 8441)."""
        number = self.h2.get_next_available_stream_id()
        stream = self._streams[number] = H2Stream(self, number)
        pseudo = [(":method", "CONNECT"), (":protocol", protocol), (":path", path), (":scheme", "http")]
        self.h2.send_headers(number, [*pseudo, (":authority", "localhost"), *headers])
        await self.flush()
        return stream

    async def grant(self, stream: H2Stream, size: int) -> None:
        """Let the server send so much more."""
        self.h2.increment_flow_control_window(size)
        self.h2.increment_flow_control_window(size, stream.number)
        await self.flush()

    async def flush(self) -> None:
        """Write what the library has ready."""
        self._writer.write(self.h2.data_to_send())
        try:
            await self._writer.drain()
        except ConnectionError:
            pass

    async def _run(self) -> None:
        try:
            while data := await self._reader.read(65536):
                for event in self.h2.receive_data(self._without_goaway(data)):
                    self._on_event(event)
                await self.flush()
        except ConnectionError:
            pass
        for stream in self._streams.values():
            stream.lost = not stream.over
            stream.changed.set()

    def _without_goaway(self, data: bytes) -> bytes:
        """Note GOAWAY frames and keep them from the library, which would hear nothing that follows them."""
        self._unread += data
        kept = b""
        while len(self._unread) >= 9:
            size = 9 + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < size:
                break
            frame, self._unread = self._unread[:size], self._unread[size:]
            if frame[3] == GOAWAY:
                self.terminated = int.from_bytes(frame[13:17], "big")
            else:
                kept += frame
        return kept

    def _on_event(self, event: Any) -> None:
        stream = self._streams.get(getattr(event, "stream_id", 0) or 0)
        if stream is None:
            for one in self._streams.values():
                one.changed.set()
            return
        if isinstance(event, h2.events.ResponseReceived):
            stream.headers = event.headers  # type: ignore[assignment]
        elif isinstance(event, h2.events.DataReceived):
            stream.data += event.data or b""
            if self.reads and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream.number)
        elif isinstance(event, h2.events.TrailersReceived):
            stream.trailers = event.headers  # type: ignore[assignment]
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        elif isinstance(event, h2.events.StreamReset):
            stream.reset_code = int(event.error_code or 0)
        stream.changed.set()

    def close(self) -> None:
        """Close the socket."""
        self._writer.close()


async def ask_h2(
    port: int, verb: str, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes | None = None
) -> H2Stream:
    """Send one request on a connection of its own and return the exchange when it is over."""
    client = await H2Client.open(port)
    try:
        return await (await client.request(verb, path, headers, body)).whole()
    finally:
        client.close()


class H2Server:
    """A server that answers ``200 text`` to everything, and is no Tieline.

    ``streams``: how many it takes at a time on one connection.

    Attributes:
        requests: Header fields of the requests that came.
        connections: Open ones.
        accepted: How many there were in all.
    """

    def __init__(self, text: bytes = b"h2", *, streams: int | None = None) -> None:
        self._text = text
        self._streams = streams
        self.connections = 0
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests: list[Fields] = []
        self.trailers: list[Fields] = []
        self.bodies: list[bytes] = []
        self.resets = 0
        self.port = 0

    async def start(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen on loopback."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        if self._streams is not None:
            code = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
            connection.local_settings = h2.settings.Settings(client=False, initial_values={code: self._streams})
        connection.initiate_connection()
        self.connections += 1
        self.accepted += 1
        writer.write(connection.data_to_send())
        bodies: dict[int, bytearray] = {}
        try:
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.requests.append(event.headers)  # type: ignore[arg-type]
                        bodies[event.stream_id or 0] = bytearray()
                    elif isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id or 0] += event.data or b""
                        connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                    elif isinstance(event, h2.events.TrailersReceived):
                        self.trailers.append(event.headers)  # type: ignore[arg-type]
                    elif isinstance(event, h2.events.StreamReset):
                        self.resets += 1
                    elif isinstance(event, h2.events.StreamEnded):
                        self._answer(connection, event.stream_id or 0, bytes(bodies.pop(event.stream_id or 0)))
                writer.write(connection.data_to_send())
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.connections -= 1
            writer.close()

    def _answer(self, connection: h2.connection.H2Connection, number: int, body: bytes) -> None:
        self.bodies.append(body)
        if any(field == (":path", "/hold") for field in self.requests[-1]):
            return
        connection.send_headers(number, [(":status", "200"), ("x-app", "h2")])
        connection.send_data(number, self._text)
        connection.send_headers(number, [("x-end", "yes")], end_stream=True)

    async def aclose(self) -> None:
        """End at once."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
