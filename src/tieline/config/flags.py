"""Reads a command line by a table of flags, under the rules of Go's pflag (H-9, H-151 a).

One dash or two, ``--name value`` or ``--name=value``; switches take a value only as ``--name=false``; ``--`` and
left-over arguments are ignored; the last of a repeated flag wins, while lists add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from tieline.config.built import BUILT, Feature, Features
from tieline.config.duration import format_duration, parse_duration
from tieline.config.fatal import UsageError
from tieline.config.go_text import parse_bool, parse_int, quote

Value: TypeAlias = str | int | bool | float | tuple[str, ...] | None


class Kind(Enum):
    """What a flag takes; the value is the word for it in the usage text."""

    TEXT = "string"
    NUMBER = "int"
    SWITCH = ""
    DURATION = "duration"
    """Held in seconds."""
    LIST = "strings"
    """Comma separated; an item with a comma stands in double quotes, as in CSV."""


class Effect(Enum):
    """What giving a flag does in this version."""

    IN_EFFECT = ""
    PROTECTS = "not enforced by this version: stops the start"
    IGNORED = "no effect yet"


class Flag(NamedTuple):
    """One row of a table of flags.

    Attributes:
        name: Long name without dashes; there are no short ones.
        default: Value if the flag is absent; ``None`` for one whose absence means something of its own.
        feature: What the flag needs to have an effect; ``None`` for what every version has.
        protects: The flag asks for a protection, so without its feature it stops the start.
        deprecated: What to use instead; empty for a flag that stays.
        hidden: Left out of the usage text.
    """

    name: str
    kind: Kind
    default: Value
    about: str
    feature: Feature | None = None
    protects: bool = False
    deprecated: str = ""
    hidden: bool = False

    def effect(self, built: Features = BUILT) -> Effect:
        if self.feature is None or self.feature in built:
            return Effect.IN_EFFECT
        return Effect.PROTECTS if self.protects else Effect.IGNORED


class Parsed(NamedTuple):
    """What a command line holds.

    Attributes:
        values: A value for each flag of the table, defaults included.
        given: Names of the flags that stand on the command line.
        notices: Lines for stderr about deprecated flags, in order.
        ignored: Arguments that belong to no flag.
        wants_help: ``-h`` or ``--help`` was met; what comes after it was not read.
    """

    values: dict[str, Value]
    given: frozenset[str]
    notices: tuple[str, ...]
    ignored: tuple[str, ...]
    wants_help: bool


_HELP: Final = "help"
NARROWEST: Final = 25
"""Letters that the second column of a usage text has at least, if it is wrapped."""


def parse_flags(table: Mapping[str, Flag], arguments: Sequence[str]) -> Parsed:
    """Read the arguments (without the program's name).

    Raises:
        UsageError: A flag is unknown, lacks its value, or has one that its kind does not take.
    """
    values = {flag.name: flag.default for flag in table.values()}
    given: set[str] = set()
    notices: list[str] = []
    ignored: list[str] = []
    rest = iter(arguments)
    try:
        for argument in rest:
            if argument == "--":
                ignored += rest
                break
            if not argument.startswith("-") or argument == "-":
                ignored.append(argument)
                continue
            name, equals, text = _split(argument)
            if name == _HELP and name not in table:
                return Parsed(values, frozenset(given), tuple(notices), tuple(ignored), wants_help=True)
            flag = table.get(name)
            if flag is None:
                raise UsageError(f"unknown flag: --{name}", hint=_meant(name, table))
            text = text if equals else _value_apart(flag, rest)
            values[name] = _read(flag, text, values[name] if name in given else ())
            given.add(name)
            if flag.deprecated:
                notices.append(f"Flag --{name} has been deprecated, {flag.deprecated}")
    except UsageError as error:
        error.notices = tuple(notices)
        raise
    return Parsed(values, frozenset(given), tuple(notices), tuple(ignored), wants_help=False)


def _meant(name: str, table: Mapping[str, Flag]) -> str:
    from tieline.config.spelling import closest  # only a mistake needs it

    guess = closest(name, (flag.name for flag in table.values() if not flag.hidden))
    return f"did you mean --{guess}?" if guess else ""


def describe_flags(flags: Iterable[Flag], built: Features = BUILT, width: int | None = None) -> str:
    """Return the flags as the lines of a usage text, sorted by name, in two columns; a text that is too wide goes on
    in the second.
    """
    rows = [(f"      --{flag.name} {flag.kind.value}".rstrip(), flag) for flag in flags if not flag.hidden]
    rows.append(("  -h, --help", Flag(_HELP, Kind.SWITCH, default=False, about="Show this text")))
    column = max(len(left) for left, _ in rows) + 3
    rows.sort(key=lambda row: row[1].name)
    lines = (f"{left:<{column}}{_about(flag, built)}" for left, flag in rows)
    if width is None or width < column + NARROWEST:
        return "".join(f"{line}\n" for line in lines)
    import textwrap  # for people only

    indent = " " * column
    return "".join(
        textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) + "\n"
        for line in lines
    )


def _split(argument: str) -> tuple[str, str, str]:
    """Return name, ``=`` or nothing, and value of an argument that opens with a dash."""
    if len(argument) == 2:
        if argument == "-h":
            return _HELP, "", ""
        raise UsageError(f"unknown shorthand flag: {_quote_one(argument[1])} in {argument}")
    # One dash before a long name is as good as two.
    body = argument[2:] if argument.startswith("--") else argument[1:]
    if body[0] in "-=":
        raise UsageError(f"bad flag syntax: {argument}")
    return body.partition("=")


def _value_apart(flag: Flag, rest: Iterable[str]) -> str:
    """Return the value of a flag without ``=``: the next argument, whatever it looks like; a switch takes none."""
    if flag.kind is Kind.SWITCH:
        return "true"
    for text in rest:
        return text
    raise UsageError(f"flag needs an argument: --{flag.name}")


def _read(flag: Flag, text: str, before: Value) -> Value:
    try:
        match flag.kind:
            case Kind.TEXT:
                return text
            case Kind.NUMBER:
                return parse_int(text)
            case Kind.SWITCH:
                return parse_bool(text)
            case Kind.DURATION:
                return parse_duration(text)
            case Kind.LIST:
                assert isinstance(before, tuple)
                return before + _items(text)
    except ValueError as error:
        raise UsageError(f'invalid argument {quote(text)} for "--{flag.name}" flag: {error}') from error


def _items(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    if '"' not in text:
        return tuple(text.split(","))
    import csv  # only an item with a comma inside needs it, and it costs time at every start

    try:
        return tuple(next(csv.reader([text], strict=True)))
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _about(flag: Flag, built: Features) -> str:
    default = shown_default(flag)
    remarks = [f"default {default}"] if default else []
    if flag.deprecated:
        remarks.append(f"deprecated: {flag.deprecated}")
    if flag.effect(built) is not Effect.IN_EFFECT:
        remarks.append(flag.effect(built).value)
    return f"{flag.about} ({'; '.join(remarks)})" if remarks else flag.about


def shown_default(flag: Flag) -> str:
    """Return the default as a user would write it; empty for one that says nothing."""
    if flag.kind is Kind.DURATION and isinstance(flag.default, float):
        return format_duration(flag.default) if flag.default else ""
    if flag.kind is Kind.SWITCH:
        return "true" if flag.default else ""
    return str(flag.default) if flag.default not in (None, (), "") else ""


def _quote_one(character: str) -> str:
    return "'" + quote(character)[1:-1].replace("'", "\\'").replace('\\"', '"') + "'"
