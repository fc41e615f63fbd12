"""Bodies as messages, where their readers and senders are out of step."""

from __future__ import annotations

import asyncio

import pytest

from tieline.errors import TielineError, TooLarge
from tieline.model import Headers
from tieline.net.payloads import Outgoing, collect


class Late:
    """A body of which nothing comes before its time."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.reads = 0
        self.abandoned = False
        self.trailers: Headers = []

    async def read(self) -> bytes:
        self.reads += 1
        await self.came.wait()
        return b"event"

    def abandon(self) -> None:
        self.abandoned = True


def _too_long() -> TielineError:
    return TooLarge("too long")


async def test_who_stops_collecting_a_body_abandons_it() -> None:
    body = Late()
    collecting = asyncio.create_task(collect(body, None, _too_long))
    await asyncio.sleep(0)

    collecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collecting

    assert body.abandoned


@pytest.mark.rule("G-46")
async def test_the_head_of_events_is_sent_once_however_late_the_first_of_them_is() -> None:
    body = Late()
    messages = Outgoing(b"head", body, events=True)

    assert b"head" in await messages.read()
    following = asyncio.create_task(messages.read())
    done, _ = await asyncio.wait([following], timeout=0.1)
    assert not done
    assert body.reads == 2
    body.came.set()

    assert b"event" in await following
