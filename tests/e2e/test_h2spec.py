"""h2spec, the conformance suite for HTTP/2 servers, against the API port and the internal port."""

from __future__ import annotations

import asyncio
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.app import Exchange
from tests.support.foreign import H2SPEC
from tests.support.mesh import Mesh, invoke_path

EXCEPTIONS = {
    # The port speaks HTTP/1.1 as well. What is no preface is answered as HTTP/1.1, by a 400, before the connection is
    # closed; h2spec would see a frame in that answer.
    ("http2/3.5", "Sends invalid connection preface"),
}
"""Section and name of cases that fail, and are meant to."""
CASES = 146
ANSWER_AFTER_S = 0.3


async def not_at_once(exchange: Exchange) -> None:
    """Answer late: h2spec wants to see more streams open than it may open."""
    await exchange.body()
    await asyncio.sleep(ANSWER_AFTER_S)
    exchange.answer(200, b"some text")


async def h2spec(port: int, path: str, report: Path) -> tuple[int, set[tuple[str, str]]]:
    """Run all suites; return how many cases there were, and section and name of those that failed."""
    flags = ["--strict", "--host", "127.0.0.1", "--port", str(port), "--path", path, "--junit-report", str(report)]
    program = H2SPEC.or_skip() / "h2spec"
    run = await asyncio.create_subprocess_exec(
        program, "generic", "http2", "hpack", *flags, stdout=asyncio.subprocess.DEVNULL
    )
    await run.wait()
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    # Skipped is not passed.
    return len(cases), {(case.attrib["package"], case.attrib["classname"]) for case in cases if len(case)}


@pytest.mark.timeout(180)
async def test_the_api_port_holds_to_http2(mesh: Mesh, tmp_path: Path) -> None:
    H2SPEC.or_skip()
    sidecar = await mesh.sidecar("callee", await mesh.app(not_at_once))

    cases, failed = await h2spec(sidecar.port, invoke_path("callee", "x"), tmp_path / "report.xml")

    assert cases == CASES
    assert failed == EXCEPTIONS


async def test_the_internal_port_holds_to_http2(mesh: Mesh, tmp_path: Path) -> None:
    H2SPEC.or_skip()
    sidecar = await mesh.sidecar("callee")

    cases, failed = await h2spec(sidecar.internal, "/", tmp_path / "report.xml")

    assert cases == CASES
    assert failed == set()
