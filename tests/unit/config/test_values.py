"""Sizes and durations, and the words that refuse them."""

from __future__ import annotations

import pytest

from tieline.config.duration import format_duration, parse_duration
from tieline.config.quantity import parse_quantity


@pytest.mark.rule("H-11")
@pytest.mark.parametrize(
    ("text", "size"),
    [("4194304", 4194304), ("4Mi", 4 << 20), ("500k", 500_000), ("1G", 10**9), ("1e3", 1000), ("1E3", 1000),
     ("-1", -1), ("0", 0), ("4.Ki", 4096), ("1E", 10**18), ("007", 7)],
)  # fmt: skip
def test_quantities(text: str, size: int) -> None:
    assert parse_quantity(text) == size


@pytest.mark.rule("H-11")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "quantities must match the regular expression"),
        ("4 Mi", "quantities must match the regular expression"),
        ("Ki", "quantities must match the regular expression"),
        ("1.2.3", "quantities must match the regular expression"),
        ("٣", "quantities must match the regular expression"),
        ("4mi", "unable to parse quantity's suffix"),
        ("4K", "unable to parse quantity's suffix"),
        ("4e", "unable to parse quantity's suffix"),
        ("1.5", "cannot get bytes from resource quantity value '1.5'"),
        ("1.5Ki", "cannot get bytes from resource quantity value '1.5Ki'"),
        ("1000m", "cannot get bytes from resource quantity value '1000m'"),
        ("8Ei", "cannot get bytes from resource quantity value '8Ei': too large"),
        ("1e999999999", "cannot get bytes from resource quantity value '1e999999999': too large"),
    ],
)
def test_what_is_no_size_is_refused_in_daprds_first_words(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is what is tested
        parse_quantity(text)

    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("-0", 0), ("5s", 5), ("1.5h", 5400), (".5s", 0.5), ("1.s", 1), ("1h2m3.5s", 3723.5), ("-3ms", -0.003),
     ("1us", 1e-6), ("1µs", 1e-6), ("1μs", 1e-6), ("+7ns", 7e-9), ("2562047h47m16.854775807s", 9223372036.854775807)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.rule("H-151")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("abc", 'time: invalid duration "abc"'),
        (".s", 'time: invalid duration ".s"'),
        ("5", 'time: missing unit in duration "5"'),
        ("1s5", 'time: missing unit in duration "1s5"'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
        ("5 s", 'time: unknown unit " s" in duration "5 s"'),
        ("5é", 'time: unknown unit "\\xc3\\xa9" in duration "5\\xc3\\xa9"'),
        ('5"\\', 'time: unknown unit "\\"\\\\" in duration "5\\"\\\\"'),
        ("2562048h", 'time: invalid duration "2562048h"'),
        ("9" * 5000 + "s", f'time: invalid duration "{"9" * 5000}s"'),
    ],
)
def test_what_is_no_duration_is_refused_in_gos_words(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is what is tested
        parse_duration(text)

    assert str(caught.value) == words


@pytest.mark.rule("H-146")
@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (2, "2s"), (180, "3m0s"), (3600, "1h0m0s"), (0.5, "500ms"), (1.5, "1.5s"), (5400.25, "1h30m0.25s"),
     (1.5e-3, "1.5ms"), (1e-6, "1µs"), (1e-9, "1ns"), (-2, "-2s"), (-1e-12, "0s")],
)  # fmt: skip
def test_durations_are_shown_in_gos_form(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
