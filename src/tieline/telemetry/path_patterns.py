"""Patterns of paths (``pathMatching``), in the syntax of Go's ``ServeMux``: which path counts under which pattern.

A pattern is a row of segments: a text, ``{name}`` for one segment, and at the end perhaps ``{name...}`` or a slash for
whatever follows, or ``{$}`` for the slash itself. Several patterns may match a path; the most specific decides. That
is a question with one answer only if of any two patterns that share a path, one is within the other, so all others are
refused. Matching walks a tree of the segments: at each node first the text, then ``{name}``, then the rest. It visits
a node once at most, so a path costs no more than the patterns have segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import chain, combinations, product
from typing import Final, TypeAlias
from urllib.parse import unquote

from tieline.errors import ConfigError

MAX_PATTERNS: Final = 256
"""Most patterns of one Configuration; each is compared with each other at the start."""
INVOKE: Final = "/v1.0/invoke/"
VARIANT: Final = "/v1.0/invoke/{app_id}/method"
"""Stands before a pattern that names no invocation itself, for calls of that method (O-23)."""
_APP_ID: Final = "app_id"


class BadPattern(ConfigError):
    """A pattern has no meaning, or two of them leave open which one counts (C-10)."""


class Wild(Enum):
    """A segment of a pattern that is no text."""

    ONE = "{}"
    """Any one segment that is not empty."""
    REST = "{...}"
    """All that follows, be it nothing: always the last."""
    END = "{$}"
    """Nothing follows the slash: always the last."""


Segments: TypeAlias = tuple[str | Wild, ...]


class PathPatterns:
    """The patterns of one Configuration, with their variants for invocation (O-23).

    Args:
        patterns: As written; a missing slash in front is put there, and a text that comes twice counts once.

    Raises:
        BadPattern: See there.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        texts = list(dict.fromkeys(text if text.startswith("/") else f"/{text}" for text in patterns))
        if len(texts) > MAX_PATTERNS:
            raise BadPattern(f"{len(texts)} patterns are more than {MAX_PATTERNS}")
        plain = [(text, parse(text)) for text in texts]
        variants = [(VARIANT + text, _variant(text)) for text in texts if not text.startswith(INVOKE)]
        # Two variants are to each other as the patterns that they come from.
        for (one, left), (other, right) in chain(combinations(plain, 2), product(plain, variants)):
            if in_conflict(left, right):
                raise BadPattern(f"{one!r} and {other!r} match the same path, and neither is the more specific one")
        self._root = _Node()
        for text, segments in (*plain, *variants):
            self._root.add(segments, text)

    def match(self, path: str) -> str | None:
        """Return the text of the most specific pattern that a path matches.

        Args:
            path: Decoded, beginning with a slash; without doubled slashes.
        """
        return _walk(self._root, path.split("/"), 1)


def parse(text: str) -> Segments:
    """Return a pattern's segments.

    Raises:
        BadPattern: It is malformed.
    """
    return _segments(text, text, set())


def _variant(text: str) -> Segments:
    return _segments(VARIANT + text, text, set())


def _segments(pattern: str, shown: str, names: set[str]) -> Segments:
    if " " in pattern or "\t" in pattern:
        raise BadPattern(f"{shown!r} has a blank: a pattern is a path, without a verb")
    found: list[str | Wild] = []
    parts = pattern.split("/")[1:]
    for number, part in enumerate(parts, start=1):
        is_last = number == len(parts)
        if "{" in part:
            found.append(_wild(part, shown, names, is_last=is_last))
        elif is_last and not part:
            found.append(Wild.REST)
        else:
            found.append(unquote(part))
    return tuple(found)


def _wild(part: str, shown: str, names: set[str], *, is_last: bool) -> Wild:
    if part[0] != "{" or part[-1] != "}":
        raise BadPattern(f"{shown!r}: {part!r} must be a whole segment in braces, like {{id}}")
    name = part[1:-1]
    is_rest = name.endswith("...")
    if (is_rest or name == "$") and not is_last:
        raise BadPattern(f"{shown!r}: {part!r} may only stand at the end")
    if name == "$":
        return Wild.END
    name = name.removesuffix("...")
    if not name.isidentifier():
        raise BadPattern(f"{shown!r}: {part!r} needs a name of letters, digits and underscores")
    if name in names:
        reason = " (it names the app in the pattern's variant for calls)" if name == _APP_ID else ""
        raise BadPattern(f"{shown!r}: the name {name!r} is there twice{reason}")
    names.add(name)
    return Wild.REST if is_rest else Wild.ONE


# ── comparing ──────────────────────────────────────────────────────────────────────────────────────
def in_conflict(left: Segments, right: Segments) -> bool:
    """Whether two patterns share a path and neither, or each, has all of the other's."""
    return overlap(left, right) and covers(left, right) == covers(right, left)


def overlap(left: Segments, right: Segments) -> bool:
    """Whether there is a path that matches both."""
    for one, other in zip(left, right, strict=False):
        if one is Wild.REST or other is Wild.REST:
            return True
        if not _takes(one, other) and not _takes(other, one):
            return False
    return len(left) == len(right)


def covers(left: Segments, right: Segments) -> bool:
    """Whether every path of ``right`` matches ``left``."""
    for one, other in zip(left, right, strict=False):
        if one is Wild.REST:
            return True
        if not _takes(one, other):
            return False
    return len(left) == len(right)


def _takes(one: str | Wild, other: str | Wild) -> bool:
    """Whether a segment matches all that another one does; neither is ``REST``."""
    return one == other or (one is Wild.ONE and isinstance(other, str) and other != "")


# ── matching ───────────────────────────────────────────────────────────────────────────────────────
class _Node:
    """Where patterns with the same beginning part."""

    __slots__ = ("end", "here", "one", "rest", "texts")

    def __init__(self) -> None:
        self.texts: dict[str, _Node] = {}
        self.one: _Node | None = None
        self.here: str | None = None
        """The pattern that is complete here; ``end`` and ``rest`` those that go on so."""
        self.end: str | None = None
        self.rest: str | None = None

    def add(self, segments: Segments, pattern: str) -> None:
        node = self
        for segment in segments:
            if segment is Wild.REST:
                node.rest = pattern
                return
            if segment is Wild.END:
                node.end = pattern
                return
            if segment is Wild.ONE:
                node.one = node.one or _Node()
                node = node.one
            else:
                assert isinstance(segment, str)
                node = node.texts.setdefault(segment, _Node())
        node.here = pattern


def _walk(node: _Node, segments: list[str], at: int) -> str | None:
    if at == len(segments):
        return node.here
    segment = segments[at]
    child = node.texts.get(segment)
    if child is not None:
        found = _walk(child, segments, at + 1)
        if found is not None:
            return found
    if segment == "":
        if node.end is not None and at + 1 == len(segments):
            return node.end
    elif node.one is not None:
        found = _walk(node.one, segments, at + 1)
        if found is not None:
            return found
    return node.rest
