"""Flows and tunnels: what goes through, what waits, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tieline.errors import AppBroken, Cancelled, ShuttingDown, TielineError
from tieline.net import tunnel as tunnels
from tieline.net.tunnel import Flow, Tunnel, opened

DOWN_FRAME = b"\x81\x05hello"
UP_FRAME = b"\x81\x85\0\0\0\0hello"
CLOSE_DOWN = b"\x88\x02\x03\xe9"


class End:
    """An end of a tunnel with a ledger.

    Attributes:
        room: Pieces that it takes before it is full.
        taken: What was sent.
        finished: How the flow that goes here ended; ``...`` while it lives.
    """

    def __init__(self) -> None:
        self.flow = Flow(self)
        self.feeder: Flow | None = None
        self.room = 1_000
        self.taken = b""
        self.finished: object = ...
        self.consumed = 0
        self.abandoned = False

    def take(self, data: bytes) -> bool:
        assert self.room > 0, "a full sink was given more"
        self.taken += data
        self.room -= 1
        return self.room > 0

    def finish(self, error: TielineError | None) -> None:
        assert self.finished is ...
        self.finished = error
        if error is not None:
            self.flow.fail(error)

    def body_consumed(self, size: int) -> None:
        self.consumed += size

    def body_abandoned(self) -> None:
        self.abandoned = True

    def body_wanted(self) -> None:
        return


class Both:
    """A tunnel between two ends, open."""

    def __init__(self) -> None:
        self.client = End()
        self.app = End()
        reply = opened([], self.client.flow, self.app.flow)
        assert isinstance(reply.tunnel, Tunnel)
        self.tunnel = reply.tunnel
        self.client.flow.pipe(self.app)
        self.app.flow.pipe(self.client)
        self.over = 0
        self.tunnel.when_over(self._is_over)

    def _is_over(self) -> None:
        self.over += 1


@pytest.fixture
async def both() -> Both:
    return Both()


async def test_what_comes_goes_on_at_once_and_counts_as_read(both: Both) -> None:
    both.client.flow.feed(UP_FRAME)
    both.app.flow.feed(DOWN_FRAME)

    assert (both.app.taken, both.client.taken) == (UP_FRAME, DOWN_FRAME)
    assert (both.client.consumed, both.app.consumed) == (len(UP_FRAME), len(DOWN_FRAME))
    assert both.client.flow.size == 0


async def test_what_came_before_the_pipe_comes_first() -> None:
    client, app = End(), End()
    client.flow.feed(b"one")
    client.flow.feed(b"two")
    assert client.consumed == 0

    client.flow.pipe(app)
    client.flow.feed(b"three")

    assert app.taken == b"onetwothree"
    assert client.consumed == 11


async def test_a_full_sink_makes_the_flow_wait(both: Both) -> None:
    both.app.room = 1
    for piece in (b"a", b"b", b"c"):
        both.client.flow.feed(piece * 1000)

    assert both.app.taken == b"a" * 1000
    assert both.client.consumed == 1000
    assert both.client.flow.size == 2000
    both.app.room = 1_000
    both.client.flow.resume()
    both.client.flow.feed(b"d")

    assert both.app.taken == b"a" * 1000 + b"b" * 1000 + b"c" * 1000 + b"d"
    assert both.client.consumed == 3001


async def test_an_end_waits_for_what_is_in_front_of_it(both: Both) -> None:
    both.app.room = 1
    both.client.flow.feed(b"a" * 600)
    both.client.flow.feed(b"b" * 600)

    both.client.flow.end()

    assert both.app.finished is ...
    both.app.room = 9
    both.client.flow.resume()
    assert both.app.finished is None
    assert both.over == 0


async def test_it_is_over_when_both_directions_are(both: Both) -> None:
    both.client.flow.feed(UP_FRAME)
    both.app.flow.feed(DOWN_FRAME * 2)
    both.client.flow.end()
    assert both.over == 0

    both.app.flow.end()

    assert both.over == 1
    assert (both.tunnel.bytes_up, both.tunnel.bytes_down) == (len(UP_FRAME), 2 * len(DOWN_FRAME))
    assert both.tunnel.error is None
    late: list[bool] = []
    both.tunnel.when_over(lambda: late.append(True))
    assert late == [True]


BREAKS: dict[str, Callable[[Both, TielineError], None]] = {
    "client": lambda both, error: both.client.flow.fail(error),
    "app": lambda both, error: both.app.flow.fail(error),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_what_breaks_one_end_breaks_the_other(both: Both, name: str) -> None:
    error = AppBroken("gone")

    BREAKS[name](both, error)

    broken, other = (both.client, both.app) if name == "client" else (both.app, both.client)
    assert other.finished is error
    assert broken.finished is error
    assert both.over == 1
    assert both.tunnel.error is error


async def test_a_sink_that_is_lost_abandons_the_flow(both: Both) -> None:
    both.app.flow.end()

    assert both.app.feeder is not None
    both.app.feeder.leave(AppBroken("reset"))

    assert both.client.abandoned
    assert both.over == 1
    assert isinstance(both.tunnel.error, AppBroken)
    both.client.flow.feed(b"late")
    assert both.client.consumed == 4
    assert both.app.taken == b""


async def test_a_flow_that_broke_before_it_was_piped_breaks_the_sink() -> None:
    client, app = End(), End()
    client.flow.fail(Cancelled("gone"))

    reply = opened([], client.flow, app.flow)
    client.flow.pipe(app)

    assert isinstance(app.finished, Cancelled)
    over: list[bool] = []
    reply.tunnel.when_over(lambda: over.append(True))
    assert over == [True]


async def test_a_client_that_stays_long_after_the_app_has_gone_is_cut(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = asyncio.Event()
    both.tunnel.when_over(over.set)
    monkeypatch.setattr(tunnels, "HALF_CLOSED_S", 0.01)

    both.app.flow.end()
    await asyncio.wait_for(over.wait(), 5)

    assert both.client.abandoned


# ── leaving ──


async def test_a_quiet_tunnel_says_goodbye_to_both_ends_and_waits_for_theirs(both: Both) -> None:
    both.tunnel.drain()

    assert both.client.taken == CLOSE_DOWN
    assert (both.app.taken[:2], len(both.app.taken)) == (b"\x88\x82", 8)
    assert both.over == 0
    both.app.flow.feed(b"\x81\x08too late" + CLOSE_DOWN)
    assert both.over == 0
    both.client.flow.feed(b"\x88\x80\0\0\0\0")

    assert both.over == 1
    assert both.client.taken == CLOSE_DOWN
    assert both.client.finished is None
    assert both.app.finished is None
    assert both.tunnel.error is None


async def test_a_frame_in_progress_is_ended_first(both: Both) -> None:
    both.app.flow.feed(DOWN_FRAME[:4])
    both.client.flow.feed(UP_FRAME[:1])

    both.tunnel.drain()
    assert both.client.taken == DOWN_FRAME[:4]
    assert both.app.taken == UP_FRAME[:1]
    both.app.flow.feed(DOWN_FRAME[4:] + DOWN_FRAME)
    both.client.flow.feed(UP_FRAME[1:5])
    both.client.flow.feed(UP_FRAME[5:])

    assert both.client.taken == DOWN_FRAME + CLOSE_DOWN
    assert both.app.taken.startswith(UP_FRAME + b"\x88\x82")
    assert len(both.app.taken) == len(UP_FRAME) + 8


async def test_a_full_sink_gets_its_goodbye_when_there_is_room(both: Both) -> None:
    both.client.room = 1
    both.app.flow.feed(DOWN_FRAME)
    both.app.flow.feed(DOWN_FRAME * 200)

    both.tunnel.drain()
    assert both.client.taken == DOWN_FRAME
    both.client.room = 9
    both.app.flow.resume()

    assert both.client.taken == DOWN_FRAME + CLOSE_DOWN
    assert both.app.flow.size == 0


async def test_who_has_said_goodbye_himself_is_not_spoken_for(both: Both) -> None:
    goodbye = b"\x88\x02\x0f\xa1"
    both.app.flow.feed(goodbye)

    both.tunnel.drain()

    assert both.client.taken == goodbye
    assert both.app.taken.startswith(b"\x88\x82")
    both.client.flow.feed(b"\x88\x82\0\0\0\0\x0f\xa1")
    assert both.over == 1
    assert both.client.finished is None


async def test_an_end_counts_as_a_goodbye(both: Both) -> None:
    both.tunnel.drain()

    both.app.flow.end()
    both.client.flow.end()

    assert both.over == 1
    assert both.tunnel.error is None


async def test_who_does_not_answer_is_cut(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    over = asyncio.Event()
    both.tunnel.when_over(over.set)
    monkeypatch.setattr(tunnels, "CLOSE_WITHIN_S", 0.01)

    both.tunnel.drain()
    both.tunnel.drain()
    await asyncio.wait_for(over.wait(), 5)

    assert isinstance(both.tunnel.error, ShuttingDown)
    assert both.client.taken == CLOSE_DOWN
    assert isinstance(both.client.finished, TielineError)
    assert isinstance(both.app.finished, TielineError)


async def test_a_tunnel_drained_before_its_answer_was_written_says_goodbye_after_it() -> None:
    client, app = End(), End()
    reply = opened([], client.flow, app.flow)
    client.flow.pipe(app)
    assert isinstance(reply.tunnel, Tunnel)

    reply.tunnel.drain()
    assert client.taken == b""
    app.flow.pipe(client)

    assert client.taken == CLOSE_DOWN
