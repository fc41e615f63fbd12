"""The codec of header blocks behind its one door: what it refuses, and that nothing else comes out of it."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.http2 import GET, block, plain
from tieline.wire.http2.hpack import NEVER_INDEXED, BadBlock, BlockTooLarge, HeaderDecoder, HeaderEncoder, flagged

HARD = 262144


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
    ],
)
def test_a_broken_block_is_refused(bad: bytes) -> None:
    with pytest.raises(BadBlock):
        HeaderDecoder(HARD).decode(bad)


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
