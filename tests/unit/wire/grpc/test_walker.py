"""What it costs to find the lengths of messages that pass."""

from __future__ import annotations

import pytest

from tieline.wire.grpc.messages import frame
from tieline.wire.grpc.walker import MessageWalker
from tieline.wire.http2.frames import are_alike


@pytest.mark.rule("G-2")
@pytest.mark.parametrize(("end", "left"), [(frame(b"x"), b""), (frame(b"x") * 2 + b"\0", bytes(4)), (b"\0", bytes(4))])
def test_many_small_messages_before_another_one_are_looked_at_a_few_times(
    end: bytes, left: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look from each message to the end of the piece kept the event loop busy for seconds."""
    looked_at = 0

    def counting(data: bytes, at: int, step: int, count: int, places: int) -> bool:
        nonlocal looked_at
        looked_at += step * count
        return are_alike(data, at, step, count, places)

    monkeypatch.setattr("tieline.wire.grpc.walker.are_alike", counting)
    piece = frame(b"") * 13_000 + end
    walked = MessageWalker(1000)

    assert walked.walk(piece) == 0
    assert looked_at <= 2 * len(piece)
    assert walked.walk(left + frame(bytes(1001))) == 1001
