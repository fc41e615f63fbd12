"""Lays YAML nodes over data by a schema: known keys are checked and merged, unknown ones are noted (C-2 to C-4)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple, TypeAlias, cast

from tieline.config.duration import parse_duration
from tieline.config.spelling import closest
from tieline.config.yaml_nodes import Node


class Scalar(Enum):
    """What a single value must be; the value is the word for it in error texts."""

    TEXT = "a text"
    """Numbers and truth values are texts too, as written."""
    SWITCH = "true or false"
    NUMBER = "a whole number"
    DURATION = "a duration such as 5s"
    """Kept as text, once it is known to be one."""
    FREE = "anything"
    """Whatever it is; a later file replaces it whole."""


class ListOf(NamedTuple):
    """A list; a later file replaces it whole."""

    item: Schema


class MapOf(NamedTuple):
    """A mapping with keys of the user's choice; later files add keys and replace values."""

    value: Schema


Schema: TypeAlias = "Scalar | ListOf | MapOf | Mapping[str, Schema]"
"""A mapping stands for a block with exactly these keys; files are merged key by key."""

Data: TypeAlias = dict[str, object]


class Place(NamedTuple):
    """Where a user wrote something."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


class Unknown(NamedTuple):
    """A key that the schema does not have.

    Attributes:
        guess: The key that was most likely meant; empty if there is none.
    """

    place: Place
    guess: str


class WrongType(Exception):
    """A value cannot be what its key takes. The text names the key by its dotted path."""

    def __init__(self, path: str, expected: str, node: Node) -> None:
        super().__init__(f"{path or 'the document'} must be {expected}, not {node.what}")
        self.line = node.line


_UNTOUCHED_BY_NULL: Final = frozenset({"", "spec"})
"""Blocks that an empty value leaves as they were; any other value is cleared by null."""


def as_block(value: object) -> Data:
    """Return decoded data as the block that the schema says it is; an empty one for null or nothing."""
    return cast("Data", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """Return decoded data as the list that the schema says it is; an empty one for null or nothing."""
    return cast("list[object]", value) if isinstance(value, list) else []


class Decoder:
    """Decodes one file after the other onto the same data.

    Attributes:
        places: Where each known key was last written, by dotted path from the top, e.g. ``spec.mtls``.
        unknown: The same for keys that the schema does not have, and what was most likely meant.
    """

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.unknown: dict[str, Unknown] = {}
        self._file = ""

    def lay_over(self, data: Data, schema: Mapping[str, Schema], document: Node, file: str) -> Data:
        """Return the data with the document of a file laid over it; what was given stays unchanged.

        Raises:
            WrongType: A value is not what its key takes.
        """
        self._file = file
        return self._block(schema, document, data, "")

    def _value(self, schema: Schema, node: Node, before: object, path: str) -> object:
        if isinstance(schema, Scalar):
            return read_scalar(schema, node, path)
        if node.is_null:
            return before if path in _UNTOUCHED_BY_NULL else None
        if isinstance(schema, ListOf):
            return self._list(schema, node, path)
        block = as_block(before)
        return (
            self._map(schema, node, block, path)
            if isinstance(schema, MapOf)
            else self._block(schema, node, block, path)
        )

    def _block(self, schema: Mapping[str, Schema], node: Node, before: Data, path: str) -> Data:
        if node.is_null:
            return before
        if not isinstance(node.content, dict):
            raise WrongType(path, "a mapping", node)
        block = dict(before)
        for key, value in node.content.items():
            below = f"{path}.{key}" if path else key
            if key not in schema:
                place = Place(self._file, node.key_lines.get(key, value.line))
                self.unknown[below] = Unknown(place, closest(key, schema))
                continue
            block[key] = self._value(schema[key], value, block.get(key), below)
            self.places[below] = Place(self._file, value.line)
        return block

    def _map(self, schema: MapOf, node: Node, before: Data, path: str) -> Data:
        if not isinstance(node.content, dict):
            raise WrongType(path, "a mapping", node)
        return before | {
            key: self._value(schema.value, value, None, f"{path}.{key}") for key, value in node.content.items()
        }

    def _list(self, schema: ListOf, node: Node, path: str) -> list[object]:
        if not isinstance(node.content, list):
            raise WrongType(path, "a list", node)
        return [self._value(schema.item, item, None, f"{path}[{at}]") for at, item in enumerate(node.content)]


def read_scalar(schema: Scalar, node: Node, path: str) -> object:
    """Return a single value; ``None`` for null.

    Raises:
        WrongType: It is not what the schema says.
    """
    if schema is Scalar.FREE:
        return node.as_data()
    if node.is_null:
        return None
    value: object = None
    match schema:
        case Scalar.TEXT:
            value = node.content if isinstance(node.content, str) else None
        case Scalar.SWITCH:
            value = node.as_bool()
        case Scalar.NUMBER:
            value = node.as_int()
        case Scalar.DURATION:
            value = node.content if isinstance(node.content, str) and _is_duration(node.content) else None
    if value is None:
        raise WrongType(path, schema.value, node)
    return value


def _is_duration(text: str) -> bool:
    try:
        parse_duration(text)
    except ValueError:
        return False
    return True
