"""However heads repeat, and whatever comes between them, both ends of a connection keep the same tables."""

from __future__ import annotations

import hpack
from hypothesis import given
from hypothesis import strategies as st

from tieline.wire.http2.hpack import HeaderDecoder, HeaderEncoder, Likely, flagged

NAMES = st.sampled_from([b"x-a", b"x-b", b"grpc-status", b"content-type", b"traceparent", b"authorization"])
VALUES = st.sampled_from([b"", b"0", b"1", b"application/grpc", b"v" * 300])
TRACE = [
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"grpc-trace-bin", b"AAAK92UZFs1D3YRI6yEcgDGcAbetm3FpIDMxAgE"),
]
HEADS = st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=5)


@given(st.lists(HEADS, min_size=1, max_size=4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_what_our_encoder_writes_ours_and_another_reads(
    heads: list[list[tuple[bytes, bytes]]], order: list[tuple[int, int]]
) -> None:
    encoder, ours, other = HeaderEncoder(), HeaderDecoder(1 << 20), hpack.Decoder()
    packed = [Likely(flagged(head)) for head in heads]

    for number, kind in order:
        head = heads[number % len(heads)]
        if kind == 0:
            block = encoder.encode(flagged(head))
        elif kind == 1:
            block = encoder.encode_likely(packed[number % len(heads)])
        else:
            head = head + TRACE[: 2 * (kind - 2)]
            block = encoder.encode_answer(head)

        assert [(name, value) for name, value, _ in ours.decode(block)] == head
        assert [(bytes(name), bytes(value)) for name, value in other.decode(block, raw=True)] == head


@given(st.lists(HEADS, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=60), st.booleans())
def test_what_another_encoder_writes_ours_reads(
    heads: list[list[tuple[bytes, bytes]]], order: list[int], huffman: bool
) -> None:
    encoder, ours = hpack.Encoder(), HeaderDecoder(1 << 20)

    for number in order:
        head = heads[number % len(heads)]
        block = encoder.encode([hpack.HeaderTuple(*field) for field in head], huffman=huffman)

        assert [(name, value) for name, value, _ in ours.decode(block)] == head
