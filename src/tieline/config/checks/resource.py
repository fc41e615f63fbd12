"""What checks of all kinds of resource have in common: their outer fields, and items that refer to secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from tieline.config.checks.findings import Findings
from tieline.config.decode import ListOf, Scalar, Schema
from tieline.config.references import Source
from tieline.config.secret_stores import refused_variable

TEXT: Final = Scalar.TEXT
FREE: Final = Scalar.FREE

METADATA: Final[Schema] = {
    "name": TEXT,
    "namespace": TEXT,
    "labels": FREE,
    "annotations": FREE,
    "creationTimestamp": FREE,
    "finalizers": FREE,
    "generation": FREE,
    "managedFields": FREE,
    "ownerReferences": FREE,
    "resourceVersion": FREE,
    "uid": FREE,
}
SECRET: Final[Schema] = {"name": TEXT, "key": TEXT}
ITEMS: Final = ListOf({"name": TEXT, "value": FREE, "secretKeyRef": SECRET, "envRef": TEXT})


def resource(spec: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the schema of a kind, given that of its ``spec``."""
    return {
        "apiVersion": TEXT,
        "kind": TEXT,
        "metadata": METADATA,
        "spec": spec,
        "auth": {"secretStore": TEXT},
        "scopes": ListOf(TEXT),
        "status": FREE,
    }


class StoreUse(NamedTuple):
    """A secret that some resource wants from a store."""

    store: str
    what: str
    line: int


class Uses:
    """Checks items that have a value, a variable or a secret, and remembers which stores they need.

    Args:
        store: What ``auth.secretStore`` names; empty if nothing.
    """

    def __init__(self, found: Findings, store: str, environ: Mapping[str, str]) -> None:
        self._found = found
        self._store = store
        self._environ = environ
        self.stores: list[StoreUse] = []

    def check(self, source: Source, what: str) -> None:
        """Note what is wrong with one item; ``what`` names it."""
        if source.secret:
            if not self._store:
                hint = "name the component of the secret store there"
                self._found.error(source.line, f"{what} refers to a secret, but auth.secretStore is not given", hint)
            else:
                self.stores.append(StoreUse(self._store, what, source.line))
            if source.value is not None or source.variable:
                self._found.warn(source.line, f"{what}: the secret is used, not the value or variable beside it")
        elif source.value is not None:
            if source.variable:
                self._found.warn(source.line, f"{what}: the value is used, not the variable beside it")
        elif source.variable:
            refused = refused_variable(source.variable, self._environ)
            if refused:
                self._found.error(source.line, f"{what}: the variable {source.variable} may not be read: {refused}")
            elif source.variable not in self._environ:
                message = f"{what}: the variable {source.variable} is not set here: without it there is no value"
                self._found.warn(source.line, message, "set it where the sidecar starts")
        else:
            self._found.warn(source.line, f"{what} has no value", "give value, secretKeyRef or envRef")
