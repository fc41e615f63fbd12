"""What the event loop and its transports catch becomes a line in the log."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from typing import Any

import pytest

from tieline.net import loop
from tieline.net.loop import LONG_READ_BUFFER, READ_BUFFER, connect, report_uncaught, run, serve


@pytest.mark.parametrize(
    ("context", "levels", "text"),
    [
        ({"message": "oops", "exception": ValueError("x")}, ["ERROR", "DEBUG"], "oops: ValueError: x"),
        ({"message": "SSL handshake failed", "exception": ConnectionResetError}, ["DEBUG"], "SSL handshake failed: "),
        ({"message": "lost", "exception": ConnectionResetError(104, "reset")}, ["DEBUG"], "lost: ConnectionResetError"),
        ({"message": "no exception"}, ["ERROR"], "no exception"),
    ],
)
async def test_it_is_said_in_a_line_and_a_failed_connection_only_to_who_looks_closely(
    context: dict[str, Any], levels: list[str], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="dapr.runtime")

    report_uncaught(asyncio.get_running_loop(), context)

    first = caplog.records[0]
    assert [record.levelname for record in caplog.records] == levels
    assert first.getMessage().startswith(text)
    assert first.exc_info is None


def test_a_callback_that_raises_is_reported_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        asyncio.get_running_loop().call_soon([].pop)
        await asyncio.sleep(0)
        return "went on"

    assert run(main()) == "went on"
    assert [record.levelname for record in caplog.records if record.name == "dapr.runtime"] == ["ERROR"]
    assert "IndexError" in caplog.text


async def test_no_connection_waits_for_acknowledgements() -> None:
    """An answer in pieces would come 40 ms late, on the connections that we accept as on those that we open."""
    ends: list[asyncio.BaseTransport] = []

    class End(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            ends.append(transport)
            if len(ends) == 2:
                both.set()

    both = asyncio.Event()
    sock = socket.create_server(("127.0.0.1", 0))
    server = await serve(End, sock)
    await connect(End, "127.0.0.1", sock.getsockname()[1])
    await both.wait()

    delays = [end.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for end in ends]

    assert all(delays)
    assert len(delays) == 2
    for end in ends:
        end.close()
    server.close()


def test_long_reads_cost_no_page_faults_once_freed_memory_is_kept() -> None:
    program = """
import json, resource
from tieline.net import loop

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        bytes(loop.LONG_READ_BUFFER)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def sizes():
    return [len(kind().get_buffer(-1)) for kind in (loop.Buffered, loop.BufferedLong)]

before = sizes()
print(json.dumps([before, loop.keep_freed_memory(), sizes(), faults()]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    before, kept, after, faults = json.loads(done.stdout)

    assert before == [READ_BUFFER, READ_BUFFER]
    if sys.platform != "linux" or not kept:  # a C library that cannot be told: reads stay short, for which it is made
        assert (kept, after) == (False, before)
        return
    assert after == [READ_BUFFER, LONG_READ_BUFFER]
    assert faults < 200  # of 64 pages each


async def test_a_long_read_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class End(loop.BufferedLong):
        def data_received(self, data: bytes) -> None:
            seen.append(data)

    seen: list[bytes] = []
    monkeypatch.setattr(loop, "_long_view", loop._buffer)
    sent = bytes(range(256)) * (LONG_READ_BUFFER // 256)
    end = End()

    for size in (LONG_READ_BUFFER, 7):
        end.get_buffer(-1)[:size] = sent[:size]
        end.buffer_updated(size)

    assert seen == [sent, sent[:7]]
