"""The sidecar's own requests to an app: probes, and answers that nobody wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.app import App, Exchange, echo
from tests.support.h2peer import H2Server
from tests.support.tls import self_signed
from tieline.app.channel import UNWANTED_BYTES, read_out
from tieline.app.http_channel import HttpChannel
from tieline.app.start import ask_config
from tieline.config.outbound_proxy import Proxy
from tieline.errors import AppUnreachable, TielineError
from tieline.model import CallRecord, Cause, Headers, Invocation, Reply, Target
from tieline.net import http1_client


def channel_to(port: int, protocol: str = "http", max_concurrency: int = 0) -> HttpChannel:
    return HttpChannel(
        protocol=protocol,
        host="127.0.0.1",
        port=port,
        max_concurrency=max_concurrency,
        read_buffer=4096,
        token="secret",
    )


def a_call() -> Invocation:
    return Invocation(Target("a", "", "a"), b"GET", b"work", b"work", b"", [], b"", 0, CallRecord())


@pytest.fixture
async def app() -> AsyncIterator[App]:
    made = App(echo)
    await made.start()
    yield made
    await made.aclose()


@pytest.mark.rule("H-112", "H-118")
async def test_probes_and_calls_share_their_connections(app: App) -> None:
    channel = channel_to(app.port)

    statuses = [await channel.probe(b"/up?x=1", 5), await channel.probe(b"/up", 5)]
    await channel.call(a_call(), [])

    assert statuses == [200, 200]
    assert [exchange.target for exchange in app.seen] == ["/up?x=1", "/up", "/work"]
    assert app.accepted == 1
    await channel.aclose()


@pytest.mark.rule("H-111", "H-118")
async def test_apps_behind_tls_and_http2_are_probed_too(tmp_path: Path) -> None:
    https = App(echo)
    await https.start(tls=self_signed(tmp_path, "anybody"))
    h2c = H2Server()
    await h2c.start()

    for port, protocol in ((https.port, "https"), (h2c.port, "h2c")):
        channel = channel_to(port, protocol)
        assert await channel.probe(b"/up", 5) == 200
        await channel.aclose()

    await https.aclose()
    await h2c.aclose()


async def test_an_app_that_speaks_no_http2_is_told_what_to_give() -> None:
    app = App(echo)
    await app.start()
    channel = channel_to(app.port, "h2c")

    with pytest.raises(AppUnreachable) as caught:
        await channel.call(a_call(), [])

    assert caught.value.hint == "the app speaks no HTTP/2: start its sidecar with --app-protocol http"
    await channel.aclose()
    await app.aclose()


@pytest.mark.rule("H-118")
async def test_a_probe_waits_for_none_of_the_calls_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app whose connections are all in use is busy, not ill."""
    monkeypatch.setattr(http1_client, "CONNECTIONS_MAX", 1)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/work":
            entered.set()
            await go_on.wait()
        exchange.answer()

    app = App(handler)
    await app.start()
    channel = channel_to(app.port)
    calls = [asyncio.create_task(channel.call(a_call(), [])) for _ in range(2)]
    await entered.wait()

    for _ in range(3):
        assert await channel.probe(b"/up", 5) == 200

    assert [exchange.target for exchange in app.seen] == ["/work", "/up", "/up", "/up"]
    go_on.set()
    assert [reply.status for reply in await asyncio.gather(*calls)] == [200, 200]
    await channel.aclose()
    await app.aclose()


@pytest.mark.rule("H-118")
@pytest.mark.parametrize("closes_first", [True, False])
async def test_a_probe_is_sent_again_only_if_the_app_never_saw_it(closes_first: bool) -> None:
    seen = 0

    async def handler(exchange: Exchange) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            exchange.answer()
            if closes_first:
                exchange.close()
        elif seen == 2 and not closes_first:
            exchange.close()
        else:
            exchange.answer(204)

    app = App(handler)
    await app.start()
    channel = channel_to(app.port)
    await channel.probe(b"/up", 5)

    if closes_first:
        assert await channel.probe(b"/up", 5) == 204
    else:
        with pytest.raises(TielineError) as caught:
            await channel.probe(b"/up", 5)
        assert caught.value.text == f'Get "http://127.0.0.1:{app.port}/up": EOF'

    assert seen == 2
    await channel.aclose()
    await app.aclose()


@pytest.mark.rule("H-118")
async def test_a_probe_that_is_late_is_given_up_with_its_connection() -> None:
    gone = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await exchange.gone()
        gone.set()

    app = App(handler)
    await app.start()
    channel = channel_to(app.port)

    with pytest.raises(TielineError) as caught:
        await channel.probe(b"/up", 0.05)
    async with asyncio.timeout(5):
        await gone.wait()

    assert caught.value.text == f'Get "http://127.0.0.1:{app.port}/up": context deadline exceeded'
    assert caught.value.cause is Cause.TIMEOUT
    await app.aclose()


@pytest.mark.rule("H-85", "H-120")
async def test_calls_fail_at_once_while_the_app_is_not_healthy_even_those_that_could_wait(app: App) -> None:
    channel = channel_to(app.port, max_concurrency=1)
    channel.unhealthy = lambda: TielineError("ill", cause=Cause.APP_UNHEALTHY)

    for _ in range(2):
        with pytest.raises(TielineError, match="ill"):
            await channel.call(a_call(), [])
    channel.unhealthy = None

    assert (await channel.call(a_call(), [])).status == 200
    assert len(app.seen) == 1
    await channel.aclose()


class Endless:
    """A body that never ends.

    Attributes:
        given: Bytes that were read of it.
    """

    def __init__(self, piece: bytes) -> None:
        self._piece = piece
        self.given = 0
        self.abandoned = False
        self.trailers: Headers = []

    async def read(self) -> bytes:
        if not self._piece:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        self.given += len(self._piece)
        return self._piece

    def abandon(self) -> None:
        self.abandoned = True


@pytest.mark.parametrize("piece", [b"x" * 1000, b""])
async def test_an_answer_without_end_is_not_read_for_ever(piece: bytes) -> None:
    body = Endless(piece)

    await read_out(Reply(200, [], body))

    assert body.abandoned
    assert body.given < UNWANTED_BYTES + 1000


@pytest.mark.rule("H-117")
async def test_an_app_may_give_its_configuration_in_pieces() -> None:
    """Cut off in the middle, many a server would log an error at every start."""
    broken = False

    async def handler(exchange: Exchange) -> None:
        nonlocal broken
        exchange.begin(200, [("Content-Length", "2")])
        await exchange.writer.drain()
        await asyncio.sleep(0.05)
        exchange.writer.write(b"{")
        await asyncio.sleep(0.05)
        broken = exchange.writer.is_closing()
        exchange.writer.write(b"}")

    app = App(handler)
    await app.start()
    channel = channel_to(app.port)

    counted: list[CallRecord] = []
    await ask_config(channel, "a", "default", counted.append)

    assert not broken
    (record,) = counted
    assert (record.verb, record.method, record.status, record.response_bytes) == (b"GET", b"dapr/config", 200, 2)
    assert await channel.probe(b"/up", 5) == 200
    assert app.accepted == 1
    await channel.aclose()
    await app.aclose()


@pytest.mark.rule("H-17")
async def test_an_app_on_another_host_is_asked_through_the_proxy() -> None:
    proxy = App(echo)
    await proxy.start()
    channel = HttpChannel(
        protocol="http",
        host="app.example",
        port=8080,
        max_concurrency=0,
        read_buffer=4096,
        token=None,
        proxy=Proxy("127.0.0.1", proxy.port, b"Basic eDp5"),
    )

    reply = await channel.call(a_call(), [])

    assert reply.status == 200
    assert proxy.seen[0].target == "http://app.example:8080/work"
    assert proxy.seen[0].header("host") == "app.example:8080"
    assert proxy.seen[0].header("proxy-authorization") == "Basic eDp5"
    await channel.aclose()
    await proxy.aclose()
