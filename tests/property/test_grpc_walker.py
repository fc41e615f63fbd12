"""However a stream of messages is cut into pieces, the walker sees the lengths that the messages have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.wire.grpc.messages import frame
from tieline.wire.grpc.walker import MessageWalker

LIMIT = 40


@pytest.mark.rule("G-2")
@given(st.lists(st.integers(0, LIMIT + 10), max_size=12), st.lists(st.integers(0, 30), max_size=40), st.data())
def test_a_message_over_the_limit_is_seen_with_its_prefix_and_no_other(
    sizes: list[int], cuts: list[int], data: st.DataObject
) -> None:
    if data.draw(st.booleans()):
        sizes = [size for size in sizes for _ in range(data.draw(st.integers(1, 20)))]
    stream = b"".join(frame(bytes([data.draw(st.integers(0, 255))]) * size) for size in sizes)
    walker = MessageWalker(LIMIT)
    too_long = next((size for size in sizes if size > LIMIT), 0)
    seen_from = 0
    for size in sizes:
        if size > LIMIT:
            seen_from += 5
            break
        seen_from += 5 + size

    at = 0
    found = 0
    for cut in [*cuts, len(stream)]:
        piece = stream[at : at + cut]
        at += len(piece)
        found = walker.walk(piece)
        if found:
            break

    assert found == too_long
    if found:
        assert at >= seen_from
    else:
        assert walker.between_messages
