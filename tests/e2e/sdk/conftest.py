"""One pair of sidecars for Dapr's SDKs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.foreign import GO, JAVA, NODE, PYTHON
from tests.support.pair import Pair, a_pair

TOKEN = {"DAPR_API_TOKEN": "open sesame"}
"""As the caller's sidecar and its clients have it in their environment."""


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both sidecars and the app, up; the caller's API asks for a token."""
    with a_pair(tmp_path_factory.mktemp("sdk"), caller_environment=TOKEN) as pair:
        yield pair


@pytest.fixture(scope="session")
def python_sdk() -> Path:
    """Where it is installed; without it, the test is skipped."""
    return PYTHON.or_skip()


@pytest.fixture(scope="session")
def node_sdk() -> Path:
    """Where it is installed; without it, the test is skipped."""
    return NODE.or_skip()


@pytest.fixture(scope="session")
def java_sdk() -> Path:
    """Where it is installed; without it, the test is skipped."""
    return JAVA.or_skip()


@pytest.fixture(scope="session")
def go_sdk() -> Path:
    """Where the programs made with it are; without them, the test is skipped."""
    return GO.or_skip()
