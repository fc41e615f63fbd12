"""Multicast DNS between real processes, in a network of its own; and what needs no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mesh import Mesh

CASES = Path(__file__).parent / "network" / "mdns_cases.py"
SET_UP = "ip link set lo up multicast on && ip addr add 10.77.0.1/32 dev lo && ip route add 224.0.0.0/4 dev lo"


def own_network() -> list[str]:
    """Return the beginning of a command that runs another one in a network of its own; skip where that cannot be."""
    command = ["unshare", "-rn", "sh", "-c", f'{SET_UP} && exec "$@"', "sh"]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        pytest.skip("no unshare here: multicast DNS is not tried with real processes")
    if tried.returncode:
        pytest.skip(f"no network of our own: multicast DNS is not tried with real processes ({tried.stderr.strip()})")
    return command


@pytest.mark.timeout(290)
def test_all_cases_hold_in_a_network_of_their_own() -> None:
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]

    done = subprocess.run(
        [*own_network(), *tests], capture_output=True, text=True, timeout=280, env={**os.environ, "COLUMNS": "120"}
    )

    assert done.returncode == 0, done.stdout + done.stderr


async def test_mdns_cannot_be_switched_off_and_chosen_at_once(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("{spec: {nameResolution: {component: mDNS}}}\n")

    sidecar = await mesh.sidecar("a", None, "--config", str(config), wait=None)

    assert await sidecar.wait() == 1
    assert "--no-mdns is given, and spec.nameResolution.component is mdns" in sidecar.log()


async def test_the_registry_alone_can_be_chosen(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("{spec: {nameResolution: {component: registry}}}\n")
    await mesh.sidecar("callee", None)
    caller = await mesh.sidecar("caller", None, "--config", str(config), mdns=True)

    answer = await caller.call("nobody", "x")

    assert answer.header("tieline-hint") == "asked: local registry; known now: callee, caller"
