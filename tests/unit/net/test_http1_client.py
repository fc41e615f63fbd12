"""Connections to an app, and what becomes of them when the wrong moment comes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

import pytest

from tests.support.app import App, Exchange, echo
from tieline.net import http1_client
from tieline.net.dial import Dialler
from tieline.net.http1_client import CONNECTIONS_MAX, IDLE_MAX, Http1Client, Http1Pool


@pytest.fixture
async def app() -> AsyncIterator[App]:
    made = App(echo)
    await made.start()
    yield made
    await made.aclose()


def pool_to(app: App) -> Http1Pool:
    return Http1Pool(Dialler("127.0.0.1", app.port, connect_timeout_s=5).connect, host=b"app", max_head=65536)


def ask(connection: Http1Client, body: bytes) -> asyncio.Future[object]:
    connection.send(b"POST", b"/x", [], body, len(body))
    answer: asyncio.Future[object] = connection.answer  # type: ignore[assignment]
    return answer


async def test_a_call_given_up_after_its_answer_came_leaves_the_next_one_alone(app: App) -> None:
    """The connection was given back with the answer, and may serve another call already in the same turn."""
    pool = pool_to(app)
    connection = await pool.open()
    await ask(connection, b"first")

    lent = pool.idle(checked=True)
    assert lent is not None
    assert lent is connection
    second = ask(lent, b"second")
    connection.cancel()
    reply = await asyncio.wait_for(second, 5)

    assert reply.body == b"second"  # type: ignore[attr-defined]
    pool.close()


async def test_a_call_given_up_before_its_answer_drops_the_connection(app: App) -> None:
    entered = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        entered.set()
        await exchange.gone()

    silent = App(handler)
    await silent.start()
    pool = pool_to(silent)
    connection = await pool.open()
    answer = ask(connection, b"x")
    await entered.wait()

    answer.cancel()
    connection.cancel()

    assert connection.gone
    assert pool.idle(checked=False) is None
    await silent.aclose()
    pool.close()


async def test_a_turn_that_is_given_up_goes_to_the_next_who_waits(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_client, "CONNECTIONS_MAX", 1)
    pool = pool_to(app)
    first = await pool.open()
    second, third = asyncio.create_task(pool.open()), asyncio.create_task(pool.open())
    await asyncio.sleep(0)

    pool.give_back(first, reusable=False)
    second.cancel()
    lent = await asyncio.wait_for(third, 5)

    assert second.cancelled()
    assert not lent.gone
    pool.give_back(lent, reusable=False)


async def test_calls_that_gave_up_waiting_leave_nothing_behind(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long all connections are taken, and however many ask meanwhile."""
    monkeypatch.setattr(http1_client, "CONNECTIONS_MAX", 1)
    pool = pool_to(app)
    lent = await pool.open()
    before = futures()

    for _ in range(50):
        waiting = asyncio.create_task(pool.open())
        await asyncio.sleep(0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    assert futures() - before < 10
    pool.give_back(lent, reusable=False)


def futures() -> int:
    gc.collect()
    return sum(type(each) is asyncio.Future for each in gc.get_objects())


@pytest.mark.rule("H-112")
def test_so_many_connections_as_daprd_has() -> None:
    assert (CONNECTIONS_MAX, IDLE_MAX) == (1024, 64)
