"""What the event loop and its transports catch becomes a line in the log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tieline.net.loop import report_uncaught, run


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
