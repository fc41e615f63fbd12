"""One end of a recorded HTTP/2 connection, played byte for byte against a program at the other end.

A recording is a list of chunks, ``("c", bytes)`` from the client's end and ``("s", bytes)`` from the server's, in the
order in which they went by. A chunk is sent once the program has said what the recorded one had said before it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

import hpack

from tieline.wire.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

Wire = list[tuple[str, bytes]]
Fields = list[tuple[str, str]]


class Half:
    """What one end said on a stream.

    Attributes:
        blocks: Its blocks of fields.
        data: Of its DATA frames.
        ended: END_STREAM was among it.
        reset_code: Of its RST_STREAM; ``None`` without one.
    """

    def __init__(self) -> None:
        self.blocks: list[Fields] = []
        self.data = bytearray()
        self.ended = False
        self.reset_code: int | None = None

    @property
    def headers(self) -> Fields:
        """The first block; empty before it."""
        return self.blocks[0] if self.blocks else []

    @property
    def trailers(self) -> Fields:
        """The last block, if it is not the first."""
        return self.blocks[-1] if len(self.blocks) > 1 else []

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.ended or self.reset_code is not None

    def header(self, name: str) -> str:
        """Return the first value of a field of the first block; empty if there is none."""
        return next((value for known, value in self.headers if known == name), "")

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """The messages of gRPC that are whole, each with its compressed flag."""
        found, at = [], 0
        while at + 5 <= len(self.data):
            end = at + 5 + int.from_bytes(self.data[at + 1 : at + 5], "big")
            if end > len(self.data):
                break
            found.append((self.data[at], bytes(self.data[at + 5 : end])))
            at = end
        return found

    @property
    def messages(self) -> list[bytes]:
        """The messages, of which none is compressed."""
        assert not any(flag for flag, _ in self.frames)
        return [message for _, message in self.frames]

    @property
    def status(self) -> tuple[int, str] | None:
        """Code and text of a gRPC status; ``None`` without one."""
        fields = dict(self.trailers or self.headers)
        code = fields.get("grpc-status")
        return None if code is None else (int(code), unquote(fields.get("grpc-message", "")))

    def is_at_least(self, other: Half, *, strictly: bool, reset: bool) -> bool:
        """Tell whether as much has been said here as there; ``strictly``, or as far as the fields go.

        ``reset``: If it was reset there, it must be here.
        """
        if reset and strictly and other.reset_code is not None:
            return self.reset_code is not None
        if self.over or not strictly:
            return self.over or len(self.blocks) >= min(1, len(other.blocks))
        enough = len(self.blocks) >= len(other.blocks) and not other.over
        return enough and (is_internal(other) or len(self.frames) >= len(other.frames))


def is_internal(half: Half) -> bool:
    """Tell whether a request goes to the service between sidecars, whose payloads may be cut in any way."""
    return half.header(":path").startswith("/dapr.proto.internals.")


class Side:
    """All that one end of a connection has said."""

    def __init__(self, *, is_client: bool) -> None:
        self.streams: dict[int, Half] = {}
        self.settings = 0
        self.first_window = DEFAULT_WINDOW
        self.credit: Counter[int] = Counter()
        self._unread = b""
        self._block: tuple[int, int, bytes] | None = None
        self._awaits_preface = is_client
        self._decoder = hpack.Decoder()

    @property
    def closed(self) -> set[int]:
        """The streams that it reset."""
        return {number for number, half in self.streams.items() if half.reset_code is not None}

    def feed(self, data: bytes) -> set[int]:
        """Take in some bytes, and return the types of the frames of streams that they ended."""
        self._unread += data
        if self._awaits_preface and self._unread.startswith(PREFACE):
            self._unread = self._unread[len(PREFACE) :]
            self._awaits_preface = False
        types = set()
        while not self._awaits_preface and len(self._unread) >= 9:
            size = 9 + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < size:
                break
            kind, flags, number = self._unread[3], self._unread[4], int.from_bytes(self._unread[5:9], "big")
            payload, self._unread = self._unread[9:size], self._unread[size:]
            self._hear(kind, flags, number, payload)
            if kind in (DATA, HEADERS, RST_STREAM):
                types.add(kind)
        return types

    def _hear(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.settings += 1
            for at in range(0, len(payload), 6):
                if payload[at : at + 2] == b"\0\4":
                    self.first_window = int.from_bytes(payload[at + 2 : at + 6], "big")
        elif kind == WINDOW_UPDATE:
            self.credit[number] += int.from_bytes(payload, "big")
        elif kind == RST_STREAM:
            self._half(number).reset_code = int.from_bytes(payload, "big")
        elif kind in (DATA, HEADERS):
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if kind == DATA:
                self._half(number).data += payload
            else:
                if flags & PRIORITY_FLAG:
                    payload = payload[5:]
                self._block = (number, flags, payload)
            if kind == DATA and flags & END_STREAM:
                self._half(number).ended = True
        elif kind == CONTINUATION and self._block is not None:
            self._block = (self._block[0], self._block[1] | flags, self._block[2] + payload)
        if self._block is not None and self._block[1] & END_HEADERS:
            number, flags, block = self._block
            self._block = None
            half = self._half(number)
            fields = self._decoder.decode(block, raw=True)
            half.blocks.append([(_text(name), _text(value)) for name, value, *_ in fields])
            half.ended = half.ended or bool(flags & END_STREAM)

    def _half(self, number: int) -> Half:
        return self.streams.setdefault(number, Half())


def _text(value: Any) -> str:
    return bytes(value).decode()


def sides(wire: Wire) -> tuple[Side, Side]:
    """Return what client and server said in a recording."""
    client, server = Side(is_client=True), Side(is_client=False)
    for who, data in wire:
        (client if who == "c" else server).feed(data)
    return client, server


class Player:
    """Plays one end, ``"c"`` or ``"s"``, on an open connection; ``live`` is what the other end says."""

    def __init__(
        self,
        wire: Wire,
        role: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        heard: asyncio.Event | None = None,
        before_reset: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._before_reset = before_reset
        self._heard = heard or asyncio.Event()
        self._wire = wire
        self._role = role
        self._reader = reader
        self._writer = writer
        self.live = Side(is_client=role == "s")
        self.lost = False
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def until(self, what: Callable[[], bool], within_s: float = 10.0) -> None:
        """Return when ``what()`` is true, or the connection is gone; it is asked whenever something came."""
        async with asyncio.timeout(within_s):
            while not what() and not self.lost:
                self._changed.clear()
                await self._changed.wait()

    async def play(self) -> None:
        """Send all chunks of the own end, each at its time, and return when the other end has said all of its own."""
        own, other = Side(is_client=self._role == "c"), Side(is_client=self._role == "s")
        is_first = True
        for who, data in self._wire:
            if who != self._role:
                other.feed(data)
                continue
            closed = own.closed
            types = own.feed(data)
            if not is_first:
                await self.until(lambda: self.live.settings > 0)
                await self._catches_up(other, closed, strictly=bool(types))
                await self.until(lambda: self._may_send(own))
            is_first = False
            if RST_STREAM in types and self._before_reset is not None:
                at = _reset_in(data)
                self._writer.write(data[:at])
                await self._before_reset()
                data = data[at:]
            self._writer.write(data)
        await self._catches_up(other, own.closed, strictly=True)

    async def _catches_up(self, other: Side, closed: set[int], *, strictly: bool) -> None:
        """Return when the program has said what ``other`` did; streams that the own end reset do not matter."""
        live = self.live.streams
        await self.until(
            lambda: all(
                number in live and live[number].is_at_least(half, strictly=strictly, reset=self._role == "s")
                for number, half in other.streams.items()
                if number not in closed
            )
        )

    def _may_send(self, own: Side) -> bool:
        """Tell whether the data that were sent, with those of the next chunk, are within the program's windows."""
        live = self.live
        sizes = {number: len(half.data) for number, half in own.streams.items()}
        return sum(sizes.values()) <= DEFAULT_WINDOW + live.credit[0] and all(
            size <= live.first_window + live.credit[number] for number, size in sizes.items()
        )

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(65536):
                self.live.feed(data)
                self._changed.set()
                self._heard.set()
        except ConnectionError:
            pass
        self.lost = True
        self._changed.set()

    async def aclose(self) -> None:
        """Close, and return when the other end has closed as well."""
        try:
            self._writer.write_eof()
            async with asyncio.timeout(5):
                await self._reading
        except OSError:  # it was first
            pass
        self._writer.close()


def _reset_in(data: bytes) -> int:
    """Return where a reset begins in a chunk of whole frames."""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while data[at + 3] != RST_STREAM:
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return at


async def play_client(port: int, wire: Wire, before_reset: Callable[[], Awaitable[object]] | None = None) -> Half:
    """Call a port as the recorded client did, and return what came back on its first stream.

    ``before_reset`` is awaited before the client resets its stream, if it does.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    player = Player(wire, "c", reader, writer, before_reset=before_reset)
    try:
        await player.play()
        return player.live.streams.get(1, Half())
    finally:
        await player.aclose()


class PlayedServer:
    """A port that answers as recorded servers did, one recording after the other."""

    def __init__(self) -> None:
        self._wire: Wire = []
        self._server: asyncio.Server | None = None
        self._playing: dict[Player, asyncio.Task[None]] = {}
        self._came = asyncio.Event()
        self.port = 0

    async def start(self) -> None:
        """Listen on loopback."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def play(self, wire: Wire) -> None:
        """Answer in this way on connections that come from now on; those that are there are closed."""
        for player, task in list(self._playing.items()):
            await player.aclose()
            task.cancel()
        self._playing.clear()
        self._wire = wire

    @property
    def player(self) -> Player:
        """The one on whose connection requests came."""
        (found,) = [one for one in self._playing if one.live.streams]
        return found

    async def heard(self, what: Callable[[Half], bool]) -> None:
        """Return when this is true of what came on a stream."""
        async with asyncio.timeout(10):
            while not self.is_asked:
                self._came.clear()
                await self._came.wait()
        player = self.player
        await player.until(lambda: any(map(what, player.live.streams.values())))

    @property
    def is_asked(self) -> bool:
        """Whether requests came."""
        return any(one.live.streams for one in self._playing)

    async def done(self) -> Side:
        """Return what the program said, when it has said all that it should."""
        task = self._playing[self.player]
        await task
        return self.player.live

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        player = Player(self._wire, "s", reader, writer, heard=self._came)
        self._playing[player] = asyncio.create_task(player.play())

    async def aclose(self) -> None:
        """End at once."""
        await self.play([])
        if self._server is not None:
            self._server.close()


def made(path: str, asked: bytes, answered: bytes) -> Wire:
    """Return a recording as it would be of a call that ends well; the bodies are those of the streams."""
    grants = frame(SETTINGS, 0, 0, b"\0\4" + WIDE.to_bytes(4, "big")) + frame(
        WINDOW_UPDATE, 0, 0, (WIDE - DEFAULT_WINDOW).to_bytes(4, "big")
    )
    both = [("content-type", "application/grpc")]
    head = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "127.0.0.1"), ("te", "trailers")]
    encoders = hpack.Encoder(), hpack.Encoder()
    acknowledged = frame(SETTINGS, ACK, 0, b"")
    return [
        ("c", PREFACE + grants),
        ("s", grants),
        ("c", acknowledged + frame(HEADERS, END_HEADERS, 1, encoders[0].encode([*head, *both]))),
        *[("c", piece) for piece in _data(asked)],
        ("c", frame(DATA, END_STREAM, 1, b"")),
        ("s", acknowledged + frame(HEADERS, END_HEADERS, 1, encoders[1].encode([(":status", "200"), *both]))),
        *[("s", piece) for piece in _data(answered)],
        ("s", frame(HEADERS, END_HEADERS | END_STREAM, 1, encoders[1].encode([("grpc-status", "0")]))),
    ]


WIDE: Final = 1 << 22


def _data(body: bytes) -> list[bytes]:
    return [frame(DATA, 0, 1, body[at : at + DEFAULT_MAX_FRAME]) for at in range(0, len(body), DEFAULT_MAX_FRAME)]
