"""Which resolver a Configuration chooses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.support.names import facts, spawn
from tieline.errors import ConfigError
from tieline.names.builtin import RESOLVERS
from tieline.names.resolver import create


@dataclass
class Spec:
    component: str
    version: str = ""
    configuration: object = None


CONFIGURATION = {"connectionString": "/tmp/n.db"}


@pytest.mark.rule("N-1")
@pytest.mark.parametrize("component", ["sqlite", "SQLite", "SQLITE"])
@pytest.mark.parametrize("version", ["", "v0", "v1", "V1"])
def test_names_are_found_in_any_case_and_versions_mean_the_same(component: str, version: str) -> None:
    assert create(Spec(component, version, CONFIGURATION), facts(), spawn, RESOLVERS).name == "sqlite"


@pytest.mark.rule("N-1", "N-2")
@pytest.mark.parametrize(
    ("component", "version", "label"),
    [("nosuch", "", "nosuch/v1"), ("sqlite", "v2", "sqlite/v2"), ("NoSuch", "v1", "NoSuch/v1")],
)
def test_an_unknown_resolver_stops_the_start_with_daprs_text_and_a_remedy(
    component: str, version: str, label: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        create(Spec(component, version, CONFIGURATION), facts(), spawn, RESOLVERS)

    text, _, remedy = str(caught.value).partition("; ")
    assert text == (
        f"[CREATE_COMPONENT_FAILURE]: initialization error occurred for nr ({label}):"
        f" couldn't find name resolver {label}"
    )
    assert remedy


@pytest.mark.rule("N-1")
@pytest.mark.parametrize("component", ["kubernetes", "consul", "HashiCorp.Consul", "nameformat", "aws.cloudmap"])
def test_a_resolver_that_is_not_built_yet_is_never_accepted_in_silence(component: str) -> None:
    with pytest.raises(ConfigError, match=r"is not built into this version of Tieline; set .*; or leave"):
        create(Spec(component), facts(), spawn, RESOLVERS)


@pytest.mark.rule("N-2", "N-4")
def test_a_configuration_that_cannot_be_used_stops_the_start() -> None:
    with pytest.raises(ConfigError) as caught:
        create(Spec("sqlite", "", {"url": "/tmp/n.db", "updateInterval": "1s"}), facts(), spawn, RESOLVERS)

    assert str(caught.value) == (
        "[INIT_COMPONENT_FAILURE]: initialization error occurred for nr (sqlite/v1): update interval must be at least"
        " 1s greater than timeout; correct spec.nameResolution.configuration"
    )
