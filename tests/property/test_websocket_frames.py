"""Where WebSocket frames end, with the ``websockets`` library as the oracle."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tieline.wire.websocket import FrameWalker

SIZES = st.one_of(st.integers(0, 130), st.sampled_from([125, 126, 127, 65535, 65536, 70000]))


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A frame's bytes, and whether it is a close frame."""
    opcode = draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG, Opcode.CLOSE]))
    size = draw(SIZES)
    is_control = opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE)
    frame = Frame(opcode, bytes(min(size, 125) if is_control else size), fin=is_control or draw(st.booleans()))
    written = frame.serialize(mask=draw(st.booleans()))
    compressed = 0x40 if draw(st.booleans()) else 0
    return bytes([written[0] | compressed]) + written[1:], opcode is Opcode.CLOSE


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[int]:
    return sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=20))})


@given(st.lists(frames(), min_size=1, max_size=8), st.data())
def test_the_walker_knows_where_frames_end_however_they_arrive(
    said: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    stream = b"".join(frame for frame, _ in said)
    ends = list(accumulate(len(frame) for frame, _ in said))
    places = data.draw(cuts(len(stream)))
    walker = FrameWalker()

    for start, end in pairwise(places):
        piece = stream[start:end]
        at_boundary = start == 0 or start in ends
        assert walker.between_frames is at_boundary
        expected = 0 if at_boundary else next(one for one in ends if one > start) - start
        assert walker.first_end(piece) == (expected if expected <= len(piece) else -1)
        walker.walk(piece)

    assert walker.between_frames
    assert walker.closing is any(is_close for _, is_close in said)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_bytes_upset_the_walker(pieces: list[bytes]) -> None:
    walker = FrameWalker()

    for piece in pieces:
        end = walker.first_end(piece)
        assert -1 <= end <= len(piece)
        if end >= 0:
            # What it says is what it does.
            walker.walk(piece[:end])
            assert walker.between_frames
            walker.walk(piece[end:])
        else:
            walker.walk(piece)
