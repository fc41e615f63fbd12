"""Header lists to HPACK blocks and back, by jh2's codec, with what HTTP/2 demands of a header list.

jh2 offers its Rust codec only by this private module (its ``jh2.hpack`` package is the slow pure-Python
twin with the same results); this is the one place that touches it.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

from jh2._hazmat import Decoder, Encoder, HPACKError, OversizedHeaderListError

from tieline.model import Headers
from tieline.wire.trace_context import TRACEPARENT_BYTES

Fields: TypeAlias = list[tuple[bytes, bytes, bool]]
"""Fields as the codec takes and gives them; the flag keeps a field out of the compression tables."""

NEVER_INDEXED: Final = frozenset(
    {
        # Secrets: nobody can guess them by the size of a compressed block.
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"dapr-api-token",
        b"proxy-authorization",
        # New in every message: they would only push out what repeats.
        b"traceparent",
        b"tracestate",
        b"grpc-trace-bin",
        b"x-request-id",
        b"x-correlation-id",
        b"etag",
    }
)
TABLE_SIZE: Final = 4096
REPEATED_BYTES: Final = 1024
"""The longest block that is known again when it repeats,"""
REPEATED_BLOCKS: Final = 8
"""and how many are: an RPC's answer has two, and methods differ."""

REPEATED_HEADS: Final = 64
"""How many heads are remembered of which the block is nothing but places in a table, either way."""
SHORT_HEAD: Final = 4
"""Answers of so many fields at most are remembered by what they say."""
_PLACES: Final = bytes(range(0x81, 0xFF))
"""Each of these bytes is a whole field, known from the table, which stays as it is."""

MAX_NUMBER_BYTES: Final = 10
"""Bytes of a number behind its first: more than any length can need."""

TRACE_BYTES: Final = 125
"""Length of ``trace_literals``."""
_TRACE: Final = b"\x10\x0btraceparent\x37%b\x10\x0egrpc-trace-bin\x27%b"
_TRACE_BEGINS: Final = _TRACE[:14]
_TIMEOUT: Final = b"\x10\x0cgrpc-timeout"
_MAX_TIMEOUT: Final = len(_TIMEOUT) + 10
"""Of the literal: its value has a length, at most eight digits and a unit."""
_TRACE_BIN_BYTES: Final = 39
_is_trace: Final = re.compile(
    rb"\x10\x0btraceparent\x37(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})\x10\x0egrpc-trace-bin\x27([0-9A-Za-z+/]{39})"
).fullmatch

__all__ = ["BadBlock", "BlockTooLarge", "HeaderDecoder", "HeaderEncoder", "Likely", "Repeated"]


def flagged(headers: Headers) -> Fields:
    """Return ``headers`` with the flag that says which never enter a table."""
    return [(name, value, name in NEVER_INDEXED) for name, value in headers]


class BadBlock(Exception):
    """A header block that is no HPACK. The connection's compression state is lost."""


class BlockTooLarge(BadBlock):
    """A header block that unpacks to more than the hard limit."""


class Repeated(list[tuple[bytes, bytes, bool]]):
    """Fields that were unpacked before and may be again. They are shared: nobody may change them.

    Attributes:
        meaning: What their reader made of them, to be shared as well; ``None`` before.
        plan: What whoever the reader tells of them does with all that say just so; ``None`` for nothing in particular.
    """

    __slots__ = ("meaning", "plan")

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self.meaning: Any = None
        self.plan: Any = None

    @property
    def has_timeout(self) -> bool:
        """Whether they hold a time-out, so that all have the same."""
        return any(name == b"grpc-timeout" for name, _, _ in self)


class Likely:
    """A head, or trailers, that will be sent again and again just so."""

    __slots__ = ("fields",)

    def __init__(self, fields: Fields) -> None:
        self.fields = fields


def literals(headers: Headers) -> bytes:
    """Return fields as they can stand behind any block: in full, to be kept in no table (RFC 7541 §6.2.3)."""
    return b"".join([b"\x10" + _string(name) + _string(value) for name, value in headers])


def trace_literals(traceparent: bytes, binary: bytes) -> bytes:
    """Return the ``literals`` of a trace context: 55 bytes of ``traceparent``, 39 of ``grpc-trace-bin``."""
    return _TRACE % (traceparent, binary)


def read_trace(tail: bytes) -> Headers | None:
    """Return the fields of ``trace_literals``; ``None`` if it is something else."""
    match = _is_trace(tail)
    return None if match is None else [(b"traceparent", match[1]), (b"grpc-trace-bin", match[2])]


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 0x7F:
        return b"%c%b" % (size, text)
    size -= 0x7F
    number = b"\x7f"
    while size >= 0x80:
        number += b"%c" % (size & 0x7F | 0x80)
        size >>= 7
    return b"%b%c%b" % (number, size, text)


class HeaderEncoder:
    """Packs header lists for one connection."""

    __slots__ = ("_encode", "_encoder", "_known")

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._encode = self._encoder.encode
        self._known: dict[Likely | tuple[tuple[bytes, bytes], ...], bytes] = {}

    def resize(self, size: int) -> None:
        """Obey the peer's SETTINGS_HEADER_TABLE_SIZE; more than ``TABLE_SIZE`` is never used."""
        self._encoder.header_table_size = min(size, TABLE_SIZE)
        self._known.clear()

    def encode(self, fields: Fields) -> bytes:
        """Return the block for ``fields``, whose flags are set by ``flagged``.

        Without Huffman coding: it saves a quarter of a small head's bytes and costs a third of the time, at
        both ends (measured: 2.9 and 2.4 µs a head with it, 2.1 and 1.7 without).
        """
        if self._known:
            self._known.clear()  # the table may change
        return self._encode(fields, False)

    def encode_likely(self, head: Likely) -> bytes:
        """Return the block of a head, which costs next to nothing once all of it is in the table."""
        return self._known.get(head) or self._encode_new(head, head.fields)

    def encode_answer(self, headers: Headers) -> bytes:
        """Return the block of an answer's head or trailers. Short ones tend to repeat, but for the trace at the end."""
        tail = b""
        if len(headers) > 2 and headers[-1][0] == b"grpc-trace-bin" and headers[-2][0] == b"traceparent":
            traceparent, binary = headers[-2][1], headers[-1][1]
            if len(traceparent) == TRACEPARENT_BYTES and len(binary) == _TRACE_BIN_BYTES:
                tail = trace_literals(traceparent, binary)
                headers = headers[:-2]
        if len(headers) > SHORT_HEAD:
            return self.encode(flagged(headers)) + tail
        key = tuple(headers)
        return (self._known.get(key) or self._encode_new(key, flagged(headers))) + tail

    def _encode_new(self, key: Likely | tuple[tuple[bytes, bytes], ...], fields: Fields) -> bytes:
        block = self._encode(fields, False)
        if block.translate(None, _PLACES) or len(self._known) >= REPEATED_HEADS:
            self._known.clear()
        else:
            self._known[key] = block
        return block


class HeaderDecoder:
    """Unpacks header blocks of one connection."""

    __slots__ = ("_alike", "_decode", "_decoder", "_table_size", "_well_formed", "known")

    def __init__(self, hard_limit: int) -> None:
        self._decoder = Decoder(hard_limit)
        self._decode = self._decoder.decode
        self._table_size = self._decoder.header_table_size
        self._well_formed: dict[bytes, bool] = {}
        """Blocks that were looked at, and whether they leave the table as it is."""
        self._alike: dict[tuple[tuple[bytes, bytes, bool], ...], Repeated] = {}
        self.known: dict[bytes, Repeated] = {}
        """Blocks that were unpacked twice, leave the table as it is, and mean the same as long as it is so."""

    def split(self, block: bytes) -> tuple[bytes, bytes, bytes]:
        """Return a block without the trace context at its end (see ``trace_literals``), that, and a time-out before it.

        Both are empty where there is none; the time-out is the value of ``grpc-timeout``. Only of blocks that can be
        told apart without a look at the table: all else is one byte a field.
        """
        rest, tail, timeout = block, block[-TRACE_BYTES:], b""
        if tail.startswith(_TRACE_BEGINS) and _is_trace(tail):
            rest = block[:-TRACE_BYTES]
        else:
            tail = b""
        at = rest.rfind(_TIMEOUT, -_MAX_TIMEOUT)
        size = len(rest) - at - len(_TIMEOUT) - 1
        if at >= 0 and size > 0 and rest[at + len(_TIMEOUT)] == size:
            rest, timeout = rest[:at], rest[-size:]
        if rest is not block and (rest in self.known or not rest.translate(None, _PLACES)):
            return rest, tail, timeout
        return block, b"", b""

    def recognise(self, fields: Fields) -> tuple[Repeated | None, bytes]:
        """Return what stands for all heads that say the same but for their time-out, and that.

        Many clients give each call a time-out of its own, and have the table remember it. ``None`` without one.
        """
        names = [name for name, _, _ in fields]
        if b"grpc-timeout" not in names:
            return None, b""
        at = names.index(b"grpc-timeout")
        rest = fields[:at] + fields[at + 1 :]
        key = tuple(rest)
        alike = self._alike.get(key)
        if alike is None:
            if len(self._alike) >= REPEATED_HEADS:
                self._alike.clear()
            alike = self._alike[key] = Repeated(rest)
        return alike, fields[at][1]

    def decode(self, block: bytes, *, strictly: bool = True) -> Fields:
        """Return name, value and a flag for each field.

        Args:
            block: The block.
            strictly: Whether what the codec does not bear or see is looked at: an end within a field, and the padding
                of Huffman codes. A Tieline as peer sends neither.

        Raises:
            BadBlock: The block is broken, or its table size update is not at its start (RFC 7541 §4.2).
            BlockTooLarge: It unpacks to more than the hard limit.
        """
        known = self.known.get(block)
        if known is not None:
            return known
        # Clients repeat themselves; what a block says may change with the tables, but not how it is put together.
        inert = self._well_formed.get(block)
        is_new = strictly and inert is None
        leaves_table = check_extent(block) if is_new else inert
        try:
            fields = self._decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise BlockTooLarge("header list too large") from error
        except HPACKError as error:
            raise BadBlock(str(error)) from error
        except BaseException as error:
            # The codec panics on some blocks that end too early, and writes that to standard error. It is no Exception.
            if type(error).__name__ != "PanicException":
                raise
            raise BadBlock("header block breaks off") from error
        size = self._decoder.header_table_size
        if size != self._table_size:
            if block[0] & 0xE0 != 0x20:
                raise BadBlock("table size update not at the start of the block")
            self._table_size = size
        if is_new:
            check_padding(block, fields)  # type: ignore[arg-type]
            if len(block) <= REPEATED_BYTES:
                if len(self._well_formed) >= REPEATED_BLOCKS:
                    self._well_formed.clear()
                self._well_formed[block] = bool(leaves_table)
        if leaves_table is None:
            leaves_table = not block.translate(None, _PLACES)
        if not leaves_table or len(self.known) >= REPEATED_HEADS:
            self.known.clear()
        elif not is_new:  # what comes a second time
            repeated = self.known[block] = Repeated(fields)  # type: ignore[arg-type]
            return repeated
        return fields  # type: ignore[return-value]  # raw=True gives bytes


def check_extent(block: bytes) -> bool:
    """Check that a block ends where its last field does. Return whether it leaves the table as it is.

    Raises:
        BadBlock: It ends within one.
    """
    pos, end = 0, len(block)
    inert = True
    try:
        while pos < end:
            first = block[pos]
            pos += 1
            if first & 0x80:
                if first == 0xFF:
                    pos = _skip_number(block, pos)
            elif first & 0xE0 == 0x20:
                inert = False
                if first == 0x3F:
                    pos = _skip_number(block, pos)
            else:
                if first & 0x40:
                    inert = False
                mask = 0x3F if first & 0x40 else 0x0F
                index = first & mask
                if index == mask:
                    pos = _skip_number(block, pos)
                elif not index:
                    pos = _string_at(block, pos)[1]
                pos = _string_at(block, pos)[1]
    except IndexError:
        pos = end + 1
    if pos != end:
        raise BadBlock("header block breaks off")
    return inert


def check_padding(block: bytes, fields: Fields) -> None:
    """Check that Huffman codes are padded with ones (RFC 7541 §5.2): that each string is as our own coder packs it.

    ``fields`` are what the codec made of ``block``, which is sound otherwise.

    Raises:
        BadBlock: One is not.
    """
    pos, end = 0, len(block)
    decoded = iter(fields)
    while pos < end:
        first = block[pos]
        pos += 1
        if first & 0x80:
            next(decoded)
            if first == 0xFF:
                pos = _skip_number(block, pos)
        elif first & 0xE0 == 0x20:
            if first == 0x3F:
                pos = _skip_number(block, pos)
        else:
            name, value, _ = next(decoded)
            mask = 0x3F if first & 0x40 else 0x0F
            index = first & mask
            if index == mask:
                pos = _skip_number(block, pos)
            elif not index:
                pos = _check_string(block, pos, name)
            pos = _check_string(block, pos, value)


def _check_string(block: bytes, pos: int, text: bytes) -> int:
    """Check the string at ``pos``, which says ``text``, and return where it ends."""
    first = block[pos]
    pos, end = _string_at(block, pos)
    size = end - pos
    # Packed under a name from the static table, so that the string stands last. What the codec took for padding is
    # shorter than a byte, so both are of one length and differ in the padding at most.
    if first & 0x80 and size and not _pack([(b":authority", text, True)], True).endswith(block[pos:end]):
        raise BadBlock("a Huffman code is not padded with ones")
    return end


def _string_at(block: bytes, pos: int) -> tuple[int, int]:
    """Return where the bytes of the string at ``pos`` begin and end, the end perhaps beyond the block's."""
    size = block[pos] & 0x7F
    pos += 1
    if size == 0x7F:
        start, pos = pos, _skip_number(block, pos)
        size += sum((byte & 0x7F) << 7 * place for place, byte in enumerate(block[start:pos]))
    return pos, pos + size


def _skip_number(block: bytes, pos: int) -> int:
    start = pos
    while block[pos] & 0x80:
        pos += 1
        if pos - start >= MAX_NUMBER_BYTES:
            raise BadBlock("a number that is too long")
    return pos + 1


_pack: Final = Encoder().encode
"""Nothing that it packs is ever indexed, so it stays as it is."""
