"""A daprd made by hand: the callee's end of its gRPC wire on the ``h2`` library, and calls to such an end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events

from tests.support.h2peer import Fields, H2Client, H2Stream
from tests.support.mesh import Mesh

SERVICE = "/dapr.proto.internals.v1.ServiceInvocation/"
STREAM = SERVICE + "CallLocalStream"
UNARY = SERVICE + "CallLocal"


def framed(message: bytes) -> bytes:
    """Return a message as it stands in a stream."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def messages_in(data: bytes) -> list[bytes]:
    """Take the messages out of a whole stream."""
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        assert data[0] == 0
        assert len(data) >= 5 + size
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


@dataclass
class Rpc:
    """One call as the callee got it."""

    headers: Fields
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None
    trailers: Fields | None = None

    def header(self, name: str) -> str | None:
        """Return the first value of a field."""
        return next((value for known, value in self.headers if known == name), None)

    @property
    def path(self) -> str:
        """Path of the RPC."""
        return self.header(":path") or ""

    @property
    def messages(self) -> list[bytes]:
        """What came, once it has ended."""
        return messages_in(bytes(self.data))


@dataclass
class Script:
    """What a callee does with each call; times in seconds.

    Attributes:
        head, tail: Metadata before and behind the messages.
        status: ``grpc-status`` and ``grpc-message``; ``None`` for none.
        only_trailers: The answer is one block of fields, for these paths; all if it is empty.
        reset: Code of an RST_STREAM in place of an answer.
        at_once: Answer before the request has ended.
        silent: Never answer.
        cut: Close the connection after the messages.
        goaway: Say GOAWAY after the answer.
        slow: Wait before the answer.
        stays: Do not end the answer.
    """

    messages: Sequence[bytes] = ()
    head: Fields = field(default_factory=list)
    tail: Fields = field(default_factory=list)
    http: str = "200"
    type: str = "application/grpc"
    status: tuple[str, str] | None = ("0", "")
    only_trailers: bool = False
    unimplemented: Sequence[str] = ()
    reset: int | None = None
    at_once: bool = False
    silent: bool = False
    cut: bool = False
    goaway: bool = False
    slow: float = 0.0
    stays: bool = False


class Daprd:
    """The internal port of a sidecar that is no Tieline.

    Attributes:
        script: What it does with calls that come from now on.
        rpcs: The calls that came.
        connections: How many ever came; ``open`` are there now.
        pings: How many PINGs came.
        settings: Sent in the first SETTINGS, by number.
        late: Seconds before it sends SETTINGS.
        windows: Give credit back for what came.
        pongs: Answer PINGs.
        extra: Bytes sent behind the SETTINGS.
        instead: Sent in place of HTTP/2 before it closes; ``None`` to speak it.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.rpcs: list[Rpc] = []
        self.connections = 0
        self.open = 0
        self.pings = 0
        self.at_once = 0
        self.most_at_once = 0
        self.settings: dict[int, int] = {}
        self.late = 0.0
        self.windows = True
        self.pongs = True
        self.extra = b""
        self.instead: bytes | None = None
        self.goaways: list[int] = []
        self.changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen on loopback."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def until(self, what: Any, within_s: float = 10.0) -> None:
        """Return when ``what()`` is true; it is asked whenever something happened."""
        async with asyncio.timeout(within_s):
            while not what():
                self.changed.clear()
                await self.changed.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep(asyncio.current_task())
        self.connections += 1
        self.open += 1
        self.changed.set()
        if self.instead is not None:
            writer.write(self.instead)
            writer.close()
            return
        connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        if self.late:
            await asyncio.sleep(self.late)
        for code, value in self.settings.items():
            connection.local_settings[code] = value
            connection.local_settings.acknowledge()
        connection.initiate_connection()
        writer.write(connection.data_to_send() + self.extra)
        rpcs: dict[int, Rpc] = {}
        try:
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    self._hear(connection, writer, rpcs, event)
                self.changed.set()
                self._flush(connection, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self.changed.set()
            writer.close()

    def _flush(self, connection: Any, writer: asyncio.StreamWriter) -> None:
        data = connection.data_to_send()
        if not self.pongs:
            data = _without_pongs(data)
        if data and not writer.is_closing():
            writer.write(data)

    def _hear(self, connection: Any, writer: asyncio.StreamWriter, rpcs: dict[int, Rpc], event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            rpc = rpcs[event.stream_id or 0] = Rpc(event.headers)  # type: ignore[arg-type]
            self.rpcs.append(rpc)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            if self.script.at_once:
                self._answer_soon(connection, writer, event.stream_id or 0, rpc)
        elif isinstance(event, h2.events.DataReceived):
            rpcs[event.stream_id or 0].data += event.data or b""
            if self.windows:
                connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, h2.events.TrailersReceived):
            rpcs[event.stream_id or 0].trailers = event.headers  # type: ignore[assignment]
        elif isinstance(event, h2.events.StreamReset):
            rpcs[event.stream_id or 0].reset = int(event.error_code or 0)
        elif isinstance(event, h2.events.PingReceived):
            self.pings += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append(int(event.error_code or 0))
        elif isinstance(event, h2.events.StreamEnded):
            rpc = rpcs[event.stream_id or 0]
            rpc.ended = True
            if not self.script.at_once:
                self._answer_soon(connection, writer, event.stream_id or 0, rpc)

    def _answer_soon(self, connection: Any, writer: asyncio.StreamWriter, number: int, rpc: Rpc) -> None:
        self._keep(asyncio.create_task(self._answer(connection, writer, number, rpc)))

    def _keep(self, task: asyncio.Task[Any] | None) -> None:
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: Any, writer: asyncio.StreamWriter, number: int, rpc: Rpc) -> None:
        script = self.script
        if script.silent:
            return
        if script.slow:
            await asyncio.sleep(script.slow)
        self.at_once -= 1
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            if script.reset is not None:
                connection.reset_stream(number, script.reset)
            else:
                await self._send(connection, writer, number, rpc, script)
        if script.goaway:
            connection.close_connection(last_stream_id=number)
        self._flush(connection, writer)
        if script.cut:
            writer.close()

    async def _send(self, connection: Any, writer: Any, number: int, rpc: Rpc, script: Script) -> None:
        head = [(":status", script.http), ("content-type", script.type), *script.head]
        status = script.status
        if rpc.path in script.unimplemented:
            status = ("12", f"unknown method {rpc.path.rpartition('/')[2]} for service")
        end = [] if status is None else [("grpc-status", status[0]), ("grpc-message", status[1])]
        if script.only_trailers or rpc.path in script.unimplemented:
            connection.send_headers(number, [*head, *end, *script.tail], end_stream=True)
            return
        connection.send_headers(number, head)
        data = b"".join(map(framed, script.messages))
        while data:
            room = min(connection.local_flow_control_window(number), connection.max_outbound_frame_size, len(data))
            if room <= 0:
                self._flush(connection, writer)
                await asyncio.sleep(0.005)  # the caller's credit comes through the reader, in another task
                continue
            connection.send_data(number, data[:room])
            data = data[room:]
        if not script.cut and not script.stays:
            connection.send_headers(number, [*end, *script.tail], end_stream=True)

    async def aclose(self) -> None:
        """End at once."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _without_pongs(data: bytes) -> bytes:
    kept = b""
    while data:
        size = 9 + int.from_bytes(data[:3], "big")
        if data[3] != 6:
            kept += data[:size]
        data = data[size:]
    return kept


async def call(
    port: int,
    messages: Sequence[bytes],
    *,
    path: str = STREAM,
    metadata: Sequence[tuple[str, str]] = (),
    within_s: float = 20.0,
) -> H2Stream:
    """Call a sidecar's internal port as daprd does, and return the exchange when it is over."""
    client = await H2Client.open(port)
    headers = [("content-type", "application/grpc"), ("te", "trailers"), *metadata]
    try:
        stream = await client.request("POST", path, headers, b"".join(map(framed, messages)), end=True)
        return await stream.whole(within_s)
    finally:
        client.close()


def register(mesh: Mesh, app_id: str, port: int, *, like: str = "caller") -> None:
    """Let the registry say that the sidecar of an app is at a port; the rest as of a sidecar that is there."""
    with sqlite3.connect(mesh.state / "tieline" / "registry.db") as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(hosts)")]
        known = db.execute("SELECT * FROM hosts WHERE app_id = ?", (like,)).fetchone()
        row = dict(zip(columns, known, strict=True))
        row |= {"registration_id": app_id, "app_id": app_id, "address": f"127.0.0.1:{port}"}
        row["last_update"] = int(time.time()) + 600  # nobody renews it
        db.execute(f"INSERT OR REPLACE INTO hosts VALUES ({', '.join('?' * len(columns))})", tuple(row.values()))
    db.close()


def status_of(stream: H2Stream) -> tuple[int, str]:
    """Return how an RPC ended: code and text."""
    fields = dict(stream.trailers or stream.headers)
    return int(fields["grpc-status"]), unquote(fields.get("grpc-message", ""))


def b64(text: str) -> bytes:
    """Return what base64 stands for."""
    return base64.b64decode(text)
