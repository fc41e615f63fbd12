"""Other people's HTTP/2 clients against a real sidecar: nghttp, h2load and curl, by prior knowledge and by upgrade."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.app import Exchange
from tests.support.mesh import Mesh, Pair, invoke_path, start_pair

PATH = invoke_path("callee", "work")
WITHIN_S = 40.0
MIB = 1 << 20
LONG_HEADS = ("--read-buffer-size", "64Ki")
NO_LIMIT = ("--max-body-size", "0")
WAYS = pytest.mark.parametrize("way", ["self", "remote"])
BY = pytest.mark.parametrize("by", ["--http2-prior-knowledge", "--http2"])


def tool(name: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed (package {package})")


needs_curl = tool("curl", "curl")
needs_nghttp = tool("nghttp", "nghttp2-client")
needs_h2load = tool("h2load", "nghttp2-client")


async def run(*command: str) -> str:
    """Run a client; return what it printed. It must end well, and in time."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode(errors="replace")
    return output.decode(errors="replace")


async def echo(exchange: Exchange) -> None:
    exchange.answer(200, await exchange.body(), [("X-Verb", exchange.verb), ("X-Target", exchange.target)])


async def large(exchange: Exchange) -> None:
    await exchange.body()
    exchange.begin_chunked()
    for _ in range(64):
        exchange.chunk(bytes(65536))
        await exchange.writer.drain()
    exchange.end_chunks([("X-Sum", "1")])


def url(pair: Pair, way: str, path: str = PATH) -> str:
    return f"http://127.0.0.1:{pair.entry(way).port}{path}"


def succeeded(report: str) -> int:
    """Return the number of calls that h2load saw answered well."""
    found = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", report)
    assert found, report
    return int(found[1])


@needs_curl
@WAYS
@BY
async def test_curl_speaks_http2_either_way(mesh: Mesh, way: str, by: str) -> None:
    pair = await start_pair(mesh, echo)

    said = await run("curl", "-sS", "-i", by, url(pair, way) + "?a=1")

    assert "HTTP/2 200" in said
    assert "x-target: /work?a=1" in said.lower()
    assert ("HTTP/1.1 101" in said) == (by == "--http2")


@needs_curl
async def test_curl_uploads_more_than_a_window_holds(mesh: Mesh, tmp_path: Path) -> None:
    pair = await start_pair(mesh, echo, *NO_LIMIT, caller_flags=NO_LIMIT)
    body = bytes(range(256)) * (4 * MIB // 256)
    (tmp_path / "body").write_bytes(body)

    await run(
        "curl", "-sS", "--http2-prior-knowledge", "--data-binary", f"@{tmp_path / 'body'}",
        "-o", str(tmp_path / "answer"), url(pair, "remote"),
    )  # fmt: skip

    assert (tmp_path / "answer").read_bytes() == body


@needs_curl
async def test_curl_goes_on_with_an_upgraded_connection(mesh: Mesh, tmp_path: Path) -> None:
    """Not by prior knowledge: curl 7.88, as Debian has it, cannot use such a connection twice, with any server."""
    pair = await start_pair(mesh, echo)
    shown = "%{http_code} %{http_version} %{num_connects}\n"
    urls = [url(pair, "remote") + f"?n={number}" for number in range(20)]

    said = await run("curl", "-sS", "--http2", "-d", "x", "-w", shown, *urls)

    assert re.findall(r"(\d+ \S+ \d)$", said, re.MULTILINE) == ["200 2 1", *["200 2 0"] * 19]


@needs_nghttp
@WAYS
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--upgrade",),
        ("--padding=100",),
        ("--window-bits=10",),
        ("--no-dep",),
        ("--continuation",),
        ("--header-table-size=0",),
        ("--header-table-size=10000", "--encoder-header-table-size=0"),
        ("-m", "30"),
    ],
)
async def test_nghttp_gets_a_long_answer_with_any_of_its_options(mesh: Mesh, way: str, options: Sequence[str]) -> None:
    pair = await start_pair(mesh, large, *LONG_HEADS, caller_flags=LONG_HEADS)

    said = await run("nghttp", "-v", "--null-out", "--no-verify-peer", *options, url(pair, way))

    answers = re.findall(r":status: (\d+)", said)
    assert answers == ["200"] * (30 if "-m" in options else 1)
    for number in re.findall(r"recv HEADERS frame <[^>]*stream_id=(\d+)>\n.*First response header", said):
        got = re.findall(rf"recv DATA frame <length=(\d+), flags=0x\w+, stream_id={number}>", said)
        assert sum(map(int, got)) == 4 * MIB
    assert "RST_STREAM" not in said
    assert "error_code=NO_ERROR" in said or "recv GOAWAY" not in said


@needs_nghttp
async def test_nghttp_uploads_with_padding_and_trailers(mesh: Mesh, tmp_path: Path) -> None:
    pair = await start_pair(mesh, echo, *NO_LIMIT, caller_flags=NO_LIMIT)
    (tmp_path / "body").write_bytes(b"0123456789abcdef" * (MIB // 16))

    said = await run(
        "nghttp", "--padding=200", f"--data={tmp_path / 'body'}", "--trailer=x-sum: 1", url(pair, "remote")
    )

    assert said.strip() == "0123456789abcdef" * (MIB // 16)


@needs_h2load
@WAYS
async def test_h2load_has_every_call_answered(mesh: Mesh, way: str) -> None:
    pair = await start_pair(mesh, echo)

    report = await run("h2load", "-n", "2000", "-c", "2", "-m", "50", url(pair, way))

    assert succeeded(report) == 2000


@needs_h2load
async def test_h2load_uploads_and_downloads_with_small_windows(mesh: Mesh, tmp_path: Path) -> None:
    pair = await start_pair(mesh, echo)
    (tmp_path / "body").write_bytes(bytes(100_000))

    report = await run(
        "h2load", "-n", "200", "-c", "2", "-m", "20", "-w", "12", "-W", "14", "-d", str(tmp_path / "body"),
        url(pair, "remote"),
    )  # fmt: skip

    assert succeeded(report) == 200
    assert "200 succeeded" in report
