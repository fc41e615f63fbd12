"""Messages out of a stream of bytes."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.errors import GrpcCode
from tieline.wire.grpc.messages import BadMessages, MessageReader, frame, only_message
from tieline.wire.pieces import JOINED_PIECE

LIMIT = 4096


def packed(message: bytes) -> bytes:
    data = gzip.compress(message, mtime=0)  # the same in each process of xdist
    return b"\1" + len(data).to_bytes(4, "big") + data


def read_all(reader: MessageReader) -> list[bytes]:
    found = []
    while (message := reader.next()) is not None:
        found.append(message)
    return found


@given(st.lists(st.binary(max_size=200)), st.lists(st.integers(1, 50)))
def test_messages_come_out_as_they_went_in_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame, messages))
    reader = MessageReader(LIMIT)
    found = []

    for cut in [*cuts, len(stream)]:
        reader.feed(stream[:cut])
        stream = stream[cut:]
        found += read_all(reader)

    assert found == messages
    reader.check_end()


@given(st.lists(st.tuples(st.binary(max_size=2000), st.booleans())))
def test_some_messages_may_be_packed_and_others_not(messages: list[tuple[bytes, bool]]) -> None:
    reader = MessageReader(LIMIT, b"gzip")
    reader.feed(b"".join(packed(message) if zipped else frame(message) for message, zipped in messages))

    assert read_all(reader) == [message for message, _ in messages]


@pytest.mark.rule("G-125", "G-124")
@pytest.mark.parametrize(
    ("stream", "encoding", "code", "text"),
    [
        (b"\1\0\0\0\0", b"", GrpcCode.INTERNAL, "grpc: compressed flag set with identity or empty encoding"),
        (b"\1\0\0\0\0", b"identity", GrpcCode.INTERNAL, "grpc: compressed flag set with identity or empty encoding"),
        (b"\2\0\0\0\0", b"", GrpcCode.INTERNAL, "grpc: received unexpected payload format 2"),
        (b"\0\0\0\0\5ab", b"", GrpcCode.UNKNOWN, "unexpected EOF"),
        (b"\0\0", b"", GrpcCode.UNKNOWN, "unexpected EOF"),
        (b"", b"", GrpcCode.UNKNOWN, "EOF"),
        (b"\1\0\0\0\3abc", b"gzip", GrpcCode.INTERNAL, "grpc: failed to decompress"),
        (packed(b"x" * 50)[:-9] , b"gzip", GrpcCode.UNKNOWN, "unexpected EOF"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_told_as_grpc_tells_it(stream: bytes, encoding: bytes, code: GrpcCode, text: str) -> None:
    with pytest.raises(BadMessages) as caught:
        only_message(stream, LIMIT, encoding)

    assert caught.value.code == code
    assert caught.value.text.startswith(text)


@pytest.mark.rule("G-125")
def test_an_encoding_that_is_not_known_is_refused_before_anything_is_read() -> None:
    with pytest.raises(BadMessages) as caught:
        MessageReader(LIMIT, b"br")

    assert caught.value.code == GrpcCode.UNIMPLEMENTED
    assert caught.value.text == 'grpc: Decompressor is not installed for grpc-encoding "br"'


@pytest.mark.rule("G-2")
def test_a_message_over_the_limit_is_refused_by_its_prefix() -> None:
    reader = MessageReader(LIMIT)
    reader.feed(b"\0" + (9026).to_bytes(4, "big"))

    with pytest.raises(BadMessages) as caught:
        reader.next()

    assert caught.value.code == GrpcCode.RESOURCE_EXHAUSTED
    assert caught.value.text == "grpc: received message larger than max (9026 vs. 4096)"
    assert only_message(frame(b"x" * LIMIT), LIMIT) == b"x" * LIMIT


@pytest.mark.rule("G-2")
def test_a_message_that_unpacks_to_too_much_is_refused_without_unpacking_it_all() -> None:
    bomb = packed(b"\0" * (LIMIT + 1))

    with pytest.raises(BadMessages) as caught:
        only_message(bomb, LIMIT, b"gzip")

    assert caught.value.code == GrpcCode.RESOURCE_EXHAUSTED
    assert only_message(packed(b"\0" * LIMIT), LIMIT, b"gzip") == b"\0" * LIMIT


def outcome(stream: bytes, encoding: bytes) -> bytes | str:
    try:
        return only_message(stream, LIMIT, encoding)
    except BadMessages as error:
        return error.text


@given(st.binary(max_size=100), st.sampled_from([b"", b"gzip"]))
def test_any_bytes_end_in_a_message_or_a_status(stream: bytes, encoding: bytes) -> None:
    found = outcome(stream, encoding)

    assert len(found) <= LIMIT
    assert found or isinstance(found, bytes)


@pytest.mark.rule("G-2")
@pytest.mark.parametrize("size", [1, 2, 500])
def test_a_message_in_tiny_pieces_is_kept_in_few(size: int) -> None:
    """Two bytes that lie alone take fifty."""
    body = bytes(range(256)) * 400
    stream = frame(body)
    reader = MessageReader(None)

    for at in range(0, len(stream) - 1, size):
        reader.feed(stream[at : min(at + size, len(stream) - 1)])
        assert reader.next() is None
    assert len(reader._later) <= len(stream) // JOINED_PIECE + 1

    reader.feed(stream[-1:])
    assert reader.next() == body
    reader.check_end()
