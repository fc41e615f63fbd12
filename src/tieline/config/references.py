"""Values that stand elsewhere: in the environment (``envRef``) or in a secret store (``secretKeyRef``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tieline.config.manifests import as_any_text, field, text
from tieline.config.secret_stores import SecretMissing, SecretStore, refused_variable
from tieline.config.yaml_nodes import Node


class Source(NamedTuple):
    """Where a value comes from: an item of ``metadata``, ``headers`` or ``clientTLS``.

    Attributes:
        value: As given inline; ``None`` if not given.
        variable: Of the environment; empty if not given.
        secret: Name of a secret; empty if not given.
        key: Within the secret; its name if not given (H-97).
    """

    name: str
    value: str | None
    variable: str
    secret: str
    key: str
    line: int


def read_source(node: Node, path: str, name: str | None = None) -> Source:
    """Return what an item says; ``name`` is for items that have none of their own.

    Raises:
        WrongType: A field of it is of a wrong type.
    """
    value = field(node, "value", path)
    reference = field(node, "secretKeyRef", path)
    secret = text(reference, "name", f"{path}.secretKeyRef")
    return Source(
        name=text(node, "name", path) if name is None else name,
        value=None if value is None else as_any_text(value, f"{path}.value"),
        variable=text(node, "envRef", path) if name is None else "",
        secret=secret,
        key=text(reference, "key", f"{path}.secretKeyRef") or secret,
        line=node.line,
    )


class References:
    """Looks values up for one resource, and tells of each that is not there.

    Args:
        owner: The resource, for messages: kind and name.
        store: Name of its secret store; empty if it names none.
        tell: Takes a level of logging and a sentence without its place, and the line it is about.
    """

    def __init__(
        self,
        owner: str,
        store: str,
        stores: Mapping[str, SecretStore],
        environ: Mapping[str, str],
        tell: Callable[[str, str, int], None],
    ) -> None:
        self._owner = owner
        self._store = store
        self._stores = stores
        self._environ = environ
        self._tell = tell

    def value(self, source: Source) -> str | None:
        """Return the value; the inline one, or ``None``, if what is referred to is not there (H-97, H-98)."""
        if source.secret:
            return self._secret(source)
        if source.value is None and source.variable:
            return self._variable(source)
        return source.value

    def _secret(self, source: Source) -> str | None:
        if not self._store:
            self._tell("error", f"{self._owner}: {source.name}: auth.secretStore names no store", source.line)
            return source.value
        store = self._stores.get(self._store)
        if store is None:
            text = f"{self._owner} references a secret store that isn't loaded: {self._store}"
            self._tell("warning", f"{text} ({source.name} is without its value)", source.line)
            return source.value
        try:
            return store.secret(source.secret, source.key)
        except SecretMissing as error:
            text = f"{self._owner}: {source.name}: store {self._store}: {error}"
            self._tell("error", text, source.line)
            return source.value

    def _variable(self, source: Source) -> str | None:
        refused = refused_variable(source.variable, self._environ)
        value = None if refused else self._environ.get(source.variable)
        if value is None:
            why = f"may not be read: {refused}" if refused else "is not set"
            text = f"{self._owner}: {source.name}: the environment variable {source.variable!r} {why}"
            self._tell("warning", text, source.line)
        return value
