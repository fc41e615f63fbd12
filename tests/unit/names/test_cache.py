"""The cache of names: what it answers at once, when it asks, whom it picks, and how it explains a miss."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.names import Clock, spawn, target
from tieline.errors import ResolverFailed, UnknownTarget
from tieline.model import Cause, Endpoint, Target
from tieline.names.cache import (
    HIT_S,
    LATELY_S,
    MAX_HINT_BYTES,
    MAX_NAMES,
    MAX_SET_ASIDE,
    OVERTIME_S,
    REFRESH_S,
    SET_ASIDE_S,
    NameCache,
    miss_hint,
)

A, B, C = Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2), Endpoint("127.0.0.1", 3)
ORDERS = target("orders")


@dataclass
class FakeResolver:
    """Knows what it is told, and keeps a ledger of what it was asked and what was done with it."""

    name: str = "fake"
    places: dict[str, Sequence[Endpoint]] = field(default_factory=dict)
    broken: bool = False
    text: str = "couldn't find service: {}"
    gate: asyncio.Event | None = None
    asked: list[str] = field(default_factory=list)
    life: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.life.append("start")

    async def announce(self) -> None:
        self.life.append("announce")

    async def withdraw(self) -> None:
        self.life.append("withdraw")

    async def aclose(self) -> None:
        self.life.append("aclose")

    async def known(self) -> Sequence[str]:
        return [] if self.broken else sorted(self.places)

    async def resolve(self, target: Target) -> Sequence[Endpoint]:
        self.asked.append(target.app_id)
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise ResolverFailed(f"{self.name} is broken")
        if target.app_id not in self.places:
            raise UnknownTarget(self.text.format(target.app_id))
        return self.places[target.app_id]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cache_of(clock: Clock, *resolvers: FakeResolver) -> NameCache:
    return NameCache(resolvers, spawn=spawn, clock=clock, first=lambda _: 0)


def orders_at(*endpoints: Endpoint, **more: Any) -> FakeResolver:
    return FakeResolver(places={"orders": endpoints}, **more)


async def settle() -> None:
    """Let tasks that wait for nothing come to their end."""
    for _ in range(10):
        await asyncio.sleep(0)


async def missed(cache: NameCache, wanted: Target = ORDERS) -> UnknownTarget:
    with pytest.raises(UnknownTarget) as caught:
        await cache.pick(wanted)
    return caught.value


@pytest.mark.rule("N-11")
async def test_an_answer_is_kept_for_a_second(clock: Clock) -> None:
    resolver = orders_at(A)
    cache = cache_of(clock, resolver)
    assert cache.pick_cached(ORDERS) is None

    assert await cache.pick(ORDERS) == A
    clock.now += REFRESH_S - 0.01
    assert cache.pick_cached(ORDERS) == A
    assert await cache.pick(ORDERS) == A
    assert resolver.asked == ["orders"]

    clock.now += HIT_S
    assert cache.pick_cached(ORDERS) is None
    assert await cache.pick(ORDERS) == A
    assert resolver.asked == ["orders", "orders"]


async def test_steady_traffic_never_waits_for_a_resolver(clock: Clock) -> None:
    resolver = orders_at(A)
    cache = cache_of(clock, resolver)
    await cache.pick(ORDERS)

    for _ in range(100):
        clock.now += 0.1
        assert cache.pick_cached(ORDERS) == A
        await settle()

    assert 15 <= len(resolver.asked) <= 25


async def test_a_slow_refresh_is_asked_once_and_does_not_stop_calls(clock: Clock) -> None:
    resolver = orders_at(A)
    cache = cache_of(clock, resolver)
    await cache.pick(ORDERS)
    resolver.gate = asyncio.Event()
    resolver.places["orders"] = [B]

    clock.now += REFRESH_S
    assert cache.pick_cached(ORDERS) == A
    clock.now += HIT_S
    assert cache.pick_cached(ORDERS) == A
    await settle()
    assert resolver.asked == ["orders"] * 2
    clock.now += OVERTIME_S
    assert cache.pick_cached(ORDERS) is None

    resolver.gate.set()
    assert await cache.pick(ORDERS) == B
    assert resolver.asked == ["orders"] * 2


async def test_a_hundred_callers_of_an_unknown_name_ask_once(clock: Clock) -> None:
    resolver = FakeResolver(gate=asyncio.Event())
    cache = cache_of(clock, resolver)
    calls = [asyncio.create_task(missed(cache)) for _ in range(100)]
    await settle()
    assert resolver.gate is not None
    resolver.gate.set()

    errors = await asyncio.gather(*calls)

    assert resolver.asked == ["orders"]
    assert len({id(error) for error in errors}) == 100


async def test_a_caller_that_goes_away_does_not_take_the_answer_from_others(clock: Clock) -> None:
    resolver = orders_at(A, gate=asyncio.Event())
    cache = cache_of(clock, resolver)
    first = asyncio.create_task(cache.pick(ORDERS))
    second = asyncio.create_task(cache.pick(ORDERS))
    await settle()

    first.cancel()
    assert resolver.gate is not None
    resolver.gate.set()

    assert await second == A
    assert first.cancelled()


async def test_closing_ends_waiting_callers(clock: Clock) -> None:
    resolver = orders_at(A, gate=asyncio.Event())
    cache = cache_of(clock, resolver)
    waiting = asyncio.create_task(cache.pick(ORDERS))
    await settle()

    await cache.aclose()

    with pytest.raises(ResolverFailed, match="broken off"):
        await waiting
    assert resolver.life == ["aclose"]


async def test_nothing_negative_is_kept(clock: Clock) -> None:
    resolver = FakeResolver()
    cache = cache_of(clock, resolver)
    await missed(cache)

    resolver.places["orders"] = [A]

    assert await cache.pick(ORDERS) == A


@pytest.mark.rule("N-51")
async def test_namespaces_are_kept_apart_and_spellings_are_not(clock: Clock) -> None:
    resolver = orders_at(A)
    cache = cache_of(clock, resolver)
    await cache.pick(Target("orders", "default", "orders"))

    assert cache.pick_cached(Target("orders", "default", "orders.default")) == A
    assert cache.pick_cached(Target("orders", "green", "orders.green")) is None


async def test_endpoints_take_turns_also_over_refreshes(clock: Clock) -> None:
    cache = cache_of(clock, orders_at(A, B, C))

    picked = []
    for _ in range(6):
        picked.append(await cache.pick(ORDERS))
        clock.now += 2

    assert picked == [A, B, C, A, B, C]


async def test_callers_begin_at_different_endpoints() -> None:
    begun = set()
    for _ in range(60):
        cache = NameCache([orders_at(A, B)], spawn=spawn)
        begun.add(await cache.pick(ORDERS))

    assert begun == {A, B}


@pytest.mark.rule("N-13")
async def test_a_further_attempt_gets_an_endpoint_that_was_not_tried(clock: Clock) -> None:
    cache = cache_of(clock, orders_at(A, B, C))
    first = await cache.pick(ORDERS)

    second = await cache.pick(ORDERS, [first])
    third = await cache.pick(ORDERS, [first, second])

    assert {first, second, third} == {A, B, C}
    assert await cache.pick(ORDERS, [A, B, C]) in {A, B, C}


@pytest.mark.rule("N-13")
async def test_a_peer_that_moved_is_found_by_the_next_attempt(clock: Clock) -> None:
    resolver = orders_at(A)
    cache = cache_of(clock, resolver)
    assert await cache.pick(ORDERS) == A
    resolver.places["orders"] = [B]

    cache.set_aside(A)
    cache.forget(ORDERS)

    assert cache.pick_cached(ORDERS) is None
    assert await cache.pick(ORDERS, [A]) == B


async def test_a_refused_endpoint_is_passed_over_for_five_seconds(clock: Clock) -> None:
    cache = cache_of(clock, orders_at(A, B))
    await cache.pick(ORDERS)
    cache.set_aside(A)

    assert {await cache.pick(ORDERS) for _ in range(6)} == {B}
    clock.now += SET_ASIDE_S - 0.1
    assert {await cache.pick(ORDERS) for _ in range(6)} == {B}
    clock.now += 0.1
    assert {await cache.pick(ORDERS) for _ in range(6)} == {A, B}


async def test_those_left_share_the_turns_of_a_refused_one(clock: Clock) -> None:
    cache = cache_of(clock, orders_at(A, B, C))
    cache.set_aside(A)

    assert [await cache.pick(ORDERS) for _ in range(6)] == [B, C, B, C, B, C]


async def test_when_all_are_set_aside_an_untried_one_is_used_anyway(clock: Clock) -> None:
    cache = cache_of(clock, orders_at(A, B))
    for endpoint in (A, B):
        cache.set_aside(endpoint)

    assert {await cache.pick(ORDERS) for _ in range(4)} == {A, B}
    assert {await cache.pick(ORDERS, {A}) for _ in range(4)} == {B}
    assert {await cache.pick(ORDERS, {A, B}) for _ in range(4)} == {A, B}


async def test_an_only_endpoint_is_used_even_if_it_refused_just_now(clock: Clock) -> None:
    cache = cache_of(clock, orders_at(A))
    cache.set_aside(A)

    assert await cache.pick(ORDERS, [A]) == A
    assert cache.pick_cached(ORDERS, [A]) == A


@given(
    endpoints=st.lists(st.integers(1, 6).map(lambda port: Endpoint("h", port)), min_size=1, max_size=6, unique=True),
    aside=st.sets(st.integers(1, 6)),
    avoid=st.sets(st.integers(1, 6)),
    begin=st.integers(0, 5),
)
def test_the_pick_is_as_good_as_can_be(
    endpoints: list[Endpoint], aside: Iterable[int], avoid: Iterable[int], begin: int
) -> None:
    """Untried and not set aside, if there is such a one; else untried; else any."""

    async def pick() -> Endpoint:
        cache = NameCache([orders_at(*endpoints)], spawn=spawn, clock=Clock(), first=lambda _: begin)
        for port in aside:
            cache.set_aside(Endpoint("h", port))
        return await cache.pick(ORDERS, {Endpoint("h", port) for port in avoid})

    picked = asyncio.run(pick())

    def rank(endpoint: Endpoint) -> tuple[bool, bool]:
        tried = endpoint.port in avoid
        return tried, not tried and endpoint.port in aside

    assert rank(picked) == min(map(rank, endpoints))


async def test_resolvers_are_asked_in_order_and_the_first_that_knows_wins(clock: Clock) -> None:
    one, two, three = FakeResolver("one"), orders_at(A, name="two"), orders_at(B, name="three")
    cache = cache_of(clock, one, two, three)

    assert await cache.pick(ORDERS) == A

    assert (one.asked, two.asked, three.asked) == (["orders"], ["orders"], [])


async def test_a_failing_resolver_is_reported_once_a_minute_and_the_next_is_asked(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(clock, FakeResolver("one", broken=True), orders_at(A, name="two"))

    for _ in range(30):
        assert await cache.pick(ORDERS) == A
        clock.now += 1.9

    assert [record.getMessage() for record in caplog.records] == ["one failed: one is broken"]
    clock.now += 10
    await cache.pick(ORDERS)
    assert len(caplog.records) == 2


async def test_if_no_resolver_can_answer_the_name_is_not_called_unknown(clock: Clock) -> None:
    cache = cache_of(clock, FakeResolver("one", broken=True))

    with pytest.raises(ResolverFailed, match="one is broken"):
        await cache.pick(ORDERS)


@pytest.mark.rule("N-35")
async def test_a_miss_has_the_text_of_the_last_resolver_and_says_who_was_asked_and_what_is_known(
    clock: Clock,
) -> None:
    one = FakeResolver("local registry", places={"billing": [A], "Orders": [B]})
    two = FakeResolver("sqlite", places={"billing": [A], "über.green": [C]}, text="no host found with the given ID")

    error = await missed(cache_of(clock, one, two))

    assert error.text == "no host found with the given ID"
    assert error.cause is Cause.NAME_UNKNOWN
    assert error.hint.startswith('did you mean "Orders"? names are case-sensitive; asked: local registry, sqlite; ')
    assert error.hint.endswith("; known now: Orders, billing, %C3%BCber.green")
    assert not error.lately_known


@pytest.mark.rule("N-9")
async def test_without_any_resolver_that_is_said() -> None:
    error = await missed(NameCache([], spawn=spawn))

    assert error.text == "name resolver not initialized"


@pytest.mark.parametrize(("gone_for", "lately"), [(0.0, True), (LATELY_S - 0.1, True), (LATELY_S, False)])
async def test_a_name_that_was_known_just_now_may_come_back(clock: Clock, gone_for: float, lately: bool) -> None:
    resolver = orders_at(A)
    cache = cache_of(clock, resolver)
    await cache.pick(ORDERS)
    del resolver.places["orders"]
    cache.forget(ORDERS)

    clock.now += gone_for
    error = await missed(cache)

    assert error.lately_known is lately
    assert f"last seen {gone_for:.0f} s ago" in error.hint


async def test_a_name_that_a_refresh_finds_gone_is_gone(clock: Clock) -> None:
    resolver = orders_at(A)
    cache = cache_of(clock, resolver)
    await cache.pick(ORDERS)
    del resolver.places["orders"]
    clock.now += REFRESH_S
    assert cache.pick_cached(ORDERS) == A

    await settle()

    assert cache.pick_cached(ORDERS) is None
    assert (await missed(cache)).lately_known


async def test_a_refresh_that_fails_keeps_what_is_known_for_its_time(clock: Clock) -> None:
    resolver = orders_at(A)
    cache = cache_of(clock, resolver)
    await cache.pick(ORDERS)
    resolver.broken = True
    clock.now += REFRESH_S

    assert cache.pick_cached(ORDERS) == A
    await settle()
    assert cache.pick_cached(ORDERS) == A
    await settle()
    clock.now += REFRESH_S
    assert cache.pick_cached(ORDERS) is None


async def test_names_and_refused_endpoints_are_bounded(clock: Clock) -> None:
    names = [f"app-{number}" for number in range(MAX_NAMES + 10)]
    resolver = FakeResolver(places=dict.fromkeys(names, (A,)))
    cache = cache_of(clock, resolver)

    for name in names:
        await cache.pick(target(name))
    for port in range(MAX_SET_ASIDE + 10):
        cache.set_aside(Endpoint("h", port))

    assert sum(cache.pick_cached(target(name)) is not None for name in names) == MAX_NAMES
    assert cache.pick_cached(target(names[-1])) == A
    assert len(cache._aside) == MAX_SET_ASIDE


async def test_the_resolvers_live_with_the_cache(clock: Clock) -> None:
    one, two = FakeResolver("one"), FakeResolver("two")
    cache = cache_of(clock, one, two)

    await cache.start()
    await cache.announce()
    await cache.withdraw()
    await cache.aclose()

    assert one.life == two.life == ["start", "announce", "withdraw", "aclose"]
    assert cache.name == "one, two"


def test_a_hint_shows_ten_names_and_how_many_more_there_are() -> None:
    hint = miss_hint("local registry", target("x"), [f"app-{number:02}" for number in range(25)])

    assert hint.endswith("app-08, app-09 and 15 more")
    assert "app-10" not in hint


@pytest.mark.parametrize(
    ("wanted", "known", "question"),
    [
        ("Node", ["node", "shop"], 'did you mean "node"? names are case-sensitive; asked: r; known now: node, shop'),
        ("nodd", ["node", "shop"], 'did you mean "node"?; asked: r; known now: node, shop'),
        ("node", ["node.blue"], 'did you mean "node.blue"?; asked: r; known now: node.blue'),
        ("sh op", ["sh%op"], 'did you mean "sh%25op"?; asked: r; known now: sh%25op'),
        ("node", ["shop"], "asked: r; known now: shop"),
        ("ftp://node", ["shop"], "a URL must begin with http:// or https://; asked: r; known now: shop"),
        ("node", ["node"], "asked: r; known now: node"),
    ],
)
def test_a_hint_begins_with_the_name_that_was_most_likely_meant(wanted: str, known: list[str], question: str) -> None:
    assert miss_hint("r", target(wanted), known) == question


def test_a_hint_without_any_known_name_says_what_to_look_at() -> None:
    assert miss_hint("local registry", target("x"), []) == (
        "asked: local registry; no other app is known; is the app running, with its sidecar?"
    )


@given(st.text(), st.text(), st.lists(st.text(st.characters(codec=None), max_size=300), max_size=30))
def test_a_hint_is_one_short_line_whatever_others_call_themselves(asked: str, wanted: str, known: list[str]) -> None:
    asked = asked.encode("ascii", "ignore").decode()[:100].replace("\n", " ")
    hint = miss_hint(asked, target(wanted), known)

    assert len(hint.encode()) <= MAX_HINT_BYTES
    shown = hint.partition("known now: ")[2]
    assert shown.isascii()
    assert shown.isprintable()
