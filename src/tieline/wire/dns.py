"""DNS messages as multicast DNS has them (RFC 1035, RFC 6762): bytes to records and back.

A name is a tuple of labels, so a label may hold any byte, dots too. Whatever is wrong in a packet makes the whole
packet unusable: ``DnsError``. Reading costs time in proportion to the packet's length, whatever it holds.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple, TypeAlias

MAX_PACKET: Final = 9000
"""Longest message, in bytes (RFC 6762 §17)."""
MAX_RECORDS: Final = 256
"""Most questions and records of one message together."""
MAX_LABEL: Final = 63
MAX_NAME: Final = 255
"""Longest name as it stands on the wire, in bytes, the last zero included."""
MAX_STRING: Final = 255

RESPONSE: Final = 0x8000
OPCODE: Final = 0x7800
"""Mask of the four bits that say what kind of question it is."""
AUTHORITATIVE: Final = 0x0400

A, PTR, TXT, AAAA, SRV, ANY = 1, 12, 16, 28, 33, 255
_IN: Final = 1
_TOP_BIT: Final = 0x8000
"""Of the class: "answer by unicast" in a question, "forget what you knew of this name" in a record."""

_HEADER: Final = struct.Struct("!6H")
_QUESTION: Final = struct.Struct("!2H")
_RECORD: Final = struct.Struct("!2HIH")
_SERVICE: Final = struct.Struct("!3H")
_FARTHEST: Final = 0x3FFF
"""Last place in a message that a pointer can name."""

Name: TypeAlias = tuple[bytes, ...]
"""Labels of a name from left to right, without the empty one of the root."""


class DnsError(ValueError):
    """A packet is no DNS message, or a message cannot be written."""


class Question(NamedTuple):
    name: Name
    type: int
    unicast: bool = False
    """The answer may come by unicast."""


class Pointer(NamedTuple):
    """PTR."""

    name: Name
    ttl: int
    target: Name
    flush: bool = False


class Service(NamedTuple):
    """SRV."""

    name: Name
    ttl: int
    port: int
    target: Name
    flush: bool = False
    priority: int = 0
    weight: int = 0


class Text(NamedTuple):
    """TXT. Strings of at most 255 bytes; none at all is possible."""

    name: Name
    ttl: int
    strings: tuple[bytes, ...]
    flush: bool = False


class Address(NamedTuple):
    """A or AAAA; the address is an IP literal."""

    name: Name
    ttl: int
    address: str
    flush: bool = False


class Other(NamedTuple):
    """A record of any other type or class, as it came. Names in it may point into the message that it came in."""

    name: Name
    ttl: int
    type: int
    data: bytes
    flush: bool = False
    class_: int = _IN


Record: TypeAlias = Pointer | Service | Text | Address | Other
"""All have ``name``, ``ttl`` in seconds, and ``flush``, the cache-flush bit."""


class Message(NamedTuple):
    """A DNS message.

    Attributes:
        flags: The second field of the header as it stands.
    """

    id: int = 0
    flags: int = 0
    questions: Sequence[Question] = ()
    answers: Sequence[Record] = ()
    authorities: Sequence[Record] = ()
    additionals: Sequence[Record] = ()


def parse(packet: bytes) -> Message:
    """Read a message. Bytes behind its last record are ignored.

    Raises:
        DnsError: It is too long, cut off, or breaks a rule.
    """
    if not _HEADER.size <= len(packet) <= MAX_PACKET:
        raise DnsError(f"a packet of {len(packet)} bytes")
    identity, flags, *counts = _HEADER.unpack_from(packet)
    if sum(counts) > MAX_RECORDS:
        raise DnsError(f"{sum(counts)} questions and records")
    reader = _Reader(packet)
    try:
        questions = [reader.question() for _ in range(counts[0])]
        sections = [[reader.record() for _ in range(count)] for count in counts[1:]]
    except (struct.error, IndexError) as error:
        raise DnsError("the packet is cut off") from error
    return Message(identity, flags, questions, *sections)


def render(message: Message, *, compress: bool = True) -> bytes:
    """Write a message. Names are compressed where RFC 1035 and RFC 2782 allow: not in SRV data.

    Raises:
        DnsError: A name, a string or the whole is too long, or a number or an address cannot be.
    """
    sections = (message.answers, message.authorities, message.additionals)
    writer = _Writer(compress)
    try:
        writer.header(message, [len(section) for section in sections])
        for question in message.questions:
            writer.question(question)
        for section in sections:
            for record in section:
                writer.record(record)
    except (struct.error, ValueError) as error:
        raise DnsError(str(error)) from error
    if len(writer.written) > MAX_PACKET:
        raise DnsError(f"a message of {len(writer.written)} bytes")
    return bytes(writer.written)


class _Reader:
    """Reads a packet from its header on. ``IndexError`` and ``struct.error`` say that it is cut off."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self._at = _HEADER.size
        self._tails: dict[int, Name] = {}

    def question(self) -> Question:
        name = self._name()
        type_, class_ = self._take(_QUESTION)
        return Question(name, type_, bool(class_ & _TOP_BIT))

    def record(self) -> Record:
        name = self._name()
        type_, class_, ttl, length = self._take(_RECORD)
        end = self._at + length
        if end > len(self._packet):
            raise IndexError
        record = self._data(name, type_, class_, ttl, end)
        if self._at != end:
            raise DnsError(f"data of {length} bytes in a record of type {type_}")
        return record

    def _data(self, name: Name, type_: int, class_: int, ttl: int, end: int) -> Record:
        flush = bool(class_ & _TOP_BIT)
        class_ &= ~_TOP_BIT
        start = self._at
        if class_ == _IN:
            if type_ == PTR:
                return Pointer(name, ttl, self._name(), flush)
            if type_ == SRV:
                priority, weight, port = self._take(_SERVICE)
                return Service(name, ttl, port, self._name(), flush, priority, weight)
            if type_ == TXT:
                return Text(name, ttl, self._strings(end), flush)
            if type_ in (A, AAAA):
                self._at = end
                return Address(name, ttl, _literal(type_, self._packet[start:end]), flush)
        self._at = end
        return Other(name, ttl, type_, self._packet[start:end], flush, class_)

    def _strings(self, end: int) -> tuple[bytes, ...]:
        strings: list[bytes] = []
        while self._at < end:
            start = self._at + 1
            self._at = start + self._packet[start - 1]
            strings.append(self._packet[start : self._at])
        return tuple(strings)

    def _take(self, form: struct.Struct) -> tuple[int, ...]:
        values = form.unpack_from(self._packet, self._at)
        self._at += form.size
        return values

    def _name(self) -> Name:
        """Read a name. A pointer must lead to a place before all of the name read so far, so none can go in circles.

        What a pointer leads to is remembered, so that no place is read twice, however many point there.
        """
        packet = self._packet
        labels: list[bytes] = []
        size = 1
        at = first = self._at
        behind = 0
        jumps: list[tuple[int, int]] = []
        while length := packet[at]:
            if length > MAX_LABEL:
                if length < 0xC0:
                    raise DnsError(f"a label of kind {length >> 6}")
                behind = behind or at + 2
                at = (length & 0x3F) << 8 | packet[at + 1]
                if at >= first:
                    raise DnsError("a name points forward")
                first = at
                tail = self._tails.get(at)
                if tail is not None:
                    labels += tail
                    size += sum(map(len, tail)) + len(tail)
                    break
                jumps.append((at, len(labels)))
                continue
            label = packet[at + 1 : at + 1 + length]
            if len(label) < length:
                raise IndexError
            size += length + 1
            labels.append(label)
            at += length + 1
            if size > MAX_NAME:
                break
        if size > MAX_NAME:
            raise DnsError("a name that is too long")
        self._at = behind or at + 1
        name = tuple(labels)
        for place, index in jumps:
            self._tails[place] = name[index:]
        return name


class _Writer:
    """Writes a message from its header on."""

    def __init__(self, compress: bool) -> None:
        self.written = bytearray()
        self._compress = compress
        self._places: dict[Name, int] = {}

    def header(self, message: Message, counts: Sequence[int]) -> None:
        self.written += _HEADER.pack(message.id, message.flags, len(message.questions), *counts)

    def question(self, question: Question) -> None:
        self._name(question.name)
        self.written += _QUESTION.pack(question.type, _IN | _top_bit(question.unicast))

    def record(self, record: Record) -> None:
        self._name(record.name)
        type_, class_ = (record.type, record.class_) if isinstance(record, Other) else (_type_of(record), _IN)
        self.written += _RECORD.pack(type_, class_ | _top_bit(record.flush), record.ttl, 0)
        start = len(self.written)
        match record:
            case Pointer():
                self._name(record.target)
            case Service():
                self.written += _SERVICE.pack(record.priority, record.weight, record.port)
                self._name(record.target, compress=False)
            case Text():
                for string in record.strings:
                    self._string(string, MAX_STRING)
            case Address():
                self.written += ip_address(record.address).packed
            case Other():
                self.written += record.data
        self.written[start - 2 : start] = struct.pack("!H", len(self.written) - start)

    def _name(self, name: Name, *, compress: bool = True) -> None:
        """Write a name, and remember where it and each of its ends stand."""
        if sum(len(label) + 1 for label in name) >= MAX_NAME:
            raise DnsError("a name that is too long")
        for index, label in enumerate(name):
            rest = name[index:]
            place = self._places.get(rest)
            if place is not None and compress and self._compress:
                self.written += struct.pack("!H", 0xC000 | place)
                return
            if place is None and len(self.written) <= _FARTHEST:
                self._places[rest] = len(self.written)
            if not label:
                raise DnsError("an empty label")
            self._string(label, MAX_LABEL)
        self.written.append(0)

    def _string(self, string: bytes, longest: int) -> None:
        if len(string) > longest:
            raise DnsError(f"a label or string of {len(string)} bytes")
        self.written.append(len(string))
        self.written += string


def _literal(type_: int, data: bytes) -> str:
    if len(data) != (4 if type_ == A else 16):
        raise DnsError(f"an address of {len(data)} bytes")
    return str(IPv4Address(data) if type_ == A else IPv6Address(data))


def _type_of(record: Pointer | Service | Text | Address) -> int:
    match record:
        case Pointer():
            return PTR
        case Service():
            return SRV
        case Text():
            return TXT
        case Address():
            return AAAA if ":" in record.address else A


def _top_bit(is_set: bool) -> int:
    return _TOP_BIT if is_set else 0
