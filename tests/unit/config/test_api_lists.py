"""Which APIs the allow and deny lists open."""

from __future__ import annotations

import pytest

from tieline.config.api_lists import ApiLists

INVOKE = ("invoke", "v1", "v1.0/invoke/")
METADATA = ("metadata", "v1", "v1.0/metadata")
SHUTDOWN = ("shutdown", "v1", "v1.0/shutdown")


def rule(name: str, version: str, protocol: str = "http") -> dict[str, str]:
    return {"name": name, "version": version, "protocol": protocol}


def opened(**lists: object) -> list[str]:
    found = ApiLists(lists)
    return [api[0] for api in (INVOKE, METADATA, SHUTDOWN) if found.is_open(*api)]


ALL = ["invoke", "metadata", "shutdown"]


@pytest.mark.rule("H-128", "C-25", "C-26")
def test_without_rules_for_http_everything_is_open() -> None:
    assert opened() == ALL
    assert opened(allowed=None, denied=None) == ALL
    assert opened(allowed=[rule("invoke", "v1", "grpc")], denied=[rule("metadata", "v1", "grpc")]) == ALL
    assert opened(allowed=[{"name": "invoke", "version": "v1"}]) == ALL  # without protocol it matches nothing


@pytest.mark.rule("H-128", "C-25")
@pytest.mark.parametrize("version", ["v1", "v1.0"])
@pytest.mark.parametrize("protocol", ["http", "HTTP"])
def test_a_rule_names_a_group_or_the_beginning_of_a_path(version: str, protocol: str) -> None:
    assert opened(allowed=[rule("invoke", version, protocol)]) == ["invoke"]
    assert opened(denied=[rule("invoke", version, protocol)]) == ["metadata", "shutdown"]


@pytest.mark.rule("H-128", "C-26")
def test_what_is_denied_stays_closed_though_it_is_allowed_too() -> None:
    both = [rule("invoke", "v1")]

    assert opened(allowed=[*both, rule("metadata", "v1")], denied=both) == ["metadata"]


@pytest.mark.rule("H-128")
def test_a_beginning_of_a_path_matches_but_names_of_groups_are_whole() -> None:
    assert opened(denied=[rule("inv", "v1.0")]) == ["metadata", "shutdown"]
    assert opened(denied=[rule("inv", "v1"), rule("Invoke", "v1")]) == ALL


@pytest.mark.rule("H-130")
def test_health_cannot_be_closed() -> None:
    lists = ApiLists({"denied": [rule("healthz", "v1"), rule("", "v1.0")], "allowed": [rule("invoke", "v1")]})

    assert lists.is_open("healthz", "v1", "v1.0/healthz")
