"""What ``tieline doctor`` finds: each in one line of what, why it matters and what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from tieline.cli.console import sign_of
from tieline.cli.table import clean, terminal_width


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_STATUS: Final = {Level.OK: "success", Level.WARN: "warning", Level.FAIL: "failure"}
NARROWEST: Final = 40


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: What is the case.
        why: What does not work because of it; empty where all is well.
        todo: What to do about it.
    """

    level: Level
    subject: str
    what: str
    why: str = ""
    todo: str = ""


def ok(subject: str, what: str) -> Finding:
    """Nothing is wrong."""
    return Finding(Level.OK, subject, what)


def warn(subject: str, what: str, why: str, todo: str) -> Finding:
    """Something may become wrong, or is for some calls."""
    return Finding(Level.WARN, subject, what, why, todo)


def fail(subject: str, what: str, why: str, todo: str) -> Finding:
    """Something keeps calls from working."""
    return Finding(Level.FAIL, subject, what, why, todo)


def rendered(findings: list[Finding]) -> Iterator[str]:
    """Return the findings as lines, wrapped on a terminal; one line each elsewhere."""
    columns = terminal_width()
    width = None if columns is None else max(NARROWEST, columns - 1)
    for finding in findings:
        sign = sign_of(_STATUS[finding.level])
        text = clean(line_of(finding))
        if width is None:
            yield sign + text
        else:
            # A sign takes two cells of most terminals, whatever its letters.
            yield sign + textwrap.fill(
                text,
                width,
                initial_indent="    ",
                subsequent_indent="    ",
                break_on_hyphens=False,
                break_long_words=False,
            ).removeprefix("    ")


def line_of(finding: Finding) -> str:
    """Return a finding in one line."""
    line = f"{finding.subject}: {finding.what}"
    if finding.why:
        line += f", so {finding.why}."
    if finding.todo:
        line += f" {finding.todo[0].upper()}{finding.todo[1:]}."
    return line
