"""Tables for people: columns without content left out, and what does not fit a terminal too."""

from __future__ import annotations

import os
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple, TextIO

GAP: Final = "  "
NARROWEST: Final = 12
"""Cells that a column which is cut keeps at least."""


class Column(NamedTuple):
    """A column and its cells.

    Attributes:
        rank: Columns with the highest are left out first where there is no room; 0 stays.
    """

    title: str
    cells: Sequence[str]
    rank: int = 0


def render(columns: Sequence[Column], width: int | None = None) -> list[str]:
    """Return the lines of a table, as wide as it takes, or no wider than ``width`` as far as that can be."""
    shown = [column for column in columns if any(column.cells)]
    while width is not None and _width_of(shown) > width and any(column.rank for column in shown):
        least = max(shown, key=lambda column: column.rank)
        shown.remove(least)
    while width is not None and (over := _width_of(shown) - width) > 0:
        at = max(range(len(shown)), key=lambda number: _size(shown[number]))
        size = _size(shown[at])
        if size <= NARROWEST:
            break
        shown[at] = shown[at]._replace(cells=[_cut(cell, max(NARROWEST, size - over)) for cell in shown[at].cells])
    sizes = [_size(column) for column in shown]
    rows = [[column.title for column in shown], *zip(*(column.cells for column in shown), strict=True)]
    return [GAP.join(map(_padded, row, sizes)).rstrip() for row in rows]


def terminal_width() -> int | None:
    """Return the width of the terminal that standard output is; ``None`` if it is none."""
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def age(seconds: float) -> str:
    """Return an age in its largest unit, cut to a whole number (K-4)."""
    whole = max(0, int(seconds))
    for limit, unit, letter in ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h")):
        if whole < limit:
            return f"{whole // unit}{letter}"
    return f"{whole // 86400}d"


def created(started: float) -> str:
    """Return a Unix time as this host's clock shows it (K-4)."""
    return datetime.fromtimestamp(started).astimezone().strftime("%Y-%m-%d %H:%M.%S")


def clean(text: str) -> str:
    """Return a text of others in one line without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def wrapped(text: str, stream: TextIO | None, indent: str = "") -> str:
    """Return a sentence in lines that fit the terminal behind a stream; as it is if there is none."""
    if stream is None or not stream.isatty():
        return text
    try:
        width = os.get_terminal_size(stream.fileno()).columns - 1
    except OSError:
        return text
    if width < 2 * NARROWEST + len(indent):
        return text
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _cut(text: str, size: int) -> str:
    """Return a text that takes so many cells at most, with a sign that something is missing."""
    if _cells(text) <= size:
        return text
    while _cells(text) > size - 1:
        text = text[:-1]
    return text + "…"


def _size(column: Column) -> int:
    return max(map(_cells, (column.title, *column.cells)))


def _width_of(columns: Sequence[Column]) -> int:
    return sum(map(_size, columns)) + len(GAP) * (len(columns) - 1)


def _padded(text: str, size: int) -> str:
    return text + " " * (size - _cells(text))


def _cells(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
