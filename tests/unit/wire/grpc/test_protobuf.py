"""What of protobuf's encoding is written and read by hand: the library understands the same."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tieline._generated.dapr.proto.common.v1.common_pb2 import InvokeResponse
from tieline._generated.dapr.proto.runtime.v1.dapr_pb2 import InvokeServiceRequest
from tieline.wire.grpc.protobuf import KNOWN_HEADS, MAX_KNOWN_HEAD, Memory, field, split_invocation, varint

TEXT = st.text(max_size=200)
DATA = st.binary(max_size=300) | st.sampled_from([bytes(127), bytes(128), bytes(20000)])


@given(st.builds(bytes, st.integers(0, 40000)))
def test_a_field_is_read_as_it_was_written(content: bytes) -> None:
    assert InvokeResponse.FromString(field(1, field(2, content))).data.value == content
    assert len(field(1, content)) == 1 + len(varint(len(content))) + len(content)


def request(parts: tuple[str, str, str, str, bool, str], data: bytes) -> bytes:
    app_id, method, content_type, type_url, has_verb, query = parts
    made = InvokeServiceRequest(id=app_id)
    made.message.method = method
    made.message.content_type = content_type
    made.message.data.value = data
    made.message.data.type_url = type_url
    if has_verb:
        made.message.http_extension.verb = made.message.http_extension.POST
        made.message.http_extension.querystring = query
    return made.SerializeToString()


PARTS = st.tuples(TEXT, TEXT, TEXT, TEXT, st.booleans(), TEXT)


@given(PARTS, PARTS, DATA, DATA)
def test_a_request_is_told_from_its_data(
    parts: tuple[str, str, str, str, bool, str], others: tuple[str, str, str, str, bool, str], data: bytes, other: bytes
) -> None:
    split = split_invocation(request(parts, data))
    again = split_invocation(request(parts, other))
    different = split_invocation(request(others, data))

    if 0 < len(parts[0].encode()) < 128 and parts[1]:
        assert split is not None
        assert again is not None
        assert (split[1], again[1]) == (data, other)
        assert split[0] == again[0]
    if split is not None and different is not None:
        same = InvokeServiceRequest.FromString(request(parts, b"")) == InvokeServiceRequest.FromString(
            request(others, b"")
        )
        assert (split[0] == different[0]) == same


@given(st.binary(max_size=80) | PARTS.map(lambda parts: request(parts, b"data")[:-1]))
def test_what_is_odd_is_left_to_the_library(message: bytes) -> None:
    split = split_invocation(message)

    if split is not None:
        assert InvokeServiceRequest.FromString(message).message.data.value == split[1]


@pytest.mark.parametrize("odd", [
    # Fields of a number that takes two bytes, the second of which is no length.
    "0a01611a2812050a03646174920103024103120c0a046461746112046461746112060a016412016412030a0164",
    "0a0262621a190a03021a01120212008201050a41030a121206120464617461",
    "0a01611a0d920301034112060a0164120164",
    # Lengths that go beyond the end: of the field, of the data, of what follows them.
    "0a01611a0412061204", "0a01611a0512031201", "0a01611a08120312016822056d",
])  # fmt: skip
def test_what_the_library_reads_otherwise_or_not_at_all_is_left_to_it(odd: str) -> None:
    assert split_invocation(bytes.fromhex(odd)) is None


KEYS = st.sampled_from([b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x10", b"\x82\x01", b"\x92\x01", b"\x01", b"\x7b"])


def a_field(key: bytes, content: bytes, lie: int) -> bytes:
    return key + varint(max(0, len(content) + lie)) + content


ODD = st.recursive(
    st.binary(max_size=4),
    lambda inner: st.builds(
        a_field, KEYS, st.lists(inner, max_size=3).map(b"".join), st.sampled_from([0, 0, 0, 0, 1, -1])
    ),
    max_leaves=8,
)


@given(st.lists(ODD, max_size=4).map(b"".join))
def test_the_data_of_whatever_is_split_are_those_that_the_library_reads(inner: bytes) -> None:
    message = field(1, b"app") + field(3, inner)
    split = split_invocation(message)
    try:
        read = InvokeServiceRequest.FromString(message)
    except DecodeError:
        return

    if split is not None:
        assert read.message.data.value == split[1]


def test_data_that_stand_twice_are_left_to_the_library() -> None:
    data = field(2, field(2, b"first"))
    odd = field(1, b"app") + field(3, field(1, b"work") + data + field(3, b"text/plain") + field(2, field(2, b"last")))

    assert split_invocation(odd) is None


def test_only_what_comes_again_is_remembered_and_not_without_bounds() -> None:
    memory: Memory[int] = Memory()

    assert [memory.wants(b"head") for _ in range(2)] == [False, True]
    assert [memory.wants(bytes(MAX_KNOWN_HEAD + 1)) for _ in range(2)] == [False, False]
    for number in range(3 * KNOWN_HEADS):
        head = b"%d" % number
        assert not memory.wants(head)
        assert memory.wants(head)
        memory[head] = number
        assert len(memory) <= KNOWN_HEADS


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 21])
def test_numbers_are_as_long_as_they_must_be(size: int) -> None:
    assert len(varint(size)) == max(1, -(-size.bit_length() // 7))
