"""Status lines and the relay of an app's output."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from tieline.cli.console import MAX_LINE, Console, relay


class Terminal(io.BytesIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Ledger(io.BytesIO):
    """Remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: object, /) -> int:
        assert isinstance(data, bytes)
        self.writes.append(data)
        return len(data)


def test_failures_go_to_standard_error_all_else_to_standard_output() -> None:
    """Each line has its sign, two blanks before the text."""
    out, err = io.BytesIO(), io.BytesIO()
    console = Console(out=out, err=err)

    console.info("i")
    console.success("s")
    console.warn("w")
    console.plain("p")
    console.fail("f")

    assert out.getvalue().decode() == "ℹ️  i\n✅  s\n⚠  w\np\n"
    assert err.getvalue().decode() == "❌  f\n"


def test_words_take_the_place_of_signs_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    out, err = io.BytesIO(), io.BytesIO()
    console = Console(out=out, err=err)

    console.info("i")
    console.success("s")
    console.warn("w")
    console.fail("f")

    assert out.getvalue() == b"i\nok:  s\nwarning:  w\n"
    assert err.getvalue() == b"failed:  f\n"


def test_json_status_lines() -> None:
    """A line break in a text stays inside the object."""
    out = io.BytesIO()

    Console(as_json=True, out=out, err=io.BytesIO()).info("\nbye")

    found = json.loads(out.getvalue())
    assert (found["status"], found["msg"]) == ("info", "\nbye")
    assert found["time"].endswith("Z")


def test_each_line_of_an_app_is_one_write_with_the_prefix() -> None:
    """Also a last line without an end, and a line that is longer than may be kept."""
    stream = Ledger()
    long = b"x" * MAX_LINE

    relay(io.BytesIO(b"one\ntwo\n" + long + b"y\nend"), stream, "test").join()

    assert stream.writes == [
        b"== APP == one\n",
        b"== APP == two\n",
        b"== APP == " + long + b"\n",
        b"== APP == y\n",
        b"== APP == end\n",
    ]


@pytest.mark.parametrize(("no_color", "colourful"), [("", True), ("1", False)])
def test_the_prefix_is_coloured_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, no_color: str, colourful: bool
) -> None:
    """NO_COLOR is heeded."""
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal, file = Terminal(), io.BytesIO()

    relay(io.BytesIO(b"a\n"), terminal, "test").join()
    relay(io.BytesIO(b"a\n"), file, "test").join()

    assert (b"\x1b[" in terminal.getvalue()) == colourful
    assert file.getvalue() == b"== APP == a\n"


def test_a_reader_that_is_gone_stops_neither_the_relay_nor_the_console() -> None:
    """The app must not be stopped in a write because the terminal is closed."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb", buffering=0) as gone:
        source = io.BytesIO(b"a\nb\n")

        relay(source, gone, "test").join()
        Console(out=gone, err=gone).info("x")

    assert source.closed
