"""The codec of header blocks behind its one door: what it refuses, and that nothing else comes out of it."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman_constants import REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.http2 import GET, block, plain
from tieline.wire.http2.hpack import (
    NEVER_INDEXED,
    TRACE_BYTES,
    BadBlock,
    BlockTooLarge,
    HeaderDecoder,
    HeaderEncoder,
    Likely,
    flagged,
    literals,
    read_trace,
    trace_literals,
)

HARD = 262144
CODE_BITS = REQUEST_CODES_LENGTH
"""Length of each byte's Huffman code."""


@pytest.mark.parametrize(
    "bad",
    [
        b"\x80",  # index 0
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # an index beyond all
        b"\xbe",  # an entry that is not there
        b"\xff",  # a number that breaks off
        b"\0",  # a field that breaks off
        b"\0\1",
        b"\0\1a",
        b"\0\1a\5b",
        b"\0\xff",
        b"\x3f\xe1\x7f",  # a table larger than allowed
        b"\x82\x20",  # a change of the table that comes too late
        b"\0\1a\x81\xff\xff",
        b"\0\1a\x84\xff\xff\xff\xff",  # the end-of-string symbol
        b"\0\1a\x81\x18",  # a Huffman code padded with zeros,
        b"\0\1a\x81\x1e",  # with some,
        b"\0\x81\x18\1b",  # in a name,
        b"\x82\x41\x81\x18",  # behind another field,
        b"\x0f\x00\x81\x18",  # under a name with a long index
        b"\0\x7f" + b"\xff" * 200_000,  # a length without an end
    ],
)
def test_a_broken_block_is_refused(bad: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadBlock):
        HeaderDecoder(HARD).decode(bad)
    assert capfd.readouterr().err == ""  # where the codec panics, it says so there


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=60), st.builds(lambda cut: block(GET)[:cut], st.integers(0, 60))))
def test_whatever_comes_in_only_fields_or_a_refusal_come_out(data: bytes) -> None:
    try:
        fields = HeaderDecoder(HARD).decode(data)
    except BadBlock:
        return
    assert all(type(name) is type(value) is bytes for name, value, _ in fields)


def test_a_block_that_unpacks_to_too_much_is_refused_before_it_has() -> None:
    decoder = HeaderDecoder(HARD)
    decoder.decode(HeaderEncoder().encode(plain([(b"x", b"y" * 4000)])))

    with pytest.raises(BlockTooLarge):
        decoder.decode(b"\xbe" * HARD)


def test_secrets_never_enter_a_table() -> None:
    encoder = HeaderEncoder()
    secret = flagged([(name, b"secret-value") for name in sorted(NEVER_INDEXED)])

    first, second = encoder.encode(secret), encoder.encode(secret)

    assert first == second
    fields = hpack.Decoder().decode(first, raw=True)
    assert {type(field).__name__ for field in fields} == {"NeverIndexedHeaderTuple"}


names = st.from_regex(rb"[a-z][a-z0-9-]{0,12}", fullmatch=True)
lists = st.lists(st.lists(st.tuples(names, st.binary(max_size=80)), max_size=8), min_size=1, max_size=6)


@settings(deadline=None)
@given(lists, st.lists(st.sampled_from([0, 30, 200, 4096, 1 << 20]), max_size=3))
def test_another_codec_reads_what_is_packed(messages: list[list[tuple[bytes, bytes]]], sizes: list[int]) -> None:
    encoder, other = HeaderEncoder(), hpack.Decoder()

    for size in sizes:
        encoder.resize(size)
    for fields in messages:
        read = other.decode(encoder.encode(flagged(fields)), raw=True)
        assert [(bytes(name), bytes(value)) for name, value in read] == fields


@settings(deadline=None)
@given(lists, st.booleans())
def test_what_another_codec_packs_is_read(messages: list[list[tuple[bytes, bytes]]], huffman: bool) -> None:
    decoder, other = HeaderDecoder(HARD), hpack.Encoder()

    for fields in messages:
        read = decoder.decode(other.encode(fields, huffman=huffman))
        assert [(name, value) for name, value, _ in read] == fields


@settings(deadline=None)
@given(lists, st.data())
def test_what_another_codec_refuses_is_refused(messages: list[list[tuple[bytes, bytes]]], data: st.DataObject) -> None:
    decoder, other, reader = HeaderDecoder(HARD), hpack.Encoder(), hpack.Decoder()

    for fields in messages:
        packed = bytearray(other.encode(fields, huffman=True))
        if packed and data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(packed) - 1))
            packed[at] ^= 1 << data.draw(st.integers(0, 7))
        try:
            ours = [(name, value) for name, value, _ in decoder.decode(bytes(packed))]
        except BadBlock:
            return
        # Neither has lost its tables yet, so the other must be able to read it too, and in the same way.
        assert [(bytes(name), bytes(value)) for name, value in reader.decode(bytes(packed), raw=True)] == ours


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.booleans())
def test_only_a_padding_of_ones_is_taken(text: bytes, in_name: bool) -> None:
    packed = bytearray(hpack.Encoder().encode([(text, b"") if in_name else (b"x", text)], huffman=True))
    at = len(packed) - (2 if in_name else 1)
    padding = (8 - sum(CODE_BITS[byte] for byte in text)) % 8
    sound = HeaderDecoder(HARD).decode(bytes(packed))

    for bit in range(padding):
        spoilt = packed.copy()
        spoilt[at] ^= 1 << bit
        try:
            assert HeaderDecoder(HARD).decode(bytes(spoilt)) != sound  # it was the code of one more byte
        except BadBlock:
            pass


NAME = st.from_regex(rb"[a-z-]{1,140}", fullmatch=True)


@given(st.lists(st.tuples(NAME, st.binary(max_size=400)), max_size=4))
def test_literals_follow_any_block_and_leave_the_tables_alone(headers: list[tuple[bytes, bytes]]) -> None:
    encoder, ours, other = HeaderEncoder(), HeaderDecoder(1 << 20), hpack.Decoder()
    head = flagged([(b"x-first", b"1")])

    for _ in range(3):
        block = encoder.encode(head) + literals(headers)
        expected = [(b"x-first", b"1"), *headers]

        assert [(name, value) for name, value, _ in ours.decode(block)] == expected
        assert [(bytes(name), bytes(value)) for name, value in other.decode(block, raw=True)] == expected
    assert len(other.header_table.dynamic_entries) == 1


TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_BIN = b"AAAK92UZFs1D3YRI6yEcgDGcAbetm3FpIDMxAgE"


def test_a_trace_context_is_told_from_the_head_before_it_only_where_that_is_certain() -> None:
    encoder, decoder = HeaderEncoder(), HeaderDecoder(1 << 20)
    head = Likely(flagged([(b":status", b"200"), (b"x-a", b"1")]))
    tail = trace_literals(TRACEPARENT, TRACE_BIN)
    fresh, known = [encoder.encode_likely(head) + tail for _ in range(2)]

    assert len(tail) == TRACE_BYTES
    assert decoder.split(fresh) == (fresh, b"", b"")  # x-a stands there in full
    decoder.decode(fresh)
    assert decoder.split(known) == (known[:-TRACE_BYTES], tail, b"")
    assert decoder.decode(known[:-TRACE_BYTES]) == head.fields
    assert read_trace(tail) == [(b"traceparent", TRACEPARENT), (b"grpc-trace-bin", TRACE_BIN)]


@pytest.mark.parametrize("place", range(TRACE_BYTES))
def test_what_is_no_trace_context_stays_where_it_is(place: int) -> None:
    tail = bytearray(trace_literals(TRACEPARENT, TRACE_BIN))
    tail[place] = 0x0A
    block = b"\x88" + tail

    assert HeaderDecoder(1 << 20).split(block) == (block, b"", b"")


@pytest.mark.parametrize("with_trace", [True, False])
@pytest.mark.parametrize("value", [b"1S", b"12345678m"])
def test_a_time_out_is_told_from_the_head_before_it(value: bytes, with_trace: bool) -> None:
    encoder, decoder = HeaderEncoder(), HeaderDecoder(1 << 20)
    head = Likely(flagged([(b":status", b"200"), (b"x-a", b"1")]))
    tail = trace_literals(TRACEPARENT, TRACE_BIN) if with_trace else b""
    timeout = literals([(b"grpc-timeout", value)])
    fresh, known = [encoder.encode_likely(head) + timeout + tail for _ in range(2)]

    decoder.decode(fresh)

    rest = known[: -len(timeout + tail)]
    assert decoder.split(known) == (rest, tail, value)
    assert decoder.decode(rest) == head.fields
    for cut in range(1, len(timeout)):
        block = rest + timeout[:-cut] + tail
        assert decoder.split(block) in ((block, b"", b""), (block[: len(block) - len(tail)], tail, b""))


def test_heads_that_differ_in_their_time_out_alone_are_known_as_one() -> None:
    decoder = HeaderDecoder(1 << 20)
    one, other = [
        [(b":path", b"/a/b", False), (b"grpc-timeout", value, False), (b"x-a", b"1", False)] for value in (b"1S", b"9m")
    ]

    known, timeout = decoder.recognise(one)
    again, later = decoder.recognise(other)

    assert known is not None
    assert known is again
    assert (timeout, later) == (b"1S", b"9m")
    assert known == [one[0], one[2]]
    assert not known.has_timeout
    assert decoder.recognise([one[0], (b"x-a", b"2", False), one[1]])[0] is not known
    assert decoder.recognise([one[0], one[2]]) == (None, b"")
    for number in range(1000):
        decoder.recognise([(b"x-a", b"%d" % number, False), one[1]])
    assert decoder.recognise(one)[0] is not known  # what is remembered is bounded


PIECES = st.sampled_from(
    [
        b"\x88", literals([(b"grpc-timeout", b"1S")]), literals([(b"grpc-timeout", b"9" * 20)]),
        trace_literals(TRACEPARENT, TRACE_BIN), b"\x10\x0cgrpc-timeout", b"\x10\x0cgrpc-timeout\x05", b"\x10",
    ]
) | st.binary(max_size=20)  # fmt: skip


@given(st.lists(PIECES, max_size=5).map(b"".join))
def test_a_block_is_split_into_what_it_is_made_of(block: bytes) -> None:
    rest, tail, timeout = HeaderDecoder(1 << 20).split(block)

    assert rest + (literals([(b"grpc-timeout", timeout)]) if timeout else b"") + tail == block
