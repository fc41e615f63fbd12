"""Where a host is reachable, and its derived port."""

from __future__ import annotations

import ipaddress

import pytest

from tieline.names.host import best_of, host_address, interface_addresses, internal_port


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
