"""DNS messages under arbitrary bytes, and there and back."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from tests.support.mdns import RECORDED
from tieline.wire.dns import Address, DnsError, Message, Other, Pointer, Question, Service, Text, parse, render

_SHORT = st.integers(0, 0xFFFF)
_TTLS = st.integers(0, 0xFFFFFFFF)
# Few labels, so that names often end alike and are shortened.
_NAMES = st.lists(
    st.sampled_from([b"orders", b"local", b"box:1", b"\xff\0."]) | st.binary(min_size=1, max_size=20), max_size=5
)
_NAME = _NAMES.map(tuple)
_ADDRESSES = st.integers(0, 2**32 - 1).map(lambda n: str(IPv4Address(n))) | st.integers(0, 2**128 - 1).map(
    lambda n: str(IPv6Address(n))
)
_RECORDS = st.one_of(
    st.builds(Pointer, _NAME, _TTLS, _NAME, st.booleans()),
    st.builds(Service, _NAME, _TTLS, _SHORT, _NAME, st.booleans(), _SHORT, _SHORT),
    st.builds(Text, _NAME, _TTLS, st.lists(st.binary(max_size=30), max_size=4).map(tuple), st.booleans()),
    st.builds(Address, _NAME, _TTLS, _ADDRESSES, st.booleans()),
    st.builds(
        Other, _NAME, _TTLS, st.integers(100, 200), st.binary(max_size=30), st.booleans(), st.integers(0, 0x7FFF)
    ),
)
_SECTIONS = st.lists(_RECORDS, max_size=6)
_MESSAGES = st.builds(
    Message,
    _SHORT,
    _SHORT,
    st.lists(st.builds(Question, _NAME, _SHORT, st.booleans()), max_size=4),
    _SECTIONS,
    _SECTIONS,
    _SECTIONS,
)
_PACKETS = [bytes.fromhex(packet["hex"]) for case in RECORDED["accepted"] for packet in case["packets"]]


@given(_MESSAGES, st.booleans())
def test_a_message_comes_back_as_it_was(message: Message, compress: bool) -> None:
    assert parse(render(message, compress=compress)) == message


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_read_or_refused(packet: bytes) -> None:
    with contextlib.suppress(DnsError):
        parse(packet)


@given(st.sampled_from(_PACKETS), st.data())
def test_a_damaged_packet_is_read_or_refused(packet: bytes, data: st.DataObject) -> None:
    damaged = bytearray(packet)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(DnsError):
        render(parse(bytes(damaged)))
