"""Which APIs the allow and deny lists open."""

from __future__ import annotations

import pytest

from tieline.config.api_lists import ApiLists, GrpcLists, rule_faults
from tieline.config.grpc_apis import path_of

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


# ── gRPC ──


def opened_rpcs(**lists: object) -> list[str]:
    found = GrpcLists(lists)
    names = ["InvokeService", "GetMetadata", "SetMetadata", "Shutdown", "GetState", "QueryStateAlpha1"]
    return [name for name in names if found.is_open(path_of(name))]


EVERY_RPC = ["InvokeService", "GetMetadata", "SetMetadata", "Shutdown", "GetState", "QueryStateAlpha1"]


@pytest.mark.rule("S-56", "S-57", "S-58")
def test_only_rules_that_say_grpc_in_lower_case_count_for_it() -> None:
    assert opened_rpcs() == EVERY_RPC
    assert opened_rpcs(allowed=[rule("invoke", "v1", "http")], denied=[rule("invoke", "v1", "GRPC")]) == EVERY_RPC
    assert opened_rpcs(allowed=[rule("invoke", "v1", "grpc")]) == ["InvokeService"]
    assert opened_rpcs(denied=[rule("state", "v1", "grpc"), rule("metadata", "v1", "grpc")]) == [
        "InvokeService",
        "Shutdown",
        "QueryStateAlpha1",
    ]
    both = {"allowed": [rule("metadata", "v1", "grpc")], "denied": [rule("metadata", "v1", "grpc")]}
    assert opened_rpcs(**both) == []


@pytest.mark.rule("S-58")
def test_a_list_that_allows_nothing_of_grpc_leaves_it_open_and_is_noticed() -> None:
    http_only = GrpcLists({"allowed": [rule("invoke", "v1", "http")]})
    misspelt = GrpcLists({"allowed": [rule("invoke", "v1.0", "grpc")]})

    assert (http_only.allows_nothing, misspelt.allows_nothing) == (True, True)
    assert not http_only.restrict
    assert not GrpcLists({"denied": [rule("invoke", "v1", "http")]}).allows_nothing


@pytest.mark.rule("S-59")
def test_services_of_apps_are_never_closed_but_unknown_rpcs_of_dapr_are() -> None:
    lists = GrpcLists({"allowed": [rule("invoke", "v1", "grpc")]})

    assert lists.is_open(b"/test.Echo/Unary")
    assert lists.is_open(b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    assert not lists.is_open(path_of("NoSuchThing"))
    assert not lists.is_open(b"/dapr.proto.runtime.v1.Other/Thing")


@pytest.mark.rule("S-57")
def test_a_version_that_grpc_does_not_have_is_told() -> None:
    (fault,) = rule_faults("invoke", "v1.0", "grpc")

    assert fault.is_certain
    assert fault.text == "gRPC has no API invoke of version v1.0: a rule with it matches nothing"
    assert fault.hint == "v1"
    assert not list(rule_faults("invoke", "v1.0", "http"))
    assert not list(rule_faults("state", "v1alpha1", "grpc"))
