"""What a command line hardly means, and is still taken."""

from __future__ import annotations

import pytest

from tieline.config.doubts import doubts
from tieline.config.options import Options, check, parse_arguments


def doubts_on(*arguments: str) -> list[str]:
    options = parse_arguments(["--app-id", "a", *arguments])
    assert isinstance(options, Options)
    check(options, {})  # none of it ends the start
    return list(doubts(options))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "python3", "app.py"], "ignored, as it belongs to no option: python3 app.py; a sidecar starts no app"),
        (["extra"], "ignored, as it belongs to no option: extra;"),
        (["--app-id", "z z/ü"], "the app ID 'z z/ü' has characters that callers must percent-encode"),
        (["--enable-app-health-check"], "--enable-app-health-check does nothing without an app"),
        (["--app-max-concurrency", "-5"], "--app-max-concurrency -5 means no limit"),
        (["--app-channel-address", "300.1.1.1"], "--app-channel-address 300.1.1.1 is no address"),
        (["--allowed-origins", "https://x,foo"], "--allowed-origins: 'foo' is no origin"),
        (["--allowed-origins", "https://x, https://y"], "--allowed-origins: ' https://y' is no origin"),
        (["--allowed-origins", "https://x/"], "--allowed-origins: 'https://x/' is no origin"),
    ],
)
def test_what_is_most_likely_a_mistake_is_told(arguments: list[str], words: str) -> None:
    found = doubts_on(*arguments)

    assert len(found) == 1
    assert found[0].startswith(words)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--app-id", "my-app_2"],
        ["--app-port", "80", "--enable-app-health-check", "--app-max-concurrency", "-1"],
        ["--app-channel-address", "10.0.0.1", "--allowed-origins", "*"],
        ["--allowed-origins", "https://*.example.com,http://localhost:8080,*.example.com"],
    ],
)
def test_a_command_line_as_people_write_it_raises_no_doubt(arguments: list[str]) -> None:
    assert doubts_on(*arguments) == []


def test_what_is_left_over_is_told_in_short() -> None:
    (found,) = doubts_on("--", "x" * 300)

    assert len(found) < 250
