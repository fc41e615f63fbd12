"""What answers count, for how long, and how much is kept."""

from __future__ import annotations

import pytest

from tests.support.mdns import HERE, is_own
from tieline.model import Endpoint
from tieline.names.mdns.finder import KEEP_S, MAX_APPS, MAX_ENDPOINTS, MISS_S, WANTED_S, Finder
from tieline.names.mdns.responder import Registration, Responder
from tieline.wire.dns import Address, Message, Name, Record, Service, Text

ORDERS, DEFAULT = b"orders", b"default"
BOX = (b"box", b"local")


def told(
    app_id: str = "orders", *, pid: int = 1, address: str = "127.0.0.1", port: int = 3502, namespace: str = "default"
) -> Message:
    """Return the announcement of an instance."""
    return Responder(Registration(app_id, namespace, "box", pid, address, port)).announcement()


def gone(pid: int = 1, port: int = 3502) -> Message:
    return Responder(Registration("orders", "default", "box", pid, "127.0.0.1", port)).goodbye()


def finder(*wanted: bytes, now: float = 0.0) -> Finder:
    it = Finder()
    for app_id in wanted or (ORDERS,):
        it.want(app_id, now)
        it.ask(app_id)
    return it


def hear(it: Finder, *messages: Message, now: float = 0.0) -> list[bytes]:
    return [app_id for message in messages for app_id in it.hear(message, now, is_own)]


def found(it: Finder, namespace: bytes = DEFAULT, now: float = 0.0) -> list[str]:
    return list(map(str, it.endpoints(ORDERS, namespace, now)))


@pytest.mark.rule("N-25")
def test_all_instances_are_found_in_the_order_in_which_they_answered() -> None:
    it = finder()

    assert hear(it, told(pid=2, port=2), told(pid=1, port=1), told(pid=3, port=3)) == [ORDERS] * 3
    assert found(it) == ["127.0.0.1:2", "127.0.0.1:1", "127.0.0.1:3"]


@pytest.mark.rule("N-23")
def test_an_app_that_nobody_asked_for_is_not_remembered() -> None:
    it = Finder()

    assert hear(it, told()) == []
    assert found(it) == []
    assert it.known(0.0) == []


@pytest.mark.rule("N-28")
def test_an_address_is_used_for_a_minute_after_it_was_last_heard_of_and_not_a_moment_longer() -> None:
    it = finder()
    hear(it, told(), told(pid=2, port=2))
    hear(it, told(), now=30.0)

    assert found(it, now=KEEP_S - 0.1) == ["127.0.0.1:3502", "127.0.0.1:2"]
    assert found(it, now=KEEP_S) == ["127.0.0.1:3502"]
    assert found(it, now=30 + KEEP_S) == []


@pytest.mark.rule("N-21", "N-23")
def test_an_instance_that_says_goodbye_is_used_no_more() -> None:
    it = finder()
    hear(it, told(), told(pid=2, port=2))

    assert hear(it, gone()) == []
    assert found(it) == ["127.0.0.1:2"]


def test_a_goodbye_means_no_other_instance_of_the_same_name() -> None:
    """In containers every process may be number 1, and hosts may be named alike."""
    it = finder()
    hear(it, told())

    hear(it, gone(port=9))

    assert found(it) == ["127.0.0.1:3502"]


def test_an_instance_that_comes_back_elsewhere_is_found_as_soon_as_it_announces_itself() -> None:
    it = finder()
    hear(it, told(), gone(), told(port=4000))

    assert found(it) == ["127.0.0.1:4000"]


@pytest.mark.rule("N-23")
def test_the_first_answer_of_an_instance_counts_until_it_is_asked_again() -> None:
    it = finder()

    hear(it, told(), told(port=2))
    assert found(it) == ["127.0.0.1:3502"]

    it.ask(ORDERS)
    hear(it, told(port=2))
    assert found(it) == ["127.0.0.1:3502", "127.0.0.1:2"]


@pytest.mark.rule("N-24", "N-25")
def test_ipv6_is_used_where_there_is_no_ipv4_and_with_brackets() -> None:
    it = finder()

    hear(it, told(address="::1"))
    assert found(it) == ["[::1]:3502"]

    hear(it, told(pid=2))
    assert found(it) == ["127.0.0.1:3502"]


@pytest.mark.parametrize(
    "address", ["10.77.0.66", "192.0.2.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "fe80::1"]
)
def test_an_address_that_is_not_believed_or_means_no_host_is_left_out(address: str) -> None:
    it = finder()

    assert hear(it, told(address=address)) == []
    assert found(it) == []


def test_what_means_no_single_host_is_left_out_even_if_everything_is_believed() -> None:
    it = finder()
    for number, address in enumerate(["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "fe80::1"]):
        assert it.hear(told(pid=number, address=address), 0.0, lambda _: True) == []

    assert it.hear(told(address="10.77.0.66"), 0.0, lambda _: True) == [ORDERS]


def test_port_0_is_no_address() -> None:
    assert hear(finder(), told(port=0)) == []


@pytest.mark.rule("N-53")
def test_instances_of_another_namespace_are_left_out_and_those_of_the_right_one_preferred() -> None:
    it = finder()
    hear(it, told(pid=1, port=1), told(pid=2, port=2, namespace="blue"), told(pid=3, port=3, namespace="red"))

    assert found(it, b"blue") == ["127.0.0.1:2"]
    assert found(it, b"red") == ["127.0.0.1:3"]
    assert found(it, b"default") == ["127.0.0.1:1"]
    assert found(it, b"green") == ["127.0.0.1:1"]  # it does not say, so it may be
    assert it.known(0.0) == [(ORDERS, None), (ORDERS, b"blue"), (ORDERS, b"red")]


@pytest.mark.rule("N-29")
def test_a_miss_is_remembered_for_a_second_unless_the_app_answers_after_all() -> None:
    it = finder()
    it.miss(ORDERS, 0.0)

    assert it.is_missed(ORDERS, MISS_S - 0.01)
    assert not it.is_missed(ORDERS, MISS_S)
    hear(it, told(), now=0.3)
    assert not it.is_missed(ORDERS, 0.4)
    assert found(it, now=0.4) == ["127.0.0.1:3502"]


@pytest.mark.rule("N-28")
def test_at_the_tick_those_known_and_lately_looked_up_are_asked_after() -> None:
    it = finder(ORDERS, b"idle", b"nobody")
    hear(it, told(), told("idle"))
    assert it.tick(30.0) == [ORDERS, b"idle"]

    it.want(ORDERS, 290.0)
    hear(it, told(), told("idle"), now=290.0)
    assert it.tick(WANTED_S + 1) == [ORDERS]
    assert it.tick(WANTED_S + KEEP_S + 1) == []
    assert it.known(WANTED_S + KEEP_S + 1) == []


def test_only_so_many_apps_are_remembered_and_the_one_not_looked_up_for_longest_goes() -> None:
    it = finder(ORDERS, *(b"app%d" % number for number in range(MAX_APPS - 1)))
    hear(it, told())
    it.want(ORDERS, 1.0)

    it.want(b"one more", 1.0)
    it.want(b"and another", 1.0)

    assert found(it) == ["127.0.0.1:3502"]
    assert hear(it, told("app0"), told("app1")) == []
    assert hear(it, told("app2")) == [b"app2"]


def test_only_so_many_addresses_of_an_app_are_remembered() -> None:
    it = finder()
    hear(it, *(told(pid=number, port=number) for number in range(1, MAX_ENDPOINTS + 20)))

    assert len(found(it)) == MAX_ENDPOINTS


def test_records_of_one_instance_may_stand_in_any_section_and_order() -> None:
    instance: Name = (b"box:1", ORDERS, b"local")
    records: list[Record] = [
        Address(BOX, 1, HERE),
        Text(instance, 1, (ORDERS,)),
        Service(instance, 1, 5, BOX),
    ]
    for turn in range(3):
        a, b, c = records[turn:] + records[:turn]
        it = finder()
        assert hear(it, Message(answers=[a], authorities=[b], additionals=[c])) == [ORDERS]
        assert it.endpoints(ORDERS, DEFAULT, 0.0) == [Endpoint(HERE, 5)]


@pytest.mark.parametrize(
    "instance",
    [
        (ORDERS, b"local"),
        (b"box:1", b"shop", b"local"),
        (b"box:1", ORDERS, b"example"),
        (b"box:1", ORDERS, b"local", b"x"),
        (),
    ],
)
def test_what_only_looks_like_an_instance_of_the_app_is_none(instance: Name) -> None:
    records: list[Record] = [Service(instance, 1, 5, BOX), Text(instance, 1, (ORDERS,)), Address(BOX, 1, HERE)]

    assert hear(finder(), Message(answers=records)) == []
