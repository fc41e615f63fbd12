"""DNS messages: what is read, what is refused, and how names are shortened."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.support.mdns import RECORDED
from tieline.wire.dns import (
    MAX_PACKET,
    MAX_RECORDS,
    PTR,
    RESPONSE,
    Address,
    DnsError,
    Message,
    Other,
    Pointer,
    Question,
    Service,
    Text,
    parse,
    render,
)

NAME = (b"orders", b"local")
ALL_KINDS = Message(
    7,
    RESPONSE,
    [Question(NAME, PTR, True), Question(NAME, 255)],
    [Pointer(NAME, 3200, (b"box:1", *NAME), True)],
    [
        Service((b"box:1", *NAME), 1, 65535, (b"box", b"local"), False, 9, 8),
        Text(NAME, 0, (b"orders", b"", b"x" * 255)),
    ],
    [
        Address(NAME, 120, "10.0.0.1", True),
        Address(NAME, 2**32 - 1, "fd00::7"),
        Other(NAME, 1, 65300, b"\0\xff", False, 3),
    ],
)


def header(*counts: int) -> bytes:
    return struct.pack("!6H", 0, 0, *counts)


@pytest.mark.parametrize("compress", [True, False])
def test_a_message_of_all_kinds_of_records_comes_back_as_it_was(compress: bool) -> None:
    packet = render(ALL_KINDS, compress=compress)

    assert parse(packet) == ALL_KINDS


def test_a_name_that_was_written_is_pointed_to_later() -> None:
    long, short = render(ALL_KINDS, compress=False), render(ALL_KINDS)

    assert len(short) < len(long) - 60
    assert short.count(b"\x06orders\x05local") == 1


def recorded_packets() -> list[str]:
    """Return what daprd sent, all of it."""
    packets: list[str] = [*RECORDED["questions"]]
    for case in RECORDED["registration"]:
        packets += [*case["after_start"], *case["at_stop"]]
    for case in RECORDED["responder"]:
        packets += [answer["hex"] for answer in case["answers"]]
    return packets


@pytest.mark.rule("N-19", "N-20", "N-21")
@pytest.mark.parametrize("packet", sorted(set(recorded_packets())))
def test_what_daprd_sent_is_written_again_to_the_byte(packet: str) -> None:
    message = parse(bytes.fromhex(packet))

    # An announcement or answer is compressed, a probe, a question or a goodbye is not.
    assert packet in (render(message).hex(), render(message, compress=False).hex())


def cut_short() -> list[bytes]:
    packet = render(ALL_KINDS)
    return [packet[:length] for length in range(len(packet))]


@pytest.mark.parametrize("packet", cut_short(), ids=len)
def test_a_packet_that_is_cut_off_anywhere_is_refused(packet: bytes) -> None:
    with pytest.raises(DnsError):
        parse(packet)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (header(1, 0, 0, 0) + b"\xc0\x0c\0\x0c\0\x01", "points forward"),
        (header(1, 0, 0, 0) + b"\x01a\xc0\x0c\0\x0c\0\x01", "points forward"),
        (header(1, 0, 0, 0) + b"\xc0\x20\0\x0c\0\x01" + bytes(40), "points forward"),
        (header(1, 0, 0, 0) + b"\x40a\0\0\x0c\0\x01" + bytes(80), "a label of kind 1"),
        (header(1, 0, 0, 0) + b"\x80a\0\0\x0c\0\x01" + bytes(80), "a label of kind 2"),
        (header(1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\x0c\0\x01", "a name that is too long"),
        (
            header(0, 1, 0, 0) + b"\0\0\x0c\0\x01" + bytes(4) + b"\0\x02\x01a\0",
            "data of 2 bytes in a record of type 12",
        ),
        (header(0, 1, 0, 0) + b"\0\0\x01\0\x01" + bytes(4) + b"\0\x03abc", "an address of 3 bytes"),
        (header(0, 1, 0, 0) + b"\0\0\x1c\0\x01" + bytes(4) + b"\0\x04abcd", "an address of 4 bytes"),
        (header(0, 1, 0, 0) + b"\0\0\x10\0\x01" + bytes(4) + b"\0\x02\x05a" + bytes(9), "data of 2 bytes"),
        (header(MAX_RECORDS, 1, 0, 0) + bytes(8000), "257 questions and records"),
        (header(65535, 65535, 65535, 65535), "262140 questions and records"),
        (bytes(MAX_PACKET + 1), "a packet of 9001 bytes"),
    ],
)
def test_a_packet_that_breaks_a_rule_is_refused(packet: bytes, reason: str) -> None:
    with pytest.raises(DnsError, match=reason):
        parse(packet)


def test_a_name_of_the_longest_length_is_read_and_written() -> None:
    name = (b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61)
    questions = [Question(name, PTR)]

    assert parse(render(Message(questions=questions))).questions == questions


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Pointer((b"a" * 64,), 1, NAME), "a label or string of 64 bytes"),
        (Pointer((b"",), 1, NAME), "an empty label"),
        (Pointer(NAME, 1, (b"a" * 63,) * 4), "a name that is too long"),
        (Text(NAME, 1, (b"x" * 256,)), "a label or string of 256 bytes"),
        (Text(NAME, 1, (b"x" * 255,) * 36), "a message of 9"),
        (Address(NAME, 1, "box.local"), "box.local"),
        (Service(NAME, 1, 65536, NAME), "format"),
        (Address(NAME, -1, "10.0.0.1"), "."),
    ],
)
def test_a_message_that_cannot_be_written_is_refused(record: Any, reason: str) -> None:
    with pytest.raises(DnsError, match=reason):
        render(Message(answers=[record]))


def test_a_label_may_hold_any_byte() -> None:
    questions = [Question((b"host name.x:1", b"\xff\0", b"local"), PTR)]

    assert parse(render(Message(questions=questions))).questions == questions


def test_bytes_behind_the_last_record_do_not_matter() -> None:
    assert parse(render(ALL_KINDS) + b"more") == ALL_KINDS


def chain(pointers: int) -> bytes:
    """Return a packet with a name of many pointers, each to the one before, and records that point to the last."""
    places = [23, *range(26, 26 + 2 * (pointers - 1), 2)]  # behind 12 bytes of header and 11 of the first record
    first = b"\x01a\0" + b"".join(struct.pack("!H", 0xC000 | place) for place in places)
    head = header(0, MAX_RECORDS, 0, 0) + b"\0\xff\0\0\x01" + bytes(4) + struct.pack("!H", len(first))
    last = struct.pack("!H", 0xC000 | len(head) + len(first) - 2)
    return head + first + (last + b"\0\x0c\0\x01" + bytes(4) + b"\0\x02" + last) * (MAX_RECORDS - 1)


@pytest.mark.timeout(5)
def test_names_of_many_pointers_cost_no_more_than_their_bytes() -> None:
    long_name = b"\x01a" * 126 + b"\0"
    many_to_one = header(1, MAX_RECORDS - 1, 0, 0) + long_name + b"\0\x0c\0\x01"
    many_to_one += (b"\xc0\x0c\0\x0c\0\x01" + bytes(4) + b"\0\x02\xc0\x0c") * (MAX_RECORDS - 1)

    for packet in (chain(2000), many_to_one):
        for _ in range(60):
            assert {len(record.name) for record in parse(packet).answers} <= {0, 1, 126}
