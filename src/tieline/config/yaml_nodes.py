"""Reads the documents of a YAML text into nodes that know their lines, within bounds.

Built from the parser's events, not by composing or constructing: so a key written twice is seen, an alias bomb is
counted before it grows, and depth is bounded before the stack is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from yaml import Event

MAX_NODES: Final = 10_000
"""Most values in a document, aliases counted as what they stand for."""
MAX_DEPTH: Final = 100
"""Deepest nesting of mappings and lists."""

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y"})
_FALSE: Final = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"})
# What is a truth value even where none is asked for; `yes` and the like are texts there.
_CORE_WORDS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,18}|0x[0-9a-fA-F]{1,16}|0o[0-7]{1,21})")
_FLOAT: Final = re.compile(r"[+-]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][+-]?[0-9]+)?")
_MAX_SHOWN: Final = 60  # characters of a value in an error text
_MERGE_KEY: Final = "<<"
_STANDARD_TAG: Final = "tag:yaml.org,2002:"
_NO_LINES: Final[Mapping[str, int]] = {}


class YamlProblem(Exception):
    """The text is not YAML, or over a bound.

    Attributes:
        line: Counted from 1; ``None`` where the parser does not know.
    """

    def __init__(self, text: str, line: int | None) -> None:
        super().__init__(text)
        self.text = text
        self.line = line


class Node:
    """A value with the line (from 1) on which it begins. Shared by its aliases, so never changed.

    Attributes:
        content: Entries of a mapping, items of a list, or the text of a scalar.
        key_lines: Of a mapping: the line of each key of its own; those that a merge brings in are not there.
        plain: A scalar without quotes, which may stand for a number, a truth value or null.
        size: Number of nodes in it, itself included.
        depth: Levels of mappings and lists in it; 0 for a scalar.
    """

    __slots__ = ("content", "depth", "key_lines", "line", "plain", "size")

    def __init__(
        self,
        content: dict[str, Node] | list[Node] | str,
        line: int,
        *,
        plain: bool = False,
        key_lines: Mapping[str, int] = _NO_LINES,
    ) -> None:
        self.content = content
        self.key_lines = key_lines
        self.line = line
        self.plain = plain
        children = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        self.size: int = 1 + sum(child.size for child in children)
        self.depth: int = 0 if isinstance(content, str) else 1 + max((child.depth for child in children), default=0)

    @property
    def is_null(self) -> bool:
        return self.plain and self.content in _NULL

    @property
    def what(self) -> str:
        """Say what this is, for an error text."""
        if isinstance(self.content, str):
            return "nothing" if self.is_null else f"the value '{_short(self.content)}'"
        return "a mapping" if isinstance(self.content, dict) else "a list"

    def as_bool(self) -> bool | None:
        """Return the truth value, ``yes`` and ``off`` and the like included; ``None`` if it is none."""
        if not self.plain or not isinstance(self.content, str):
            return None
        return True if self.content in _TRUE else False if self.content in _FALSE else None

    def as_int(self) -> int | None:
        """Return the whole number; ``None`` if it is none."""
        if self.plain and isinstance(self.content, str) and _INTEGER.fullmatch(self.content):
            return int(self.content, 10 if self.content.lstrip("+-").isdecimal() else 0)
        return None

    def as_data(self) -> object:
        """Return it as dicts, lists, texts, numbers, truth values and ``None``."""
        if isinstance(self.content, dict):
            return {key: node.as_data() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.as_data() for node in self.content]
        if not self.plain:
            return self.content
        if self.content in _NULL:
            return None
        if self.content in _CORE_WORDS:
            return _CORE_WORDS[self.content]
        number = self.as_int()
        if number is not None:
            return number
        return float(self.content) if _FLOAT.fullmatch(self.content) else self.content


class Repeat(NamedTuple):
    """A key that stands twice in one mapping."""

    key: str
    first: int
    line: int


def read_first_document(data: bytes) -> Node | None:
    """Return the first document; ``None`` if the text holds none. Later documents are not looked at.

    Raises:
        YamlProblem: Not YAML, a key twice in one mapping, or over ``MAX_NODES`` or ``MAX_DEPTH``.
    """
    return next(read_documents(data), None)


def read_documents(data: bytes, *, before: int = 0, repeats: list[Repeat] | None = None) -> Iterator[Node]:
    """Return the documents one by one. The bounds hold for each.

    Args:
        before: Lines of the file that come before this text.
        repeats: Takes keys that stand twice, of which the last then counts; ``None`` to refuse them.

    Raises:
        YamlProblem: As of ``read_first_document``; the documents before it have been returned by then.
    """
    import yaml  # costs 20 ms, so only a start with a file pays

    # Of the two loaders with the same methods, one has no types.
    loader_type: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    lines = data.rstrip(b"\n").count(b"\n") + 1
    try:
        loader = loader_type(data)
        try:
            while (node := _Builder(loader.get_event, before, repeats).document()) is not None:
                yield node
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        # An error at the end is told for the line after the last.
        raise YamlProblem(_problem(error), None if mark is None else before + min(mark.line + 1, lines)) from error
    except yaml.YAMLError as error:
        reason: str = getattr(error, "reason", None) or str(error)
        raise YamlProblem(reason, None) from error


def _problem(error: Exception) -> str:
    text: str = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
    return text


class _Builder:
    """Makes nodes of events. Recursion is bounded by ``MAX_DEPTH``."""

    def __init__(self, next_event: Callable[[], Event | None], before: int, repeats: list[Repeat] | None) -> None:
        import yaml

        self._yaml = yaml
        self._next = next_event
        self._before = before
        self._repeats = repeats
        self._anchors: dict[str, Node | None] = {}
        self._count = 0

    def document(self) -> Node | None:
        while True:
            event = self._next()
            if isinstance(event, self._yaml.DocumentStartEvent):
                return self._node(self._next(), 0)
            if event is None or isinstance(event, self._yaml.StreamEndEvent):
                return None

    def _node(self, event: Event | None, depth: int) -> Node:
        assert isinstance(event, self._yaml.NodeEvent)
        assert event.start_mark is not None
        line = self._before + event.start_mark.line + 1
        anchor = event.anchor
        if isinstance(event, self._yaml.AliasEvent):
            assert anchor is not None
            return self._aliased(anchor, line, depth)
        self._add(1, depth if isinstance(event, self._yaml.ScalarEvent) else depth + 1, line)
        if anchor is not None:
            self._anchors[anchor] = None  # open: an alias to it inside itself would never end
        node = self._new(event, line, depth)
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _new(self, event: Event, line: int, depth: int) -> Node:
        if isinstance(event, self._yaml.ScalarEvent):
            return Node(event.value, line, plain=_is_plain(event.implicit[0], event.tag))
        if isinstance(event, self._yaml.SequenceStartEvent):
            return Node(self._items(depth + 1), line)
        key_lines: dict[str, int] = {}
        return Node(self._entries(depth + 1, key_lines), line, key_lines=key_lines)

    def _items(self, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := self._next(), self._yaml.SequenceEndEvent):
            items.append(self._node(event, depth))
        return items

    def _entries(self, depth: int, lines: dict[str, int]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := self._next(), self._yaml.MappingEndEvent):
            key = self._node(event, depth)
            if not isinstance(key.content, str):
                raise YamlProblem(f"a key must be a text, not {key.what}", key.line)
            if key.content in entries:
                self._repeated(key.content, lines[key.content], key.line)
            lines[key.content] = key.line
            entries[key.content] = self._node(self._next(), depth)
        merged = entries.pop(_MERGE_KEY, None)
        return entries if merged is None else self._under(merged, depth) | entries

    def _repeated(self, key: str, first: int, line: int) -> None:
        if self._repeats is None:
            raise YamlProblem(f'mapping key "{_short(key)}" already defined at line {first}', line)
        self._repeats.append(Repeat(key, first, line))

    def _under(self, merged: Node, depth: int) -> dict[str, Node]:
        """Return the entries that a merge key (``<<``) brings in: of several mappings, the first has the say."""
        sources = merged.content if isinstance(merged.content, list) else [merged]
        entries: dict[str, Node] = {}
        for source in sources:
            if not isinstance(source.content, dict):
                raise YamlProblem("map merge requires map or sequence of maps as the value", source.line)
            entries = source.content | entries
        return entries

    def _aliased(self, anchor: str, line: int, depth: int) -> Node:
        if anchor not in self._anchors:
            raise YamlProblem(f"unknown anchor '{anchor}' referenced", line)
        node = self._anchors[anchor]
        if node is None:
            raise YamlProblem(f"anchor '{anchor}' value contains itself", line)
        self._add(node.size, depth + node.depth, line)
        return node

    def _add(self, nodes: int, levels: int, line: int) -> None:
        self._count += nodes
        if self._count > MAX_NODES:
            raise YamlProblem(f"more than {MAX_NODES} values", line)
        if levels > MAX_DEPTH:
            raise YamlProblem(f"nested deeper than {MAX_DEPTH} levels", line)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def _is_plain(implicit: bool, tag: str | None) -> bool:
    return implicit or (tag is not None and tag.startswith(_STANDARD_TAG) and tag != _STANDARD_TAG + "str")
