"""Splits resource files into documents, and reads from each what all kinds of resource share (C-51).

Names of fields are matched in any case of letters, unknown fields are passed over, and a number or a truth value
stands for its text: so resources have always been read, unlike Configurations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from tieline.config.decode import WrongType
from tieline.config.yaml_nodes import MAX_NODES, Node, Repeat, YamlProblem, read_documents

API_VERSION: Final = "dapr.io/v1alpha1"
MAX_VALUES: Final = 200_000
"""Most values, lists and mappings of all files together; so many take seconds."""
MAX_DOCUMENTS: Final = 1000
"""Most documents of a file that are read."""

# What YAML takes for the start of a document, and longer rows of dashes, which daprd takes for one too. A certificate
# in a text that is not indented begins alike.
_SEPARATOR: Final = re.compile(rb"^---(?!--BEGIN |--END )[^\n]*\n?", re.MULTILINE)
_TRUE_SEPARATOR: Final = re.compile(rb"---(?=\s|\Z)")
_WORDS: Final = {"true": "true", "True": "true", "TRUE": "true", "false": "false", "False": "false", "FALSE": "false"}


class Manifest(NamedTuple):
    """One document that may be a resource.

    Attributes:
        kind: As written, and so are ``api_version`` and ``name``; empty if not given.
        scopes: IDs of the apps that it is for; none for all.
        root: The whole document, a mapping.
        repeats: Keys that stand twice in one mapping.
        place: File and line, for messages.
    """

    kind: str
    api_version: str
    name: str
    namespace: str
    scopes: tuple[str, ...]
    root: Node
    repeats: tuple[Repeat, ...]
    file: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.file} line {self.line}"


class Broken(NamedTuple):
    """A document that cannot be read.

    Attributes:
        kind: Empty if it is not even known.
        line: ``None`` where the parser does not know.
        root: The whole document, if it is YAML and a mapping.
    """

    kind: str
    file: str
    line: int | None
    text: str
    root: Node | None = None


class _Chunk(NamedTuple):
    before: int
    text: bytes


class Budget:
    """How much may still be read: a start, or a reading while calls wait, must not take for ever."""

    def __init__(self) -> None:
        self._values = MAX_VALUES

    def spend(self, values: int) -> None:
        """Count what was read."""
        self._values -= values

    @property
    def is_spent(self) -> bool:
        return self._values < 0


def read_manifests(data: bytes, file: str, budget: Budget) -> Iterator[Manifest | Broken]:
    """Return the documents of a file; one that is broken does not hide those after it. Empty ones are left out.

    Args:
        budget: For all files together.
    """
    for number, chunk in enumerate(_chunks(data)):
        if number == MAX_DOCUMENTS:
            yield Broken("", file, chunk.before + 1, f"only {MAX_DOCUMENTS} documents of a file are read")
            return
        if budget.is_spent:
            text = f"only {MAX_VALUES} values are read, and there are more in these files"
            yield Broken("", file, chunk.before + 1, text)
            return
        yield from _read_chunk(chunk, file, budget)


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Split a text at its separators. A separator stays with what follows, so that ``--- {a: b}`` loses nothing."""
    start, before, line = 0, 0, 0
    counted = 0
    for match in _SEPARATOR.finditer(data):
        line += data.count(b"\n", counted, match.start())
        counted = match.start()
        text = data[start : match.start()]
        if not _is_preamble(text):
            yield _Chunk(before, text)
            start, before = match.start(), line
        if not _TRUE_SEPARATOR.match(match[0]):
            start, before = match.end(), line + 1
    yield _Chunk(before, data[start:])


def _is_preamble(text: bytes) -> bool:
    """Say whether a text only holds directives (``%YAML``), which belong to the document after it."""
    return text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"%")


def _read_chunk(chunk: _Chunk, file: str, budget: Budget) -> Iterator[Manifest | Broken]:
    if not chunk.text.strip():
        return
    repeats: list[Repeat] = []
    try:
        for root in read_documents(chunk.text, before=chunk.before, repeats=repeats):
            budget.spend(root.size)
            if not root.is_null:
                yield read_manifest(root, tuple(repeats), file)
            repeats.clear()
    except YamlProblem as error:
        budget.spend(min(MAX_NODES, len(chunk.text) // 2))  # it may have come that far
        yield Broken("", file, error.line, error.text)


def read_manifest(root: Node, repeats: tuple[Repeat, ...], file: str) -> Manifest | Broken:
    """Return what a document says of itself."""
    kind = ""
    try:
        block(root, "")
        kind = text(root, "kind", "")
        metadata = field(root, "metadata")
        return Manifest(
            kind=kind,
            api_version=text(root, "apiVersion", ""),
            name=text(metadata, "name", "metadata"),
            namespace=text(metadata, "namespace", "metadata"),
            scopes=tuple(as_text(item, "scopes") for item in items(root, "scopes", "")),
            root=root,
            repeats=repeats,
            file=file,
            line=root.line,
        )
    except WrongType as error:
        return Broken(kind, file, error.line, str(error), root if isinstance(root.content, dict) else None)


def bad_name(name: str) -> str:
    """Say what is wrong with the name of a resource; empty if nothing is."""
    if name in (".", ".."):
        return f"may not be '{name}'"
    for character in "/%":
        if character in name:
            return f"may not contain '{character}'"
    return ""


# --- fields ----------------------------------------------------------------------------------------------------------


def block(node: Node | None, path: str) -> dict[str, Node]:
    """Return the entries of a mapping; none for null or nothing.

    Raises:
        WrongType: It is something else, as all functions here.
    """
    if node is None or node.is_null:
        return {}
    if not isinstance(node.content, dict):
        raise WrongType(path, "a mapping", node)
    return node.content


def field(node: Node | None, name: str, path: str = "") -> Node | None:
    """Return the value of a field, its name in any case of letters; ``None`` for null too.

    If it stands there in several spellings, the right one counts, else the last.
    """
    entries = block(node, path)
    found = entries.get(name)
    if found is None:
        lower = name.lower()
        for key, value in entries.items():
            if key.lower() == lower:
                found = value
    return None if found is None or found.is_null else found


def items(node: Node | None, name: str, path: str) -> list[Node]:
    """Return the items of a list."""
    found = field(node, name, path)
    if found is None:
        return []
    if not isinstance(found.content, list):
        raise WrongType(f"{path}.{name}" if path else name, "a list", found)
    return found.content


def text(node: Node | None, name: str, path: str) -> str:
    """Return a text; empty if not given."""
    found = field(node, name, path)
    return "" if found is None else as_text(found, f"{path}.{name}" if path else name)


def switch(node: Node | None, name: str, path: str) -> bool:
    """Return a truth value; false if not given. Quotes around it do not matter."""
    found = field(node, name, path)
    if found is None:
        return False
    value = found.as_bool()
    if value is None and isinstance(found.content, str):
        value = {"true": True, "false": False}.get(found.content.lower())
    if value is None:
        raise WrongType(f"{path}.{name}", "true or false", found)
    return value


def as_text(node: Node, path: str) -> str:
    """Return a scalar as written; ``True`` and the like as JSON has them."""
    if not isinstance(node.content, str):
        raise WrongType(path, "a text", node)
    if node.is_null:
        return ""
    return _WORDS.get(node.content, node.content) if node.plain else node.content


def as_any_text(node: Node, path: str) -> str:
    """Return a scalar as written, a list or a mapping as JSON (C-51)."""
    if isinstance(node.content, str):
        return as_text(node, path)
    return json.dumps(node.as_data(), separators=(",", ":"), ensure_ascii=False)
