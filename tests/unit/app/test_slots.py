"""How many calls the app gets at a time."""

from __future__ import annotations

import asyncio

import pytest

from tieline.app.slots import HeldBody, Slots
from tieline.net.backpressure import BodyStream, NoSource
from tieline.net.payloads import Outgoing


async def test_slots_are_given_to_those_who_wait_longest() -> None:
    slots = Slots(1)
    await slots.acquire()
    turns: list[int] = []

    async def take(number: int) -> None:
        await slots.acquire()
        turns.append(number)
        slots.release()

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(take(number))
        await asyncio.sleep(0)
        assert slots.waiting == 3
        slots.release()

    assert turns == [0, 1, 2]
    assert slots.waiting == 0


@pytest.mark.rule("H-115")
@pytest.mark.parametrize("first", ["cancel", "release"])
async def test_who_gives_up_in_the_turn_in_which_a_slot_is_free_costs_none(first: str) -> None:
    slots = Slots(1)
    await slots.acquire()
    gone = asyncio.create_task(slots.acquire())
    stays = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)

    if first == "cancel":
        gone.cancel()
        slots.release()
    else:
        slots.release()
        gone.cancel()

    with pytest.raises(asyncio.CancelledError):
        await gone
    await asyncio.wait_for(stays, 5)
    slots.release()
    await asyncio.wait_for(slots.acquire(), 5)
    assert slots.waiting == 0


@pytest.mark.rule("H-115", "G-122")
async def test_an_answer_whose_body_is_late_keeps_its_slot() -> None:
    slots = Slots(1)
    await slots.acquire()
    body = BodyStream(NoSource())
    messages = Outgoing(b"head", HeldBody(body, slots))

    await messages.read()  # the head alone: the body was not there in time
    assert not slots.take()
    body.feed(b"late")
    body.end()
    await messages.read()
    assert not slots.take()
    await messages.read()

    assert slots.take()
