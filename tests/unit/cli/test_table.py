"""Tables, ages and times, as people read them."""

from __future__ import annotations

import os
import re
import termios
from pathlib import Path

import pytest

from tieline.cli.table import Column, age, clean, created, render, wrapped


@pytest.mark.rule("K-4")
@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.99, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (86400, "1d"), (2e6, "23d")],
)
def test_ages_have_one_unit_and_are_cut(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


@pytest.mark.rule("K-4")
def test_times_are_written_as_dapr_does() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d\.\d\d", created(1e9))


def test_a_clock_that_was_set_back_makes_nothing_younger_than_new() -> None:
    assert age(-5) == "0s"


@pytest.mark.rule("K-4")
def test_columns_without_content_are_hidden() -> None:
    lines = render([Column("A", ["1", "22"]), Column("B", ["", ""]), Column("C", ["x", ""])])

    assert lines == ["A   C", "1   x", "22"]


def test_on_a_narrow_terminal_the_least_important_columns_go_first() -> None:
    columns = [Column("NAME", ["orders"]), Column("LONG", ["x" * 30], 2), Column("AGE", ["5s"], 1)]

    assert render(columns, 50) == render(columns)
    assert render(columns, 40) == ["NAME    AGE", "orders  5s"]
    assert render(columns, 3) == ["NAME", "orders"]


def test_wide_letters_count_for_two_and_accents_for_none() -> None:
    lines = render([Column("A", ["日本", "e\u0301"]), Column("B", ["1", "2"])])

    assert lines == ["A     B", "日本  1", "e\u0301     2"]


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    assert clean("a\x1b[31mb\nc") == "a�[31mb�c"


def test_a_column_that_alone_is_too_wide_is_cut() -> None:
    columns = [Column("NAME", ["a" * 68, "b"]), Column("STATUS", ["healthy", "dead"])]

    lines = render(columns, 40)

    assert max(map(len, lines)) == 40
    assert lines[1] == "a" * 30 + "…  healthy"
    assert render(columns, 10)[1].startswith("a" * 11 + "…")


def test_a_sentence_is_wrapped_on_a_terminal_only() -> None:
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, 40))
    try:
        with open(follower, "w", closefd=False) as terminal, Path(os.devnull).open("w") as file:
            text = "    why:  " + "word " * 12 + "end"
            lines = wrapped(text, terminal, " " * 10).splitlines()
            assert wrapped(text, file) == text
    finally:
        os.close(follower)
        os.close(leader)

    assert max(map(len, lines)) < 40
    assert lines[0].startswith("    why:  word")
    assert lines[1].startswith(" " * 10 + "word")
