"""The HTTP clients that come with Node, the JDK and Go, as their users find them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.clients.conftest import CHECKS

HERE = Path(__file__).parent


@pytest.mark.rule("A-13")
def test_fetch_of_node_calls_an_app(run_client: Callable[..., set[str]]) -> None:
    assert run_client("node", str(HERE / "client.mjs")) == CHECKS


@pytest.mark.rule("A-13", "H-3")
def test_the_jdk_s_client_calls_an_app(run_client: Callable[..., set[str]]) -> None:
    assert run_client("java", "-XX:TieredStopAtLevel=1", str(HERE / "Client.java")) == CHECKS


@pytest.mark.rule("A-13")
def test_go_s_client_calls_an_app(run_client: Callable[..., set[str]]) -> None:
    # Only the standard library is used, and nothing may be fetched.
    found = run_client("go", "run", str(HERE / "client.go"), GOPROXY="off", GOTOOLCHAIN="local", GOFLAGS="-mod=mod")

    assert found == CHECKS
