"""A plain HTTP/1.1 client that shows everything: framing, trailers, and whether an answer was whole."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

Fields = list[tuple[str, str]]


@dataclass
class Answer:
    """What came back.

    Attributes:
        headers: Names in lower case.
        whole: The end of the body was seen, as its framing says it.
    """

    status: int
    headers: Fields
    body: bytes = b""
    whole: bool = True
    trailers: Fields = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """Return the first value of a field."""
        return next((value for known, value in self.headers if known == name), None)


def find(fields: Fields, name: str) -> str | None:
    """Return the first value of a field."""
    return next((value for known, value in fields if known == name), None)


async def read_fields(reader: asyncio.StreamReader) -> Fields:
    """Read header or trailer lines up to the empty one."""
    fields: Fields = []
    while line := (await reader.readline()).rstrip(b"\r\n"):
        name, _, value = line.decode("latin-1").partition(":")
        fields.append((name.lower(), value.strip()))
    return fields


class Broken(Exception):
    """The other side closed before the end of its message."""


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    """Read one chunk of a chunked body; ``b""`` for the last, whose trailers are left. Raises ``Broken``."""
    try:
        line = await reader.readuntil(b"\n")
        size = int(line.split(b";")[0], 16)
        if size == 0:
            return b""
        data = await reader.readexactly(size)
        await reader.readexactly(2)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Broken from error
    return data


class Client:
    """One connection, one exchange at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *, limit: int = 65536) -> Client:
        """Connect to loopback."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=limit))

    def send(
        self,
        verb: str,
        path: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> None:
        """Write a request; a body has its length declared."""
        lines = [f"{verb} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def chunk(self, data: bytes) -> None:
        """Write one chunk; of a request sent with ``Transfer-Encoding: chunked``."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_chunks(self, trailers: Sequence[tuple[str, str]] = ()) -> None:
        """Write the last chunk and the trailers."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
        self.writer.write(b"0\r\n" + lines.encode("latin-1") + b"\r\n")

    async def head(self) -> Answer:
        """Read status and headers; the body is not read. Raises ``Broken`` if the connection ends instead."""
        try:
            line = await self.reader.readline()
        except ConnectionError as error:
            raise Broken from error
        if not line:
            raise Broken
        return Answer(int(line.split()[1]), await read_fields(self.reader))

    async def chunk_in(self) -> bytes:
        """Read one chunk of a chunked answer; see ``read_chunk``."""
        return await read_chunk(self.reader)

    async def rest(self) -> bytes:
        """Read chunks up to the last one. Raises ``Broken``."""
        pieces = []
        while piece := await self.chunk_in():
            pieces.append(piece)
        return b"".join(pieces)

    async def answer(self, verb: str = "GET") -> Answer:
        """Read a whole answer; 1xx ones are skipped."""
        answer = await self.head()
        while answer.status == 100:
            answer = await self.head()
        if verb == "HEAD" or answer.status in (204, 304):
            return answer
        length = answer.header("content-length")
        try:
            if answer.header("transfer-encoding") == "chunked":
                pieces = []
                try:
                    while piece := await self.chunk_in():
                        pieces.append(piece)
                finally:
                    answer.body = b"".join(pieces)
                answer.trailers = await read_fields(self.reader)
            elif length is not None:
                answer.body = await self.reader.readexactly(int(length))
            else:
                answer.body = await self.reader.read()
        except asyncio.IncompleteReadError as error:
            answer.body, answer.whole = error.partial, False
        except (Broken, ConnectionError):
            answer.whole = False
        return answer

    def close(self) -> None:
        """Close the socket."""
        self.writer.close()

    def reset(self) -> None:
        """Drop the socket."""
        self.writer.transport.abort()


async def ask(
    port: int,
    verb: str,
    path: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    within_s: float = 20.0,
) -> Answer:
    """Send one request on a connection of its own and return the answer."""
    async with asyncio.timeout(within_s):
        client = await Client.open(port)
        try:
            client.send(verb, path, headers, body)
            return await client.answer(verb)
        except Broken:
            raise ConnectionResetError("closed without an answer") from None
        finally:
            client.close()
