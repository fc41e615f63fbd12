"""The resolver on recorded and crafted packets, in a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.mdns import (
    ELSEWHERE,
    ETHERNET,
    HERE,
    LOOPBACK,
    RECORDED,
    FakeAir,
    Timers,
    arrival,
    is_own,
    settle,
)
from tests.support.names import facts, spawn, target
from tieline.errors import ConfigError, ResolverFailed, UnknownTarget
from tieline.names.builtin import RESOLVERS
from tieline.names.mdns.finder import FIRST_S
from tieline.names.mdns.links import Arrival
from tieline.names.mdns.resolver import ASKED_AT_ONCE, MAX_BROWSES, TICK_S, MdnsResolver
from tieline.names.mdns.responder import Registration, Responder
from tieline.names.resolver import create
from tieline.wire.dns import PTR, Address, Message, Question, render

ORDERS_ASKED = render(Message(questions=[Question((b"orders", b"local"), PTR)]))
UNICAST_ASKED = render(Message(questions=[Question((b"orders", b"local"), PTR, True)]))


def announcement(app_id: str, port: int, address: str = "127.0.0.1", pid: int = 1, namespace: str = "default") -> bytes:
    return render(Responder(Registration(app_id, namespace, "box", pid, address, port)).announcement())


def goodbye(app_id: str, port: int) -> bytes:
    return render(Responder(Registration(app_id, "default", "box", 1, "127.0.0.1", port)).goodbye())


class World:
    """A resolver on air of its own. It announces app ``orders`` of process 32250."""

    def __init__(self, *, links: Sequence[Any] = (LOOPBACK,), trust: bool = False, **changes: Any) -> None:
        self.timers = Timers()
        self.air = FakeAir(self.timers, list(links))
        self.waits: list[float] = []
        self.address = "127.0.0.1"
        given = facts(pid=32250, announced_address=lambda: self.address, **changes)
        self.resolver = MdnsResolver(
            given,
            trust_network=trust,
            air=self.air,
            timers=self.timers,
            is_own=is_own,
            jitter=self._jitter,
            host="box",
        )

    def _jitter(self, most: float) -> float:
        self.waits.append(most)
        return most / 2

    async def started(self, *, announced: bool = False) -> World:
        await self.resolver.start()
        if announced:
            await self.resolver.announce()
            await self.timers.advance(2.0)
            self.air.sent.clear()
        return self

    def look_up(self, app_id: str, namespace: str = "default") -> asyncio.Task[str]:
        """Look an app up; the result is its addresses, or the error's text."""

        async def outcome() -> str:
            try:
                return ", ".join(map(str, await self.resolver.resolve(target(app_id, namespace))))
            except (UnknownTarget, ResolverFailed) as error:
                return error.text

        return asyncio.get_running_loop().create_task(outcome())

    async def found(self, app_id: str, namespace: str = "default") -> str:
        """Return the outcome of a look-up that must not wait."""
        task = self.look_up(app_id, namespace)
        await settle()
        assert task.done()
        return task.result()

    def answer(self, packets: Sequence[tuple[float, bytes | str]], came: Arrival | None = None) -> None:
        """Answer each question with packets, some seconds after it."""

        def on_question(_: Message) -> None:
            for delay, packet in packets:
                self.timers.call_later(delay, self.air.bring, packet, came)

        self.air.on_question = on_question


# --- looking up ---


def by_name(case: dict[str, Any]) -> str:
    return str(case["name"])


@pytest.mark.rule("N-10", "N-22", "N-23", "N-24", "N-26", "N-29")
@pytest.mark.parametrize("case", RECORDED["accepted"], ids=by_name)
async def test_recorded_answers_are_taken_as_daprd_took_them(case: dict[str, Any]) -> None:
    world = await World().started()
    world.answer([(packet["delay_s"], packet["hex"]) for packet in case["packets"]])
    began = world.timers.now

    look_up = world.look_up(case["app"])
    await settle()
    while not look_up.done():
        await world.timers.advance(0.01)

    took = world.timers.now - began
    if not case["found_at_first"]:
        assert look_up.result() == f"couldn't find service: {case['app']}"
        assert took == pytest.approx(FIRST_S, abs=0.02)
        assert await world.found(case["app"]) == look_up.result()  # at once, where daprd waits for 2 s
        return
    await world.timers.advance(3.0)
    first_hit = max(packet["delay_s"] for packet in case["packets"])
    assert took == pytest.approx(first_hit if first_hit != 0.3 else 0.0, abs=0.02)
    ipv4 = [address for address in case["cached"] if address.count(":") == 1]
    ipv6 = [f"[{address.rpartition(':')[0]}]:{address.rpartition(':')[2]}" for address in case["cached"]]
    assert (await world.found(case["app"])).split(", ") == (ipv4 or ipv6)


@pytest.mark.rule("N-22")
async def test_a_question_is_daprds_but_for_its_id_and_sent_twice_on_each_interface() -> None:
    world = await World(links=[LOOPBACK, ETHERNET]).started()

    look_up = world.look_up("nobody")
    await settle()
    asked = world.air.questions()

    assert {sent.packet.hex()[4:] for sent in asked} == {packet[4:] for packet in RECORDED["questions"]}
    assert [sent.link for sent in asked] == [LOOPBACK, ETHERNET] * 2
    await world.timers.advance(FIRST_S)
    assert look_up.result() == "couldn't find service: nobody"
    assert len(world.air.questions()) == 4


@pytest.mark.rule("N-26", "N-29")
async def test_a_miss_takes_a_second_and_is_then_told_at_once_for_a_second() -> None:
    world = await World().started()
    look_up = world.look_up("nobody")
    await world.timers.advance(FIRST_S - 0.01)
    assert not look_up.done()
    await world.timers.advance(0.01)
    assert look_up.result() == "couldn't find service: nobody"

    assert await world.found("nobody") == "couldn't find service: nobody"
    assert len(world.air.questions()) == 2
    await world.timers.advance(1.0)
    again = world.look_up("nobody")
    await settle()
    assert not again.done()
    assert len(world.air.questions()) == 4
    await world.timers.advance(FIRST_S)
    assert again.done()


@pytest.mark.rule("N-26")
async def test_look_ups_at_one_time_share_one_browse_and_one_that_is_given_up_harms_no_other() -> None:
    world = await World().started()
    look_ups = [world.look_up("orders2") for _ in range(3)]
    await settle()
    look_ups[0].cancel()
    await world.timers.advance(0.5)

    world.air.bring(announcement("orders2", 7))
    await settle()

    assert [look_up.result() for look_up in look_ups[1:]] == ["127.0.0.1:7"] * 2
    assert look_ups[0].cancelled()
    assert len(world.air.questions()) == 2 + 2  # and once more for further instances


@pytest.mark.rule("N-25", "N-27")
async def test_after_the_first_answer_it_is_asked_for_more_instances() -> None:
    world = await World().started()
    look_up = world.look_up("many")
    await settle()
    world.air.bring(announcement("many", 1))
    await settle()
    assert look_up.result() == "127.0.0.1:1"
    assert len(world.air.questions()) == 4

    world.air.bring(announcement("many", 2, pid=2))
    assert await world.found("many") == "127.0.0.1:1, 127.0.0.1:2"


@pytest.mark.rule("N-28")
async def test_known_apps_are_asked_after_every_30_s_and_those_that_fall_silent_go() -> None:
    world = await World().started()
    world.answer([(0.0, announcement("many", 1)), (0.0, announcement("many", 2, pid=2))])
    look_up = world.look_up("many")
    await world.timers.advance(0.0)
    assert look_up.done()
    world.answer([(0.0, announcement("many", 2, pid=2))])
    world.air.sent.clear()

    began = world.timers.now
    for _ in range(3):
        await world.timers.advance(TICK_S)
        assert await world.found("many")

    assert {sent.at - began for sent in world.air.questions()} == {30.0, 60.0, 90.0}
    assert await world.found("many") == "127.0.0.1:2"


async def test_many_known_apps_are_asked_after_some_at_a_time() -> None:
    world = await World().started()
    names = [f"app{number}" for number in range(ASKED_AT_ONCE + 1)]
    look_ups = [world.look_up(name) for name in names]
    await settle()
    for name in names:
        world.air.bring(announcement(name, 1))
    await settle()
    assert all(look_up.done() for look_up in look_ups)
    world.air.sent.clear()

    await world.timers.advance(TICK_S)
    assert len(world.air.questions()) == 2 * ASKED_AT_ONCE
    await world.timers.advance(0.1)
    assert len(world.air.questions()) == 2 * len(names)


@pytest.mark.rule("N-23")
async def test_what_was_announced_before_the_first_look_up_does_not_count() -> None:
    world = await World().started()
    world.air.bring(announcement("unasked", 1))

    look_up = world.look_up("unasked")
    await world.timers.advance(FIRST_S)

    assert look_up.result() == "couldn't find service: unasked"


async def test_an_app_that_comes_just_after_a_miss_is_found_by_the_next_look_up() -> None:
    world = await World().started()
    look_up = world.look_up("late")
    await world.timers.advance(1.3)
    assert look_up.result() == "couldn't find service: late"

    world.air.bring(announcement("late", 7))

    assert await world.found("late") == "127.0.0.1:7"


async def test_an_app_that_goes_is_looked_for_anew() -> None:
    world = await World().started()
    world.answer([(0.0, announcement("late", 7))])
    look_up = world.look_up("late")
    await world.timers.advance(0.0)
    assert look_up.result() == "127.0.0.1:7"
    assert await world.resolver.known() == ["late"]
    world.air.on_question = None

    world.air.bring(goodbye("late", 7))

    again = world.look_up("late")
    await world.timers.advance(FIRST_S)
    assert again.result() == "couldn't find service: late"
    assert await world.resolver.known() == []


async def test_without_a_network_a_miss_takes_no_time_and_the_network_is_used_when_it_comes() -> None:
    world = await World(links=[]).started(announced=True)
    assert await world.found("other") == "couldn't find service: other"

    world.air.comes_next = [ETHERNET]
    await world.timers.advance(TICK_S)
    assert [sent.link for sent in world.air.sent] == [ETHERNET]  # announced there
    world.answer([(0.0, announcement("other", 7))])
    look_up = world.look_up("other")
    await world.timers.advance(0.0)

    assert look_up.result() == "127.0.0.1:7"


async def test_a_network_that_has_just_come_is_used_by_a_look_up_before_the_next_tick() -> None:
    world = await World(links=[]).started()
    world.air.comes_next = [ETHERNET]
    world.answer([(0.0, announcement("other", 7))])

    look_up = world.look_up("other")
    await world.timers.advance(0.0)

    assert look_up.result() == "127.0.0.1:7"


@pytest.mark.rule("N-51", "N-53")
async def test_a_namespace_waits_for_an_instance_of_its_own() -> None:
    world = await World().started()
    blue, plain = world.look_up("shop", "blue"), world.look_up("shop")
    await settle()

    world.air.bring(announcement("shop", 1, namespace="red"))
    await settle()
    assert not blue.done()
    assert not plain.done()
    world.air.bring(announcement("shop", 2, pid=2, namespace="blue"))
    await world.timers.advance(FIRST_S)

    assert blue.result() == "127.0.0.1:2"
    assert plain.result() == "couldn't find service: shop"
    assert await world.resolver.known() == ["shop.blue", "shop.red"]


@pytest.mark.parametrize("app_id", ["x" * 64, ""])
async def test_an_id_that_no_dns_name_can_hold_is_unknown_at_once(app_id: str) -> None:
    world = await World().started()

    assert await world.found(app_id) == f"couldn't find service: {app_id}"


async def test_only_so_many_apps_are_looked_for_at_one_time() -> None:
    world = await World().started()
    look_ups = [world.look_up(f"app{number}") for number in range(MAX_BROWSES)]
    await settle()

    assert await world.found("one-more") == f"more than {MAX_BROWSES} look-ups at a time by mDNS"
    await world.timers.advance(FIRST_S)
    assert all(look_up.done() for look_up in look_ups)


async def test_a_resolver_that_is_closed_leaves_nobody_waiting_and_nothing_behind() -> None:
    world = await World().started(announced=True)
    look_up = world.look_up("nobody")
    await settle()

    await world.resolver.aclose()
    await world.resolver.aclose()
    await settle()

    assert look_up.result() == "couldn't find service: nobody"
    assert not world.air.is_open
    assert world.timers.open == 0
    assert await world.found("other") == "couldn't find service: other"


# --- whom it believes ---


@pytest.mark.parametrize(
    ("address", "came", "here", "network"),
    [
        ("127.0.0.1", arrival(), True, True),
        (HERE, arrival(), True, True),
        (HERE, arrival(link=ETHERNET), True, True),
        (HERE, arrival(multicast=False), True, True),
        (ELSEWHERE, arrival(), False, True),
        (ELSEWHERE, arrival(ELSEWHERE, link=ETHERNET), False, True),
        (HERE, arrival(ELSEWHERE, link=ETHERNET), False, True),
        # another host's loopback would be taken for ours
        ("127.0.0.1", arrival(ELSEWHERE, link=ETHERNET), False, False),
        ("::1", arrival(ELSEWHERE, link=ETHERNET), False, False),
    ],
)
@pytest.mark.parametrize("trust", [False, True])
async def test_an_answer_counts_only_from_and_for_this_host_unless_the_network_is_trusted(
    address: str, came: Arrival, here: bool, network: bool, trust: bool
) -> None:
    world = await World(links=[LOOPBACK, ETHERNET], trust=trust).started()
    world.answer([(0.0, announcement("other", 7, address))], came)

    look_up = world.look_up("other")
    await world.timers.advance(FIRST_S)

    assert (look_up.result() != "couldn't find service: other") == (network if trust else here)


@pytest.mark.rule("N-55")
@pytest.mark.parametrize(("trust", "hops"), [(False, 0), (True, 1)])
async def test_questions_leave_this_host_only_if_the_network_is_trusted(trust: bool, hops: int) -> None:
    world = await World(links=[LOOPBACK, ETHERNET], trust=trust).started()

    look_up = world.look_up("other")
    await world.timers.advance(FIRST_S)

    assert look_up.done()
    assert {(sent.link, sent.hops) for sent in world.air.questions()} == {(LOOPBACK, 1), (ETHERNET, hops)}


@pytest.mark.parametrize(
    "packet",
    [b"", bytes(11), bytes(9000), b"\xff" * 9000, b"orders" * 1500, announcement("orders2", 1)[:-1]],
    ids=len,
)
async def test_packets_that_are_no_messages_do_no_harm(packet: bytes) -> None:
    world = await World().started(announced=True)
    look_up = world.look_up("orders2")
    await settle()

    world.air.bring(packet)
    world.air.bring(announcement("orders2", 7))
    await settle()

    assert look_up.result() == "127.0.0.1:7"


@pytest.mark.parametrize("trust", ["maybe", 1, None, ["true"]])
def test_a_trust_that_is_neither_true_nor_false_is_refused(trust: object) -> None:
    with pytest.raises(
        ConfigError, match=r"\(mdns/v1\): invalid value for 'trustNetwork'.*write true or false; correct"
    ):
        create(Spec({"trustNetwork": trust}), facts(), spawn, RESOLVERS)


@pytest.mark.rule("N-4", "N-17")
@pytest.mark.parametrize("configuration", [None, {}, {"trustnetwork": True}, {"TrustNetwork": " TRUE"}, {"other": []}])
def test_the_configuration_may_be_left_out_and_keys_are_read_in_any_case(configuration: object) -> None:
    assert create(Spec(configuration), facts(), spawn, RESOLVERS).name == "mDNS"


@pytest.mark.rule("N-17")
@pytest.mark.parametrize(
    ("changes", "cause"), [({"app_id": ""}, "name is missing"), ({"internal_port": 0}, "port is missing or invalid")]
)
def test_a_missing_fact_is_refused_in_daprs_words(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[INIT_COMPONENT_FAILURE\]: .*\(mdns/v1\): {cause}; "):
        create(Spec(None), facts(**changes), spawn, RESOLVERS)


@pytest.mark.parametrize("configuration", ["text", ["a", "list"], 3])
def test_a_configuration_that_is_no_mapping_is_refused(configuration: object) -> None:
    with pytest.raises(ConfigError, match="input object cannot be cast"):
        create(Spec(configuration), facts(), spawn, RESOLVERS)


@dataclass
class Spec:
    configuration: object
    component: str = "mdns"
    version: str = ""


# --- what it tells ---


@pytest.mark.rule("N-7", "N-19", "N-55")
async def test_the_app_is_probed_for_twice_and_announced_twice() -> None:
    world = await World().started()
    await world.timers.advance(5.0)
    assert world.air.sent == []

    began = world.timers.now
    await world.resolver.announce()
    await world.resolver.announce()
    await world.timers.advance(10.0)

    kinds = ["probe" if sent.message.questions else "announcement" for sent in world.air.sent]
    assert kinds == ["probe", "probe", "announcement", "announcement"]
    assert world.waits == [0.25] * 3
    assert [sent.at - began for sent in world.air.sent] == pytest.approx([0.125, 0.25, 0.375, 1.375])
    assert len({sent.message.id for sent in world.air.sent[:2]}) == 1
    assert {sent.hops for sent in world.air.sent} == {1}


@pytest.mark.rule("N-20", "N-55")
@pytest.mark.parametrize("case", RECORDED["responder"], ids=by_name)
async def test_recorded_questions_are_answered_to_the_asker_or_to_all_as_daprd_did(case: dict[str, Any]) -> None:
    world = await World().started(announced=True)

    world.air.bring(case["query"], arrival(port=57094, multicast=case["to_group"]))

    to_all = [(sent.packet.hex(), False, sent.hops) for sent in world.air.sent]
    to_one = [(packet.hex(), True, 64) for packet, _ in world.air.sent_back]
    assert to_all + to_one == [(answer["hex"], answer["unicast"], answer["hops"]) for answer in case["answers"]]
    assert all(to.address == (HERE, 57094) for _, to in world.air.sent_back)


async def test_questions_are_answered_as_soon_as_the_app_may_be_called_and_not_before_or_after() -> None:
    world = await World().started()
    world.air.bring(ORDERS_ASKED)
    assert world.air.sent == []

    await world.resolver.announce()
    world.air.bring(ORDERS_ASKED)
    assert len(world.air.sent) == 1

    await world.resolver.withdraw()
    world.air.sent.clear()
    world.air.bring(ORDERS_ASKED)
    await world.timers.advance(5.0)
    assert world.air.sent == []


@pytest.mark.rule("N-21")
async def test_a_goodbye_is_said_once() -> None:
    world = await World().started(announced=True)

    await world.resolver.withdraw()
    await world.resolver.withdraw()
    await world.resolver.aclose()

    assert [{record.ttl for record in sent.message.answers} for sent in world.air.sent] == [{0}]


async def test_one_that_was_never_announced_says_no_goodbye() -> None:
    world = await World().started()

    await world.resolver.withdraw()
    await world.resolver.aclose()

    assert world.air.sent == []


async def test_what_listens_on_loopback_is_told_to_this_host_only_and_not_under_the_hosts_name() -> None:
    """Another responder of this host may say what ``box.local`` means."""
    world = await World(links=[LOOPBACK, ETHERNET]).started()
    await world.resolver.announce()
    await world.timers.advance(2.0)

    announced = [sent for sent in world.air.sent if not sent.message.questions]
    names = {
        (sent.link, sent.hops, record.name)
        for sent in announced
        for record in sent.message.answers
        if isinstance(record, Address)
    }
    assert names == {(LOOPBACK, 1, (b"box", b"local")), (ETHERNET, 0, (b"box-loopback", b"local"))}


async def test_what_listens_on_loopback_is_told_to_no_other_host_that_asks() -> None:
    world = await World(links=[LOOPBACK, ETHERNET]).started(announced=True)

    world.air.bring(ORDERS_ASKED, arrival(ELSEWHERE, link=ETHERNET))
    world.air.bring(UNICAST_ASKED, arrival(ELSEWHERE, link=ETHERNET))
    assert (world.air.sent, world.air.sent_back) == ([], [])

    world.air.bring(ORDERS_ASKED, arrival(HERE, link=ETHERNET))
    assert [(sent.link, sent.hops) for sent in world.air.sent] == [(ETHERNET, 0)]


async def test_what_listens_on_the_network_is_told_to_the_network_but_not_to_who_asks_from_afar() -> None:
    world = World(links=[LOOPBACK, ETHERNET])
    world.address = HERE
    await world.started(announced=True)

    world.air.bring(ORDERS_ASKED, arrival(ELSEWHERE, link=ETHERNET))
    assert [(sent.link, sent.hops) for sent in world.air.sent] == [(ETHERNET, 1)]
    world.air.bring(UNICAST_ASKED, arrival(ELSEWHERE, link=ETHERNET))
    assert len(world.air.sent_back) == 1

    world.air.bring(UNICAST_ASKED, arrival("203.0.113.9", link=ETHERNET, multicast=False))
    assert len(world.air.sent_back) == 1


async def test_a_change_of_address_is_told_at_the_tick() -> None:
    world = World(links=[ETHERNET])
    world.address = HERE
    await world.started(announced=True)

    world.address = "10.77.0.2"
    await world.timers.advance(TICK_S)

    said = [
        (record.address, record.ttl > 0)
        for sent in world.air.sent
        for record in sent.message.answers
        if isinstance(record, Address)
    ]
    assert said == [(HERE, False), ("10.77.0.2", True)]
    await world.timers.advance(3 * TICK_S)
    assert len(world.air.sent) == 2


async def test_an_idle_resolver_sends_nothing_and_wakes_every_30_s_only() -> None:
    world = await World().started(announced=True)

    assert world.timers.open == 1
    await world.timers.advance(10 * TICK_S)

    assert world.air.sent == []
    assert world.timers.open == 1


async def test_an_id_too_long_for_a_dns_name_is_not_announced_and_everything_else_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = await World(app_id="x" * 64).started(announced=True)

    assert "cannot be announced" in caplog.text
    look_up = world.look_up("other")
    await settle()
    world.air.bring(announcement("other", 7))
    await settle()
    assert look_up.result() == "127.0.0.1:7"
