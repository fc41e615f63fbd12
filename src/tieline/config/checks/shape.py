"""Compares a document with a schema: unknown keys and wrong types, all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tieline.config.checks.findings import Findings, quoted
from tieline.config.decode import ListOf, MapOf, Scalar, Schema, WrongType, read_scalar
from tieline.config.spelling import closest
from tieline.config.yaml_nodes import Node


class Shape:
    """Checks documents.

    Args:
        any_case: Keys are matched in any case of letters, as in resources; not in Configurations (C-3).

    Attributes:
        wrong: What is of a wrong type.
    """

    def __init__(self, found: Findings, *, any_case: bool) -> None:
        self._found = found
        self._any_case = any_case
        self.wrong: list[Node] = []

    def check(self, schema: Schema, node: Node, path: str = "") -> None:
        """Note what does not fit."""
        if isinstance(schema, Scalar):
            self._scalar(schema, node, path)
        elif node.is_null:
            return
        elif isinstance(schema, ListOf):
            self._list(schema, node, path)
        elif not isinstance(node.content, dict):
            self._wrong(WrongType(path, "a mapping", node), node)
        elif isinstance(schema, MapOf):
            for key, value in node.content.items():
                self.check(schema.value, value, f"{path}.{key}")
        else:
            self._block(schema, node, node.content, path)

    def _block(self, schema: Mapping[str, Schema], node: Node, entries: Mapping[str, Node], path: str) -> None:
        by_lower = {key.lower(): key for key in schema} if self._any_case else {}
        for key, value in entries.items():
            known = key if key in schema else by_lower.get(key.lower())
            below = f"{path}.{key}" if path else key
            if known is not None:
                self.check(schema[known], value, below)
                continue
            line = node.key_lines.get(key, value.line)
            guess = closest(key, schema)
            message = f"{below} is not a known key: it is passed over"
            # A slip of a known key was meant to do something.
            (self._found.error if guess else self._found.warn)(line, message, quoted(guess))

    def _list(self, schema: ListOf, node: Node, path: str) -> None:
        if not isinstance(node.content, list):
            self._wrong(WrongType(path, "a list", node), node)
            return
        for at, item in enumerate(node.content):
            self.check(schema.item, item, f"{path}[{at}]")

    def _scalar(self, schema: Scalar, node: Node, path: str) -> None:
        try:
            read_scalar(schema, node, path)
        except WrongType as error:
            self._wrong(error, node)

    def _wrong(self, error: WrongType, node: Node) -> None:
        self._found.error(error.line, str(error))
        self.wrong.append(node)


def without(root: Node, wrong: Sequence[Node]) -> Node:
    """Return a document without some of its parts, so that the rest of it can be looked at."""
    return root if not wrong else _without(root, frozenset(map(id, wrong)))


def _without(node: Node, wrong: frozenset[int]) -> Node:
    if isinstance(node.content, dict):
        entries = {key: _without(value, wrong) for key, value in node.content.items() if id(value) not in wrong}
        return Node(entries, node.line, key_lines=node.key_lines)
    if isinstance(node.content, list):
        return Node([_without(item, wrong) for item in node.content if id(item) not in wrong], node.line)
    return node
