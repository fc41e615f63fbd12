"""Connections to an app, and what becomes of them when the wrong moment comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.app import App, Exchange, echo
from tieline.net.http1_client import CONNECTIONS_MAX, IDLE_MAX, Http1Client, Http1Pool


@pytest.fixture
async def app() -> AsyncIterator[App]:
    made = App(echo)
    await made.start()
    yield made
    await made.aclose()


def pool_to(app: App) -> Http1Pool:
    return Http1Pool("127.0.0.1", app.port, host=b"app", max_head=65536, connect_timeout_s=5)


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


@pytest.mark.rule("H-112")
def test_so_many_connections_as_daprd_has() -> None:
    assert (CONNECTIONS_MAX, IDLE_MAX) == (1024, 64)
