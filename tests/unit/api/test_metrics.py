"""The metrics server's answers: whole or in pieces, packed or not."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence

import pytest

from tests.support.prometheus import read
from tieline.api.metrics import MetricsApi, MetricsServer
from tieline.errors import StartError
from tieline.model import MAX_CHUNK, Headers, Reply, Request
from tieline.telemetry.families import Counter, Family, Reading, Shown


def counted(children: int) -> Sequence[Shown]:
    family = Family("c_total", "counter", "h", ("app_id", "path"), Counter)
    for number in range(children):
        family.child("me", f"/{number:0200}").value = number
    return [
        Reading("b", "gauge", "h", (), lambda: [((), 1)]),
        family,
        Reading("a", "gauge", "h", (), lambda: [((), 1)]),
    ]


async def ask(children: int, headers: Headers | None = None, verb: bytes = b"GET") -> Reply:
    return await MetricsApi(lambda: counted(children))(Request(verb, b"/metrics", None, headers or [], b"", 0))


async def body_of(reply: Reply) -> bytes:
    if isinstance(reply.body, bytes):
        return reply.body
    pieces = []
    while piece := await reply.body.read():
        assert len(piece) <= MAX_CHUNK
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.rule("H-139", "O-20")
async def test_the_media_type_is_the_one_that_scrapers_expect() -> None:
    """Whatever they accept."""
    reply = await ask(1, [(b"accept", b"application/openmetrics-text")])

    assert reply.headers == [
        (b"content-type", b"text/plain; version=0.0.4; charset=utf-8; escaping=underscores"),
    ]
    assert list(read((await body_of(reply)).decode())) == ["a", "b", "c_total"]


@pytest.mark.parametrize("children", [1, 900])
@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        (b"gzip", True),
        (b"deflate, GZIP;q=0.5", True),
        (b"gzip;q=1.0, identity", True),
        (b"gzip;q=0", False),
        (b"gzip; q=0.000, br", False),
        (b"br", False),
        (b"xgzip", False),
        (b"gzippy", False),
    ],
)
async def test_it_is_packed_for_who_wants_that(children: int, accepted: bytes, packed: bool) -> None:
    reply = await ask(children, [(b"accept-encoding", accepted)])

    assert ((b"content-encoding", b"gzip") in reply.headers) == packed
    body = await body_of(reply)
    found = read((gzip.decompress(body) if packed else body).decode())
    assert len(found["c_total"].values) == children


async def test_others_run_while_much_is_rendered() -> None:
    reply = await ask(900)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    assert len(await body_of(reply)) > 3 * MAX_CHUNK
    counting.cancel()

    assert turns >= 3


async def test_an_answer_that_is_not_wanted_any_more_ends() -> None:
    reply = await ask(900, [(b"accept-encoding", b"gzip")])
    assert not isinstance(reply.body, bytes)
    await reply.body.read()

    reply.body.abandon()

    assert await reply.body.read() == b""


@pytest.mark.rule("C-91")
async def test_a_port_that_is_taken_is_told_at_once() -> None:
    first, second = MetricsServer(list), MetricsServer(list)
    first.bind("127.0.0.1", 0)
    try:
        with pytest.raises(StartError) as error:
            second.bind("127.0.0.1", first.port)
    finally:
        first.listener.abort()

    where = f"127.0.0.1:{first.port}"
    assert str(error.value).startswith(
        f"failed to listen on {where}: listen tcp {where}: bind: address already in use; "
    )
    assert "--metrics-port" in str(error.value)
    assert "--enable-metrics=false" in str(error.value)
