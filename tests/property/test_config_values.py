"""Sizes, durations and references to the environment, for whatever a user may write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.config.duration import format_duration, parse_duration
from tieline.config.environment import expand_environment
from tieline.config.fatal import UsageError
from tieline.config.options import parse_arguments
from tieline.config.quantity import MAX_BYTES, parse_quantity

Argument = TypeVar("Argument")
Value = TypeVar("Value")

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
NAMES = st.text("ABC_1", min_size=1).filter(lambda name: not name[0].isdigit())
PIECES = st.one_of(st.sampled_from(["$", "{", "}", "${", "$$", "-", "\\", "\n", "é"]), NAMES, st.text())


def value_or_words(parse: Callable[[Argument], Value], argument: Argument) -> Value | str:
    """Return what the parser makes of the argument, or the words with which it refuses."""
    try:
        return parse(argument)
    except (ValueError, UsageError) as error:
        return str(error)


def reference_expansion(text: str, environ: Mapping[str, str]) -> str:
    """Expand character by character, as the rule is told."""
    done, at = [], 0
    while at < len(text):
        if text[at] != "$" or at + 1 == len(text):
            done.append(text[at])
            at += 1
            continue
        name, width = reference_name(text[at + 1 :])
        if width == 0:
            done.append("$")
        elif name:
            done.append(environ.get(name, ""))
        at += 1 + width
    return "".join(done)


def reference_name(rest: str) -> tuple[str, int]:
    """Return the name behind a dollar and how many characters to skip."""
    if rest[0] == "{":
        end = rest.find("}")
        return ("", 1) if end < 0 else (rest[1:end], end + 1)
    if rest[0] in "*#$@!?-0123456789":
        return rest[0], 1
    width = 0
    while width < len(rest) and (rest[width] == "_" or (rest[width].isascii() and rest[width].isalnum())):
        width += 1
    return rest[:width], width


@pytest.mark.rule("C-3")
@given(st.lists(PIECES).map("".join), st.dictionaries(NAMES, st.text()))
def test_expansion_is_that_of_the_rule(text: str, environ: dict[str, str]) -> None:
    assert expand_environment(text, environ) == reference_expansion(text, environ)


@pytest.mark.rule("H-11")
@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "+", "-"]), st.integers(0, 3))
def test_a_whole_number_with_a_unit_is_that_many_bytes(number: int, unit: str, sign: str, zeros: int) -> None:
    size = number * UNITS[unit]
    text = f"{sign}{'0' * zeros}{number}{unit}"

    if size > MAX_BYTES:
        with pytest.raises(ValueError, match="too large"):
            parse_quantity(text)
    else:
        assert parse_quantity(text) == (-size if sign == "-" else size)


@pytest.mark.rule("H-11")
@given(st.integers(0, 99), st.integers(-30, 30))
def test_an_exponent_gives_a_whole_number_or_is_refused(number: int, power: int) -> None:
    text = f"{number}e{power}"

    if power < 0 or number * 10**power > MAX_BYTES:
        with pytest.raises(ValueError, match="cannot get bytes from resource quantity value"):
            parse_quantity(text)
    else:
        assert parse_quantity(text) == number * 10**power


@pytest.mark.rule("H-11")
@given(st.one_of(st.text(), st.from_regex(r"[+-]?[0-9.]{0,30}[eEinumkKMGTP]{0,3}[+-]?[0-9]{0,6}", fullmatch=True)))
def test_any_text_is_a_size_or_one_of_three_refusals(text: str) -> None:
    outcome = value_or_words(parse_quantity, text)

    if isinstance(outcome, str):
        assert outcome.startswith(("quantities must match", "unable to parse quantity's suffix", "cannot get bytes"))
    else:
        assert abs(outcome) <= MAX_BYTES


@given(st.integers(0, 2**52))
def test_a_duration_survives_its_own_form(nanoseconds: int) -> None:
    seconds = nanoseconds / 1e9

    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.integers(0, 999), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_units_add_up(hours: int, minutes: int, seconds: int, millis: int) -> None:
    text = f"-{hours}h{minutes}m{seconds}s{millis}ms"

    assert parse_duration(text) == pytest.approx(-(hours * 3600 + minutes * 60 + seconds + millis / 1000))


@given(st.one_of(st.text(), st.from_regex(r"[+-]?([0-9]{0,20}(\.[0-9]{0,20})?[a-zµ]{0,2}){0,3}", fullmatch=True)))
def test_any_text_is_a_duration_or_refused_in_gos_words(text: str) -> None:
    outcome = value_or_words(parse_duration, text)

    if isinstance(outcome, str):
        assert outcome.startswith(("time: invalid duration", "time: missing unit", "time: unknown unit"))
        assert outcome.isascii()
    else:
        assert abs(outcome) < 2**63 / 1e9 + 1


ARGUMENTS = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["--app-id", "-app-id=x", "--log-as-json", "--config", "--", "-h", "--app-port=1", '--config="']
        ),
        st.text(max_size=4).map("--log-as-json={}".format),
        st.text(max_size=4).map("--app-health-threshold={}".format),
    ),
    max_size=6,
)


USAGE_ERRORS = (
    "unknown flag: --",
    "unknown shorthand flag: '",
    "flag needs an argument: --",
    "bad flag syntax: ",
    'invalid argument "',
)


@pytest.mark.rule("H-9", "H-151")
@given(ARGUMENTS)
def test_any_command_line_parses_or_is_a_usage_error(arguments: list[str]) -> None:
    outcome = value_or_words(parse_arguments, arguments)

    if isinstance(outcome, str):
        assert outcome.startswith(USAGE_ERRORS)
