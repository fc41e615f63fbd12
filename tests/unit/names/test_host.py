"""Where a host is reachable, and its derived port."""

from __future__ import annotations

import ipaddress

import pytest

from tieline.names.host import (
    announced_address,
    best_of,
    host_address,
    interface_addresses,
    internal_port,
    is_own_address,
    multicast_interfaces,
)


@pytest.mark.rule("N-6")
@pytest.mark.parametrize("given", ["10.1.2.3", "some-name", "[::1]", "not valid at all"])
def test_a_given_address_is_taken_as_it_stands(given: str) -> None:
    assert host_address({"DAPR_HOST_IP": given}) == given


@pytest.mark.rule("N-6")
def test_the_address_found_is_one_of_this_hosts_own() -> None:
    found = host_address({})

    assert found == "127.0.0.1" or not ipaddress.ip_address(found).is_loopback
    assert found in interface_addresses()


@pytest.mark.rule("N-6")
def test_what_most_others_can_reach_comes_first() -> None:
    best_first = ["8.8.8.8", "2606:4700::1", "192.168.1.7", "fd00::7", "fe80::1"]
    unusable = ["127.0.0.1", "::1", "0.0.0.0", "192.0.0.2", "nonsense", ""]

    for place, best in enumerate(best_first):
        assert best_of([*unusable, *reversed(best_first[place:])]) == best
    assert best_of(["fe80::1", "100.64.0.9"]) == "100.64.0.9"
    assert best_of(unusable) == ""


@pytest.mark.rule("H-5")
def test_a_derived_port_stays_and_is_in_its_range() -> None:
    ports = {internal_port(f"app-{number}", "/src", 1000, "box") for number in range(50)}

    assert internal_port("orders", "/src", 1000, "box") == internal_port("orders", "/src", 1000, "box")
    assert internal_port("orders", "/src", 1000, "box") == 53329  # 0x5ec8 % 18235 + 47300
    assert min(ports) >= 47300
    assert max(ports) < 65535
    assert len(ports) > 40


@pytest.mark.rule("N-5", "N-6", "N-16")
@pytest.mark.parametrize(
    ("listen", "given", "announced"),
    [
        (None, "", "127.0.0.1"),
        (None, "192.0.2.55", "127.0.0.1"),  # it listens on loopback only
        ("127.0.0.1", "192.0.2.55", "127.0.0.1"),
        ("localhost", "", "127.0.0.1"),
        ("[::1]", "192.0.2.55", "::1"),
        ("127.0.0.9", "", "127.0.0.9"),
        ("", "192.0.2.55", "192.0.2.55"),
        ("0.0.0.0", "fd00::7", "fd00::7"),
        ("[::]", "[fd00::7]", "fd00::7"),
        ("10.77.0.1", "", "10.77.0.1"),
        ("[fd00::7]", "", "fd00::7"),
        ("10.77.0.1", "192.0.2.55", "192.0.2.55"),
        ("10.77.0.1", "box.example", "10.77.0.1"),
    ],
)
def test_what_is_announced_is_an_address_that_is_listened_on(listen: str | None, given: str, announced: str) -> None:
    assert announced_address(listen, {"DAPR_HOST_IP": given} if given else {}) == announced


@pytest.mark.rule("N-6", "N-16")
@pytest.mark.parametrize("given", ["", "box.example"])
def test_what_listens_everywhere_is_announced_at_the_hosts_own_address(given: str) -> None:
    assert announced_address("0.0.0.0", {"DAPR_HOST_IP": given}) == host_address({})


@pytest.mark.parametrize("address", ["127.0.0.1", "127.200.0.9", "::1"])
def test_loopback_addresses_are_this_hosts(address: str) -> None:
    assert is_own_address(address)


def test_all_addresses_of_the_interfaces_are_this_hosts() -> None:
    addresses = [address for address in interface_addresses() if not address.startswith("fe80")]

    assert addresses
    assert [address for address in addresses if not is_own_address(address)] == []


@pytest.mark.parametrize(
    "address",
    ["192.0.2.254", "8.8.8.8", "2001:db8::9", "fe80::9", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "box.local", ""],
)
def test_addresses_of_others_and_of_nobody_are_not_this_hosts(address: str) -> None:
    assert not is_own_address(address)


def test_interfaces_that_take_multicast_are_told() -> None:
    assert all(each.number >= 0 for each in multicast_interfaces())
