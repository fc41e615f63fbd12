"""One pair of sidecars for all clients, and how a client of another language is run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.pair import Pair, a_pair

CLIENT_WITHIN_S = 50.0
CHECKS = frozenset(
    {
        *("adds two numbers", "takes a nested path", "carries headers both ways", "explains an unknown app"),
        *("echoes 2 MiB", "makes many calls at once", "keeps its connection"),
    }
)
"""What every client of another language checks; it prints ``ok <name>`` for each."""


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both sidecars and the app, up."""
    with a_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
def run_client(pair: Pair, tmp_path: Path) -> Callable[..., set[str]]:
    """Run a program with the caller's port as its last argument; return the names of the checks that held."""

    def run(program: str, *arguments: str, **environment: str) -> set[str]:
        path = shutil.which(program)
        if path is None:
            pytest.skip(f"{program} is not installed")
        done = subprocess.run(
            [path, *arguments, str(pair.http_port)],
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=CLIENT_WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{pair.logs()}"
        return {line.removeprefix("ok ") for line in done.stdout.splitlines() if line.startswith("ok ")}

    return run
