"""Messages in a stream of bytes: a flag, a length of four bytes, and so many bytes."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from tieline.errors import GrpcCode
from tieline.wire.pieces import add_piece

PREFIX: Final = 5
"""Bytes before each message."""
_prefix_of: Final = struct.Struct(">BL").unpack_from
_GZIP: Final = 31
"""Window size of zlib plus 16: gzip's header and trailer are expected."""
ENCODINGS: Final = b"identity, gzip"
"""What is understood of a peer, for ``grpc-accept-encoding``."""


class BadMessages(Exception):
    """What came is no row of messages.

    Attributes:
        code: gRPC code of the failure; the text is in the words that gRPC clients know.
    """

    def __init__(self, code: GrpcCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def why_unreadable(error: Exception) -> str:
    """Return what makes a message no protobuf, in the words that gRPC clients know, from the library's own error."""
    if "UTF-8" in str(error):
        return "string field contains invalid UTF-8"
    return "proto: cannot parse invalid wire-format data"


def frame(message: bytes) -> bytes:
    """Return a message with its prefix."""
    return b"\0%s%s" % (len(message).to_bytes(4, "big"), message)


def is_one_message(body: bytes, limit: int | None) -> bool:
    """Say whether a body is just one message, not packed and not too long."""
    size = len(body) - PREFIX
    return size >= 0 and _prefix_of(body) == (0, size) and (limit is None or size <= limit)


def only_message(body: bytes, limit: int | None, encoding: bytes = b"") -> bytes:
    """Return the message of a unary call whose body arrived whole; what follows it is not looked at (G-124).

    Raises:
        BadMessages: There is none, or it is broken or longer than ``limit``.
    """
    if is_one_message(body, limit):
        return body[PREFIX:]
    reader = MessageReader(limit, encoding)
    reader.feed(body)
    message = reader.next()
    if message is None:
        reader.check_end()
        raise BadMessages(GrpcCode.UNKNOWN, "EOF")
    return message


class MessageReader:
    """Takes messages out of pieces of a stream.

    Args:
        limit: Longest message in bytes, packed and unpacked; ``None`` for no limit.
        encoding: ``grpc-encoding`` of the stream; empty for none.
    """

    __slots__ = ("_at", "_data", "_encoding", "_later", "_limit", "_size", "_wanted")

    def __init__(self, limit: int | None, encoding: bytes = b"") -> None:
        if encoding not in (b"", b"identity", b"gzip"):
            shown = encoding.decode("latin-1")
            raise BadMessages(
                GrpcCode.UNIMPLEMENTED, f'grpc: Decompressor is not installed for grpc-encoding "{shown}"'
            )
        self._limit = limit
        self._encoding = encoding
        self._data = b""
        self._at = 0
        """Where in ``_data`` the next message begins; what stands before was handed out."""
        self._later: list[bytes] = []
        self._size = 0
        self._wanted = PREFIX

    def feed(self, data: bytes) -> None:
        """Add what arrived."""
        if data:
            if self._size:
                add_piece(self._later, data)
            else:
                self._data = data
                self._at = 0
            self._size += len(data)

    def next(self) -> bytes | None:
        """Return the next message; ``None`` until there is a whole one.

        Raises:
            BadMessages: It is broken or too long; nothing after it can be read.
        """
        if self._size < self._wanted:
            return None
        if self._later:
            self._data = b"".join([self._data[self._at :], *self._later])
            self._later.clear()
            self._at = 0
        data, at = self._data, self._at
        flag, length = data[at], int.from_bytes(data[at + 1 : at + PREFIX], "big")
        if flag > 1:
            raise BadMessages(GrpcCode.INTERNAL, f"grpc: received unexpected payload format {flag}")
        if self._limit is not None and length > self._limit:
            raise BadMessages(
                GrpcCode.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({length} vs. {self._limit})",
            )
        whole = PREFIX + length
        if self._size < whole:
            self._wanted = whole
            return None
        self._wanted = PREFIX
        self._size -= whole
        self._at = at + whole
        message = data[at + PREFIX : at + whole]
        if not self._size:
            self._data = b""
        return self._unpacked(message) if flag else message

    def check_end(self) -> None:
        """The stream has ended.

        Raises:
            BadMessages: It ended within a message.
        """
        if self._size:
            raise BadMessages(GrpcCode.UNKNOWN, "unexpected EOF")

    def _unpacked(self, message: bytes) -> bytes:
        if self._encoding != b"gzip":
            raise BadMessages(GrpcCode.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
        unpack = zlib.decompressobj(_GZIP)
        try:
            # One byte more than allowed tells a bomb without unpacking it.
            data = unpack.decompress(message, 0 if self._limit is None else self._limit + 1)
        except zlib.error as error:
            raise BadMessages(GrpcCode.INTERNAL, f"grpc: failed to decompress the received message: {error}") from error
        if self._limit is not None and len(data) > self._limit:
            raise BadMessages(
                GrpcCode.RESOURCE_EXHAUSTED,
                f"grpc: received message after decompression larger than max {self._limit}",
            )
        if not unpack.eof:
            raise BadMessages(GrpcCode.INTERNAL, "grpc: failed to decompress the received message: unexpected EOF")
        return data
